from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest
import torch
from conftest import ENVIRONMENT
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrl.files.atomic import TEMPORARY
from mtrl.run import checkpoint


def example_state(value: float = 0.0) -> dict[str, object]:
    return {
        "step": 1200,
        "weights": [torch.arange(6.0).reshape(2, 3) + value, torch.tensor(3, dtype=torch.int64)],
        "generator": torch.get_rng_state(),
        "nested": {"double": torch.tensor([1e-300, float("inf")], dtype=torch.float64)},
        "nothing": None,
        "nan": float("nan"),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("checkpoint") / "step_000000001200.pt"
    checkpoint.save(path, example_state())
    return path, path.read_bytes()


def test_round_trip_keeps_values_types_and_shapes(tmp_path: Path) -> None:
    path, state = tmp_path / "a" / "step.pt", example_state()
    checkpoint.save(path, state)
    loaded = checkpoint.load(path)
    torch.testing.assert_close(loaded["weights"], state["weights"], rtol=0, atol=0)
    torch.testing.assert_close(loaded["nested"], state["nested"], rtol=0, atol=0)
    assert loaded["weights"][1].dtype == torch.int64
    assert torch.equal(loaded["generator"], state["generator"])
    assert loaded["step"] == 1200
    assert loaded["nothing"] is None
    assert loaded["nan"] != loaded["nan"]
    assert list(path.parent.iterdir()) == [path], "a temporary file was left"


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_truncation_at_any_length_is_detected(
    written: tuple[Path, bytes], data: st.DataObject
) -> None:
    path, content = written
    length = data.draw(st.integers(0, len(content) - 1))
    damaged = path.with_name("truncated.pt")
    damaged.write_bytes(content[:length])
    with pytest.raises(checkpoint.CheckpointError, match=r"truncated\.pt is damaged"):
        checkpoint.load(damaged)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_altered_byte_is_detected(written: tuple[Path, bytes], data: st.DataObject) -> None:
    path, content = written
    position = data.draw(st.integers(0, len(content) - 1))
    flip = data.draw(st.integers(1, 255))
    damaged = path.with_name("flipped.pt")
    damaged.write_bytes(
        content[:position] + bytes([content[position] ^ flip]) + content[position + 1 :]
    )
    with pytest.raises(checkpoint.CheckpointError, match=r"flipped\.pt is damaged"):
        checkpoint.load(damaged)


def test_appended_bytes_are_detected(written: tuple[Path, bytes]) -> None:
    path, content = written
    damaged = path.with_name("longer.pt")
    damaged.write_bytes(content + b"x")
    with pytest.raises(checkpoint.CheckpointError, match="damaged"):
        checkpoint.load(damaged)


def test_missing_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match=r"none\.pt"):
        checkpoint.load(tmp_path / "none.pt")


def test_load_latest_skips_damaged_files_and_says_so(tmp_path: Path) -> None:
    for step in (400, 800, 1200):
        checkpoint.save(checkpoint.step_path(tmp_path, step), {"step": step})
    for step in (800, 1200):
        path = checkpoint.step_path(tmp_path, step)
        path.write_bytes(path.read_bytes()[:-7])
    state, warnings = checkpoint.load_latest(tmp_path)
    assert state == {"step": 400}
    assert len(warnings) == 2
    assert "step_000000001200.pt" in warnings[0]


