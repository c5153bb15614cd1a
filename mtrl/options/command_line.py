"""File, method preset and command line -> one validated Config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from mtrl.config import Config, load_yaml
from mtrl.options.command_words import Existing, read_words, spelled
from mtrl.options.validation import validate
from mtrl.schema import (
    ConfigError,
    flatten,
    nearest,
    read_config,
    types_of,
    user_path,
    with_values,
)

SMTOS = ("smto", "critic_smto", "actor_smto", "temperature_smto")
"""The sections of `agent` that name a method."""


def preset_folders() -> list[Path]:
    """Where presets are: next to the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent.parent
    return [
        folder for folder in (package.parent / "configs", package / "configs") if folder.is_dir()
    ]


def presets() -> dict[str, Path]:
    files = [path for folder in preset_folders() for path in sorted(folder.glob("*.yaml"))]
    return {path.stem: path for path in reversed(files)}


def find_config(name: str) -> Path:
    """A YAML file, or a preset by its name."""
    path = user_path(name)
    if not path.is_file():
        known = presets()
        if path.stem not in known or path.parent not in (Path(), Path("configs")):
            raise ConfigError(
                "CONFIG",
                name,
                f"no such file or preset; presets: {', '.join(sorted(known))}"
                + nearest(path.stem, known),
            )
        path = known[path.stem]
    return path


def load_config(name: str, *more: str) -> Config:
    """Of a YAML file, and of others that are laid over it in this order."""
    path = find_config(name)
    config = load_yaml(path)
    if not config.name:
        config = dataclasses.replace(config, name=path.stem)
    for later in more:
        settings = leaves(read_config(find_config(later)) or {}, Config)
        config = _own_options(config, with_values(config, settings), settings.keys())
    return config


def leaves(content: Any, kind: Any, prefix: str = "") -> dict[str, Any]:
    """What a YAML file holds, as {"agent.smto.name": "pcgrad", ...}."""
    kinds = types_of(kind)
    found: dict[str, Any] = {}
    if not isinstance(content, dict):
        raise ConfigError(prefix.rstrip(".") or "config", content, "must be a mapping")
    for key, value in content.items():
        whole = f"{prefix}{key}"
        is_section = any(known.startswith(f"{whole}.") for known in kinds)
        found |= leaves(value, kind, f"{whole}.") if is_section else {whole: value}
    return found


def with_overrides(default: Config, program: str, arguments: list[str]) -> Config:
    """Preset of the method on top of the file, command line on top of both.

    Validated but for the methods: `mtrl.options.methods.check_methods` does that.
    """
    return _resolve(default, _words(program, arguments, starts=False))[0]


def start_options(default: Config, program: str, arguments: list[str]) -> tuple[Config, Existing]:
    """`with_overrides`, for a command that starts a run."""
    return _resolve(default, _words(program, arguments, starts=True))


def with_settings(default: Config, settings: Mapping[str, Any]) -> Config:
    """The same for {"agent.smto.name": "pcgrad", ...} instead of a command line.

    ConfigError for a key or a value that is not allowed.
    """

    def merge(default: Config) -> tuple[Config, Existing]:
        config: Config = with_values(default, settings)
        return _own_options(default, config, settings.keys()), Existing()

    return _resolve(default, merge)[0]


Read = Callable[[Config], tuple[Config, Existing]]


def _resolve(default: Config, read: Read) -> tuple[Config, Existing]:
    """read: what the user asks for, on top of a configuration."""
    config, existing = read(default)
    if config.agent.smto.preset:
        from mtrl.options.method_presets import with_preset  # late: it imports torch

        config, _ = read(with_preset(default, config))
        smto = dataclasses.replace(config.agent.smto, preset="")
        config = dataclasses.replace(config, agent=dataclasses.replace(config.agent, smto=smto))
    if config.plugins:  # they may register the environments that env.tasks names
        from mtrl.options.plugins import load_plugins

        config = load_plugins(config)
    validate(config)
    return config, existing


Setting = TypeVar("Setting", bound=str)
MAY_DIFFER = ("run_dir",)  # says nothing of what is computed
OF_THE_MACHINE = ("learner.device", "plugins")  # a resumed run may be on another
DECIDED = ("learner.compile", "learner.precision", "learner.capture")  # when the run started


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
        if key == "learner.precision" and before[key] == "fp32":
            continue  # the machine it started on had nothing else
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


def _words(program: str, arguments: list[str], *, starts: bool) -> Read:
    """What a command line asks for."""
    words = {spelled(word) for word in arguments}
    given = [
        key
        for key in (*(f"agent.{name}.options" for name in SMTOS), "network.options")
        if spelled(f"--{key}") in words
    ]

    def read(default: Config) -> tuple[Config, Existing]:
        config, existing = read_words(default, program, arguments, starts=starts)
        return _own_options(default, config, given), existing

    return read


def _own_options(default: Config, config: Config, given: Collection[str]) -> Config:
    """A method's options: those given, on top of the default's if it is the same method."""
    agent = config.agent
    for key in SMTOS:
        before, now = getattr(default.agent, key), getattr(agent, key)
        options = now.options if f"agent.{key}.options" in given else {}
        if now.name == before.name:  # another method's options mean nothing to this one
            options = before.options | options
        agent = dataclasses.replace(agent, **{key: dataclasses.replace(now, options=options)})
    network = config.network
    options = network.options if "network.options" in given else {}
    if network.architecture == default.network.architecture:
        options = default.network.options | options
    network = dataclasses.replace(network, options=options)
    return dataclasses.replace(config, agent=agent, network=network)
