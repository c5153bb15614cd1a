"""`mtrl weights` of a reinforcement-learning run; of a supervised one: test_supervised.py."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from mtrl.commands.fixed_weights import as_yaml
from mtrl.config import Config, EnvConfig, LossSmtoConfig, SmtoConfig, load_yaml
from mtrl.options.validation import validate
from mtrl.schema import dump_yaml


def test_the_run_with_fixed_weights_in_place_of_its_method(tmp_path: Path) -> None:
    config = Config(protocol="none", env=EnvConfig(benchmark="toy", horizon=20), seed=3)
    agent = dataclasses.replace(config.agent, smto=SmtoConfig("mgda", {"update_every": 2}))
    config = dataclasses.replace(config, agent=agent, run_dir=str(tmp_path))
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    weights = {"critic": [1.0, 1.0, 2.0, 4.0], "actor": [0.0, 1.0, 1.0, 0.0]}
    record = {
        f"smto/{loss}/weight/{task}": value
        for loss, values in weights.items()
        for task, value in zip(config.task_names, values, strict=True)
    }
    whole = json.dumps({"step": 80, **record}).encode()
    (tmp_path / "metrics.jsonl").write_bytes(whole + b"\n" + whole[:50] + b"\xff")  # cut off

    (tmp_path / "fixed.yaml").write_text(as_yaml(tmp_path))
    fixed = load_yaml(tmp_path / "fixed.yaml")
    validate(dataclasses.replace(fixed, checkpoint=dataclasses.replace(fixed.checkpoint, every=80)))
    assert fixed.method == "fixed"
    assert fixed.smto_of("critic").options == {"weights": [0.125, 0.125, 0.25, 0.5]}
    assert fixed.smto_of("actor").options == {"weights": [0.0, 0.5, 0.5, 0.0]}
    plain = dataclasses.replace(
        fixed.agent, critic_smto=LossSmtoConfig(), actor_smto=LossSmtoConfig()
    )
    before = dataclasses.replace(config, run_dir="")
    assert dataclasses.replace(fixed, agent=plain) == dataclasses.replace(
        before, agent=dataclasses.replace(config.agent, smto=SmtoConfig())
    )
