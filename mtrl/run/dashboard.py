"""What TensorBoard's custom-scalars page shows, most important first, and its HParams page."""

from __future__ import annotations

from typing import NamedTuple

Chart = list[str | list[str]]
Layout = dict[str, dict[str, Chart]]


class Dashboard(NamedTuple):
    charts: Layout
    """{section: {chart: [kind, tags]}}, as `SummaryWriter.add_custom_scalars` takes it."""
    scores: tuple[str, ...]
    """Tags whose last values are the result of a run."""


def lines(*patterns: str) -> Chart:
    """A line per run and tag that matches one of these regular expressions."""
    return ["Multiline", [f"{pattern}$" for pattern in patterns]]


def over_tasks(prefix: str) -> Chart:
    """A line per run, the mean over tasks, in a band from the lowest task to the highest.

    TensorBoard draws such charts of a section in reverse: the last one stands first.
    """
    return ["Margin", [f"{prefix}_mean", f"{prefix}_min", f"{prefix}_max"]]


def conflict(loss: str) -> dict[str, Chart]:
    """How much the task gradients of a loss disagree."""
    return {
        f"{loss}: {text}": lines(f"gradients/{loss}/{name}")
        for name, text in (
            ("cosine_(mean|min)", "cosine, mean and least"),
            ("conflict_ratio", "share of conflicting pairs"),
            ("magnitude_similarity", "similarity of norms"),
        )
    }


REINFORCEMENT_LEARNING = Dashboard(
    {
        "Success": {
            "training: mean, worst and best task": over_tasks("train/episode_success"),
            "evaluation: mean, worst and best task": over_tasks("eval/success"),
        },
        "Return": {
            "training": over_tasks("train/episode_return"),
            "evaluation": over_tasks("eval/return"),
        },
        "Losses and value": {
            "value Q of the policy's actions": over_tasks("train/value"),
            "actor": over_tasks("train/actor_loss"),
            "critic": over_tasks("train/critic_loss"),
        },
        "Temperatures": {
            "entropy": over_tasks("train/entropy"),
            "alpha": over_tasks("train/alpha"),
        },
        "Gradients": {
            "critic: norm": lines("train/critic_grad_norm"),
            "actor: norm": lines("train/actor_grad_norm"),
        },
        "SMTO weights": {
            "actor": over_tasks("smto/actor/weight"),
            "critic": over_tasks("smto/critic/weight"),
        },
        "Gradient conflict": conflict("critic") | conflict("actor"),
        "Progress": {
            "step sizes": lines("train/(critic|actor|temperature)_lr"),
            "share of the replay that is filled": lines("train/replay_fill"),
            "environment steps per second": lines("time/env_steps_per_s"),
            "updates per second": lines("time/updates_per_s"),
            "seconds of an evaluation": lines("time/eval_s"),
        },
    },
    ("eval/success_mean", "eval/success_min"),
)
