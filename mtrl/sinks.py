"""Optional places for the numbers, beside metrics.jsonl and TensorBoard; off by default."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from mtrl.run_directory import RunConfig, RunDirectory

Stays = Callable[[int, str], bool]
"""(step, tag) -> whether what an interrupted run had logged there stays."""


class Sink(Protocol):
    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def open_sinks(run: RunDirectory, config: RunConfig, stays: Stays) -> list[Sink]:
    """Those that `logging` asks for; each goes on after what stays."""
    sinks: list[Sink] = []
    if config.logging.csv:
        sinks.append(Csv(run, stays))
    if config.logging.wandb:
        sinks.append(WeightsAndBiases(run, config))
    return sinks


class Csv:
    """metrics.csv, one value a line: step, tag, value."""

    def __init__(self, run: RunDirectory, stays: Stays) -> None:
        path = run.path / "metrics.csv"
        rows = []
        if path.exists():
            with open(path, newline="") as file:
                rows = [r for r in csv.reader(file) if len(r) == 3 and r[0].isdigit()]
        self._file = open(path, "w", newline="", buffering=1)  # noqa: SIM115 - closed in close()
        self._writer = csv.writer(self._file)
        self._writer.writerow(("step", "tag", "value"))
        self._writer.writerows(row for row in rows if stays(int(row[0]), row[1]))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._writer.writerows((step, tag, value) for tag, value in values.items())

    def close(self) -> None:
        self._file.close()


class WeightsAndBiases:
    """A run of project `mtrl`, named by its directory; its own settings: WANDB_* variables."""

    def __init__(self, run: RunDirectory, config: RunConfig) -> None:
        import wandb

        identity = run.path / "wandb_id"  # a resumed run goes on there too
        if not identity.exists():
            identity.write_text(wandb.util.generate_id())
        self._run: Any = wandb.init(
            project="mtrl",
            name=str(config.run_path),
            id=identity.read_text(),
            resume="allow",
            dir=str(run.path),
            config=dataclasses.asdict(cast(Any, config)),
        )
        # As a metric: wandb's own step may not go back, which a resumed run does.
        self._run.define_metric("*", step_metric="environment_steps")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"environment_steps": step, **values})

    def close(self) -> None:
        self._run.finish()
