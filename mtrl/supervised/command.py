"""`mtrl supervised` and `mtrl resume` of such a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from mtrl.command_line import find_config, gather, mappings_as_pairs
from mtrl.plugins import load_plugins
from mtrl.run_directory import RunDirectory
from mtrl.schema import ConfigError, flatten
from mtrl.supervised.config import SupervisedConfig, load_yaml, validate, with_smto
from mtrl.supervised.data import Splits
from mtrl.supervised.method_presets import with_preset


def load_config(name: str) -> SupervisedConfig:
    """A YAML file, or a preset by its name."""
    path = find_config(name)
    config = load_yaml(path)
    return config if config.name else dataclasses.replace(config, name=path.stem)


def with_overrides(
    default: SupervisedConfig, program: str, arguments: list[str]
) -> SupervisedConfig:
    """Preset of the method on top of the file, command line on top of both; validated."""
    config = _parse(default, program, arguments)
    if config.smto.preset:
        config = _parse(with_preset(default, config), program, arguments)
        config = with_smto(config, preset="")
    config = load_plugins(_with_absolute_paths(config))
    validate(config)
    return config


def _with_absolute_paths(config: SupervisedConfig) -> SupervisedConfig:
    """As they are stored: a run is resumed from any folder."""
    network = dataclasses.replace(config.network, weights=_absolute(config.network.weights))
    return dataclasses.replace(config, data_dir=_absolute(config.data_dir), network=network)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute()) if path else ""


def _parse(default: SupervisedConfig, program: str, arguments: list[str]) -> SupervisedConfig:
    config = tyro.cli(
        SupervisedConfig,
        default=default,
        prog=program,
        args=gather(default, arguments),
        registry=mappings_as_pairs(),
    )
    given = any(word.split("=")[0] == "--smto.options" for word in arguments)
    options = config.smto.options if given else {}
    if config.smto.name == default.smto.name:  # another method's options mean nothing to this one
        options = default.smto.options | options
    return with_smto(config, options=options)


def supervised(arguments: list[str]) -> None:
    """`mtrl supervised CONFIG [--key value ...]`"""
    from mtrl.supervised.train import check_start_weights, load_data

    if arguments[0] in ("-h", "--help"):
        with_overrides(SupervisedConfig(), "mtrl supervised CONFIG", ["--help"])
    name, *overrides = arguments
    config = with_overrides(load_config(name), f"mtrl supervised {name}", overrides)
    if config.learner.device not in ("auto", "cpu"):
        from mtrl.learner import choose_device

        choose_device(config.learner.device)  # refused before anything is written
    check_start_weights(config)  # likewise, and so are the data
    splits = load_data(config)
    _train(config, RunDirectory.create(config), splits, resume=False)


MACHINE = ("data_dir", "network.weights", "learner.device")
"""What another machine may have elsewhere."""


def resume(arguments: list[str]) -> None:
    """`mtrl resume RUN_DIR [--train.epochs N] [--data-dir FOLDER] [--network.weights FILE]
    [--learner.device NAME]` of a supervised run."""
    from mtrl.supervised.train import load_data

    name, *overrides = arguments
    if Path(name).is_file():
        raise ConfigError(
            "RUN", name, "a supervised run continues from its newest checkpoint; name its directory"
        )
    run, stored = RunDirectory.open_as(Path(name), load_yaml)
    config = with_overrides(stored, f"mtrl resume {name}", overrides)
    before = flatten(stored)
    for key, value in flatten(config).items():
        if value != before[key] and key not in ("train.epochs", *MACHINE):
            raise ConfigError(key, value, f"a resumed run keeps {key} = {before[key]!r}")
    if bool(config.network.weights) != bool(stored.network.weights):
        how = "from a file, which may lie elsewhere" if stored.network.weights else "without one"
        raise ConfigError("network.weights", config.network.weights, f"the run started {how}")
    if config.train.epochs < stored.train.epochs:
        raise ConfigError(
            "train.epochs",
            config.train.epochs,
            f"may only be raised; the run has {stored.train.epochs}",
        )
    splits = load_data(config)
    run.lock()
    _train(config, run, splits, resume=True)


def _train(config: SupervisedConfig, run: RunDirectory, splits: Splits, *, resume: bool) -> None:
    from rich.table import Table

    from mtrl.console import open_console
    from mtrl.supervised.train import train

    scores = train(config, run, splits, resume=resume)
    table = Table(title=f"test, {config.protocol_stamp}, {config.method}, selected on validation")
    for column in ("task", "metric", "value"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for score in scores:
        table.add_row(score.task, score.metric, f"{score.value:.4f}")
    open_console().print(table)
    print(f"run directory: {run.path.resolve()}")
