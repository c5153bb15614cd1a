"""Before a run directory is made or changed: its data, and whether they and the settings fit."""

from __future__ import annotations

import math
import os

import torch

from mtrl.schema import ConfigError, nearest, user_path
from mtrl.supervised.auto_lambda import HELD_OUT
from mtrl.supervised.config import SupervisedConfig
from mtrl.supervised.data import Split, Splits, cut
from mtrl.supervised.networks import read_encoder
from mtrl.supervised.problems import Problem, make_problem


def load_data(config: SupervisedConfig) -> Splits:
    """Raises DataError for missing or damaged files, ConfigError for less than a batch."""
    folder = config.data_dir or os.environ.get("MTRL_DATA", "")
    problem = make_problem(config)
    check_selection(config, problem)
    splits = problem.load(user_path(folder) if folder else None)
    training_split(config, splits)
    return splits


def check_selection(config: SupervisedConfig, problem: Problem) -> None:
    """Raises ConfigError unless the reference has a score for each metric of each task, or is empty
    and not needed."""
    given, wanted = config.train.reference, problem.scored
    for key in dict.fromkeys([*given, *(wanted if given else ())]):
        if key not in wanted:
            allowed = f"must be one of {', '.join(wanted)}{nearest(key, wanted)}"
            raise ConfigError(f"train.reference.{key}", given[key], allowed)
        value = given.get(key)
        if not isinstance(value, int | float) or not math.isfinite(value) or not value:
            raise ConfigError(f"train.reference.{key}", value, "must be a number, not zero")
    patience = config.train.lr_patience
    if patience and not given and not problem.selects_by_mean:
        allowed = "needs one score to watch; tasks of different metrics have none but Delta_m, "
        raise ConfigError("train.lr_patience", patience, allowed + "by train.reference")


def check_start_weights(config: SupervisedConfig) -> None:
    """Raises ConfigError if they cannot be read or do not fit. Before a run directory is made."""
    if config.network.weights:
        with torch.device("meta"):  # shapes alone
            encoder = make_problem(config).network().encoder
        read_encoder(encoder, user_path(config.network.weights))


def training_split(config: SupervisedConfig, splits: Splits) -> tuple[Split, Split | None]:
    """What is trained on, at least a batch, and what is held out of it for Auto-Lambda."""
    kept, apart = splits.train, None
    if config.smto.name == "auto_lambda":
        kept, apart = cut(kept, HELD_OUT)
    if len(kept.inputs) < config.train.batch_size:
        raise ConfigError(
            "train.batch_size",
            config.train.batch_size,
            f"must not exceed the {len(kept.inputs):,} training samples",
        )
    return kept, apart
