"""Words of the command line that stand in several places."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mtrl.options.command_line import load_config, with_overrides
from mtrl.schema import ConfigError, flatten
from mtrl.supervised import command as supervised

OPTIONS = ("c=0.2", "update_every=7")


def test_an_option_given_twice_has_the_words_of_both_places() -> None:
    words = ["--agent.smto.name", "cagrad"]
    words += [f"--agent.smto.options={OPTIONS[0]}", "--seed", "3", "--agent.smto.options"]
    words += [OPTIONS[1], "--env.tasks", "toy-east", "--env.tasks", "toy-west"]
    config = with_overrides(load_config("toy"), "mtrl train toy", words)
    assert config.agent.smto.options == {"c": 0.2, "update_every": 7}
    assert config.env.tasks == ("toy-east", "toy-west")
    assert config.seed == 3


def test_likewise_in_supervised_runs() -> None:
    words = ["--smto.name", "cagrad", *(w for one in OPTIONS for w in ("--smto.options", one))]
    name = "supervised_digits"
    config = supervised.with_overrides(supervised.load_config(name), f"mtrl {name}", words)
    assert config.smto.options == {"c": 0.2, "update_every": 7}


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_of_several_files_the_later_ones_win(tmp_path: Path) -> None:
    method = write(tmp_path, "a.yaml", "agent: {smto: {name: cagrad, options: {c: 0.2}}, tau: 0.1}")
    longer = write(tmp_path, "b.yaml", "train: {total_steps: 9_600}\nagent: {tau: 0.2}")
    base, config = load_config("toy"), load_config("toy", method, longer)
    changed: dict[str, Any] = {
        key: value for key, value in flatten(config).items() if value != flatten(base)[key]
    }
    assert changed == {
        "agent.smto.name": "cagrad",
        "agent.smto.options": {"c": 0.2},
        "agent.tau": 0.2,
        "train.total_steps": 9600,
    }
    words = ["--agent.tau", "0.3"]
    assert with_overrides(config, "mtrl train", words).agent.tau == 0.3
    other = write(tmp_path, "c.yaml", "agent: {smto: {name: mgda}}")
    assert load_config("toy", method, other).agent.smto.options == {}, "of another method"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("agent: {gama: 1}", "agent.gama = 1: unknown key"),
        ("agent: 3", "agent = 3: must be a mapping"),
        ("agent: {tau: x}", "agent.tau = 'x': must be a number"),
    ],
)
def test_a_wrong_later_file(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_config("toy", write(tmp_path, "a.yaml", text))
