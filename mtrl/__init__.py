"""mtrl: multi-task reinforcement learning with pluggable multi-task optimisers."""

__version__ = "0.1.0"
