"""YAML 1.2, strictly: plain words mean the same everywhere, and no key may stand twice.

PyYAML follows YAML 1.1, where `off` is false, `1e-3` is text, `1:30` is 90 and `010` is 8, and of
two equal keys the first is lost without a word. Here, at any depth: the core schema of YAML 1.2,
with underscores between digits (20_000_000) as well.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

INTEGER = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:_[0-9]+)*(?:\.(?:[0-9]+(?:_[0-9]+)*)?)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
PLAIN = {
    "null": re.compile("~|null|Null|NULL|"),
    "bool": re.compile("true|True|TRUE|false|False|FALSE"),
    "int": INTEGER,
    "float": FLOAT,
}
"""Which words are not text; the first that matches counts."""


def _tag(name: str) -> str:
    return f"tag:yaml.org,2002:{name}"


def _whole(words: re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(rf"(?:{words.pattern})\Z")


class Loader(yaml.SafeLoader):
    """Of what a document may name by a tag, only what JSON has too."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own attribute: by first character
        None: [(_tag(name), _whole(words)) for name, words in PLAIN.items()],
        "<": [(_tag("merge"), re.compile(r"<<\Z"))],
    }
    yaml_constructors = {  # noqa: RUF012 - as above
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag in (None, *map(_tag, ("null", "str", "seq", "map")))
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # a list or a mapping as a key: whoever reads the mapping refuses it
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in seen:
                where = f"in line {seen[name]} and in line {line}"
                raise ComposerError(problem=f"key {key.value!r} stands twice, {where}")
            seen[name] = line
        return node

    def _number(self, node: yaml.ScalarNode) -> int | float:
        text = self.construct_scalar(node)
        kind = node.tag.rpartition(":")[2]
        if not isinstance(text, str) or not PLAIN[kind].fullmatch(text):
            raise ConstructorError(problem=f"{text!r} is no {kind}")
        digits = text.replace("_", "")
        if kind == "float":
            return float(re.sub(r"\.(?=[a-zA-Z])", "", digits))  # .inf, .nan
        try:
            return int(digits, 0 if digits[:2] in ("0o", "0x") else 10)
        except ValueError as error:  # thousands of digits
            raise ConstructorError(problem=str(error)) from None

    def _bool(self, node: yaml.ScalarNode) -> bool:
        text = self.construct_scalar(node)
        if not isinstance(text, str) or not PLAIN["bool"].fullmatch(text):
            raise ConstructorError(problem=f"{text!r} is neither true nor false")
        return text.lower() == "true"


Loader.add_constructor(_tag("int"), Loader._number)
Loader.add_constructor(_tag("float"), Loader._number)
Loader.add_constructor(_tag("bool"), Loader._bool)


class Dumper(yaml.SafeDumper):
    """Text that either version of YAML would take for something else stands in quotes."""


for name in ("int", "float"):
    Dumper.add_implicit_resolver(_tag(name), _whole(PLAIN[name]), None)


def parse(text: str) -> Any:
    """What a YAML document holds. Raises yaml.YAMLError."""
    try:
        return yaml.load(text, Loader)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


def dump(content: Any, *, flow: bool | None = False) -> str:
    """`parse` gives the same back; flow=None: the innermost lists and mappings in one line."""
    text: str = yaml.dump(content, Dumper=Dumper, sort_keys=False, default_flow_style=flow)
    return text
