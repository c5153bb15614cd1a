"""Specialised multi-task optimisers: how the tasks' losses or gradients become one direction."""

from mtrl.smto.base import SMTO, available, create, describe, register
from mtrl.smto.pcgrad import PCGrad
from mtrl.smto.weighting import Fixed, Unitary

__all__ = ["SMTO", "Fixed", "PCGrad", "Unitary", "available", "create", "describe", "register"]
