"""What TensorBoard shows of a supervised run."""

from __future__ import annotations

from collections.abc import Sequence

from mtrl.run.dashboard import Dashboard, conflict, lines, over_tasks


def dashboard(metrics: Sequence[str]) -> Dashboard:
    """metrics: names of the problem's, each of one or several tasks."""
    return Dashboard(
        {
            "Validation": {metric: lines(f"eval/{metric}_mean") for metric in metrics},
            "Training": {
                "SMTO weights": over_tasks("smto/shared/weight"),
                "loss: mean, least and largest task": over_tasks("train/loss"),
            },
            "Gradient conflict": conflict("shared"),
            "Speed": {
                "updates per second": lines("time/updates_per_s"),
                "seconds of an epoch": lines("time/epoch_s"),
            },
        },
        tuple(f"test/{metric}_mean" for metric in metrics),
    )
