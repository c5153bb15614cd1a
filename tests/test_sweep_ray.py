"""The Ray engine on a real cluster, started here on loopback."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import (
    ENVIRONMENT,
    PATIENCE,
    REPOSITORY,
    differences,
    evaluations,
    final_state,
    tiny_settings,
    wait_for,
)

from mtrl.commands import main as cli
from mtrl.run import checkpoint
from mtrl.run.state import standing
from mtrl.sweep.options import SweepOptions
from mtrl.sweep.ray_engine import fits, share

pytest.importorskip("ray", reason="ray is not installed: pip install 'ray[client]'")

OBJECT_STORE = 80 * 2**20  # little more than the least that Ray accepts


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores, and two nodes of one core each.

    They ignore SIGINT, as where a script starts them with `&`.
    """
    with pytest.MonkeyPatch.context() as patch:
        for key, value in ENVIRONMENT.items():
            patch.setenv(key, value)  # Ray's workers inherit it
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # 15, its default, starves beside other tests
        patch.setenv(
            "RAY_AUTH_MODE", "disabled"
        )  # on loopback; no token is left in the home folder
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE)
        signal.signal(signal.SIGINT, before)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def sweep(
    cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run `mtrl sweep` on the cluster, from this process; -> exit code and what it printed."""

    def run(*words: object) -> tuple[int, str]:
        line = [REPOSITORY / "configs/toy.yaml", "--root", tmp_path, "--no-estimate"]
        line += ["--engine", "ray", "--address", cluster.address, "--cpus-per-run", 1]
        line += ["--methods", "pcgrad", "--set", *tiny_settings(*words)]
        with pytest.raises(SystemExit) as caught:
            cli.main(["sweep", *map(str, line)])
        streams = capfd.readouterr()
        return int(caught.value.code or 0), streams.out + streams.err

    return run


def in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def process_of(run: Path) -> psutil.Process:
    return psutil.Process(json.loads((run / "status.json").read_text())["pid"])


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_for_checkpoint(run: Path) -> None:
    wait_for(lambda: checkpoint.newest_first(run / "checkpoints"), 300, f"a checkpoint in {run}")


def test_killed_worker_and_lost_node_are_recovered(
    cluster: Any, sweep: Callable[..., tuple[int, str]], tmp_path: Path, reference: Path
) -> None:
    """A run on each node. The Ray worker of the first is killed, then the node of the second is
    lost: both go on, one after the other, on the node that is left."""
    first, second = (tmp_path / f"toy/pcgrad/seed_{seed}" for seed in (1, 2))
    ended: list[psutil.Process] = []
    lost: list[Any] = []

    def harm() -> None:
        for run in (first, second):
            wait_for_checkpoint(run)
            process = process_of(run)
            process.suspend()  # not finished before its worker ends, however fast it is
            ended.extend([psutil.Process(process.ppid()), process])
        worker = ended[0]
        assert "ray::" in worker.name() or "ray" in " ".join(worker.cmdline())
        ancestors = {process.pid for process in ended[2].parents()}
        worker.kill()
        for node in list(cluster.worker_nodes):
            if node.all_processes["raylet"][0].process.pid in ancestors:
                lost.append(node)
                cluster.remove_node(node, allow_graceful=False)
        for worker, process in (ended[:2], ended[2:]):
            wait_for(lambda worker=worker: not is_alive(worker), PATIENCE, "the worker's end")
            process.resume()  # to hear that it is to stop

    thread = in_background(harm)
    code, shown = sweep("--seeds", "1..2")
    thread.join()
    assert code == 0, shown
    assert "3 node(s), 1 core(s) and 0 GPUs a run" in shown
    assert "2 finished" in shown
    assert len(lost) == 1
    assert len(ended) == 4
    assert not any(map(is_alive, ended))
    for seed in (1, 2):
        log = (tmp_path / f"toy/sweep/pcgrad/seed_{seed}.log").read_text()
        assert "resumed at step" in log
    assert differences(final_state(first), final_state(reference)) == []
    assert evaluations(first) == evaluations(reference)
    assert standing(second).state == "finished"


def test_ctrl_c_stops_the_runs_at_their_next_checkpoint(
    sweep: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    run = tmp_path / "toy/pcgrad/seed_1"

    def press() -> None:
        try:
            wait_for_checkpoint(run)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    thread = in_background(press)
    code, shown = sweep("--seeds", "1", "--set", "train.total_steps=40_000")
    thread.join()
    assert code == 128 + signal.SIGINT
    assert "1 stopped" in shown
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "stopped"
    assert "SIGTERM" in status["reason"]


def test_share_of_a_run() -> None:
    options = SweepOptions(cpus_per_run=4)
    nodes = [{"CPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}]
    assert share(nodes, options, "auto") == (4, 0.25)
    assert share(nodes, options, "cpu") == (4, 0.0)
    assert fits(nodes, (4, 0.25))
    assert not fits(nodes, (4, 2))
    assert not fits(nodes, (16, 0))


def test_no_cluster_at_the_address(sweep: Callable[..., tuple[int, str]]) -> None:
    code, shown = sweep("--address", "127.0.0.1:1")
    assert code == 2
    assert "address = '127.0.0.1:1': no Ray cluster there" in shown
