"""A training run, from its set-up to its final evaluation."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mtrl.commands.notes import notes
from mtrl.commands.trained import check_checkpoint
from mtrl.commands.videos import Videos
from mtrl.config import Config, load_yaml
from mtrl.device.setup import set_up_learner, settle
from mtrl.envs.vector import NonFiniteError, VectorEnv
from mtrl.evaluation import Evaluation
from mtrl.run import checkpoint
from mtrl.run.callbacks import Callback
from mtrl.run.directory import RunDirectory
from mtrl.run.stopping import TrainingError, outcome, signals
from mtrl.trainer import Trainer


def train(
    config: Config,
    run: RunDirectory,
    envs: VectorEnv,
    *,
    resume: bool = False,
    start: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> Evaluation:
    """Run to the end (or to a signal); -> the final evaluation.

    envs: `make_vector_env(config, config.train.envs_per_task)`, closed by the caller.
    resume: continue the run that `run` holds; start: not from its newest checkpoint, but from
    this one. A run that is finished stays as it is, and is only evaluated.

    Raises ConfigError, TrainingError, WorkerError, CheckpointError, MemoryError or Stopped. Nothing
    is written until all is set up. From then on, status.json says how the run ended; a new run that
    fails before its first update leaves nothing.
    """
    device = set_up_learner(config.learner)
    asked = config
    config, warnings = settle(config, device)
    with ExitStack() as stack:
        stack.callback(run.release)
        if resume:
            run.lock()
        trainer = Trainer(config, run, envs, device, stack, callbacks)
        trainer.events.insert(-1, Videos(trainer))  # before a checkpoint
        state, damaged = _last_state(config, run, envs, start) if resume else (None, [])
        warnings += damaged
        if state is not None:
            trainer.load(state)
            if trainer.agent.moved:
                warnings.append(
                    "the checkpoint is from another kind of device: from here on the run is not "
                    "bitwise what it would have been there"
                )
        if resume and trainer.finished and run.is_finished:
            print(f"mtrl: {run.path} is finished: only evaluated again", file=sys.stderr)
            return trainer.evaluations.final(trainer.step)
        if not resume:
            run.make()
        stack.enter_context(outcome(run, trainer, new=not resume))
        if resume:
            warnings += _resume(run, asked, trainer, start)
        else:
            run.write(config)  # a resumed run keeps what was settled
        trainer.open_recorder()
        stack.enter_context(signals(trainer, "episode end"))
        if config.total_updates and not trainer.finished:
            trainer.learner.prepare()
        for warning in warnings:
            trainer.recorder.message(f"warning: {warning}")
        began = f"resumed at step {trainer.step:,}" if state else "started"
        trainer.recorder.message(
            f"{run.path}: {began}, {trainer.total:,} environment steps, "
            f"{config.num_tasks} tasks, {config.method}, protocol {config.protocol_stamp}, "
            f"learner on {device}"
        )
        if state and not config.episodes_end_together:
            trainer.recorder.message(
                "note: new episodes start; those that the stop cut short are not finished"
            )
        for warning in notes(config, trainer.agent):
            trainer.recorder.message(f"warning: {warning}")
        trainer.status("running")
        if state is None:
            trainer.evaluate_untrained()
        try:
            trainer.loop()
        except NonFiniteError as error:
            trainer.log()  # a non-finite loss is the cause, if there is one: it is named instead
            raise TrainingError(f"{error} at step {trainer.step}") from None
        result = trainer.evaluations.final(trainer.step)
        trainer.status("finished")
        return result


def _last_state(
    config: Config, run: RunDirectory, envs: VectorEnv, start: Path | None
) -> tuple[dict[str, Any] | None, list[str]]:
    """What the run continues from (None: it never came to a checkpoint), and warnings."""
    if start is not None:
        return checkpoint.load_step(start, functools.partial(check_checkpoint, config, envs)), []
    return checkpoint.load_newest(run.checkpoints, finished=run.is_finished)


def _resume(run: RunDirectory, config: Config, trainer: Trainer, start: Path | None) -> list[str]:
    """Make the directory that of the resumed run; -> warnings."""
    warnings = trainer.longer_than(load_yaml(run.config_file))
    if start is not None:
        later = checkpoint.delete_later(start)
        warnings += [f"{path} is later and was deleted" for path in later]
    if (best := checkpoint.best_step(run.checkpoints)) > trainer.step:
        warnings.append(f"best.pt is of step {best:,}, which the run has yet to reach again")
    run.write_config(config)
    return warnings
