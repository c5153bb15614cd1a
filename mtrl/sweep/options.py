"""What a sweep is asked to do: a YAML file, the command line, or one on top of the other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from mtrl.options.command_words import read_settings, show_help, spelled, yaml_value
from mtrl.schema import (
    ZERO_OR_POSITIVE,
    ConfigError,
    at_least,
    build,
    check_bounds,
    read_yaml,
    types_of,
    user_path,
    with_values,
)


@dataclass(frozen=True)
class LocalOptions:
    """Runs of one configuration, and how this machine is divided among them."""

    config: str = ""
    """The configuration that all runs start from: a YAML file or a preset's name."""
    name: str = ""
    """Runs are written to <root>/<name>/; the configuration's name if empty."""
    root: str = "runs"
    """Folder of all experiments. Of a cluster, one that every node sees under the same path."""
    parallel: Annotated[int | Literal["auto"], at_least(1)] = "auto"
    """Runs at a time, local engine; auto = as many as cpus_per_run and gpus_per_run allow."""
    cpus_per_run: Annotated[int, at_least(1)] = 2
    """Cores that a run needs. Its simulation workers and learner threads, where they are auto."""
    gpus_per_run: float | Literal["auto"] = "auto"
    """Share of a GPU that a run needs, e.g. 0.25 for four runs on each GPU, or whole GPUs.
    auto = 0.25 if there is one and learner.device allows it, else 0."""
    retries: Annotated[int, ZERO_OR_POSITIVE] = 2
    """How often a run that was killed, or lost with its node, continues from its last checkpoint.
    A run that failed by itself would fail again: it is reported."""


@dataclass(frozen=True)
class SweepOptions(LocalOptions):
    """A grid of runs, and how to run it."""

    methods: tuple[str, ...] = ()
    """Multi-task optimisers, for agent.smto.name, or files that are laid over the configuration,
    e.g. kurin/pcgrad; the configuration's if empty."""
    seeds: tuple[str, ...] = ()
    """Seeds, e.g. 0..9 or 1 2 5..7 (ends included); the configuration's if empty."""
    set: dict[str, Any] = field(default_factory=dict)
    """Settings of the configuration, each with one value or several, e.g. agent.gamma=0.98
    agent.actor_l2=0,1e-4; every combination is run, once. A value that is a list stands in
    brackets."""
    engine: Literal["local", "ray"] = "local"
    """local: processes on this machine. ray: tasks on a Ray cluster (extra [cluster])."""
    address: str = "local"
    """Ray cluster: local (started for this sweep), auto (the one this machine is part of),
    host:port or ray://host:port."""
    retry_failed: bool = False
    """Resume runs that failed in an earlier call, too."""
    estimate: bool = True
    """Measure the first run for a few seconds to estimate the hours."""
    dry_run: bool = False
    """Show the grid, the number of runs and the hours; start nothing."""


def parse_options(arguments: list[str]) -> SweepOptions:
    """`SWEEP.yaml [--option ...]` or `CONFIG [--option ...]`: a sweep file has the key `config`.

    Raises ConfigError for what a file or the command line cannot mean.
    """
    name, *rest = arguments if arguments[0] not in ("-h", "--help") else ("CONFIG", "--help")
    options = SweepOptions(config=name)
    path = user_path(name)
    if path.is_file():
        content = read_yaml(path)
        if isinstance(content, dict) and "config" in content:
            options = build(SweepOptions, _lists(content))
            beside = path.parent / user_path(
                options.config
            )  # a file next to the sweep's, or as everywhere
            if beside.is_file():
                options = dataclasses.replace(options, config=str(beside))
    if {"-h", "--help"} & set(rest):
        show_help(options, f"mtrl sweep {name}", starts=False)
    refuse_existing(rest)
    kinds = types_of(SweepOptions) | {"set": tuple[str, ...]}
    settings = read_settings(kinds, rest, f"mtrl sweep {name}")
    on_top = _values(settings.pop("set", ()))
    options = with_values(options, settings)
    options = dataclasses.replace(options, set=options.set | on_top)
    _validate(options)
    return options


def refuse_existing(words: Sequence[str]) -> None:
    """ConfigError for options of `mtrl train` that say what becomes of a run that is there."""
    allowed = {
        "--resume-if-exists": "is always so: the same command continues what is there",
        "--overwrite": "nothing is overwritten; give another --name, or move the directory away",
    }
    for word in words:
        if (option := spelled(word)) in allowed:
            raise ConfigError(option, True, allowed[option])


def _lists(content: dict[str, Any]) -> dict[str, Any]:
    """Where one value will do for a list, and numbers for their text."""
    content = dict(content)
    for key in ("methods", "seeds"):
        value = content.get(key)
        if isinstance(value, list):
            content[key] = [str(item) for item in value]
        elif value is not None:
            content[key] = str(value).split()
    settings = content.get("set")
    if isinstance(settings, dict):
        content["set"] = {
            key: value if isinstance(value, list) else [value] for key, value in settings.items()
        }
    return content


def _values(words: Sequence[str]) -> dict[str, list[Any]]:
    """key=value,value: what stands after the equals sign is a YAML list without its brackets.

    A key that stands twice has the values of both places.
    """
    settings: dict[str, list[Any]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not (key and equals and text):
            raise ConfigError("set", word, "must be key=value or key=value,value")
        try:
            settings.setdefault(key, []).extend(yaml_value(f"[{text}]"))
        except ValueError:
            raise ConfigError(f"set {key}", text, "must be YAML values, with commas") from None
    return settings


def _validate(options: SweepOptions) -> None:
    if options.parallel != "auto" and options.engine != "local":
        allowed = "is for the local engine; Ray runs as many as cpus_per_run and gpus_per_run allow"
        raise ConfigError("parallel", options.parallel, allowed)
    check_local(options)


def check_local(options: LocalOptions) -> None:
    """ConfigError for what no machine can be asked to do."""
    check_bounds(options)
    if not options.config:
        raise ConfigError("config", "", "must be a configuration file or a preset's name")
    gpus = options.gpus_per_run
    if gpus != "auto" and not (0 <= gpus <= 1 or (gpus < math.inf and gpus == int(gpus) > 0)):
        allowed = "must be auto, between 0 and 1, or a whole number"
        raise ConfigError("gpus_per_run", gpus, allowed)
