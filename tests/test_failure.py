"""Every way a run can end early: a clear message, a truthful status.json, nothing left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import resource
import select
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from conftest import (
    ENVIRONMENT,
    PATIENCE,
    PCGRAD,
    TINY_OPTIONS,
    Mtrl,
    differences,
    final_state,
    metrics,
    wait_for,
)

import mtrl
from mtrl.device import memory
from mtrl.device.memory import memory_error
from mtrl.device.stop_signals import handled
from mtrl.envs.vector import WorkerError
from mtrl.run import checkpoint
from mtrl.run.log_window import LogWindow
from mtrl.run.stopping import TrainingError
from mtrl.run.timing import StageTimer

LONG = ("--train.total-steps", 400_000, "--learner.compile", "off")


class Running:
    """A run in the background, and the processes that it started."""

    def __init__(self, run_mtrl: Mtrl, path: Path, *options: object) -> None:
        self.path = path
        self.process = run_mtrl.start(*run_mtrl.toy_line(path, *options))
        self.children: list[psutil.Process] = []

    def wait_for_checkpoint(self) -> None:
        wait_for(
            lambda: checkpoint.newest_first(self.path / "checkpoints") or self.ended(),
            PATIENCE,
            "a checkpoint",
        )
        assert not self.ended(), self.process.communicate()[1]
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        assert self.children, "simulation runs in processes of its own"

    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self, seconds: float = PATIENCE) -> tuple[int, str]:
        """-> exit code, standard error"""
        try:
            _, errors = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {seconds} s")
        return self.process.returncode, errors

    def descendants(self) -> list[str]:
        """Names of all processes below the run's."""
        names = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                names.append(child.name())
        return names

    def assert_no_child_left(self) -> None:
        _, alive = psutil.wait_procs(self.children, timeout=PATIENCE)
        assert alive == []

    def status(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / "status.json").read_text())
        return content

    def clean_up(self) -> None:
        for process in [*self.children, self.process]:
            if process.poll() is None if isinstance(process, subprocess.Popen) else True:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
        self.process.wait(PATIENCE)


@pytest.fixture
def running(run_mtrl: Mtrl, tmp_path: Path) -> Iterator[Any]:
    started = []

    def start(*options: object) -> Running:
        started.append(Running(run_mtrl, tmp_path / "run", *options))
        return started[-1]

    yield start
    for run in started:
        run.clean_up()


def test_sigterm_saves_at_an_episode_end_and_the_run_can_go_on(
    running: Any, run_mtrl: Mtrl, reference: Path
) -> None:
    run = running(*PCGRAD)
    run.wait_for_checkpoint()
    run.process.send_signal(signal.SIGTERM)
    code, errors = run.wait()
    assert code == 128 + signal.SIGTERM
    assert "SIGTERM" in errors
    assert "Traceback" not in errors
    status = run.status()
    assert status["status"] == "stopped"
    assert "SIGTERM" in status["reason"]
    step = final_state(run.path, step=status["step"])["step"]
    assert step % 80 == 0, "an episode end: 20 steps of 4 tasks"
    assert step < 1600
    run.assert_no_child_left()

    done = run_mtrl("resume", run.path)
    assert done.returncode == 0, done.stderr
    assert differences(final_state(run.path), final_state(reference)) == []
    steps = [line["step"] for line in metrics(run.path) if "eval/success_mean" in line]
    assert steps == [0, 800, 1600]
    assert run.status()["status"] == "finished"


def test_ctrl_c_reaches_all_processes_and_stops_the_same_way(running: Any) -> None:
    run = running(*LONG)
    run.wait_for_checkpoint()
    # A terminal's Ctrl-C goes to the whole process group, workers included.
    for process in [*run.children, run.process]:
        process.send_signal(signal.SIGINT)
    code, errors = run.wait()
    assert code == 128 + signal.SIGINT
    assert "Traceback" not in errors
    assert "SIGINT" in errors
    assert run.status()["status"] == "stopped"
    assert checkpoint.load_latest(run.path / "checkpoints")[0]["step"] == run.status()["step"]
    run.assert_no_child_left()


def test_closed_terminal_saves_and_stops(run_mtrl: Mtrl, tmp_path: Path) -> None:
    """As when an ssh connection breaks: SIGHUP to all processes, and every further word fails."""
    master, slave = os.openpty()
    path = tmp_path / "run"

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        run_mtrl.line(run_mtrl.toy_line(path, *LONG, "--logging.every", 80)),
        cwd=run_mtrl.folder,
        env=ENVIRONMENT,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=own_terminal,
    )
    os.close(slave)
    read_until_checkpoint(master, path / "checkpoints")
    os.killpg(process.pid, signal.SIGHUP)  # as the shell does, workers included
    assert checkpoint.newest_first(path / "checkpoints"), "the terminal was closed in training"
    try:
        assert process.wait(PATIENCE) == 128 + signal.SIGHUP
    finally:
        process.kill()
    status = json.loads((path / "status.json").read_text())
    assert (status["status"], status["reason"]) == ("stopped", "stopped by SIGHUP")
    state, _ = checkpoint.load_latest(path / "checkpoints")
    assert state is not None
    assert state["step"] == status["step"]


