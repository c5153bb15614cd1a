"""`mtrl supervised` and `mtrl resume` of such a run."""

from __future__ import annotations

import dataclasses

from mtrl.options import command_line
from mtrl.options.command_line import MAY_DIFFER
from mtrl.options.command_words import Existing, read_words, split_files
from mtrl.options.plugins import load_plugins
from mtrl.run.directory import RunDirectory
from mtrl.schema import ConfigError, flatten, user_path
from mtrl.supervised.config import SupervisedConfig, load_yaml, validate


def load_config(name: str, *more: str) -> SupervisedConfig:
    """Of YAML files or presets; later ones are laid over the first."""
    return command_line.load_with(load_yaml, name, *more)


def with_overrides(
    default: SupervisedConfig, program: str, arguments: list[str]
) -> SupervisedConfig:
    """What the command line says, on top of the files; validated."""
    return _checked(read_words(default, program, arguments, starts=False)[0])


def start_options(
    default: SupervisedConfig, program: str, arguments: list[str]
) -> tuple[SupervisedConfig, Existing]:
    """`with_overrides`, for a command that starts a run."""
    config, existing = read_words(default, program, arguments, starts=True)
    return _checked(config), existing


def _checked(config: SupervisedConfig) -> SupervisedConfig:
    config = load_plugins(_with_absolute_paths(config))
    validate(config)
    return config


def _with_absolute_paths(config: SupervisedConfig) -> SupervisedConfig:
    """As they are stored: a run is resumed from any folder."""
    network = dataclasses.replace(config.network, weights=_absolute(config.network.weights))
    return dataclasses.replace(config, data_dir=_absolute(config.data_dir), network=network)


def _absolute(path: str) -> str:
    return str(user_path(path).absolute()) if path else ""


def supervised_command(words: list[str]) -> None:
    files, program, rest = split_files("supervised", words)
    default = load_config(*files) if files else SupervisedConfig()
    config, existing = start_options(default, program, rest)
    run = RunDirectory(config.run_path, overwrite=existing.overwrite)
    if existing.resume_if_exists and run.holds_run:
        run, stored = RunDirectory.open_as(run.path, load_yaml)
        _train(continued(stored, config), run, resume=True)
        return
    run.check_free()
    _train(config, run, resume=False)


MACHINE = ("data_dir", "network.weights", "plugins", "learner.device")
"""What another machine may have elsewhere."""


def resume(arguments: list[str]) -> None:
    """`mtrl resume RUN_DIR [--train.epochs N] [--data-dir FOLDER] [--network.weights FILE]
    [--learner.device NAME]` of a supervised run."""
    name, *overrides = arguments
    path = user_path(name)
    if path.is_file():
        raise ConfigError(
            "RUN", name, "a supervised run continues from its newest checkpoint; name its directory"
        )
    run, stored = RunDirectory.open_as(path, load_yaml)
    config = with_overrides(stored, f"mtrl resume {name}", overrides)
    _train(continued(stored, config), run, resume=True)


def continued(stored: SupervisedConfig, wanted: SupervisedConfig) -> SupervisedConfig:
    """Configuration with which a run continues: the stored one, longer if so asked.

    Raises ConfigError for the first setting in which `wanted` differs otherwise.
    """
    before = flatten(stored)
    for key, value in flatten(wanted).items():
        if value != before[key] and key not in ("train.epochs", *MACHINE, *MAY_DIFFER):
            raise ConfigError(key, value, f"a resumed run keeps {key} = {before[key]!r}")
    if bool(wanted.network.weights) != bool(stored.network.weights):
        how = "from a file, which may lie elsewhere" if stored.network.weights else "without one"
        raise ConfigError("network.weights", wanted.network.weights, f"the run started {how}")
    if wanted.train.epochs < stored.train.epochs:
        raise ConfigError(
            "train.epochs",
            wanted.train.epochs,
            f"may only be raised; the run has {stored.train.epochs}",
        )
    return dataclasses.replace(wanted, run_dir=stored.run_dir)


def _train(config: SupervisedConfig, run: RunDirectory, *, resume: bool) -> None:
    from rich.table import Table

    from mtrl.run.console import open_console
    from mtrl.supervised.preparation import check_start_weights, load_data
    from mtrl.supervised.train import train

    if config.learner.device not in ("auto", "cpu"):
        from mtrl.device.setup import choose_device

        choose_device(config.learner.device)  # before the data, which may take minutes
    if not resume:
        check_start_weights(config)
    splits = load_data(config)
    scores = train(config, run, splits, resume=resume)
    table = Table(title=f"test, {config.protocol_stamp}, {config.method}, selected on validation")
    for column in ("task", "metric", "value"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for score in scores:
        table.add_row(score.task, score.metric, f"{score.value:.4f}")
    open_console().print(table)
    print(f"run directory: {run.path.resolve()}")
