"""Runs sorted into benchmarks and methods, and what must not be compared with what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtrl.run.environment import MACHINE
from mtrl.run.state import Run

# Settings that do not change what is learned: runs that differ only here are one method's seeds.
WITHOUT_EFFECT = (
    "seed",
    "name",
    "run_dir",
    "plugins",
    "data_dir",
    "env.workers",
    "env.fast",
    "learner.",
    "checkpoint.",
    "logging.",
    "diagnostics.",
)
MAX_LABEL_KEYS = 3


@dataclass(frozen=True)
class Group:
    """Runs of one method that differ in nothing but their seeds."""

    label: str
    """The method, and what sets it apart from other groups of the same method."""
    method: str
    runs: tuple[Run, ...]
    """By seed."""

    @property
    def finished(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.finished)

    def is_called(self, name: str) -> bool:
        return name in (self.label, self.method)

    @property
    def protocols(self) -> list[str]:
        return sorted({run.protocol for run in self.runs})


@dataclass(frozen=True)
class Benchmark:
    """All runs on the same tasks."""

    name: str
    tasks: tuple[str, ...]
    groups: tuple[Group, ...]
    warnings: tuple[str, ...]
    """What makes the comparison unfair; shown loudly, as are the weaknesses."""
    weaknesses: tuple[str, ...]
    """What makes single methods weakly tested."""

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]


def benchmarks(runs: Iterable[Run], metric: str, baseline: str) -> list[Benchmark]:
    """Benchmarks by name, the baseline first in each.

    metric: tag prefix of the score, `<metric>/<task>`; baseline: a method or a group's label.
    """
    by_tasks: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_tasks.setdefault((run.benchmark, ",".join(run.chosen_tasks)), []).append(run)
    found: list[Benchmark] = []
    for (name, _), members in sorted(by_tasks.items()):
        alike = sum(benchmark.name.startswith(name) for benchmark in found)
        kept, warnings = _without_copies(members)
        groups = _groups(kept)
        groups = tuple(sorted(groups, key=lambda g: (g.label != baseline, g.method != baseline)))
        warnings = [*_several_baselines(groups, baseline), *_unlike(groups), *warnings]
        shown = f"{name} ({alike + 1})" if alike else name
        weak = tuple(_weaknesses(groups))
        found.append(Benchmark(shown, _tasks(kept, metric), groups, tuple(warnings), weak))
    return found


def _several_baselines(groups: Sequence[Group], baseline: str) -> list[str]:
    labels = [group.label for group in groups if group.method == baseline]
    if len(labels) < 2 or baseline in labels:
        return []
    return [
        f"There are {len(labels)} settings of the baseline {baseline}. All others are compared "
        f"with {labels[0]}; --baseline takes any: {'; '.join(labels)}."
    ]


def _tasks(runs: Sequence[Run], metric: str) -> tuple[str, ...]:
    tags = [tag for run in runs for tag in run.series if tag.startswith(f"{metric}/")]
    return tuple(dict.fromkeys(tag.removeprefix(f"{metric}/") for tag in tags))


def settings(run: Run) -> dict[str, Any]:
    """What the run was asked to learn, without what has no effect on it."""
    kept = {key: v for key, v in run.config.items() if not key.startswith(WITHOUT_EFFECT)}
    if (precision := run.config.get("learner.precision")) == "bf16":  # rounds as no other does
        kept["learner.precision"] = precision
    return kept


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """{key: value in each} of the keys whose values differ; None where a key is absent."""
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: [config.get(key) for config in configs] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def _groups(runs: Iterable[Run]) -> tuple[Group, ...]:
    by_method: dict[str, list[list[Run]]] = {}
    for run in sorted(runs, key=lambda run: (run.method, run.seed, str(run.path))):
        variants = by_method.setdefault(run.method, [])
        own = settings(run)
        same = next((variant for variant in variants if settings(variant[0]) == own), None)
        if same is None:
            variants.append([run])
        else:
            same.append(run)
    return tuple(
        Group(label, method, tuple(variant))
        for method, variants in by_method.items()
        for label, variant in zip(_labels(method, variants), variants, strict=True)
    )


def _labels(method: str, variants: Sequence[Sequence[Run]]) -> list[str]:
    """The method, and in brackets how a variant differs from the others.

    By all settings that differ, if they are few; by the experiments' names, if each variant has
    one of its own; by what is unlike most variants, which needs no brackets if that is nothing;
    else by numbers.
    """
    if len(variants) == 1:
        return [method]
    rows = differing([settings(variant[0]) for variant in variants])
    names = [{str(run.config.get("name")) for run in variant} for variant in variants]
    unusual = [
        {key: row[index] for key, row in rows.items() if row[index] != _usual(row)}
        for index in range(len(variants))
    ]
    if len(rows) <= MAX_LABEL_KEYS:
        ends = [key.split(".")[-1] for key in rows]
        short = ends if len(set(ends)) == len(ends) else list(rows)
        values = zip(*rows.values(), strict=True)
        apart = [_assignments(zip(short, own, strict=True)) for own in values]
    elif len(set().union(*names)) == len(variants) == sum(map(len, names)):
        apart = [min(own) for own in names]
    elif max(map(len, unusual)) <= MAX_LABEL_KEYS:
        apart = [_assignments(own.items()) for own in unusual]
    else:
        apart = [f"variant {index + 1}" for index in range(len(variants))]
    return [f"{method} ({own})" if own else method for own in apart]


def _usual(values: Sequence[Any]) -> Any:
    """The most frequent one; of equals the first."""
    return max(values, key=values.count)


def _assignments(settings: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{key}={_brief(value)}" for key, value in settings)


def _brief(value: Any) -> str:
    """With as many digits as tell trials of a search apart."""
    short = f"{value:.4g}" if isinstance(value, float) else str(value)
    return str(value) if len(short) >= len(str(value)) else short


def _without_copies(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Equal seeds of equal settings are one run twice, not two: the one further on is kept."""
    kept: list[Run] = []
    warnings = []
    for run in sorted(runs, key=lambda run: (-run.finished, -run.step, str(run.path))):
        copy = next((k for k in kept if k.seed == run.seed and settings(k) == settings(run)), None)
        if copy is None:
            kept.append(run)
        else:
            warnings.append(
                f"{run.path} has the same settings and seed as {copy.path}: they are not "
                "independent, so it is left out."
            )
    return kept, warnings


