"""Optuna's study, and its trials as runs.

Optuna's journal holds what was suggested and how it went; everything else stands in the trials'
run directories. So a search can be stopped in any way and called again.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtrl.config import Config
from mtrl.run.state import State, last_said, read_series, standing
from mtrl.schema import ConfigError
from mtrl.sweep.board import Board
from mtrl.sweep.grid import Trial, configure, settings_of
from mtrl.tune.space import Space

OBJECTIVE = "eval/success_mean"
JOURNAL = "study.journal"
ENDED: dict[str, State] = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
"""Optuna's words and ours."""


def import_optuna() -> Any:
    """optuna, or ConfigError that says how to install it."""
    try:
        import optuna
    except ImportError:
        raise ConfigError("command", "tune", "needs Optuna: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """For this process alone; ConfigError if another one searches there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("root", str(folder), f"cannot be made: {error}") from None
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError("name", str(folder), "is in use by another `mtrl tune`") from None
        yield


class Study:
    def __init__(
        self,
        folder: Path,
        base: Config,
        settings: Mapping[str, Any],
        space: Space,
        *,
        trials: int,
        prune_after: int | None,
    ) -> None:
        """folder: held; settings: of all trials. trials: in all, with those of earlier calls.
        prune_after: finished trials before the first is pruned; None: none is ever."""
        self.folder, self._base, self._settings = folder, base, settings
        self._space, self._wanted = space, trials
        self.optuna = import_optuna()
        backend = self.optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
        pruners = self.optuna.pruners
        self._study = self.optuna.create_study(
            study_name="mtrl",
            storage=self.optuna.storages.JournalStorage(backend),
            direction="maximize",
            pruner=pruners.NopPruner()
            if prune_after is None
            else pruners.MedianPruner(n_startup_trials=prune_after, n_warmup_steps=1),
            load_if_exists=True,
        )
        # Of another seed in each call: else each would draw the first call's random trials again.
        self._study.sampler = self.optuna.samplers.TPESampler(
            seed=base.seed + len(self._study.trials), constant_liar=True
        )
        self._refuse_changes()
        self._open: dict[str, Any] = {}
        """Optuna's trials of this call that it does not know the end of, by name."""
        self._reported: dict[str, int] = {}
        """The last evaluation that Optuna knows, as its step."""

    def _refuse_changes(self) -> None:
        """ConfigError if the study began with another space or other settings."""
        fixed = settings_of(configure(self._base, self._settings))
        now = {f"space {key}": dataclasses.asdict(d) for key, d in self._space.items()} | fixed
        now = json.loads(json.dumps(now, default=str))
        before = self._study.user_attrs.get("settings")
        if before is None:
            self._study.set_user_attr("settings", now)
            return
        for key in {**before, **now}:
            if before.get(key) != now.get(key):
                raise ConfigError(
                    key,
                    now.get(key),
                    f"the study in {self.folder} was started with {before.get(key)!r}; give this "
                    "one another --name",
                )

    def config(self, parameters: Mapping[str, Any]) -> Config:
        return configure(self._base, {**self._settings, **parameters})

    def trials(self, board: Board, cores: int) -> Iterator[Trial]:
        """First what earlier calls left open, then one after the other; each as it is asked for."""
        for record in self._begun():
            if record.state.is_finished():
                self._show_ended(board, record)
                continue
            theirs = self.optuna.trial.Trial(self._study, record._trial_id)
            if (trial := self._begin(board, cores, theirs)) is not None:
                yield trial
        while True:
            self.settle(board)
            if len(self._begun()) >= self._wanted:
                return
            if (trial := self._begin(board, cores, self._study.ask())) is not None:
                yield trial

    def _begun(self) -> list[Any]:
        """Those that wait were only enqueued, by a program of the user's."""
        return [t for t in self._study.trials if t.state != self.optuna.trial.TrialState.WAITING]

    def _trial(self, number: int, config: Config) -> Trial:
        name = f"trial_{number:03d}"
        path = self.folder / name
        config = dataclasses.replace(config, name=self.folder.name, run_dir=str(path))
        return Trial(name, self.folder, config)

    def _begin(self, board: Board, cores: int, theirs: Any) -> Trial | None:
        """Optuna's trial as ours; None if there is nothing to start."""
        chosen = {key: dimension.suggest(key, theirs) for key, dimension in self._space.items()}
        try:
            trial = self._trial(theirs.number, self.config(chosen)).with_cores(cores)
        except ConfigError as error:  # each value is allowed, all together are not
            self._tell(theirs, "FAIL", str(error))
            board.message(f"trial_{theirs.number:03d} cannot be run: {error}")
            return None
        board.add(trial)
        self._open[trial.name] = theirs
        known = self._study.trials[theirs.number].intermediate_values
        self._reported[trial.name] = max(known, default=-1)
        now = standing(trial.path)
        if now.state in ("failed", "pruned"):  # told to its directory, not yet to Optuna
            board.show(trial, now)
            return None
        shown = ", ".join(f"{key}={_short(value)}" for key, value in chosen.items())
        board.message(f"{trial.name}: {shown}")
        if now.state == "waiting":
            trial.write_config()
        return trial

    def _show_ended(self, board: Board, record: Any) -> None:
        trial = self._trial(record.number, self._base)
        board.add(trial)
        board.rows[trial.name].now = dataclasses.replace(
            last_said(trial.path),
            state=ENDED[record.state.name],
            reason=record.user_attrs.get("reason", ""),
        )

    def unpromising(self, trial: Trial) -> str:
        """Why a running run is to end early, by the evaluations that have come; '' = it is not."""
        theirs = self._open[trial.name]
        for step, value in self._evaluations(trial):
            theirs.report(value, step)
            self._reported[trial.name] = step
            if theirs.should_prune():
                return (
                    f"pruned at step {step:,}: {OBJECTIVE} {value:.3f} is below the median of the "
                    "finished trials"
                )
        return ""

    def _evaluations(self, trial: Trial) -> Iterator[tuple[int, float]]:
        """Those that Optuna does not know."""
        series = read_series(trial.path / "metrics.jsonl", (OBJECTIVE,)).get(OBJECTIVE)
        if series is not None:
            for step, value in zip(series.steps.tolist(), series.values.tolist(), strict=True):
                if step > self._reported[trial.name]:
                    yield step, value

    def settle(self, board: Board) -> None:
        """Tell Optuna of the trials that have ended."""
        for name, theirs in list(self._open.items()):
            trial, now = board.rows[name].trial, board.rows[name].now
            if now.state not in ("finished", "failed", "pruned"):
                continue
            for step, value in self._evaluations(trial):
                theirs.report(value, step)
            if now.state == "finished" and now.success is not None:
                self._study.tell(theirs.number, now.success)
            else:
                self._tell(theirs, "PRUNED" if now.state == "pruned" else "FAIL", now.reason)
            del self._open[name]

    def _tell(self, theirs: Any, state: str, reason: str) -> None:
        theirs.set_user_attr("reason", reason)
        self._study.tell(theirs.number, state=self.optuna.trial.TrialState[state])

    def finished(self) -> list[tuple[Trial, float, dict[str, Any]]]:
        """The finished trials, the best first: trial, success, and what was searched."""
        complete = self.optuna.trial.TrialState.COMPLETE
        records = self._study.get_trials(states=(complete,))
        found = []
        for record in sorted(records, key=lambda record: -record.value):
            chosen = {key: self._space[key].named(value) for key, value in record.params.items()}
            found.append((self._trial(record.number, self.config(chosen)), record.value, chosen))
        return found


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
