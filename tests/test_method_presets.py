from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPOSITORY

from mtrl.config import Config, load_yaml
from mtrl.options import command_line
from mtrl.options.method_presets import _kurin
from mtrl.options.validation import validate
from mtrl.schema import dump_yaml
from mtrl.smto import available

KURIN = str(REPOSITORY / "configs/mt10_kurin.yaml")


def resolved(*options: str, preset: str = KURIN) -> Config:
    default = command_line.load_config(preset)
    return command_line.with_overrides(default, "mtrl train", list(options))


def test_settings_of_the_method_replace_the_files() -> None:
    assert resolved().agent.actor_l2 == 3e-4
    config = resolved("--agent.smto.name", "mgda", "--agent.smto.preset", "kurin")
    assert config.agent.actor_l2 == 0.0
    assert config.smto_of("critic").options == {"normalisation": "l2"}
    assert config.smto_of("temperature").name == "unitary"
    pcgrad = resolved("--agent.smto.name", "pcgrad", "--agent.smto.preset", "kurin")
    assert pcgrad.agent.actor_l2 == 1e-4
    assert pcgrad.smto_of("temperature").name == "pcgrad"


@pytest.mark.parametrize(
    ("preset", "clip", "lr"), [("mt10_kurin", True, 3e-4), ("mt50_kurin", False, 3e-5)]
)
def test_imtl_differs_between_mt10_and_mt50(preset: str, clip: bool, lr: float) -> None:
    path = str(REPOSITORY / f"configs/{preset}.yaml")
    config = resolved("--agent.smto.name", "imtl_g", "--agent.smto.preset", "kurin", preset=path)
    assert config.agent.target_clip == clip
    assert config.agent.actor_lr == config.agent.critic_lr == config.agent.temperature_lr == lr
    assert config.agent.actor_l2 == (3e-4 if clip else 0.0)


def test_the_command_line_wins_and_options_add_up() -> None:
    line = "--agent.smto.name mgda --agent.smto.preset kurin --agent.actor-l2 0.5"
    config = resolved(*line.split(), "--agent.smto.options", "update_every=4")
    assert config.agent.actor_l2 == 0.5
    assert config.smto_of("actor").options == {"normalisation": "l2", "update_every": 4}


def test_the_resolved_file_reproduces_the_run(tmp_path: Path) -> None:
    line = "--agent.smto.name pcgrad --agent.smto.preset kurin --agent.actor-l2 0.5"
    config = resolved(*line.split())
    assert config.agent.smto.preset == ""
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config))
    assert load_yaml(path) == config
    assert resolved(preset=str(path)) == config


@pytest.mark.parametrize("tasks", [10, 50])
def test_every_entry_is_a_valid_configuration(tasks: int) -> None:
    path = str(REPOSITORY / f"configs/mt{tasks}_kurin.yaml")
    assert set(_kurin(tasks)) <= set(available())
    for method in _kurin(tasks):
        config = resolved("--agent.smto.name", method, "--agent.smto.preset", "kurin", preset=path)
        validate(config)
        assert config.method == method


def test_options_of_another_method_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("agent: {smto: {name: cagrad, options: {c: 0.9, update_every: 3}}}")
    kept = resolved("--agent.smto.options", "c=0.1", preset=str(path))
    assert kept.agent.smto.options == {"c": 0.1, "update_every": 3}
    other = resolved("--agent.smto.name", "pcgrad", preset=str(path))
    assert other.agent.smto.options == {}
    fresh = resolved("--agent.smto.name", "rgd", "--agent.smto.options", "p=3e-1", preset=str(path))
    assert fresh.agent.smto.options == {"p": 0.3}
