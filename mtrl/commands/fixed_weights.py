"""Fixed weights from an SMTO's own run (Gama & Grassi 2025): no search, no SMTO any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.config import Config
from mtrl.files import yaml12
from mtrl.options.command_line import MAY_DIFFER
from mtrl.options.command_words import HELP
from mtrl.run.directory import RunDirectory
from mtrl.run.state import read_metrics, read_stored
from mtrl.schema import ConfigError, UsageError, dump_yaml, user_path
from mtrl.supervised.config import SupervisedConfig

EMA = 0.9


def weights_command(words: list[str]) -> None:
    if words[0] in HELP:
        print("mtrl weights RUN_DIR\n\nAn SMTO's mean weights, as a configuration for `fixed`.")
        return
    if len(words) != 1:
        raise UsageError("weights needs a run directory, and nothing else")
    print(as_yaml(user_path(words[0])), end="")


def as_yaml(path: Path) -> str:
    """The run's configuration with these weights in place of its SMTO; defaults are left out.

    ConfigError if the run has no weights, or weights that `fixed` does not take.
    """
    run = RunDirectory(path)
    if not run.config_file.is_file() or not run.metrics_file.is_file():
        raise ConfigError("RUN_DIR", str(path), "is not a run directory with metrics.jsonl")
    content = read_stored(run.config_file)
    supervised = run.is_supervised
    records = list(read_metrics(run.metrics_file))
    found = {
        loss: weights
        for loss in (("shared",) if supervised else ("critic", "actor"))
        if (weights := fixed_weights(records, loss, by_epoch=supervised))
    }
    if not found:
        raise ConfigError("RUN_DIR", str(path), "has no logged task weights: its method has none")
    for loss, weights in found.items():
        if min(weights.values()) < 0:
            raise ConfigError("RUN_DIR", str(path), f"ends with negative weights of the {loss}")
    chosen: dict[str, Any] = {
        loss: {"name": "fixed", "options": {"weights": [round(w, 6) for w in weights.values()]}}
        for loss, weights in found.items()
    }
    if supervised:
        content["smto"] = chosen["shared"]
    else:
        agent = content.setdefault("agent", {})
        agent |= {f"{loss}_smto": value for loss, value in chosen.items()}
        if len(found) == 2:  # nothing is left of it
            agent.pop("smto", None)
    for key in MAY_DIFFER:  # of another run's own
        content.pop(key, None)
    default = yaml12.parse(dump_yaml(SupervisedConfig() if supervised else Config()))
    names = ", ".join(next(iter(found.values())))
    return f"# tasks: {names}\n" + yaml12.dump(_departures(content, default), flow=None)


def _departures(content: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """The part of `content` that is not in `default`."""
    part = {}
    for key, value in content.items():
        usual = default.get(key)
        if isinstance(value, dict) and isinstance(usual, dict):
            value = _departures(value, usual)
            if value:
                part[key] = value
        elif value != usual:
            part[key] = value
    return part


def fixed_weights(
    records: Sequence[Mapping[str, float]], loss: str, *, by_epoch: bool
) -> dict[str, float]:
    """{task: weight}, summing to 1; {} if the lines of metrics.jsonl have none.

    The mean weights of each epoch, normalised to sum 1, go into a moving average (0.9, from the
    first epoch's); its last value is normalised again. Where there are no epochs (reinforcement
    learning) every log interval counts as one.
    """
    prefix = f"smto/{loss}/weight/"
    average: NDArray[np.float64] | None = None
    total: NDArray[np.float64] | float = 0.0
    names: list[str] = []
    last = 0.0
    for record in records:
        own = {key.removeprefix(prefix): v for key, v in record.items() if key.startswith(prefix)}
        if own:
            names = list(own)
            total = total + (record["step"] - last) * np.array(list(own.values()))
            last = record["step"]
        ended = "epoch" in record if by_epoch else bool(own)
        if ended and isinstance(total, np.ndarray) and total.sum() != 0:
            mean = total / total.sum()
            average = mean if average is None else EMA * average + (1.0 - EMA) * mean
            total = 0.0
    if average is None:
        return {}
    return dict(zip(names, (average / average.sum()).tolist(), strict=True))