def _unlike(groups: Sequence[Group]) -> list[str]:
    """Protocol, length and evaluation must be equal, or numbers are not comparable."""

    def by_value(what: str, values: Mapping[str, list[str]]) -> list[str]:
        if len(values) < 2:
            return []
        each = "; ".join(f"{value}: {', '.join(labels)}" for value, labels in values.items())
        return [f"NOT COMPARABLE, different {what}. {each}."]

    protocols: dict[str, list[str]] = {}
    lengths: dict[str, list[str]] = {}
    evaluations: dict[str, list[str]] = {}
    for group in groups:
        config = group.runs[0].config
        for protocol in group.protocols:
            protocols.setdefault(f"protocol {protocol}", []).append(group.label)
        length = [
            f"{k}={v}" for k, v in config.items() if k in ("train.total_steps", "train.epochs")
        ]
        lengths.setdefault(" ".join(length) or "unknown", []).append(group.label)
        sizes = [f"{k.split('.')[1]}={v}" for k, v in config.items() if k[:11] == "evaluation."]
        evaluations.setdefault(" ".join(sizes) or "unknown", []).append(group.label)
    return [
        *by_value("protocols", protocols),
        *by_value("numbers of training steps", lengths),
        *by_value("evaluations", evaluations),
    ]


def _weaknesses(groups: Sequence[Group]) -> list[str]:
    warnings = []
    for group in groups:
        broken = [run for run in group.runs if run.state in ("failed", "died")]
        open_runs = len(group.runs) - len(group.finished) - len(broken)
        if broken:
            reasons = sorted({run.now.reason for run in broken} - {""})
            effect = "The numbers are those of the survivors, which flatters the method."
            warnings.append(
                f"{group.label}: {len(broken)} of {len(group.runs)} runs failed or died"
                f"{' (' + '; '.join(reasons) + ')' if reasons else ''}. "
                + (effect if group.finished else "None is finished, so there is no final score.")
            )
        if open_runs:
            warnings.append(
                f"{group.label}: {open_runs} of {len(group.runs)} runs are unfinished. They are "
                "in the curves and the list of runs, not in final scores and comparisons."
            )
        if len(group.finished) == 1:
            warnings.append(
                f"{group.label}: one finished run. One seed says nothing about the spread between "
                "seeds: no interval, no test, no conclusion about the method."
            )
    return warnings


def machines(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """What the runs ran on: each distinct set of machine, versions and commit, with its runs."""
    distinct: list[dict[str, Any]] = []
    for run in runs:
        content = {key: run.environment.get(key) for key in (*MACHINE, "python")}
        content |= run.environment.get("versions", {})
        commit = str(run.environment.get("git_commit") or "unknown")[:12]
        changed = " + uncommitted changes" if run.environment.get("git_diff") else ""
        content["commit"] = commit + changed
        known = next((entry for entry in distinct if entry["what"] == content), None)
        if known is None:
            distinct.append({"what": content, "runs": [run]})
        else:
            known["runs"].append(run)
    return distinct


def speed_warning(runs: Sequence[Run]) -> str:
    """Times and memory of different machines or threads say nothing about methods; else ''."""
    seen = {
        tuple(
            [str(run.environment.get(key)) for key in MACHINE]
            + [f"{k}={v}" for k, v in sorted(run.config.items()) if k.startswith("learner.")]
        )
        for run in runs
    }
    if len(seen) < 2:
        return ""
    return (
        "Times and memory are NOT COMPARABLE: the runs were made on different machines or with "
        "different learner settings: " + "; ".join(sorted(", ".join(entry) for entry in seen)) + "."
    )
