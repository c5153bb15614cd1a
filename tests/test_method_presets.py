"""Papers' settings for methods: YAML files that are laid over others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import REPOSITORY

from mtrl.config import load_yaml
from mtrl.options.command_line import load_config, presets, with_overrides
from mtrl.options.methods import check_methods
from mtrl.options.validation import validate
from mtrl.schema import dump_yaml
from mtrl.supervised import command as supervised
from mtrl.supervised.config import validate as validate_supervised

LAID_OVER = [name for name in presets() if "/" in name and name.count("/") < 3]


def bases(name: str) -> list[str]:
    """The files that the first line names."""
    first = (REPOSITORY / f"configs/{name}.yaml").read_text().split("\n", 1)[0]
    words = re.findall(r"[\w/]+", first.partition("laid over ")[2])
    return [word for word in words if word in presets()]


@pytest.mark.parametrize("name", LAID_OVER)
def test_every_file_goes_over_those_that_it_names(name: str) -> None:
    content = (REPOSITORY / f"configs/{name}.yaml").read_text()
    assert content.startswith("# ")
    over = bases(name)
    if "problem:" in content:
        validate_supervised(supervised.load_config(name))
        return
    assert over, "the first line says what the file is laid over"
    for base in over:
        if base.startswith(("supervised", "gama")):
            validate_supervised(supervised.load_config(base, name))
        else:
            validate(check_methods(load_config(base, name)))


def test_the_settings_of_kurin_et_al() -> None:
    unitary, pcgrad, mgda = (
        load_config("mt10_kurin", f"kurin/{method}") for method in ("unitary", "pcgrad", "mgda")
    )
    assert [c.agent.actor_l2 for c in (unitary, pcgrad, mgda)] == [3e-4, 1e-4, 0.0]
    assert mgda.smto_of("critic").options == {"normalisation": "l2"}
    assert mgda.smto_of("temperature").name == "unitary"
    assert pcgrad.smto_of("temperature").name == "pcgrad"
    imtl_10 = load_config("mt10_kurin", "kurin/imtl_g").agent
    imtl_50 = load_config("mt50_kurin", "kurin/imtl_g_mt50").agent
    assert (imtl_10.target_clip, imtl_10.actor_l2, imtl_10.critic_lr) == (True, 3e-4, 3e-4)
    assert (imtl_50.target_clip, imtl_50.actor_l2, imtl_50.critic_lr) == (False, 0.0, 3e-5)


def test_the_command_line_wins_and_options_add_up() -> None:
    config = with_overrides(
        load_config("mt10_kurin", "kurin/mgda"),
        "mtrl train",
        ["--agent.actor-l2", "0.5", "--agent.smto.options", "update_every=4"],
    )
    assert config.agent.actor_l2 == 0.5
    assert config.smto_of("actor").options == {"normalisation": "l2", "update_every": 4}


def test_the_resolved_file_reproduces_the_run(tmp_path: Path) -> None:
    config = load_config("mt10_kurin", "kurin/pcgrad")
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config))
    assert load_yaml(path) == config


def test_a_side_has_its_own_method() -> None:
    for base in ("mt10", "mt50", "quickstart"):
        config = load_config(base, "sides/toppo")
        assert config.smto_of("critic").name == "fairgrad"
        assert config.smto_of("actor").name == "pcgrad"


def test_options_of_another_method_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("agent: {smto: {name: cagrad, options: {c: 0.9, update_every: 3}}}")

    def resolved(line: str) -> dict[str, object]:
        return with_overrides(load_config(str(path)), "", line.split()).agent.smto.options

    assert resolved("--agent.smto.options c=0.1") == {"c": 0.1, "update_every": 3}
    assert resolved("--agent.smto.name pcgrad") == {}
    assert resolved("--agent.smto.name rgd --agent.smto.options p=3e-1") == {"p": 0.3}


def test_gama_and_grassis_settings_read_by_hand() -> None:
    famo = supervised.load_config("supervised_multi_mnist_cl_rr", "gama/multi_mnist_cl_rr/famo")
    assert (famo.train.lr, famo.smto.options) == (0.0025, {"decay": 1e-4})
    city = supervised.load_config(
        "gama/cityscapes_19_instances", "gama/cityscapes_19_instances/rotograd"
    )
    assert (city.method, city.network.encoder) == ("unitary+rotograd", "resnet18")
    assert (city.rotograd.lr, city.train.l2, city.train.epochs) == (1.0, 0.0, 150)
    learned = supervised.load_config("gama/multi_mnist_cl_cr", "gama/multi_mnist_cl_cr/auto_lambda")
    assert learned.network.dropout == 0.3
    single = supervised.load_config(
        "supervised_multi_mnist_cl_rr", "gama/multi_mnist_cl_rr/single_classify_left"
    )
    assert (single.tasks, single.train.lr) == (("classify_left",), 0.0025)
    assert single.network.dropout == 0.5
    assert learned.smto.options["lr"] == pytest.approx(0.1 * 0.005 * 5), "from 1/2, not from 0.1"


def test_kurins_settings_of_celeba_read_by_hand() -> None:
    def over(method: str) -> tuple[float, float]:
        config = supervised.load_config("supervised_celeba", f"kurin/celeba/{method}")
        return config.train.lr, config.train.l2

    assert over("mgda") == (5e-4, 1e-4)
    assert over("imtl") == (5e-4, 1e-3)
    assert over("pcgrad") == (1e-3, 1e-3 / 40)
    assert over("graddrop") == (1e-3, 1e-4 / 40)
