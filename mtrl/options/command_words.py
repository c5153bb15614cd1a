"""How options are written on the command line: in the words of YAML, and switches by any word."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import tyro
import yaml
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from mtrl.files import yaml12
from mtrl.schema import SWITCH, ConfigError, coerce, describe_type, flatten

Configured = TypeVar("Configured", bound=Any)
"""A configuration of any kind."""


@dataclass(frozen=True)
class Existing:
    """What a run may do to a directory that is there already: said with each command, and never
    part of a configuration."""

    overwrite: bool = False
    """Delete an existing run directory first."""
    resume_if_exists: bool = False
    """Continue the run if its directory is there already, else start: the same command serves the
    first start and every restart (containers, clusters)."""


def read_words(
    default: Configured,
    program: str,
    words: list[str],
    *,
    starts: bool,
) -> tuple[Configured, Existing]:
    """The command line on top of `default`, a configuration of any kind.

    starts: whether the command has Existing's options, too.
    Leaves with code 2 where a word cannot be read.
    """
    kind = type(default)
    line: Any = kind
    if starts:
        line = dataclasses.make_dataclass(kind.__name__, [], bases=(Existing, kind), frozen=True)
        line.__doc__ = kind.__doc__
    switches = [key for key, value in flatten(line()).items() if isinstance(value, bool)]
    read = tyro.cli(
        line,
        default=line(**_fields(default)),
        prog=program,
        args=_plain_switches(gather(default, words), switches),
        registry=mappings_as_pairs(),
    )
    values = _fields(read)
    names = [field.name for field in dataclasses.fields(Existing)] if starts else []
    existing = Existing(**{name: values.pop(name) for name in names})
    if existing.overwrite and existing.resume_if_exists:
        raise ConfigError(
            "resume_if_exists",
            True,
            "cannot be combined with overwrite, which deletes what exists",
        )
    return kind(**values), existing


def _fields(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


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


def spelled(word: str) -> str:
    """An option without its value, `-` and `_` being the same."""
    return word.replace("_", "-").split("=")[0]


def _plain_switches(words: list[str], switches: Collection[str]) -> list[str]:
    """`--a.b true` -> `--a.b`; `--a.b=off` -> `--a.no-b`: a switch by any word for it."""
    plain: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        key = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or key not in switches:
            plain.append(word)
            continue
        if not equals and rest and rest[0].lower() in SWITCH:
            value = rest.pop(0)
        try:
            on = not value or coerce(value, bool)
        except ValueError:
            raise ConfigError(key, value, f"must be {describe_type(bool)}") from None
        section, dot, name = option.removeprefix("--").rpartition(".")
        plain.append(option if on else f"--{section}{dot}no-{name}")
    return plain


def mappings_as_pairs() -> ConstructorRegistry:
    """How mappings (a method's options) are written on the command line: key=value ..."""

    def parse(words: list[str]) -> dict[str, Any]:
        options: dict[str, Any] = {}
        for word in words:
            key, equals, text = word.partition("=")
            if not (key and equals):
                raise ValueError(f"{word!r} is not key=value")
            if key in options:
                raise ValueError(f"{key!r} stands twice")
            options[key] = yaml_value(text)
        return options

    return pairs_registry("KEY=VALUE ...", parse)


def yaml_value(text: str) -> Any:
    """What the text is in YAML; ValueError if it is none."""
    try:
        return yaml12.parse(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not a YAML value: {' '.join(str(error).split())}") from None


def pairs_registry(
    metavar: str, parse: Callable[[list[str]], dict[str, Any]]
) -> ConstructorRegistry:
    """How values are written on the command line: as in YAML; mappings as words, which `parse`
    reads (ValueError if it cannot)."""
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

    @registry.primitive_rule
    def choices(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        kind: Any = info.type
        if typing.get_origin(kind) not in (Literal, types.UnionType, typing.Union):
            return None

        def read(words: list[str]) -> Any:
            try:
                return _from_word(words[0], kind)
            except ValueError:
                raise ValueError(f"{words[0]!r} must be {describe_type(kind)}") from None

        def holds(value: Any) -> bool:
            try:
                return bool(coerce(value, kind) == value)
            except ValueError:
                return False

        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=_metavar(kind),
            instance_from_str=read,
            is_instance=holds,
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _from_word(word: str, kind: Any) -> Any:
    """A word of the command line as `kind`: what YAML makes of it, or the word itself."""
    try:
        return coerce(yaml_value(word), kind)
    except ValueError:
        return coerce(word, kind)


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(typing.get_args(kind)) + "}"
    if kind is type(None):
        return "{None}"
    return "|".join(map(_metavar, typing.get_args(kind))) or kind.__name__.upper()
