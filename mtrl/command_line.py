"""File, method preset and command line -> one validated Config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
import yaml
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from mtrl.config import Config, load_yaml
from mtrl.schema import ConfigError, coerce, flatten, nearest
from mtrl.validation import validate


def preset_folders() -> list[Path]:
    """Where presets are: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent
    return [
        folder for folder in (package.parent / "configs", package / "configs") if folder.is_dir()
    ]


def presets() -> dict[str, Path]:
    files = [path for folder in preset_folders() for path in sorted(folder.glob("*.yaml"))]
    return {path.stem: path for path in reversed(files)}


def find_config(name: str) -> Path:
    """A YAML file, or a preset by its name."""
    path = Path(name)
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


def load_config(name: str) -> Config:
    path = find_config(name)
    config = load_yaml(path)
    return config if config.name else dataclasses.replace(config, name=path.stem)


def with_overrides(default: Config, program: str, arguments: list[str]) -> Config:
    """Preset of the method on top of the file, command line on top of both.

    Validated but for the methods: `mtrl.methods.check_methods` does that.
    """
    config = _parse(default, program, arguments)
    if config.agent.smto.preset:
        from mtrl.method_presets import with_preset  # late: it imports torch

        config = _parse(with_preset(default, config), program, arguments)
        smto = dataclasses.replace(config.agent.smto, preset="")
        config = dataclasses.replace(config, agent=dataclasses.replace(config.agent, smto=smto))
    if config.plugins:  # they may register the environments that env.tasks names
        from mtrl.plugins import load_plugins

        config = load_plugins(config)
    validate(config)
    return config


Setting = TypeVar("Setting", bound=str)
MAY_DIFFER = ("overwrite", "resume_if_exists", "run_dir")  # say nothing of what is computed
OF_THE_MACHINE = ("learner.device", "plugins")  # a resumed run may be on another
DECIDED = ("learner.compile", "learner.precision", "learner.capture")  # when the run started


def continued(stored: Config, wanted: Config) -> Config:
    """Configuration with which a run goes on: the stored one, longer if so wanted, and with the
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


def _parse(default: Config, program: str, arguments: list[str]) -> Config:
    config = tyro.cli(
        Config,
        default=default,
        prog=program,
        args=gather(default, arguments),
        registry=mappings_as_pairs(),
    )
    given = {word.replace("_", "-").split("=")[0] for word in arguments}
    agent = config.agent
    for key in ("smto", "critic_smto", "actor_smto", "temperature_smto"):
        before, now = getattr(default.agent, key), getattr(agent, key)
        options = now.options if f"--agent.{key}.options".replace("_", "-") in given else {}
        if now.name == before.name:  # another method's options mean nothing to this one
            options = before.options | options
        agent = dataclasses.replace(agent, **{key: dataclasses.replace(now, options=options)})
    return dataclasses.replace(config, agent=agent)


def gather(default: Any, words: list[str]) -> list[str]:
    """`--options a=1 --options=b=2` -> `--options a=1 b=2`, for lists and mappings of `default`.

    argparse would silently keep only the last.
    """
    several = {key for key, value in flatten(default).items() if isinstance(value, tuple | dict)}
    others: list[str] = []
    gathered: dict[str, list[str]] = {}
    target = others
    for word in words:
        option, equals, value = word.partition("=")
        if option.startswith("--"):
            key = option[2:].replace("-", "_")
            if key in several:
                target = gathered.setdefault(f"--{key}", [])
                target += [value] if equals else []
                continue
            target = others
        target.append(word)
    return others + [word for option, values in gathered.items() for word in (option, *values)]


def mappings_as_pairs() -> ConstructorRegistry:
    """How mappings (a method's options) are written on the command line: key=value ..."""

    def parse(words: list[str]) -> dict[str, Any]:
        pairs = [word.partition("=") for word in words]
        for key, equals, _ in pairs:
            if not (key and equals):
                raise ValueError(f"{key!r} is not key=value")
        try:
            values = {key: yaml.safe_load(value) for key, _, value in pairs}
        except yaml.YAMLError as error:
            raise ValueError(f"not a YAML value: {' '.join(str(error).split())}") from None
        options: dict[str, Any] = coerce(values, dict[str, Any])
        return options

    return pairs_registry("KEY=VALUE ...", parse)


def pairs_registry(
    metavar: str, parse: Callable[[list[str]], dict[str, Any]]
) -> ConstructorRegistry:
    """Mappings as words of the command line, which `parse` reads (ValueError if it cannot)."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def pairs(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, Any]] | None:
        if info.type != dict[str, Any]:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar=metavar,
            instance_from_str=parse,
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [f"{key}={item}" for key, item in value.items()],
        )

    return registry
