"""Methods x settings x seeds -> trials: a configuration and a directory of its own for each."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtrl.config import Config, load_yaml
from mtrl.files.atomic import write_atomically
from mtrl.options.command_line import MAY_DIFFER, laid_over, load_config, settled
from mtrl.options.methods import check_methods
from mtrl.options.plugins import load_plugins
from mtrl.options.validation import LARGEST_SEED, validate
from mtrl.run.state import last_said, read_stored, runs_below
from mtrl.schema import ConfigError, build, dump_yaml, flatten, user_path, with_values
from mtrl.sweep.options import SweepOptions

MOST_SEEDS = 10_000

WHERE = ("name", *MAY_DIFFER)  # say where a run is and how it is started, not what it computes
ELSEWHERE = {
    "seed": "use --seeds",
    "agent.smto.name": "use --methods",
    "name": "use --name",
    "run_dir": "use --root and --name",
}
"""Keys that --set does not take, and what does."""


@dataclass(frozen=True)
class Trial:
    """One run of the sweep as it is planned, whether its directory holds it already or not."""

    name: str
    """Path below the sweep's folder, e.g. pcgrad/seed_1."""
    folder: Path
    """The sweep's, absolute."""
    config: Config
    """Complete; `run_dir` is `path`."""
    label: str = ""
    """The method and the settings that vary: what the seeds of one have in common."""

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.folder / self.name

    @property
    def config_file(self) -> Path:
        """What the run is started with."""
        return self.folder / "sweep" / f"{self.name}.yaml"

    @property
    def log_file(self) -> Path:
        """What the run prints."""
        return self.folder / "sweep" / f"{self.name}.log"

    def write_config(self) -> None:
        self.config_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.config_file, dump_yaml(self.config))

    def with_cores(self, cores: int) -> Trial:
        """Workers and threads of this run's share of the machine, where they are `auto`.

        Written down, so that the run's config.yaml gives bitwise identical results on any machine.
        """
        env, learner = self.config.env, self.config.learner
        if env.workers == "auto":
            env = dataclasses.replace(env, workers=min(cores, self.config.num_envs))
        if learner.threads == "auto":
            learner = dataclasses.replace(learner, threads=cores)
        return dataclasses.replace(
            self, config=dataclasses.replace(self.config, env=env, learner=learner)
        )