def read_until_checkpoint(terminal: int, checkpoints: Path) -> None:
    """Show what is written to a terminal, until there is a checkpoint; then close it."""
    deadline = time.monotonic() + PATIENCE
    while not checkpoint.newest_first(checkpoints) and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            os.read(terminal, 4096)
    os.close(terminal)


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGINT])
def test_signals_that_nohup_or_a_script_ignores_stay_ignored(signum: signal.Signals) -> None:
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        with handled(lambda signum: pytest.fail("not ignored")):
            os.kill(os.getpid(), signum)
        assert signal.getsignal(signum) == signal.SIG_IGN
    finally:
        signal.signal(signum, before)


def test_sigterm_stops_a_run_whatever_its_caller_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    heard: list[int] = []
    try:
        with handled(heard.append):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_dead_worker_ends_the_run(running: Any) -> None:
    run = running(*LONG, "--env.workers", 2, "--evaluation.every", 0)
    run.wait_for_checkpoint()
    workers = [child for child in run.children if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    code, errors = run.wait()
    assert code == 1
    assert "Traceback" not in errors
    message = errors.splitlines()[-1]
    assert message.startswith("mtrl: ")
    assert "toy-" in message, "it names the dead worker's tasks"
    assert sum(task in message for task in ("east", "north", "west", "south")) == 2
    status = run.status()
    assert status["status"] == "failed"
    assert "toy-" in status["reason"]
    assert checkpoint.load_latest(run.path / "checkpoints")[0] is not None
    run.assert_no_child_left()


def test_dead_worker_ends_a_run_that_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, whose compiler kills the worker and takes longer than the test."""
    run, over = tmp_path / "run", threading.Event()
    before = set(psutil.Process().children(recursive=True))

    def slow(graph: Any, inputs: Any) -> Any:
        (worker,) = (
            child
            for child in set(psutil.Process().children(recursive=True)) - before
            if "spawn_main" in " ".join(child.cmdline())
        )
        saved = partial(checkpoint.newest_first, run / "checkpoints")
        wait_for(saved, PATIENCE, "the end of the warm-up")  # before it, nothing is left of a run
        worker.kill()
        over.wait(PATIENCE)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=slow))
    try:
        options = {"learner.compile": "on", "network.depth": 1, "evaluation.every": 0}
        with pytest.raises(WorkerError, match="was killed by signal 9"):
            mtrl.train("toy", TINY_OPTIONS | options, run_dir=run)
    finally:
        over.set()
        for thread in threading.enumerate():  # or it still runs when Python ends
            if thread.name == "compilation":
                thread.join(PATIENCE)
    assert json.loads((run / "status.json").read_text())["status"] == "failed"


def test_signal_stops_a_run_that_compiles(
    running: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of its warm-up it waits for a compilation that outlasts the test."""
    slow = tmp_path / "c++"
    slow.write_text("#!/bin/sh\nsleep 3600\n")
    slow.chmod(0o755)
    monkeypatch.setitem(ENVIRONMENT, "CXX", str(slow))
    monkeypatch.setitem(ENVIRONMENT, "TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    alone = ("--evaluation.every", 0)  # no workers but those of the training
    run = running("--learner.compile", "on", "--network.depth", 1, *alone)
    run.wait_for_checkpoint()
    assert checkpoint.newest_first(run.path / "checkpoints")[0].name.endswith("400.pt")
    wait_for(lambda: "sleep" in run.descendants(), PATIENCE, "the compiler")
    run.children = psutil.Process(run.process.pid).children(recursive=True)
    run.process.send_signal(signal.SIGINT)
    code, errors = run.wait()
    assert code == 128 + signal.SIGINT
    assert "Traceback" not in errors
    assert run.status()["status"] == "stopped"
    assert run.status()["step"] == 400
    run.assert_no_child_left()


def test_closed_output_ends_the_run_and_says_why(running: Any) -> None:
    """As `mtrl train ... 2>&1 | head` does."""
    run = running(*LONG, "--logging.every", 80)
    run.wait_for_checkpoint()
    run.process.stderr.close()
    run.process.stdout.close()
    assert run.process.wait(PATIENCE) != 0
    assert run.status()["status"] == "failed"
    assert run.status()["reason"] == "nobody reads its output any more"
    run.assert_no_child_left()


def test_ctrl_c_that_ends_the_reader_too_saves(running: Any) -> None:
    """As in `mtrl train ... 2>&1 | tee log`."""
    run = running(*LONG, "--logging.every", 400_000)
    run.wait_for_checkpoint()
    run.process.stderr.close()
    run.process.stdout.close()
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(PATIENCE) == 128 + signal.SIGINT
    assert run.status()["status"] == "stopped"
    run.assert_no_child_left()


def test_workers_end_with_the_main_process(running: Any) -> None:
    run = running(*LONG, "--env.workers", 2, "--evaluation.every", 400)
    run.wait_for_checkpoint()
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.communicate(timeout=PATIENCE)
    run.assert_no_child_left()


def test_non_finite_loss_ends_the_run_and_spares_the_checkpoint(
    run_mtrl: Mtrl, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = run_mtrl.toy(run, *LONG, "--agent.critic-lr", "1e30", "--logging.every", 80)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    message = done.stderr.splitlines()[-1]
    named = r"non-finite (critic|actor) loss of task toy-"  # whichever overflows first
    assert re.search(named, message)
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "failed"
    assert re.search(named, status["reason"])
    state, warnings = checkpoint.load_latest(run / "checkpoints")
    assert warnings == []
    assert state is not None
    assert state["step"] == 400, "the warm-up's end: the last step before the first update"
    assert non_finite(state["agent"]) == []
    assert non_finite(state["replay"]) == []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        assert "NaN" not in line
        assert "Infinity" not in line


def test_a_direction_that_is_not_finite_ends_the_run_before_it_is_saved() -> None:
    """Of the last update before a checkpoint the losses say nothing: they were there before."""
    quantities = ("critic_loss", "critic_grad_norm", "value")
    idle: Any = SimpleNamespace(worker_seconds=lambda: np.zeros(1))
    window = LogWindow(["a", "b"], idle, StageTimer(), torch.device("cpu"), quantities)
    faults = {(0, 1): "critic loss of task b", (1, 0): "critic grad norm", (2, 0): ""}
    for place, said in faults.items():
        metrics = torch.ones(3, 2)
        metrics[place] = torch.inf
        window.add(metrics)
        window.updates += 1
        if said:
            with pytest.raises(TrainingError, match=f"non-finite {said} before step 80"):
                window.metrics(80)
        else:
            assert window.metrics(80)["train/critic_grad_norm"] == 1.0
        window.restart(0)


def non_finite(value: Any, path: str = "") -> list[str]:
    """Where a checkpoint holds NaN or infinity."""
    if isinstance(value, dict):
        return [found for key in value for found in non_finite(value[key], f"{path}/{key}")]
    if isinstance(value, list | tuple):
        return [found for i, v in enumerate(value) for found in non_finite(v, f"{path}/{i}")]
    finite = not isinstance(value, torch.Tensor) or bool(torch.isfinite(value).all())
    return [] if finite else [path]


def test_failed_write_ends_the_run_and_spares_earlier_checkpoints(running: Any) -> None:
    """A file size limit set on the running process stands in for a disk that fills up."""
    run = running(*LONG, "--network.width", 64)
    run.wait_for_checkpoint()
    limit = 100_000  # logs and TensorBoard files still fit, a checkpoint of this width does not
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    code, errors = run.wait()
    assert code == 1
    assert "Traceback" not in errors
    message = errors.splitlines()[-1]
    assert "cannot save checkpoint" in message
    assert "File too large" in message
    status = run.status()
    assert status["status"] == "failed"
    assert "File too large" in status["reason"]
    state, warnings = checkpoint.load_latest(run.path / "checkpoints")
    assert state is not None
    assert warnings == []
    assert not list((run.path / "checkpoints").glob(".tmp-*"))
    run.assert_no_child_left()


def test_memory_that_does_not_suffice_is_one_line() -> None:
    said = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
    assert memory_error(RuntimeError(said)) == "can't allocate memory"
    said = "CUDA out of memory. Tried to allocate 2.00 GiB."
    assert memory_error(torch.OutOfMemoryError(f"{said}\nmore")) == said
    assert memory_error(RuntimeError("another error")) == ""


def test_files_that_the_system_gives_up_count_as_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container, whose limit counts them: checkpoints just written, videos just read."""
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    cpu = torch.device("cpu")
    everything = memory.free_memory(cpu)
    said = {"max": 2**20, "current": 900_000, "stat": "anon 600000\ninactive_file 250000\n"}
    for name, text in said.items():
        (tmp_path / f"memory.{name}").write_text(f"{text}")
    assert memory.free_memory(cpu) == 2**20 - 900_000 + 250_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(cpu) > everything / 2


def test_a_run_that_fails_before_its_first_update_is_not_in_the_way(
    tmp_path: Path, run_mtrl: Mtrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that does not suffice for the task gradients is known at the first update only."""
    line = ("--agent.smto.name", "pcgrad", "--checkpoint.every", 800)
    with monkeypatch.context() as small:
        small.setattr("mtrl.gradients.buffer.free_memory", lambda device: 1000)
        done = run_mtrl.toy(tmp_path / "run", *line)
    assert done.returncode == 1
    assert "agent.chunk_size bounds this" in done.stderr
    assert not (tmp_path / "run").exists()
    assert run_mtrl.toy(tmp_path / "run", *line).returncode == 0