def test_load_latest_of_nothing(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path / "absent") == (None, [])


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    # Steps of different length must sort by number: 80 before 1_200.
    for step in (80, 400, 1_200, 100_000):
        checkpoint.save(checkpoint.step_path(tmp_path, step), {"step": step})
    checkpoint.save(tmp_path / "best.pt", {"step": 400})
    (tmp_path / f"{TEMPORARY}step_000000100400.pt").write_bytes(b"interrupted")
    checkpoint.prune(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {
        "best.pt",
        "step_000000001200.pt",
        "step_000000100000.pt",
    }


# -- in the background ----------------------------------------------------------------------------


@pytest.mark.parametrize("best", [400, 800])
def test_what_is_later_than_a_checkpoint_is_deleted(best: int, tmp_path: Path) -> None:
    """The best policy too, where it is of the course that is given up."""
    for step in (400, 800):
        checkpoint.save(checkpoint.step_path(tmp_path, step), {"step": step})
    checkpoint.save(tmp_path / "best.pt", {"step": best})
    start, later = (checkpoint.step_path(tmp_path, step) for step in (400, 800))
    gone = checkpoint.delete_later(start)
    assert gone == ([later, tmp_path / "best.pt"] if best == 800 else [later])
    assert start.exists()
    assert (tmp_path / "best.pt").exists() == (best == 400)


def test_snapshot_is_a_compact_copy_of_the_same_types() -> None:
    storage = torch.zeros(3, 1000)
    state = {"view": storage[:, :2], "list": [torch.ones(2), 3], "tuple": (0.9, 0.999), "n": None}
    copied = checkpoint.snapshot(state)
    assert list(copied) == list(state)
    assert copied["tuple"] == (0.9, 0.999)
    assert copied["n"] is None
    assert copied["view"].untyped_storage().nbytes() == 3 * 2 * 4
    storage += 1.0
    state["list"][0] += 1.0
    state["list"].append(4)
    assert torch.equal(copied["view"], torch.zeros(3, 2))
    assert torch.equal(copied["list"][0], torch.ones(2))
    assert copied["list"][1:] == [3]


@pytest.fixture
def writer() -> Iterator[checkpoint.Writer]:
    with contextlib.closing(checkpoint.Writer(keep=2)) as writer:
        yield writer


def test_writer_writes_what_was_there_and_prunes(writer: checkpoint.Writer, tmp_path: Path) -> None:
    weights = torch.zeros(100_000)
    for step in (1, 2, 3):
        weights.fill_(step)
        writer.save(checkpoint.step_path(tmp_path, step), {"step": step, "weights": weights})
        weights.fill_(-1.0)  # training continues
    writer.wait()
    assert [path.name for path in checkpoint.newest_first(tmp_path)] == [
        "step_000000000003.pt",
        "step_000000000002.pt",
    ]
    for step in (2, 3):
        state = checkpoint.load(checkpoint.step_path(tmp_path, step))
        assert (state["weights"] == state["step"]).all()


def test_writer_without_memory_for_a_copy_writes_at_once(
    writer: checkpoint.Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "free_memory", lambda device: 300)
    weights = torch.zeros(100)
    writer.save(tmp_path / "best.pt", {"weights": weights})
    weights += 1.0
    assert torch.equal(checkpoint.load(tmp_path / "best.pt")["weights"], torch.zeros(100))


@pytest.mark.parametrize("notice", ["check", "wait", "save"])
def test_writer_raises_its_error_once_at_the_next_opportunity(
    notice: str, writer: checkpoint.Writer, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    writer.save(tmp_path / "file" / "best.pt", {"step": 1})
    futures.wait([writer._writing])  # type: ignore[list-item]
    arguments = [tmp_path / "best.pt", {"step": 2}] if notice == "save" else []
    with pytest.raises(checkpoint.CheckpointError, match="cannot save checkpoint"):
        getattr(writer, notice)(*arguments)
    writer.save(tmp_path / "best.pt", {"step": 3})
    writer.wait()
    writer.check()
    assert checkpoint.load(tmp_path / "best.pt") == {"step": 3}


def test_write_failing_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    """A file size limit stands in for a full disk: the write itself fails in the system."""
    path = tmp_path / "best.pt"
    checkpoint.save(path, {"step": 1})
    before = path.read_bytes()
    script = """
import resource, signal, sys, torch
from pathlib import Path
from mtrl.run import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(Path(sys.argv[1]), {"step": 2, "big": torch.zeros(100_000)})
except checkpoint.CheckpointError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert f"cannot save checkpoint {path}" in done.stdout
    assert "File too large" in done.stdout, "the cause is the system's error, not torch's wrapping"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
