"""Optional places for the numbers, in addition to metrics.jsonl and TensorBoard; off by default."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import secrets
from collections.abc import Mapping
from typing import Any, Protocol, cast

from mtrl.files.atomic import write_atomically
from mtrl.run.directory import RunConfig, RunDirectory, Sinks
from mtrl.run.stopping import TrainingError
from mtrl.schema import ConfigError

NOT_INSTALLED = "wandb is not installed; `pip install wandb`, or leave it off"
MAX_NAME = 128  # characters of a run's name, which W&B's server accepts


class Sink(Protocol):
    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def check_sinks(logging: Sinks) -> None:
    """ConfigError for a sink that cannot work here; called before anything is written."""
    if logging.wandb:
        import_wandb()


def open_sinks(run: RunDirectory, config: RunConfig, step: int) -> list[Sink]:
    """Those that `logging` asks for; each continues after `step`."""
    sinks: list[Sink] = []
    if config.logging.wandb:  # first: it may fail, and then nothing has changed on disk
        sinks.append(WeightsAndBiases(run, config))
    if config.logging.csv:
        sinks.append(Csv(run, step))
    return sinks


class Csv:
    """metrics.csv, one value a line: step, tag, value."""

    def __init__(self, run: RunDirectory, step: int) -> None:
        path = run.path / "metrics.csv"
        # A killed process, or a power cut, may leave anything in the last line.
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        rows = [row for row in csv.reader(lines) if len(row) == 3 and row[0].isdecimal()]
        kept = io.StringIO(newline="")
        csv.writer(kept).writerows(
            [("step", "tag", "value"), *(row for row in rows if step > 0 and int(row[0]) <= step)]
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
        wandb = import_wandb()
        identity = run.path / "wandb_id"  # a resumed run continues there too
        if not (identity.is_file() and identity.read_text().strip()):
            write_atomically(identity, secrets.token_hex(4))
        try:
            self._run: Any = wandb.init(
                project="mtrl",
                name=str(config.run_path)[-MAX_NAME:],
                id=identity.read_text().strip(),
                resume="allow",
                dir=str(run.path),
                config=dataclasses.asdict(cast(Any, config)),
                allow_val_change=True,  # a resumed run may be longer
            )
        except wandb.Error as error:
            raise TrainingError(
                f"Weights & Biases does not take the run: {_one_line(error)}; "
                "WANDB_MODE=offline logs to the run's directory instead"
            ) from None
        # As a metric: wandb's own step may not go back, which a resumed run does.
        self._run.define_metric("*", step_metric="environment_steps")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"environment_steps": step, **values})

    def close(self) -> None:
        self._run.finish()


@functools.cache
def import_wandb() -> Any:
    """W&B's package, logged in; ConfigError if it is not installed, hidden, broken or without key.

    On a terminal W&B itself asks for a missing key.
    """

    def refused(reason: str) -> ConfigError:
        return ConfigError("logging.wandb", True, reason)

    try:
        import wandb
    except ModuleNotFoundError as error:
        if error.name == "wandb":
            raise refused(NOT_INSTALLED) from None
        raise refused(f"wandb cannot be imported: {_one_line(error)}") from None
    except Exception as error:  # other versions of its own requirements make it raise anything
        raise refused(f"wandb cannot be imported: {_one_line(error)}") from None
    if not (hasattr(wandb, "init") and hasattr(wandb, "login")):
        if wandb.__file__ is None:  # a folder without code, which Python takes for a package
            folder = next(iter(wandb.__path__))
            raise refused(f"{NOT_INSTALLED} (the folder {folder} is not the package)")
        raise refused(
            f"{wandb.__file__} hides the wandb package: rename it, or start mtrl in another folder"
        )
    try:
        wandb.login()  # returns at once where WANDB_MODE says offline or disabled
    except (wandb.Error, ValueError) as error:  # ValueError: a WANDB_* variable is impossible
        advice = "use `wandb login`, WANDB_API_KEY or WANDB_MODE=offline"
        raise refused(f"cannot log in to Weights & Biases; {advice} ({_one_line(error)})") from None
    return wandb


def _one_line(error: Exception) -> str:
    return " ".join(f"{error}".split()) or type(error).__name__
