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
from mtrl.run.state import read_series
from mtrl.schema import ConfigError
from mtrl.sweep.board import Board, Shown
from mtrl.sweep.grid import Run, configure, settings_of
from mtrl.sweep.process import look, read_status
from mtrl.tune.space import Space

OBJECTIVE = "eval/success_mean"
JOURNAL = "study.journal"
ENDED: dict[str, Shown] = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
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
            else pruners.MedianPruner(n_startup_trials=prune_after),
            load_if_exists=True,
        )
        # Of another seed in each call: else each would draw the first call's random trials again.
        self._study.sampler = self.optuna.samplers.TPESampler(
            seed=base.seed + len(self._study.trials), constant_liar=True
        )
        self._refuse_changes()
        self._open: dict[str, Any] = {}
        """Trials of this call that Optuna does not know the end of, by their run's name."""
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

    def runs(self, board: Board, cores: int) -> Iterator[Run]:
        """First what earlier calls left open, then trial after trial; each as it is asked for."""
        for trial in self._begun():
            if trial.state.is_finished():
                self._show_ended(board, trial)
                continue
            trial = self.optuna.trial.Trial(self._study, trial._trial_id)
            if (run := self._begin(board, cores, trial)) is not None:
                yield run
        while True:
            self.settle(board)
            if len(self._begun()) >= self._wanted:
                return
            if (run := self._begin(board, cores, self._study.ask())) is not None:
                yield run

    def _begun(self) -> list[Any]:
        """Those that wait were only enqueued, by a program of the user's."""
        return [t for t in self._study.trials if t.state != self.optuna.trial.TrialState.WAITING]

    def _run(self, number: int, config: Config) -> Run:
        name = f"trial_{number:03d}"
        path = self.folder / name
        config = dataclasses.replace(config, name=self.folder.name, run_dir=str(path))
        return Run(name, self.folder, config)

    def _begin(self, board: Board, cores: int, trial: Any) -> Run | None:
        """A trial as a run; None if there is nothing to start."""
        chosen = {key: dimension.suggest(key, trial) for key, dimension in self._space.items()}
        try:
            run = self._run(trial.number, self.config(chosen)).with_cores(cores)
        except ConfigError as error:  # each value is allowed, all together are not
            self._tell(trial, "FAIL", str(error))
            board.message(f"trial_{trial.number:03d} cannot be run: {error}")
            return None
        board.add(run)
        self._open[run.name] = trial
        known = self._study.trials[trial.number].intermediate_values
        self._reported[run.name] = max(known, default=-1)
        now = look(run.path)
        if now.state in ("failed", "pruned"):  # told to its directory, not yet to Optuna
            board.show(run, now.state, now)
            return None
        shown = ", ".join(f"{key}={_short(value)}" for key, value in chosen.items())
        board.message(f"{run.name}: {shown}")
        if now.state == "new":
            run.write_config()
        return run

    def _show_ended(self, board: Board, trial: Any) -> None:
        run = self._run(trial.number, self._base)
        board.add(run)
        row = board.rows[run.name]
        row.shown = ENDED[trial.state.name]
        reason = trial.user_attrs.get("reason", "")
        row.outlook = dataclasses.replace(read_status(run.path), reason=reason)

    def unpromising(self, run: Run) -> str:
        """Why a running run is to end early, by the evaluations that have come; '' = it is not."""
        trial = self._open[run.name]
        for step, value in self._evaluations(run):
            trial.report(value, step)
            self._reported[run.name] = step
            if trial.should_prune():
                return (
                    f"pruned at step {step:,}: {OBJECTIVE} {value:.3f} is below the median of the "
                    "finished trials"
                )
        return ""

    def _evaluations(self, run: Run) -> Iterator[tuple[int, float]]:
        """Those that Optuna does not know."""
        series = read_series(run.path / "metrics.jsonl", (OBJECTIVE,)).get(OBJECTIVE)
        if series is not None:
            for step, value in zip(series.steps.tolist(), series.values.tolist(), strict=True):
                if step > self._reported[run.name]:
                    yield step, value

    def settle(self, board: Board) -> None:
        """Tell Optuna of the trials that have ended."""
        for name, trial in list(self._open.items()):
            row = board.rows[name]
            if row.shown not in ("finished", "failed", "pruned"):
                continue
            for step, value in self._evaluations(row.run):
                trial.report(value, step)
            success = row.outlook.success
            if row.shown == "finished" and success is not None:
                self._study.tell(trial.number, success)
            else:
                self._tell(trial, "PRUNED" if row.shown == "pruned" else "FAIL", row.outlook.reason)
            del self._open[name]

    def _tell(self, trial: Any, state: str, reason: str) -> None:
        trial.set_user_attr("reason", reason)
        self._study.tell(trial.number, state=self.optuna.trial.TrialState[state])

    def finished(self) -> list[tuple[Run, float, dict[str, Any]]]:
        """The finished trials, the best first: run, success, and what was searched."""
        complete = self.optuna.trial.TrialState.COMPLETE
        trials = self._study.get_trials(states=(complete,))
        found = []
        for trial in sorted(trials, key=lambda trial: -trial.value):
            chosen = {key: self._space[key].named(value) for key, value in trial.params.items()}
            found.append((self._run(trial.number, self.config(chosen)), trial.value, chosen))
        return found


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
