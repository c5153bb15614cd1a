"""A supervised run that is stopped and resumed, against the same run uninterrupted."""

from __future__ import annotations

import dataclasses
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import differences

from mtrl.commands import main as cli
from mtrl.run import checkpoint
from mtrl.run.directory import RunDirectory
from mtrl.run.stopping import Stopped
from mtrl.supervised.config import SupervisedConfig
from mtrl.supervised.gradients import Outcome
from mtrl.supervised.preparation import load_data
from mtrl.supervised.train import Trainer, train

CPU = torch.device("cpu")


def stop_after(trainer: Trainer, iterations: int) -> None:
    """As a signal in that iteration stops it."""
    update = trainer.learner.update

    def update_and_stop(*args: Any, **options: Any) -> Outcome:
        if trainer.step == iterations - 1:
            trainer.stop_signal = 15
        return update(*args, **options)

    trainer.learner.update = update_and_stop
    with pytest.raises(Stopped):
        trainer.loop()


def resumed_equals_uninterrupted(config: SupervisedConfig, folder: Path, stop_at: int) -> set[str]:
    """-> the tags that were recorded."""
    whole, halves = (dataclasses.replace(config, run_dir=str(folder / n)) for n in ("a", "b"))
    splits = load_data(config)
    train(whole, RunDirectory.create(whole), splits)
    run = RunDirectory.create(halves)
    with ExitStack() as stack:
        trainer = Trainer(halves, run, splits, CPU, stack)
        trainer.open_recorder()
        stop_after(trainer, stop_at)
    run._lock.close()  # as when the process ends
    torch.manual_seed(12345)  # as in another process
    cli.main(["resume", str(run.path)])
    wanted, found = (
        checkpoint.load(checkpoint.newest_first(folder / name / "checkpoints")[0])
        for name in ("a", "b")
    )
    wanted.pop("epoch_s"), found.pop("epoch_s")
    wanted.pop("elapsed"), found.pop("elapsed")
    assert differences(wanted, found) == []
    ours, theirs = (
        [
            {k: v for k, v in json.loads(line).items() if not k.startswith(("time/", "memory/"))}
            for line in (folder / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("a", "b")
    )
    assert ours[-1] == theirs[-1], "the test"
    return {tag for record in ours for tag in record}
