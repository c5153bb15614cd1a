"""Optional places for the numbers, beside metrics.jsonl and TensorBoard; off by default."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping
from typing import Any, Protocol, cast

from mtrl.atomic import write_atomically
from mtrl.run_directory import RunConfig, RunDirectory


class Sink(Protocol):
    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def open_sinks(run: RunDirectory, config: RunConfig, step: int) -> list[Sink]:
    """Those that `logging` asks for; each goes on after `step`."""
    sinks: list[Sink] = []
    if config.logging.csv:
        sinks.append(Csv(run, step))
    if config.logging.wandb:
        sinks.append(WeightsAndBiases(run, config))
    return sinks


class Csv:
    """metrics.csv, one value a line: step, tag, value."""

    def __init__(self, run: RunDirectory, step: int) -> None:
        path = run.path / "metrics.csv"
        lines = path.read_text().splitlines() if path.exists() else []
        rows = [row for row in csv.reader(lines) if len(row) == 3 and row[0].isdigit()]
        kept = io.StringIO(newline="")
        csv.writer(kept).writerows(
            [("step", "tag", "value"), *(row for row in rows if int(row[0]) <= step)]
        )
        write_atomically(path, kept.getvalue())
        self._file = open(path, "a", newline="", buffering=1)  # noqa: SIM115 - closed in close()
        self._writer = csv.writer(self._file)

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
