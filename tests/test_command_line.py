"""Words of the command line that stand in several places."""

from __future__ import annotations

from mtrl.options.command_line import load_config, with_overrides
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
