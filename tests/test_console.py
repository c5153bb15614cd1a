"""What is printed is no markup, wherever a name or a path comes in."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, Mtrl

from mtrl.commands import main as cli
from mtrl.config import Config, EnvConfig
from mtrl.evaluation import Evaluation, success_table
from mtrl.run.console import open_console
from mtrl.run.dashboard import REINFORCEMENT_LEARNING
from mtrl.run.directory import RunDirectory
from mtrl.run.recorder import Recorder
from mtrl.run.state import Standing
from mtrl.sweep.board import Board
from mtrl.sweep.grid import Trial, expand
from mtrl.sweep.options import parse_options

NAMES = ["a[b]", "[red]c[/red]", "[/]d", ":bug:e", r"f\[g]"]


def test_names_in_tables_and_captions(capsys: pytest.CaptureFixture[str]) -> None:
    scores = np.zeros((len(NAMES), 1))
    table = success_table(NAMES, Evaluation(scores, scores))
    table.title = table.caption = "[x]:bug:"
    open_console(width=80).print(table)
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in NAMES)
    assert shown.count("[x]:bug:") == 2


def test_names_in_a_sweep(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (run,) = expand(parse_options([str(REPOSITORY / "configs/toy.yaml"), "--root", str(tmp_path)]))
    board = Board([Trial(name, tmp_path, run.config) for name in NAMES])
    board.console.print(board.table())
    for row in board.rows.values():
        board.show(row.trial, Standing("running"))
    shown = capsys.readouterr().err
    assert all(f" {name} " in shown and f"\n{name}: running" in shown for name in NAMES)


def test_a_run_in_a_folder_with_brackets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With videos, which other libraries write."""
    path = tmp_path / "[/red] [bold]" / "seed_[1]"
    short = ("--train.total-steps", 480, "--evaluation.every", 480, "--train.video-every", 480)
    cli.main([str(word) for word in Mtrl.toy_line(path, *short)])
    cli.main(["evaluate", str(path), "--episodes-per-task", "2"])
    streams = capsys.readouterr()
    assert f"{path}: best checkpoint" in streams.out
    assert f"{path}: started" in streams.err.replace("\n", "")
    assert (path / "videos/step_000000000480/grid.mp4").is_file()


def test_the_bar_of_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    recorder = Recorder(
        RunDirectory(tmp_path),
        Config(env=EnvConfig(benchmark="toy")),
        0,
        10,
        REINFORCEMENT_LEARNING,
    )
    recorder.advance(5, ["loss[/] of [t]"], 1.0)
    recorder.close()
    assert "loss[/] of [t]" in capsys.readouterr().err


def test_one_place_opens_consoles() -> None:
    """Any other would read names as markup."""
    for source in (REPOSITORY / "mtrl").rglob("*.py"):
        if source.name != "console.py":
            assert "rich.console" not in source.read_text(), source
