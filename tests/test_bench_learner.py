"""Benchmarks of the learner: which rows come first, and what becomes of one that fails."""

from __future__ import annotations

import time

import pytest
import torch

import learner

LISTS = ["MT10", "MT50"], [400, 1024], ["unitary", "pcgrad", "mgda"], ["tf32"]
MODES = ["captured", "eager", "compiled+captured"]


def test_every_row_once_and_the_most_important_first() -> None:
    rows = learner.plan(*LISTS, MODES)
    assert len(set(rows)) == len(rows) == 2 * 2 * 3 * 1 * 3
    assert rows[0] == ("MT10", 400, "unitary", "tf32", "captured")
    # A list cut anywhere has the baseline of every row, and each method as often as the others.
    for index, row in enumerate(rows):
        assert row._replace(method="unitary") in rows[: index + 1]
        if row.mode != "captured":
            assert row._replace(mode="captured") in rows[:index]
    last = rows[-6:]
    assert {row.mode for row in last} == {"compiled+captured"}


def test_a_row_that_fails_is_a_line_and_ends_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU nothing can be captured; the rows after it are measured all the same."""
    monkeypatch.setattr(learner, "MOST_S", 0.1)
    rows = learner.plan(["MT10"], [8], ["unitary", "pcgrad"], ["fp32"], ["eager"])
    rows.insert(1, rows[0]._replace(mode="captured"))
    learner.measure_all(rows, torch.device("cpu"), time.perf_counter() + 100)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| MT10")]
    assert len(lines) == 2 + len(rows)
    assert sum("not captured" in line for line in lines) == 1
    pcgrad = lines[-1].split(" | ")
    assert pcgrad[2] == "`pcgrad` fp32, eager"
    assert float(pcgrad[7]) > 0  # over unitary


def test_no_row_begins_when_the_time_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    rows = learner.plan(["MT10"], [8], ["unitary"], ["fp32"], ["eager"])
    learner.measure_all(rows, torch.device("cpu"), time.perf_counter())
    assert "1 rows were not measured" in capsys.readouterr().out
