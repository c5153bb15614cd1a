"""Run directories read back, and `mtrl runs`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ENVIRONMENT
from run_files import write_run

from mtrl.commands import main as cli
from mtrl.run.directory import RunDirectory
from mtrl.run.state import find_runs, is_held, read_metrics, read_run, read_series
from mtrl.schema import ConfigError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", {500: [0, 0.5, 1, 0.5], 1000: [0.5] * 4}, method="pcgrad")


def test_read_run(run: Path) -> None:
    read = read_run(run, ("eval/", "time/"))
    assert (read.method, read.benchmark, read.seed, read.protocol) == (
        "pcgrad",
        "MT10",
        1,
        "mw-plus",
    )
    assert (read.state, read.step, read.total_steps) == ("finished", 1000, 1000)
    assert read.config["train.total_steps"] == 1000
    assert read.series["eval/success/door"].steps.tolist() == [500, 1000]
    assert read.series["eval/success/door"].values.tolist() == [1.0, 0.5]
    assert {tag.split("/")[0] for tag in read.series} == {"eval", "time"}  # only what was asked for


def test_of_equal_steps_the_last_counts(tmp_path: Path) -> None:
    lines = [{"step": 2, "a": 1.0}, {"step": 1, "a": 5.0}, {"step": 2, "a": 3.0}, {"b": 1.0}]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "[1]\nnull\n{")
    series = read_series(file, ("a",))
    assert series["a"].steps.tolist() == [1, 2]
    assert series["a"].values.tolist() == [5.0, 3.0]


def test_methods_of_two_losses(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", {}, settings={"agent.actor_smto": {"name": "mgda"}})
    assert read_run(path).method == "unitary+mgda"


def test_settings_of_another_kind_of_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("problem: digits\nsmto: {name: famo}\nseed: 4\n")
    (tmp_path / "status.json").write_text('{"status": "finished"}')
    read = read_run(tmp_path)
    assert (read.benchmark, read.method, read.seed) == ("digits", "famo", 4)


@pytest.mark.parametrize("written", ["running", None])
def test_a_run_whose_process_is_gone(tmp_path: Path, written: str | None) -> None:
    path = write_run(tmp_path / "run", {500: [0.0] * 4}, status=written or "")
    if written is None:
        (path / "status.json").unlink()
    assert not is_held(path)
    assert read_run(path).state == "died"
    holder = RunDirectory(path)
    holder.lock()
    assert is_held(path)
    assert read_run(path).state == "running"
    holder._lock.close()


def test_reading_leaves_the_lock_free(run: Path) -> None:
    assert not is_held(run)
    RunDirectory(run).lock()


def test_find_runs(tmp_path: Path) -> None:
    names = ("b/seed_1", "a/seed_2", "a/seed_1")
    paths = [write_run(tmp_path / name, {}) for name in names]
    (paths[0] / "tensorboard").mkdir()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/config.yaml").write_text("seed: 1\n")  # a configuration, not a run
    assert find_runs([tmp_path]) == sorted(paths)
    assert find_runs([paths[1], tmp_path / "a"]) == sorted(paths[1:])  # each once
    with pytest.raises(ConfigError, match="no such directory"):
        find_runs([tmp_path / "c"])


def test_links_are_followed_and_every_run_is_found_once(tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    direct = write_run(here / "z/seed_1", {})
    write_run(elsewhere / "seed_2", {})
    (here / "a").symlink_to(direct)  # a run that is here already
    (here / "b").symlink_to(elsewhere)  # a folder of runs
    (here / "c").symlink_to(elsewhere / "seed_2")  # one of them, again
    (here / "z/loop").symlink_to(here)
    (elsewhere / "back").symlink_to(here)
    (here / "gone").symlink_to(tmp_path / "nothing")
    found = find_runs([here])
    assert found[-1] == direct
    assert [path.resolve() for path in found[:-1]] == [elsewhere / "seed_2"]
    linked = find_runs([here / "b"])
    assert {path.resolve() for path in linked} == {elsewhere / "seed_2", direct}
    assert len(linked) == 2


def test_lines_that_are_no_metrics_are_passed_over(tmp_path: Path) -> None:
    """What a kill or a power cut leaves, in the middle and at the end."""
    file = tmp_path / "metrics.jsonl"
    good = b'{"step": 1, "a": 0.5}\n'
    bad = [b'{"step": 2, "a"', b'{"step": 3, "a\xff\xfe": 1}', b"\0" * 64, b"7", b'{"a": 1}', b""]
    bad += [b'{"step": "4"}', b'"\xc3', b'{"step": 5, "a": "x", "b": null}']
    for end in bad:
        file.write_bytes(good + end + b"\n" + good + end)
        assert [record for record in read_metrics(file) if record["step"] == 1] == [
            {"step": 1, "a": 0.5},
            {"step": 1, "a": 0.5},
        ]
        assert list(read_series(file, ("a", "b"))) == ["a"]
    assert list(read_metrics(tmp_path / "none")) == []


BROKEN = {
    "empty": (b"", "is empty or no mapping"),
    "cut off": (b"seed: 1\nenv: {bench", "is not valid YAML"),
    "not text": (b"seed: \xff\xfe", "cannot be read"),
    "a list": (b"- seed", "is empty or no mapping"),
    "no number": (b"seed: one", "seed = 'one': must be an integer"),
    "no list": (b"env: {tasks: 5}", "env.tasks = 5: must be a list"),
}


@pytest.mark.parametrize(("content", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_configuration_does_not_stop_the_table(
    content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", {1000: [0.5] * 4})
    broken = write_run(tmp_path / "b", {1000: [0.5] * 4})
    (broken / "config.yaml").write_bytes(content)
    cli.main(["runs", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["a", "finished"], ["b", "broken"]]
    assert lines[3].startswith(f"{broken} is broken: ")
    assert said in lines[3]
    assert len(lines) == 4


@pytest.mark.parametrize("name", ["a[b]", "[red]c[/red]", "[/]", ":bug:", "x[/bold]"])
def test_names_are_shown_as_they_are(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not as markup, which swallows brackets, or fails."""
    write_run(tmp_path / "runs" / name.replace("/", "_"), {})
    write_run(tmp_path / name / "seed_1", {})
    cli.main(["runs", str(tmp_path)])
    shown = capsys.readouterr().out
    assert f"runs/{name.replace('/', '_')} " in shown
    assert f"{name.rstrip('/')}/seed_1 " in shown


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a/seed_1", {500: [1, 1, 0.5, 0.5], 1000: [0.5] * 4})
    write_run(tmp_path / "a/seed_2", {500: [0.25] * 4}, status="running")
    write_run(tmp_path / "a/seed_3", {}, status="failed")
    cli.main(["runs", str(tmp_path)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["run", "status", "step", "of", "success", "best", "steps/s", "age"]
    assert rows[1][:7] == ["a/seed_1", "finished", "1,000", "100%", "0.500", "0.750", "50"]
    assert rows[2][:7] == ["a/seed_2", "died", "500", "50%", "0.250", "0.250", "25"]
    assert rows[3][:6] == ["a/seed_3", "failed", "0", "0%", "-", "-"]


def test_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["runs", str(tmp_path)])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert str(tmp_path) in message


PEAK = """
import torch
from mtrl.device.memory import peak_memory_mib
before = peak_memory_mib(torch.device("cpu"))
torch.ones(256 * 2**20 // 4)  # 256 MiB, given back
print(before, peak_memory_mib(torch.device("cpu")))
"""


def test_peak_memory_is_a_peak() -> None:
    """In a process of its own: a longer one has free memory that it would take again."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    before, after = map(float, done.stdout.split())
    assert before > 50  # torch alone is larger
    assert after > before + 128
