"""Run directories written by hand, as a training run leaves them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

TASKS = ("reach", "push", "door", "drawer")


def write_run(
    path: Path,
    scores: Mapping[int, Sequence[float]],
    *,
    method: str = "unitary",
    seed: int = 1,
    status: str = "finished",
    total: int = 1000,
    settings: Mapping[str, Any] | None = None,
    rates: Sequence[float] = (0.0, 40.0, 50.0, 50.0, 25.0),
    protocol: str = "mw-plus",
    tasks: Sequence[str] = TASKS,
    metric: str = "eval/success",
) -> Path:
    """scores: {step: score of each task}; rates: updates/s of the log intervals."""
    path.mkdir(parents=True)
    config = {
        "name": "made",
        "protocol": "mw-plus",
        "seed": seed,
        "env": {"benchmark": "MT10", "tasks": []},
        "train": {"total_steps": total},
        "agent": {"smto": {"name": method, "options": {}}, "critic_smto": {"name": None}},
        "evaluation": {"every": 250, "episodes_per_task": 10},
    }
    for key, value in (settings or {}).items():
        section, name = key.split(".", 1)
        config[section][name] = value
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / ".lock").touch()
    lines: list[dict[str, Any]] = []
    generator = np.random.default_rng(seed)
    for index, rate in enumerate(rates):
        step = total * (index + 1) // len(rates)
        line: dict[str, Any] = {"step": step, "time/updates_per_s": rate}
        line["memory/learner_mib"] = 400.0 + index
        for loss in ("critic", "actor"):
            line[f"gradients/{loss}/cosine_mean"] = generator.normal(0.1, 0.05)
            line[f"gradients/{loss}/conflict_ratio"] = generator.uniform(0.2, 0.4)
            line[f"gradients/{loss}/magnitude_similarity"] = generator.uniform(0.5, 0.7)
            line[f"gradients/{loss}/condition_number"] = generator.uniform(3, 300)
        lines.append(line)
    for step, values in scores.items():
        line = {"step": step, f"{metric}_mean": float(np.mean(values))}
        line |= {f"{metric}/{task}": v for task, v in zip(tasks, values, strict=True)}
        lines.append(line)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text + '{"step": 7, "eval/succ')  # cut off by a kill
    last = max(scores, default=0)
    progress: dict[str, Any] = {
        "status": status,
        "reason": "out of memory" if status == "failed" else "",
        "step": last,
        "total_steps": total,
        "elapsed_s": 20.0,
        "protocol": protocol,
        "success_mean": float(np.mean(scores[last])) if scores else None,
        "best_success_mean": max((float(np.mean(v)) for v in scores.values()), default=0.0),
    }
    (path / "status.json").write_text(json.dumps(progress))
    environment = {"python": "3.11", "cores": 2, "versions": {"torch": "2.13"}, "git_commit": "ab"}
    (path / "environment.json").write_text(json.dumps(environment))
    return path
