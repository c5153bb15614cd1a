"""The search space: which settings vary, and between what."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from mtrl.config import Config
from mtrl.schema import ConfigError, read_yaml, types_of
from mtrl.sweep.grid import configure

Kind = Literal["uniform", "log_uniform", "int", "categorical"]
FORMS = (
    "must be {uniform: [LOW, HIGH]}, {log_uniform: [LOW, HIGH]}, {int: [LOW, HIGH], step: N} or "
    "{categorical: [A, B, ...]}"
)
NOT_SEARCHED = {
    "seed": "is no hyperparameter; the seed of all trials is set by --set seed=N",
    "name": "use --name",
    "run_dir": "use --root and --name",
}
"""Keys that a space does not take, and why."""


class Suggests(Protocol):
    """An Optuna trial."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int) -> int: ...
    def suggest_categorical(self, name: str, choices: list[Any]) -> Any: ...


@dataclass(frozen=True)
class Dimension:
    """One setting."""

    kind: Kind
    values: tuple[Any, ...]
    """Lowest and highest value; of a categorical one, all."""
    step: int = 1
    """Of an int."""

    def suggest(self, key: str, trial: Suggests) -> Any:
        if self.kind == "categorical":
            return self.named(trial.suggest_categorical(key, list(map(_label, self.values))))
        low, high = self.values
        if self.kind == "int":
            return trial.suggest_int(key, low, high, step=self.step)
        return trial.suggest_float(key, low, high, log=self.kind == "log_uniform")

    def named(self, stored: Any) -> Any:
        """The value that Optuna holds as `stored`."""
        if self.kind != "categorical":
            return stored
        return next(value for value in self.values if _label(value) == stored)


Space = dict[str, Dimension]


def _label(value: Any) -> Any:
    """Optuna's choices are numbers and words; a list goes by its text."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def read_space(path: Path, base: Config, settings: Mapping[str, Any]) -> Space:
    """{"agent.tau": ..., ...} of a YAML file; settings: what else is set in all trials.

    Raises ConfigError for a key that the configuration does not have, and for a bound or a choice
    that it does not take.
    """
    if not path.is_file():
        raise ConfigError("space", str(path), "no such file")
    content = read_yaml(path)
    if not (isinstance(content, dict) and content):
        raise ConfigError("space", str(path), "must be a mapping of a configuration's keys")
    return {key: _dimension(str(key), given, base, settings) for key, given in content.items()}


def _dimension(key: str, given: Any, base: Config, settings: Mapping[str, Any]) -> Dimension:
    if key in NOT_SEARCHED:
        raise ConfigError(key, given, NOT_SEARCHED[key])
    if key in settings:
        raise ConfigError(key, settings[key], "stands in the space and in --set; one is enough")
    named = [kind for kind in get_args(Kind) if isinstance(given, dict) and kind in given]
    if not named or set(given) - {named[0]} - ({"step"} if named[0] == "int" else set()):
        raise ConfigError(key, given, FORMS)
    kind: Kind = named[0]
    values, step = given[kind], given.get("step", 1)
    if kind in ("uniform", "log_uniform") and types_of(Config).get(key) is int:
        raise ConfigError(key, given, "is an integer: must be {int: [LOW, HIGH]} or categorical")
    if kind == "categorical":
        _check_choices(key, values)
    else:
        values = _bounds(key, kind, values, step)
    for value in values:  # the configuration itself says what it takes
        configure(base, {**settings, key: value})
    return Dimension(kind, tuple(values), step)


def _check_choices(key: str, values: Any) -> None:
    if not (isinstance(values, list) and values):
        raise ConfigError(key, values, "categorical must have a list of at least one value")
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(key, values, f"has {value!r} twice")


def _bounds(key: str, kind: str, values: Any, step: Any) -> list[float]:
    """Lowest and highest value, of the kind's own type."""

    def need(condition: bool, allowed: str) -> None:
        if not condition:
            raise ConfigError(key, values, f"{kind} {allowed}")

    numbers = int if kind == "int" else int | float
    need(isinstance(values, list) and len(values) == 2, "must have two bounds, [LOW, HIGH]")
    right = all(isinstance(v, numbers) and not isinstance(v, bool) for v in values)
    need(right, f"must have two {'integers' if kind == 'int' else 'numbers'} as bounds")
    need(all(map(math.isfinite, values)), "must have finite bounds")
    low, high = values
    need(low < high, "must have a lower bound below the higher one")
    if kind == "int":
        whole = isinstance(step, int) and not isinstance(step, bool) and step >= 1
        need(whole and (high - low) % step == 0, f"must reach its end in steps of {step!r}")
        return [low, high]
    need(kind == "uniform" or low > 0, "must have positive bounds")
    return [float(low), float(high)]
