"""Networks from a user's own file; the examples are those of docs/networks.md, word for word."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, TINY, Mtrl, succeeded
from gradient_cases import check_task_gradients
from test_architectures import SAMPLES, TASKS, draw, shape
from test_cli import TOY, refused

import mtrl
from mtrl.config import Config, load_yaml
from mtrl.config.benchmarks import BENCHMARKS
from mtrl.networks import (
    Shape,
    available_networks,
    create_network,
    describe_network,
    registry,
)
from mtrl.networks.layers import is_recorded
from mtrl.options.plugins import load_plugins

DOCS = (REPOSITORY / "docs/networks.md").read_text()
KINDS = ("recorded", "general")
OWN = {"recorded": "gated", "general": "leaky"}


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_NETWORKS", dict(registry._NETWORKS))


@pytest.fixture
def examples(tmp_path: Path) -> dict[str, Path]:
    texts = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    paths = {}
    for kind, text in zip(KINDS, texts, strict=True):
        assert text.count("\n") <= 25
        paths[kind] = tmp_path / f"my_{kind}.py"
        paths[kind].write_text(text)
    return paths


@pytest.mark.parametrize("kind", KINDS)
def test_documented_example_from_python(kind: str, examples: dict[str, Path]) -> None:
    load_plugins(Config(plugins=(str(examples[kind]),)))
    name = OWN[kind]
    assert name in available_networks()
    assert describe_network(name).options
    body = create_network(name, shape(), {}).double()
    assert is_recorded(body) == (kind == "recorded")
    x = draw(len(TASKS), SAMPLES, 5)
    assert body(x).shape == (2, len(TASKS), SAMPLES, 3)
    if kind == "recorded":
        check_task_gradients(body, (x, draw(len(TASKS), SAMPLES, 3, seed=2)))


@pytest.mark.parametrize("kind", KINDS)
def test_documented_example_trains_resumes_evaluates_and_exports(
    kind: str,
    examples: dict[str, Path],
    run_mtrl: Mtrl,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Acting needs the file too, wherever it is by then."""
    run, path, name = tmp_path / "run", examples[kind], OWN[kind]
    without = dict(registry._NETWORKS)
    options = f"--plugins {path.name} --network.architecture {name} --agent.smto.name pcgrad"
    short = ("--train.total-steps", 480, "--network.width", 8, "--evaluation.every", 0)
    done = run_mtrl("train", TOY, *TINY, "--run-dir", run, *options.split(), *short, cwd=tmp_path)
    succeeded(done)
    said = "layers that are not recorded" in done.stderr + done.stdout
    assert said == (kind == "general")
    (stored,) = load_yaml(run / "config.yaml").plugins
    assert stored == str(path)
    succeeded(run_mtrl("resume", run, "--train.total-steps", 560))

    for command in ("evaluate --episodes-per-task 1", "export --out policy.pt2"):
        first, *more = command.split()
        words = (first, run, "--checkpoint", "latest", *more)
        moved = path.rename(tmp_path / f"{first}.py")
        monkeypatch.setattr(registry, "_NETWORKS", dict(without))  # as in another process
        done = run_mtrl(*words, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"plugins = '{stored}': no such file" in done.stderr
        succeeded(run_mtrl(*words, "--plugins", moved, cwd=tmp_path))
        path = moved
    moved = path.rename(tmp_path / "python.py")
    monkeypatch.setattr(registry, "_NETWORKS", dict(without))
    policy = mtrl.load(run, "latest", plugins=[moved])
    assert policy.act([0.0, 0.0], "toy-east").shape == (2,)
    exported = torch.export.load(tmp_path / "policy.pt2").module()
    observations = torch.randn(6, 2)
    assert exported(observations, torch.arange(6) % 4).shape == (6, 2)
    assert exported(observations[:0], torch.arange(0)).shape == (0, 2)


UNPACK = "n, i, o = shape.copies, shape.inputs, shape.outputs"
BAD = {
    "shape": (
        "return nn.Linear(i, o)",
        "",
        ["'mine': gives outputs (4, 5, 4) for inputs (4, 5, 6), not [copies, task, sample"],
    ),
    "a part for every task beside others": (
        "return nn.Sequential(Lift(n), TaskLinear(4, i, 8), nn.Linear(8, o))",
        "",
        ["network.architecture = 'mine'", "made of recorded layers alone"],
    ),
    "tasks that see each other": (
        "return nn.Sequential(Lift(n), Linear(i, 8, copies=n), Centred(), Linear(8, o, copies=n))",
        "",
        ["network.architecture = 'mine': a task's outputs depend on the inputs of other tasks"],
    ),
    "rows of PyTorch's modules that see each other": (
        "return nn.Sequential(Lift(n), nn.Linear(i, 8), Centred(dim=2), nn.Linear(8, o))",
        "",
        ["network.architecture = 'mine'", "must act on every row alike"],
    ),
    "PyTorch's layers for every task": (
        "return nn.Sequential(Lift(n), nn.Linear(i, 8), Adapters(8, o))",
        "",
        ["network.architecture = 'mine'", "must act on every row alike", "TaskLinear"],
    ),
    "learned codes": (
        "return nn.Sequential(Lift(n), nn.Linear(i, o))",
        "--network.task-encoding learned",
        ["network.task_encoding = 'learned'", "made of recorded layers alone"],
    ),
    "popart": (
        "return nn.Sequential(Lift(n), nn.Linear(i, o))",
        "--critic.kind popart",
        ["critic.kind = 'popart'", "made of recorded layers alone"],
    ),
    "popart without a head": (
        "return nn.Sequential(Lift(n), Linear(i, o, copies=n))",
        "--critic.kind popart",
        ["'mine': needs `self.head = shape.head(...)` for critic.kind = popart"],
    ),
    "batch norm of recorded layers": (
        "return nn.Sequential(Lift(n), Linear(i, o, copies=n), nn.BatchNorm2d(4, affine=False))",
        "",
        ["network.architecture = 'mine': BatchNorm2d takes its statistics from the rows of all"],
    ),
    "batch norm": (
        "return nn.Sequential(Lift(n), nn.Linear(i, o), nn.BatchNorm2d(4))",
        "",
        ["network.architecture = 'mine': BatchNorm2d takes its statistics from the rows of all"],
    ),
    "frozen": (
        "return nn.Sequential(Lift(n), Linear(i, o, copies=n).requires_grad_(False))",
        "",
        ["network.architecture = 'mine': 1.", "requires no gradient; what is not trained is a"],
    ),
    "tied": (
        "one, two = (Linear(i, i, copies=n) for _ in range(2)); two.weight = one.weight; "
        "return nn.Sequential(Lift(n), one, two, Linear(i, o, copies=n))",
        "",
        ["network.architecture = 'mine': 1.weight and 2.weight are one parameter"],
    ),
    "a mistake in it": (
        "return nn.Linear(i, shape.missing)",
        "",
        ["network.architecture = 'mine': cannot be made: AttributeError", "'missing', line 29"],
    ),
    "name taken": (
        "return None\n\nregister_network('paco')(mine)",
        "",
        ["ValueError: the network name 'paco' is taken"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_network(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body, options, expected = BAD[case]
    path, run = tmp_path / "plugin.py", tmp_path / "run"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "from mtrl.networks import Linear, TaskLinear, register_network\n\n"
        "class Lift(nn.Module):\n"
        "    def __init__(self, copies):\n        super().__init__()\n        self.n = copies\n"
        "    def forward(self, x):\n        return x.expand(self.n, *x.shape)\n\n"
        "class Centred(nn.Module):\n"
        "    def __init__(self, dim=1):\n        super().__init__()\n        self.dim = dim\n"
        "    def forward(self, x):\n        return x - x.mean(self.dim, keepdim=True)\n\n"
        "class Adapters(nn.Module):\n"
        "    def __init__(self, i, o):\n        super().__init__()\n"
        "        self.of = nn.ModuleList(nn.Linear(i, o) for _ in range(4))\n"
        "    def forward(self, x):\n"
        "        return torch.stack([of(x[:, k]) for k, of in enumerate(self.of)], 1)\n\n"
        f"@register_network('mine')\ndef mine(shape):\n    {UNPACK}\n    {body}\n"
    )
    words = f"--plugins {path} --network.architecture mine --run-dir {run} {options}"
    refused(["train", TOY, *words.split()], capsys, *expected)
    assert not run.exists()


def test_documented_table_is_complete() -> None:
    rows = [line for line in DOCS.split("## A network")[0].splitlines() if line.startswith("| `")]
    documented = {}
    for row in rows:
        name, _, _, options, parameters = (cell.strip() for cell in row.strip("|").split("|"))
        documented[name.strip("`")] = options, parameters
    assert list(documented) == list(available_networks())
    for name, (options, parameters) in documented.items():
        known = describe_network(name).options
        assert set(re.findall(r"`(\w+)`", options)) == set(known), name
        for option, default in known.items():
            assert f"`{option}` ({default or 'none'})" in options, name
        actor = Shape(BENCHMARKS["MT10"], 49, 8)
        critic = dataclasses.replace(actor, inputs=53, outputs=1, actions=4, copies=2)
        networks = [create_network(name, shape, {}) for shape in (actor, critic)]
        count = sum(p.numel() for network in networks for p in network.parameters())
        assert parameters == f"{count / 1e6:.2f}M", name
