"""How options are written on the command line: in the words of YAML, and switches by any word."""

from __future__ import annotations

import dataclasses
import itertools
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import tyro
import yaml
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from mtrl.files import yaml12
from mtrl.schema import (
    SWITCH,
    ConfigError,
    UsageError,
    coerce,
    describe_type,
    length,
    nearest,
    types_of,
    user_path,
    with_values,
)

Configured = TypeVar("Configured", bound=Any)
"""A configuration of any kind."""


HELP = ("-h", "--help")


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

    starts: whether the command has Existing's options, too. ConfigError for what cannot be read;
    `--help` among the words leaves with code 0.
    """
    if set(HELP) & set(words):
        show_help(default, program, starts=starts)
    kinds = types_of(type(default)) | (types_of(Existing) if starts else {})
    settings = read_settings(kinds, words, program)
    existing = Existing(**{key: settings.pop(key) for key in types_of(Existing) if key in settings})
    if existing.overwrite and existing.resume_if_exists:
        raise ConfigError(
            "resume_if_exists",
            True,
            "cannot be combined with overwrite, which deletes what exists",
        )
    return with_values(default, settings), existing


def split_files(command: str, words: list[str]) -> tuple[list[str], str, list[str]]:
    """`CONFIG... --key value` -> the files, the program's name for messages, and the rest.

    No files where help is asked for.
    """
    files = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    if not files and words[0] not in HELP:
        raise UsageError(f"{command} needs the configuration first, not {words[0]!r}")
    program = " ".join(["mtrl", command, *(files or ["CONFIG"])])
    return files, program, words[len(files) :]


def read_options(
    kind: type[Configured], program: str, words: list[str], *, bare: str = ""
) -> Configured:
    """The words of a command that has options of its own; bare: the option that takes words
    without a name, the first of which it needs.

    ConfigError for what cannot be read; `--help` among the words leaves with code 0.
    """
    if set(HELP) & set(words):
        tyro.cli(kind, prog=program, args=["--help"])
    return kind(**read_settings(types_of(kind), words, program, bare=bare))


def show_help(default: Any, program: str, *, starts: bool) -> NoReturn:
    kind = type(default)
    line: Any = kind
    if starts:
        line = dataclasses.make_dataclass(kind.__name__, [], bases=(Existing, kind), frozen=True)
        line.__doc__ = kind.__doc__
    values = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}
    shown = line(**values)
    tyro.cli(line, default=shown, prog=program, args=["--help"], registry=_help_registry())
    raise SystemExit(0)


def read_settings(
    kinds: Mapping[str, Any], words: list[str], program: str, *, bare: str = ""
) -> dict[str, Any]:
    """`--agent.gamma 0.9 --env.tasks a b` -> {"agent.gamma": 0.9, "env.tasks": ("a", "b")}.

    kinds {key: type}. A list or a mapping that stands several times has the words of all places.
    bare: the key of words without an option.
    """
    given: dict[str, list[str]] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if bare and not option.startswith("--"):
            if bare in given and not _takes_several(kinds[bare]):
                raise ConfigError("word", word, f"{program} takes one {bare}")
            given[bare] = [*given.get(bare, []), word]
            continue
        if not option.startswith("--"):
            raise ConfigError("word", word, "options begin with `--`")
        key, off = _key_of(option, kinds)
        if key is None:
            value = value or (rest or [""])[0]
            options = {f"--{known.replace('_', '-')}" for known in kinds}
            close = nearest(option.replace("_", "-"), options)
            raise ConfigError(option, value, f"unknown option{close}; see `{program} --help`")
        values = [value] if equals else []
        if off:
            values = ["false"]
        elif kinds[key] is bool:
            if not equals:
                values = [rest.pop(0)] if rest and rest[0].lower() in SWITCH else ["true"]
        elif _takes_several(kinds[key]):
            while rest and not rest[0].startswith("--"):
                values.append(rest.pop(0))
            if not values:
                raise ConfigError(key, None, f"needs a value: {describe_type(kinds[key])}")
            values = given.get(key, []) + values
        elif not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(key, None, f"needs a value: {describe_type(kinds[key])}")
            values = [rest.pop(0)]
        given[key] = values
    if bare and bare not in given:
        raise UsageError(f"{program} needs {bare.upper()}, before or after its options")
    return {key: _value(key, values, kinds[key]) for key, values in given.items()}


def _key_of(option: str, kinds: Mapping[str, Any]) -> tuple[str | None, bool]:
    """-> the key that an option names, and whether it says `no-`."""
    key = option[2:].replace("-", "_")
    if key in kinds:
        return key, False
    section, dot, name = key.rpartition(".")
    positive = f"{section}{dot}{name.removeprefix('no_')}"
    off = name.startswith("no_") and kinds.get(positive) is bool
    return (positive, True) if off else (None, False)


def _takes_several(kind: Any) -> bool:
    return typing.get_origin(kind) in (tuple, dict)


def _value(key: str, words: list[str], kind: Any) -> Any:
    """What the words of one option mean; ConfigError if nothing that it takes."""
    try:
        if typing.get_origin(kind) is dict:
            return _pairs(words)
        if typing.get_origin(kind) is tuple:
            element = typing.get_args(kind)[0]
            if length(kind) not in (None, len(words)):
                raise ValueError
            return tuple(_from_word(word, element) for word in words)
        return _from_word(words[0], kind)
    except ValueError as error:
        shown = words[0] if len(words) == 1 else " ".join(words)
        raise ConfigError(key, shown, str(error) or f"must be {describe_type(kind)}") from None


def spelled(word: str) -> str:
    """An option without its value, `-` and `_` being the same."""
    return word.replace("_", "-").split("=")[0]


def _pairs(words: list[str]) -> dict[str, Any]:
    """How mappings (a method's options) are written on the command line: key=value ..."""
    options: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not (key and equals):
            raise ValueError(f"{word!r} is not key=value")
        if key in options:
            raise ValueError(f"{key!r} stands twice")
        options[key] = yaml_value(text)
    return options


def yaml_value(text: str) -> Any:
    """What the text is in YAML; ValueError if it is none."""
    try:
        return yaml12.parse(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not a YAML value: {' '.join(str(error).split())}") from None


def _help_registry() -> ConstructorRegistry:
    """How `--help` shows options: tyro never reads their values."""
    registry = ConstructorRegistry()

    def words(value: Any) -> list[str]:
        return [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else [str(value)]

    @registry.primitive_rule
    def as_written(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        origin: Any = typing.get_origin(info.type)
        if origin not in (dict, Literal, types.UnionType, typing.Union):
            return None
        return PrimitiveConstructorSpec(
            nargs="*" if origin is dict else 1,
            metavar=_metavar(info.type),
            instance_from_str=lambda words: words,
            is_instance=lambda value: True,
            str_from_instance=words,
        )

    return registry


def _from_word(word: str, kind: Any) -> Any:
    """A word of the command line as `kind`: what YAML makes of it, or the word itself."""
    if kind is str:
        return word
    if kind is Path:
        return user_path(word)
    try:
        return coerce(yaml_value(word), kind)
    except ValueError:
        return coerce(word, kind)


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is dict:
        return "KEY=VALUE ..."
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(typing.get_args(kind)) + "}"
    if kind is type(None):
        return "{None}"
    return "|".join(map(_metavar, typing.get_args(kind))) or kind.__name__.upper()
