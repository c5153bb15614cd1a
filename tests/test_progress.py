"""What a user watches in a terminal, and what it counts."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from rich import console as rich_console

from mtrl.config import Config, EnvConfig
from mtrl.envs.vector import Step
from mtrl.run.console import say
from mtrl.run.dashboard import REINFORCEMENT_LEARNING
from mtrl.run.directory import RunDirectory
from mtrl.run.progress import BAR, ProgressLine
from mtrl.run.recent_episodes import WINDOW, RecentEpisodes
from mtrl.run.recorder import Recorder
from mtrl.run.timing import duration


def terminal(width: int) -> rich_console.Console:
    return rich_console.Console(
        file=io.StringIO(), force_terminal=True, width=width, highlight=False
    )


def last_line(console: rich_console.Console) -> str:
    assert isinstance(console.file, io.StringIO)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    return plain.replace("\r", "\n").strip().splitlines()[-1]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_line_has_a_bar_and_whole_words(width: int) -> None:
    console = terminal(width)
    line = ProgressLine(console, 0, 1000)
    words = ["ETA 5.2 days", "success train 0.42, eval 0.33", "12,345 env steps/s, 67.8 updates/s"]
    line.update(420, words)
    line.close()
    shown = last_line(console)
    assert len(shown) <= width
    bar, _, text = shown.partition(" 42%")
    assert len(bar.strip()) >= BAR
    said = [word for word in words if word in text]
    assert text.split() == " ".join(said).split(), "no word is cut"
    assert len(said) == {60: 1, 80: 2, 100: 2, 140: 3}[width]


def test_an_evaluation_is_in_the_line_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    config = Config(env=EnvConfig(benchmark="toy"))
    recorder = Recorder(RunDirectory(tmp_path), config, 0, 100, REINFORCEMENT_LEARNING)
    recorder.progress(100, {"train": 0.9, "eval": 0.33}, 10.0, 1.0)
    recorder.evaluation(100, np.ones((4, 1), dtype=np.bool_), np.zeros((4, 1)), 1.0)
    recorder.close()
    shown = re.findall(r"success .* eval \d\.\d\d", capsys.readouterr().err)
    assert shown[-1] == "success train 0.90, eval 1.00"


def test_messages_break_between_words_on_a_terminal_alone() -> None:
    text = "runs/toy/unitary/seed_1: started, 4,800 environment steps, 4 tasks, learner on cpu"
    narrow = terminal(40)
    say(narrow, text)
    piped = rich_console.Console(file=io.StringIO(), width=40)
    say(piped, text)
    assert isinstance(narrow.file, io.StringIO)
    assert isinstance(piped.file, io.StringIO)
    lines = narrow.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 40
    assert " ".join(line.strip() for line in lines) == text
    assert piped.file.getvalue() == f"{text}\n"


def test_no_steps_since_the_last_line_say_nothing_about_the_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when a run fails between two of them: its own error must be what is shown."""
    config = Config(env=EnvConfig(benchmark="toy"))
    recorder = Recorder(RunDirectory(tmp_path), config, 0, 100, REINFORCEMENT_LEARNING)
    recorder.progress(50, {"train": 0.0}, 0.0, 3.0)
    recorder.close()
    assert "ETA unknown" in capsys.readouterr().err


def test_durations() -> None:
    seconds = (-1, 20, 400, 12_600, 449_280)
    assert [*map(duration, seconds)] == ["0 s", "20 s", "7 min", "3.5 h", "5.2 days"]


# -- training episodes --------------------------------------------------------------------------


def step(rewards: list[float], success: list[bool], ended: list[bool]) -> Step:
    nothing = np.zeros((len(rewards), 1), np.float32)
    over = np.array(ended)
    return Step(nothing, nothing, np.array(rewards), over & False, over, np.array(success))


def test_recent_episodes_of_two_tasks_with_two_environments_each() -> None:
    recent = RecentEpisodes(2, 2)
    assert np.isnan([*recent.success, *recent.returns]).all()
    recent.add(step([1, 2, 3, 4], [True, False, False, False], [False] * 4))
    recent.add(step([1, 2, 3, 4], [False] * 4, [True, True, False, False]))
    np.testing.assert_allclose(recent.success, [0.5, np.nan])
    np.testing.assert_allclose(recent.returns, [3.0, np.nan])
    recent.add(step([0, 0, 3, 4], [False, False, False, True], [True] * 4))
    np.testing.assert_allclose(recent.success, [0.25, 0.5])
    np.testing.assert_allclose(recent.returns, [1.5, 10.5])

    other = RecentEpisodes(2, 2)
    other.load_state_dict(recent.state_dict())
    np.testing.assert_array_equal(other.returns, recent.returns)
    for _ in range(WINDOW):
        other.add(step([5, 5, 5, 5], [False] * 4, [True] * 4))
    np.testing.assert_allclose(other.returns, [5.0, 5.0])
