"""The methods of a supervised run: all of `mtrl.smto`, and those that need more than gradients."""

from __future__ import annotations

from mtrl import smto
from mtrl.smto import SMTO
from mtrl.supervised.auto_lambda import AutoLambda

OWN: dict[str, type[SMTO]] = {"auto_lambda": AutoLambda}
"""In no registry: reinforcement learning has no held-out batches to give them."""


def find(name: str) -> str | type[SMTO]:
    """The method as `mtrl.smto.create` and `describe` take it."""
    return OWN.get(name, name)


def available() -> tuple[str, ...]:
    return (*smto.available(), *OWN)
