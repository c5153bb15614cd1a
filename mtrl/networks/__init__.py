"""What the agent is made of: recorded layers, and the architectures made of them."""

from mtrl.networks.care import Care
from mtrl.networks.film import FiLM
from mtrl.networks.layers import LayerNorm, Linear, Mixture, TaskLinear, TaskTable
from mtrl.networks.moore import Moore
from mtrl.networks.multi_head import multi_head_network
from mtrl.networks.paco import PaCo
from mtrl.networks.registry import (
    Network,
    Shape,
    available_networks,
    create_network,
    describe_network,
    register_network,
)
from mtrl.networks.shared import shared_network
from mtrl.networks.soft_modules import SoftModules

__all__ = [
    "Care",
    "FiLM",
    "LayerNorm",
    "Linear",
    "Mixture",
    "Moore",
    "Network",
    "PaCo",
    "Shape",
    "SoftModules",
    "TaskLinear",
    "TaskTable",
    "available_networks",
    "create_network",
    "describe_network",
    "multi_head_network",
    "register_network",
    "shared_network",
]
