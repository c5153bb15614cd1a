"""The real command line, for every test that needs it: in this process or in one of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtrl.commands import main as cli
from mtrl.run import checkpoint
from mtrl.run.dashboard import Dashboard

# Machines under load are slow, not wrong; and CI should fail for changes, not by luck.
settings.register_profile("mtrl", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("mtrl")
# Tests run side by side, so each has one thread unless the caller asks for more.
THREADS = int(os.environ.setdefault("OMP_NUM_THREADS", "1"))
torch.set_num_threads(THREADS)

REPOSITORY = Path(__file__).resolve().parent.parent
os.environ |= {
    "MTRL_CACHE": os.environ.get("MTRL_CACHE", str(REPOSITORY / ".cache")),
    # Cached code has the vector instructions of the mode in which it was made.
    "TORCHINDUCTOR_CACHE_DIR": str(
        REPOSITORY / ".cache" / f"inductor{os.environ.get('ATEN_CPU_CAPABILITY', '')}"
    ),
    "COLUMNS": "80",
    "PYTHONPATH": str(REPOSITORY),
}
ENVIRONMENT = dict(os.environ)  # of the processes that tests start
PATIENCE = 120.0
"""Seconds after which something hangs: no machine under load takes as long."""
# 20 episodes of every task, 75 updates in 15 of them; logs, evaluates and saves on the way.
TINY_OPTIONS: dict[str, object] = {
    "train.total_steps": 1600,
    "train.warmup_steps": 400,
    "agent.updates_per_step": 0.25,
    "checkpoint.every": 400,
    "evaluation.every": 800,
    "evaluation.episodes_per_task": 2,
    "evaluation.final_episodes_per_task": 2,
    "network.width": 16,
    "replay.batch_size": 32,
    "logging.every": 400,
    "env.workers": 1,
    "learner.threads": 1,
    "learner.device": "cpu",
}
LONG_FILES = ("sweep_ray", "resume", "sweep", "tune", "methods_learn", "failure", "agent")
TINY = [
    word
    for key, value in TINY_OPTIONS.items()
    for word in (f"--{key.replace('_', '-')}", str(value))
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes begin first: at the end none waits for one of them."""
    order = [f"test_{name}" for name in LONG_FILES]
    items.sort(key=lambda item: order.index(item.path.stem) if item.path.stem in order else 99)


def tiny_settings(*words: object) -> list[str]:
    """The same for `mtrl sweep --set`, and `words` in their place where they set a key too."""
    given = {str(word).partition("=")[0] for word in words}
    left = {key: value for key, value in TINY_OPTIONS.items() if key not in given}
    return [f"{key}={value}" for key, value in left.items()] + list(map(str, words))


@dataclass(frozen=True)
class Mtrl:
    """Runs `mtrl ARGUMENTS`."""

    folder: Path
    """Working directory of the commands."""

    def __call__(
        self, *arguments: object, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """In this process, where torch and TensorBoard are imported already."""
        words, code = list(map(str, arguments)), 0
        out, errors = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(cwd or self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(errors),
        ):
            try:
                cli.main(words)
            except SystemExit as end:
                code = int(end.code or 0)
            except Exception:
                traceback.print_exc()
                code = 1
        return subprocess.CompletedProcess(words, code, out.getvalue(), errors.getvalue())

    def process(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """`python -m mtrl ARGUMENTS`, to its end."""
        return subprocess.run(
            self.line(arguments),
            cwd=self.folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """`python -m mtrl ARGUMENTS`, running."""
        return subprocess.Popen(
            self.line(arguments),
            cwd=self.folder,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def toy(self, run_dir: Path, *options: object) -> subprocess.CompletedProcess[str]:
        return self(*self.toy_line(run_dir, *options))

    @staticmethod
    def toy_line(run_dir: Path, *options: object) -> tuple[object, ...]:
        """A tiny toy run; `options` come last, so they win."""
        return ("train", REPOSITORY / "configs/toy.yaml", *TINY, "--run-dir", run_dir, *options)

    @staticmethod
    def line(arguments: tuple[object, ...]) -> list[str]:
        return [sys.executable, "-m", "mtrl", *map(str, arguments)]


@pytest.fixture(scope="session")
def run_mtrl(tmp_path_factory: pytest.TempPathFactory) -> Mtrl:
    return Mtrl(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(scope="session", autouse=True)
def heard_signals() -> None:
    """`nohup` and `&` in a script have pytest ignore signals. A handler that does nothing does the
    same for pytest, but what tests start does not inherit it."""
    for signum in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(signum) == signal.SIG_IGN:
            signal.signal(signum, lambda *_: None)


@pytest.fixture(autouse=True)
def arithmetic() -> Iterator[None]:
    """What a run sets for the whole process is not for the tests after it."""
    yield
    torch.set_num_threads(THREADS)
    torch.set_flush_denormal(False)
    torch.set_float32_matmul_precision("highest")
    # By default a dead worker's pipe would end the process that writes to it, and say nothing.
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN


@pytest.fixture(scope="session")
def reference(run_mtrl: Mtrl, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted tiny toy run with PCGrad, whose random orders are state too."""
    run = tmp_path_factory.mktemp("reference") / "run"
    succeeded(run_mtrl.toy(run, *PCGRAD))
    return run


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have empty files for figures: to draw them takes seconds."""

    def saved(figure: Figure, path: str, **settings: Any) -> None:
        Path(path).write_bytes(b"")

    monkeypatch.setattr(Figure, "savefig", saved)


PCGRAD = ("--agent.smto.name", "pcgrad")


def succeeded(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr[-3000:]


def final_state(run: Path, step: int = 1600) -> dict[str, Any]:
    return checkpoint.load(checkpoint.step_path(run / "checkpoints", step))


def metrics(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the machine's share, by step: an evaluation is recorded later."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    machine = ("time/", "memory/")
    kept = [{k: v for k, v in line.items() if not k.startswith(machine)} for line in lines]
    return sorted(kept, key=lambda line: line["step"])


def evaluations(run: Path) -> list[dict[str, Any]]:
    """A run that was stopped logs once more, where it stopped; its evaluations stay the same."""
    return [line for line in metrics(run) if "eval/success_mean" in line]


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two checkpoints are not bitwise equal; the clock (`elapsed`) may differ."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        keys = [key for key in a if key != "elapsed"]
        return [found for key in keys for found in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [found for i, (x, y) in pairs for found in differences(x, y, f"{path}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        same = same and a.numpy().tobytes() == b.numpy().tobytes()
    else:
        same = type(a) is type(b) and (a == b or (a != a and b != b))
    return [] if same else [path]


def content(folder: Path) -> dict[str, bytes]:
    """Every file, but the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def steps_shown(run: Path, tag: str) -> list[int]:
    """In TensorBoard."""
    events = EventAccumulator(str(run))
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def empty_charts(dashboard: Dashboard, tags: set[str]) -> list[str]:
    """Charts of TensorBoard's custom-scalars page that would have no line."""

    def is_empty(kind: object, shown: Any) -> bool:
        if kind == "Margin":
            return not tags.issuperset(shown)
        return not any(re.match(pattern, tag) for pattern in shown for tag in tags)

    return [
        f"{section}: {name}"
        for section, charts in dashboard.charts.items()
        for name, chart in charts.items()
        if is_empty(*chart)
    ]


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.02)
