"""What all benchmarks share: turns keep the time, tables find their place, bad input is refused."""

from __future__ import annotations

import importlib
import shutil
import struct
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

import draw
from device import peak_memory
from harness import run, take_turns
from mtrl.report.markdown import MarkedPlace, Table


@pytest.mark.parametrize(
    ("until", "end", "least", "most"), [(0.2, 9, 3, 20), (0, 9, 3, 3), (0, 0, 1, 1)]
)
def test_turns_keep_the_time(until: float, end: float, least: int, most: int) -> None:
    calls: list[int] = []

    def work() -> float:
        time.sleep(0.01)
        calls.append(len(calls))
        return float(len(calls))

    now = time.perf_counter()
    turns = take_turns([work, lambda: 0.5], now + until, now + end)
    assert turns.tolist() == [[turn + 1, 0.5] for turn in calls]
    assert least <= len(turns) <= most


def test_peak_memory_is_what_the_work_held() -> None:
    kept = torch.ones(8 << 20)  # 32 MiB, held before it
    peak = peak_memory(kept.device, lambda: torch.ones(16 << 20))
    assert 60 < peak < 90


def test_a_table_replaces_the_one_in_its_place(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n<!-- y: begin -->\n")
    table = Table("one", "two", "three", intro="Said.")
    table.add("1", "2", "3")
    table.add("1")
    for _ in range(2):
        table.publish(MarkedPlace("x", str(page)))
    assert not (tmp_path / "page.csv").exists()
    lines = ["Said.", "", "| one | two | three |", "|---|---|---|", "| 1 | 2 | 3 |", "| 1 | | |"]
    rest = "\n".join(["a", "<!-- x: begin -->", *lines, "<!-- x: end -->", "b"])
    assert page.read_text() == rest + "\n<!-- y: begin -->\n"
    table.add("`2`", "a, b")
    table.publish(None, tmp_path / "new/page.csv")
    assert (tmp_path / "new/page.csv").read_text() == 'one,two,three\n1,2,3\n1\n2,"a, b"\n'
    with pytest.raises(ValueError, match="needs the lines <!-- y: begin --> and <!-- y: end -->"):
        MarkedPlace("y", str(page))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["smto", "--methods", "pcgard"], "--methods: unknown method 'pcgard'; available: "),
        (["smto", "--device", "tpu"], "--device = 'tpu': must be auto, cpu, cuda or cuda:i"),
        (["train", "--configs", "mt11"], "mt11"),
        (["sweep", "--markdown", "README.md"], "README.md needs the lines <!-- bench/sweep.py: "),
        (["sweep", "--markdown", "nowhere.md"], "No such file or directory: 'nowhere.md'"),
    ],
)
def test_bad_input_is_one_line_before_the_work_begins(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as caught:
        run(importlib.import_module(words[0]).main)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", draw.FIGURES)
def test_the_figures_of_the_documentation_can_be_drawn_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = shutil.copy(REPOSITORY / f"docs/{name}.csv", tmp_path)
    monkeypatch.setattr("sys.argv", ["draw.py", copied])
    draw.main()
    width, height = struct.unpack(">2I", (tmp_path / f"{name}.png").read_bytes()[16:24])
    assert (width, height > 300) == (770, True)


@pytest.mark.parametrize("page", ["networks", "performance", "supervised", "sweeps"])
def test_every_marked_place_in_the_documentation_is_of_a_script(page: str) -> None:
    text = (REPOSITORY / f"docs/{page}.md").read_text()
    names = [line[5:].split(":")[0] for line in text.splitlines() if line.endswith(": begin -->")]
    assert names
    for name in names:
        assert (REPOSITORY / name).is_file()
        MarkedPlace(name, str(REPOSITORY / f"docs/{page}.md"))
