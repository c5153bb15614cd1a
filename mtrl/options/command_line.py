"""Files and command line -> one validated configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from mtrl.config import Config, load_yaml
from mtrl.options.command_words import Existing, read_words
from mtrl.options.validation import validate
from mtrl.schema import (
    ConfigError,
    flatten,
    leaves,
    nearest,
    read_yaml,
    user_path,
    with_values,
)

Kind = TypeVar("Kind", bound=Any)
"""Config, or the supervised benchmarks' configuration."""


def preset_folders() -> list[Path]:
    """Where presets are: next to the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent.parent
    return [
        folder for folder in (package.parent / "configs", package / "configs") if folder.is_dir()
    ]


def presets() -> dict[str, Path]:
    """{name: file}; those in folders, `kurin/pcgrad`, are to be laid over another."""
    files = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for folder in reversed(preset_folders())
        for path in folder.rglob("*.yaml")
    }
    return dict(sorted(files.items(), key=lambda item: (item[0].count("/"), item[0])))


def find_config(name: str) -> Path:
    """A YAML file, or a preset by its name."""
    path = user_path(name)
    if path.is_file():
        return path
    known = presets()
    preset = path.as_posix().removesuffix(".yaml").removeprefix("configs/")
    if preset not in known:
        runs = [preset for preset in known if "/" not in preset]
        allowed = f"no such file or preset; presets: {', '.join(runs)}{nearest(preset, known)}"
        raise ConfigError("CONFIG", name, allowed)
    return known[preset]


def load_config(name: str, *more: str) -> Config:
    """Of a YAML file, and of others that are laid over it in this order."""
    return load_with(load_yaml, name, *more)


def load_with(load: Callable[[Path], Kind], name: str, *more: str) -> Kind:
    """`load_config`, of another kind of configuration, whose files `load` reads."""
    path = find_config(name)
    config = load(path)
    if not config.name:
        config = dataclasses.replace(config, name=path.stem)
    for later in more:
        config = laid_over(config, later)
    return config


def laid_over(config: Kind, name: str) -> Kind:
    """The configuration with what a YAML file says on top."""
    laid: Kind = with_values(config, leaves(read_yaml(find_config(name)) or {}, type(config)))
    return laid


def with_overrides(default: Config, program: str, arguments: list[str]) -> Config:
    """What the command line says, on top of the files.

    Validated but for the methods: `mtrl.options.methods.check_methods` does that.
    """
    return _checked(read_words(default, program, arguments, starts=False)[0])


def start_options(default: Config, program: str, arguments: list[str]) -> tuple[Config, Existing]:
    """`with_overrides`, for a command that starts a run."""
    config, existing = read_words(default, program, arguments, starts=True)
    return _checked(config), existing


def with_settings(default: Config, settings: Mapping[str, Any]) -> Config:
    """The same for {"agent.smto.name": "pcgrad", ...} instead of a command line.

    ConfigError for a key or a value that is not allowed.
    """
    return _checked(with_values(default, settings))


def _checked(config: Config) -> Config:
    if config.plugins:  # they may register the environments that env.tasks names
        from mtrl.options.plugins import load_plugins

        config = load_plugins(config)
    validate(config)
    return config


Setting = TypeVar("Setting", bound=str)
MAY_DIFFER = ("run_dir",)  # says nothing of what is computed
OF_THE_MACHINE = ("learner.device", "plugins")  # a resumed run may be on another
DECIDED = ("learner.compile", "learner.precision", "learner.capture")  # when the run started


def settled(key: str, wanted: Any) -> Any:
    """What a run has in place of this setting where its machine lacks what it needs."""
    lacking = {"learner.precision": "fp32", "learner.capture": "off"}
    return lacking.get(key, wanted)


def continued(stored: Config, wanted: Config) -> Config:
    """Configuration with which a run continues: the stored one, longer if so asked, and with the
    device and the plug-ins' places of this machine.

    Raises ConfigError for the first setting in which `wanted` differs otherwise.
    """
    before = flatten(stored)
    moved = wanted.learner.device != stored.learner.device
    for key, value in flatten(wanted).items():
        if key in MAY_DIFFER or key in OF_THE_MACHINE or value == before[key]:
            continue
        if key in DECIDED and (value == "auto" or moved):
            continue
        if settled(key, value) == before[key]:
            continue
        if key != "train.total_steps":
            raise ConfigError(key, value, f"a resumed run keeps {key} = {before[key]!r}")
        if value < before[key]:
            raise ConfigError(key, value, f"may only be raised; the run has {before[key]}")
    train = dataclasses.replace(stored.train, total_steps=wanted.train.total_steps)
    learner = stored.learner
    if moved:
        learner = dataclasses.replace(
            learner,
            device=wanted.learner.device,
            compile=_again(wanted.learner.compile, learner.compile),
            capture=_again(wanted.learner.capture, learner.capture),
            precision="auto"
            if wanted.learner.precision == learner.precision == "tf32"
            else wanted.learner.precision,
        )
    return dataclasses.replace(stored, train=train, plugins=wanted.plugins, learner=learner)


def _again(wanted: Setting, decided: Setting) -> Setting | Literal["auto"]:
    """A decision is made again, unless somebody asks for another."""
    return "auto" if wanted == decided else wanted
