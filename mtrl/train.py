"""A training run, from its set-up to its final evaluation."""

from __future__ import annotations

import json
from contextlib import ExitStack

from mtrl import checkpoint
from mtrl.config import Config
from mtrl.ending import outcome, signals
from mtrl.envs.vector import VectorEnv
from mtrl.evaluate import Evaluation
from mtrl.learner import set_up_learner, settle
from mtrl.run_directory import RunDirectory, environment, write_atomically
from mtrl.schema import dump_yaml
from mtrl.trainer import Trainer


def train(
    config: Config, run: RunDirectory, envs: VectorEnv, *, resume: bool = False
) -> Evaluation:
    """Run to the end (or to a signal); -> the final evaluation.

    envs: `make_vector_env(config, config.train.envs_per_task)`, closed by the caller.
    Raises TrainingError, WorkerError, CheckpointError, MemoryError or Stopped; status.json
    says why in every case.
    """
    device = set_up_learner(config)
    config, warnings = settle(config, device)
    if not resume:
        write_atomically(run.config_file, dump_yaml(config))  # a resumed run keeps the decision
        write_atomically(run.path / "environment.json", json.dumps(environment(), indent=1))
    with outcome(run), ExitStack() as stack:
        trainer = Trainer(config, run, envs, device, stack)
        state = None
        if resume:
            state, damaged = checkpoint.load_latest(run.checkpoints)
            warnings += damaged
        if state is not None:
            trainer.load(state)
            if trainer.agent.moved:
                warnings.append(
                    "the checkpoint is from another kind of device: from here on the run is not "
                    "bitwise what it would have been there"
                )
        trainer.open_recorder()
        stack.enter_context(signals(trainer, "episode end"))
        if config.total_updates and not trainer.finished:
            trainer.prepare_updates()
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
        for warning in trainer.agent.warnings():
            trainer.recorder.message(f"warning: {warning}")
        trainer.status("running")
        trainer.loop()
        result = trainer.final_evaluation()
        trainer.status("finished")
        return result
