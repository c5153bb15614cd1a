"""Training reaches a known optimum: the toy point mass, a few hundred updates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from conftest import REPOSITORY, Mtrl

from mtrl.config.benchmarks import TOY
from mtrl.envs.toy import PointMass, optimal_return

# Larger steps than the preset's: learns in a tenth of its updates. Returns count whole episodes.
FAST = (
    "--train.total-steps 4800 --checkpoint.every 4800 --evaluation.every 0 "
    "--evaluation.no-stop-at-success --replay.batch-size 128 --env.workers 1 --learner.threads 1 "
    "--learner.device cpu --agent.tau 0.03 --agent.actor-lr 3e-3 --agent.critic-lr 3e-3 "
    "--agent.temperature-lr 3e-3"
)


def final_evaluation(run: Path) -> dict[str, float]:
    last: dict[str, float] = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return last


def test_learns_all_tasks_nearly_optimally(run_mtrl: Mtrl, tmp_path: Path) -> None:
    """One network solves four tasks whose rewards differ 1000-fold, which needs the task id and
    the reward normalisation."""
    run = tmp_path / "run"
    line = ("train", REPOSITORY / "configs/toy.yaml", "--run-dir", run, *FAST.split())
    done = run_mtrl(*line, "--agent.smto.name", "pcgrad")
    assert done.returncode == 0, done.stderr[-3000:]
    result = final_evaluation(run)
    assert result["eval/success_mean"] >= 0.9  # 1.0 with each of 10 seeds
    for task in TOY:
        starts = PointMass(task, num_goals=50, horizon=20, seed=1).starts
        best = np.mean([optimal_return(task, start, 20) for start in starts])
        # An idle point stays where it starts and pays its distance at every step.
        target = PointMass(task).target
        idle = -PointMass(task).reward_scale * 20 * np.abs(starts - target).sum(1).mean()
        share = (result[f"eval/return/{task}"] - idle) / (best - idle)
        assert share <= 1 + 1e-6, "better than the optimum: the environment or returns are wrong"
        # Worst task with 10 seeds: 0.949, standard deviation 0.013.
        assert share >= 0.85, f"{task}: only {share:.0%} of the way from idling to the optimum"