def parse_seeds(words: Sequence[str]) -> list[int]:
    """["0..2", "7"] -> [0, 1, 2, 7]; ConfigError for anything else, and for a seed twice."""
    seeds: list[int] = []
    for word in itertools.chain.from_iterable(word.split(",") for word in words):
        if not (match := re.fullmatch(r"(\d{1,30})(?:\.\.(\d{1,30}))?", word, re.ASCII)):
            raise ConfigError("seeds", word, "must be numbers or ranges, e.g. 0..9 or 1 2 5..7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ConfigError("seeds", word, "the range ends before it begins")
        if last > LARGEST_SEED:
            raise ConfigError("seeds", word, f"must be at most {LARGEST_SEED}")
        if last - first >= MOST_SEEDS:
            raise ConfigError("seeds", word, f"must be at most {MOST_SEEDS:,} seeds")
        seeds += range(first, last + 1)
    for seed in seeds:
        if seeds.count(seed) > 1:
            raise ConfigError("seeds", " ".join(words), f"has seed {seed} twice")
    return seeds


def expand(options: SweepOptions) -> list[Trial]:
    """All trials, seed by seed, so that every method has its first seed early.

    Raises ConfigError for an impossible grid; its runs are then all refused.
    """
    base = load_config(options.config)
    for word in options.methods:
        if options.methods.count(word) > 1:
            raise ConfigError("methods", " ".join(options.methods), f"has {word} twice")
    seeds = parse_seeds(options.seeds) or [base.seed]
    methods = [(word, _with_method(base, word)) for word in options.methods] or [("", base)]
    folder = (user_path(options.root) / (options.name or base.name)).resolve()
    values = distinct(base, options.set)
    trials: dict[str, Trial] = {}
    known: set[str] = set()
    for seed, settings, (method, start) in itertools.product(seeds, combinations(values), methods):
        config = configure(start, settings | {"seed": seed})
        varied = {key: value for key, value in settings.items() if len(values[key]) > 1}
        shown = _folder(method) if _is_file(method) else config.method
        label = "/".join((*_directory(varied), shown))
        name = f"{label}/seed_{seed}"
        if name in trials:
            raise ConfigError(
                "methods and set", name, "two runs of the grid would share this directory"
            )
        config = dataclasses.replace(
            config, name=options.name or base.name, run_dir=str(folder / name)
        )
        settled = json.dumps(settings_of(config), sort_keys=True, default=str)
        if settled not in known:  # a method's file may say what the configuration says
            known.add(settled)
            trials[name] = Trial(name, folder, config, label)
    return list(trials.values())


def distinct(base: Config, settings: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The values of each setting, as the configuration reads them, and equal ones once.

    0.0001 and 1e-4 are one value. ConfigError for what the configuration does not take.
    """
    found: dict[str, list[Any]] = {}
    for key, values in settings.items():
        if key in ELSEWHERE:
            raise ConfigError(f"set {key}", values, ELSEWHERE[key])
        if not values:
            raise ConfigError(f"set {key}", values, "must have at least one value")
        found[key] = []
        for value in values:
            read = _value(base, key, value)
            if read not in found[key]:
                found[key].append(read)
    return found


def combinations(settings: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """{"a": [1, 2], "b": [3]} -> {"a": 1, "b": 3}, {"a": 2, "b": 3}"""
    for values in itertools.product(*settings.values()):
        yield dict(zip(settings, values, strict=True))


def _directory(varied: Mapping[str, Any]) -> tuple[str, ...]:
    """The folder of one combination of the settings that vary; none if none does."""
    if not varied:
        return ()
    words = [f"{key}={_word(value)}" for key, value in varied.items()]
    return (re.sub(r"[^\w.=,+-]+", "_", ",".join(words)),)


def _word(value: Any) -> str:
    """One word for one value, however it was written."""
    if isinstance(value, list | tuple):
        return "+".join(map(_word, value))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _value(base: Config, key: str, value: Any) -> Any:
    """What `key` of the configuration becomes."""
    inner: Any = dataclasses.asdict(with_values(base, {key: value}))
    for part in key.split("."):
        inner = inner[part]
    return inner


def _is_file(method: str) -> bool:
    return "/" in method or method.endswith(".yaml")


def _folder(method: str) -> str:
    """Of the runs of a method's file: a preset's name, else the file's."""
    path = user_path(method).with_suffix("")
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()


def _with_method(base: Config, method: str) -> Config:
    """A method's name, or a file that is laid over the configuration."""
    if _is_file(method):
        return laid_over(base, method)
    chosen: Config = with_values(base, {"agent.smto.name": method})
    return chosen


def configure(base: Config, settings: Mapping[str, Any]) -> Config:
    """As `mtrl train` reads files and command line: each on top of the one before.

    ConfigError for what the configuration does not take.
    """
    # Plug-ins may register the environments that env.tasks names.
    config = load_plugins(with_values(base, settings))
    validate(config)
    return check_methods(config)


def settings_of(config: Config) -> dict[str, Any]:
    """What the run computes; flat."""
    return {key: value for key, value in flatten(config).items() if key not in WHERE}


def _changed(wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> str | None:
    """The first setting in which they differ; None if they are the same run.

    `auto` in the sweep stands for whatever was decided when the run began, and what a machine lacks
    for what it has.
    """
    for key, value in wanted.items():
        if value != "auto" and stored[key] not in (value, settled(key, value)):
            return key
    return None


def refuse_changes(trial: Trial) -> None:
    """ConfigError if the run's directory holds a run of another configuration."""
    stored_file = trial.path / "config.yaml"
    if not stored_file.is_file():
        return
    wanted, stored = settings_of(trial.config), settings_of(load_yaml(stored_file))
    if (key := _changed(wanted, stored)) is not None:
        raise ConfigError(
            key,
            wanted[key],
            f"{trial.path} was started with {stored[key]!r}; give the sweep another --name or "
            "move that directory away",
        )


def find_stored(trials: Sequence[Trial]) -> tuple[list[Trial], dict[str, str]]:
    """The trials, each at the directory that holds its run already, wherever below the folder.

    They are recognised by the values of their settings: folders are named after the settings that
    vary, which are others once the grid has grown. Second: {directory below the folder: why its
    config.yaml cannot be used}.

    Raises ConfigError where a directory of the grid holds a run of another configuration.
    """
    stored = _Stored(trials[0].folder)
    found = []
    for trial in trials:
        if (path := stored.find(trial)) is not None:
            config = dataclasses.replace(trial.config, run_dir=str(path))
            name = str(path.relative_to(trial.folder))
            trial = dataclasses.replace(trial, name=name, config=config)
        elif trial.path not in stored.broken:
            refuse_changes(trial)
        found.append(trial)
    return found, {str(path.relative_to(stored.folder)): r for path, r in stored.broken.items()}


class _Stored:
    """The runs below a sweep's folder; each is read once, when it is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broken: dict[Path, str] = {}
        """Why a configuration that was read cannot be used."""
        self._read: dict[Path, dict[str, Any]] = {}
        self._taken: set[Path] = set()

    def find(self, trial: Trial) -> Path | None:
        """Where its run is: in its own directory, or else where it came furthest."""
        wanted = settings_of(trial.config)
        for path in itertools.chain([trial.path], self._by_progress()):
            if path not in self._taken:
                stored = self._settings(path)
                if stored and _changed(wanted, stored) is None:
                    self._taken.add(path)
                    return path
        return None

    def _settings(self, path: Path) -> dict[str, Any]:
        """{} where there is no configuration, or none that a sweep could have made."""
        if path not in self._read:
            self._read[path] = {}
            file = path / "config.yaml"
            try:
                if file.is_file() and "problem" not in (content := read_stored(file)):
                    self._read[path] = settings_of(build(Config, content))
            except ConfigError as error:
                self.broken[path] = str(error)
        return self._read[path]

    def _by_progress(self) -> Iterator[Path]:
        """A generator: nothing is searched for as long as runs lie where the grid has them."""
        yield from self._all

    @functools.cached_property
    def _all(self) -> list[Path]:
        def order(path: Path) -> tuple[bool, int, Path]:
            said = last_said(path)
            return (said.state != "finished", -said.step, path)

        return sorted(runs_below(self.folder), key=order)
