"""What TensorBoard's custom-scalars page shows, most important first."""

from __future__ import annotations

import re
from collections.abc import Sequence

Layout = dict[str, dict[str, list]]


def layout(task_names: Sequence[str]) -> Layout:
    """{section: {chart: ["Multiline", [regular expression of tags, ...]]}}.

    A chart has a line per run and matching tag; success has a chart per task, so that there the
    lines of a chart are the runs.
    """

    def chart(*tags: str) -> list:
        return ["Multiline", [f"{tag}$" for tag in tags]]

    return {
        "Success": {"mean over tasks": chart("eval/success_mean")},
        "Success per task": {name: chart(f"eval/success/{re.escape(name)}") for name in task_names},
        "Returns": {"evaluation": chart("eval/return/.*")},
        "Losses": {
            "critic": chart("train/critic_loss/.*"),
            "actor": chart("train/actor_loss/.*"),
        },
        "Temperatures": {
            "alpha": chart("train/alpha/.*"),
            "entropy": chart("train/entropy/.*"),
        },
        "SMTO weights": {
            "critic": chart("smto/critic/weight/.*"),
            "actor": chart("smto/actor/weight/.*"),
        },
        "Gradient conflict": {
            f"{loss}: {text}": chart(f"gradients/{loss}/{name}")
            for loss in ("critic", "actor")
            for name, text in (
                ("cosine_(mean|min)", "cosine, mean and least"),
                ("conflict_ratio", "share of conflicting pairs"),
                ("magnitude_similarity", "similarity of norms"),
            )
        },
        "Speed": {
            "environment steps per second": chart("time/env_steps_per_s"),
            "updates per second": chart("time/updates_per_s"),
            "seconds of an evaluation": chart("time/eval_s"),
        },
    }
