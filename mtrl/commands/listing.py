"""`mtrl list`: what there is to choose from."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from mtrl.config import Config
from mtrl.config.benchmarks import BENCHMARKS, all_tasks
from mtrl.networks import available_networks, describe_network
from mtrl.options.command_line import presets
from mtrl.options.command_words import HELP, read_settings
from mtrl.options.methods import method_options
from mtrl.options.plugins import load_plugins
from mtrl.schema import UsageError
from mtrl.smto import available, describe

LIST_HELP = """\
mtrl list tasks|benchmarks|methods|networks|presets [--plugins FILE ...]

What there is to choose from; with --plugins, of a user's own files too.
"""


def list_command(words: list[str]) -> None:
    if set(HELP) & set(words):
        print(LIST_HELP, end="")
        return
    topic, *rest = words
    if topic not in TOPICS:
        raise UsageError(f"list needs one of {', '.join(TOPICS)}, not {topic!r}")
    settings = read_settings({"plugins": tuple[str, ...]}, rest, "mtrl list")
    load_plugins(Config(**settings))
    TOPICS[topic]()


def list_tasks() -> None:
    print("\n".join(all_tasks()))


def list_benchmarks() -> None:
    print("MT1 (1 task): any one, with --env.tasks")
    for name, names in BENCHMARKS.items():
        print(f"{name} ({len(names)} tasks): {', '.join(names)}")


def _indented(text: str) -> str:
    return textwrap.fill(text, 80, initial_indent=" " * 4, subsequent_indent=" " * 6)


def _print_options(options: Mapping[str, Any]) -> None:
    if options:
        shown = " ".join(
            f"{key}={value!r}" if value == "" else f"{key}={value}"
            for key, value in options.items()
        )
        print(_indented(f"options: {shown}"))


def list_methods() -> None:
    for name in available():
        method = describe(name)
        positive = ", needs positive losses" if method.wants_positive_losses else ""
        aliases = f" (or {', '.join(method.aliases)})" if method.aliases else ""
        print(f"{name}{aliases}: needs {method.needs}{positive}")
        print(_indented(method.text))
        _print_options(method_options(name))
    print(
        "\nChosen by --agent.smto.name NAME --agent.smto.options KEY=VALUE ...; methods"
        "\nthat need positive losses get losses above a tracked lower bound."
    )


def list_networks() -> None:
    for name in available_networks():
        network = describe_network(name)
        print(f"{name}:")
        print(_indented(network.text))
        _print_options(network.options)
    print(
        "\nChosen by --network.architecture NAME --network.options KEY=VALUE ..., for actor and"
        "\ncritics together."
    )


def list_presets() -> None:
    found = sorted(presets().items())
    width = max(len(name) for name, _ in found)
    for name, path in found:
        first = path.read_text().split("\n", 1)[0].lstrip("# ")
        print(f"{name:{width}} {first}")


TOPICS = {
    "tasks": list_tasks,
    "benchmarks": list_benchmarks,
    "methods": list_methods,
    "networks": list_networks,
    "presets": list_presets,
}
