"""Own methods and networks that give what no update can use are named at the first update."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, TINY, Mtrl, differences, final_state, succeeded
from test_cli import TOY, refused
from torch import Tensor

from mtrl.files.user_code import is_own
from mtrl.networks import registry
from mtrl.smto import SMTO, create
from mtrl.smto import registry as smto_registry
from mtrl.smto.first_step import Unusable, checked, wrong_with


@pytest.fixture(autouse=True)
def clean_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_NETWORKS", dict(registry._NETWORKS))
    monkeypatch.setattr(smto_registry, "_METHODS", dict(smto_registry._METHODS))


METHOD = """
import torch
from mtrl.smto import SMTO, register

@register("mine")
class Mine(SMTO):
    needs = "{needs}"

    def weights(self, *, losses=None, gramian=None):
        return {weights}

    def direction(self, jacobian, losses):
        return {direction}
"""
USUAL = {
    "needs": "gramian",
    "weights": "losses",
    "direction": "super().direction(jacobian, losses)",
}
LINE = [TOY, *TINY, "--checkpoint.every", "800"]  # none in the warm-up
# what the method does, and what must be said of it
METHODS = {
    "a column": ({"weights": "losses[:, None]"}, "Mine.weights gave a tensor of shape [4, 1]"),
    "a scalar": ({"weights": "losses.mean()"}, "Mine.weights gave a tensor of shape []"),
    "a list": ({"weights": "[0.25] * 4"}, "Mine.weights gave a list"),
    "nothing": ({"weights": "None"}, "Mine.weights gave a NoneType"),
    "NaN": ({"weights": "losses * torch.nan"}, "Mine.weights gave NaN in 4 of 4 numbers"),
    "infinite": ({"weights": "gramian.diagonal() / 0.0"}, "Mine.weights gave infinite values in 4"),
    "complex": ({"weights": "losses + 1j"}, "Mine.weights gave numbers of type complex64"),
    "losses alone": (
        {"needs": "losses", "weights": "losses[:2]"},
        "Mine.weights gave a tensor of shape [2]",
    ),
    "a matrix": ({"needs": "jacobian", "direction": "jacobian"}, "Mine.direction gave a tensor of"),
    "NaN direction": (
        {"needs": "jacobian", "direction": "jacobian.mean(0).log()"},
        "Mine.direction gave NaN in",
    ),
}


@pytest.mark.parametrize(("parts", "expected"), METHODS.values(), ids=METHODS.keys())
def test_a_method_is_named(
    parts: dict[str, str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = tmp_path / "plugin.py", tmp_path / "run"
    path.write_text(METHOD.format(**USUAL | parts))
    words = f"--plugins {path} --agent.critic-smto.name mine --run-dir {run}"
    said = refused(["train", *LINE, *words.split()], capsys, expected, "must give finite ")
    assert f"agent.critic_smto.name = 'mine': {expected}" in said
    needed = "direction [parameter] = [" if "direction" in expected else "weights [task] = [4]"
    assert needed in said
    assert said.endswith("(of the critic, at the first update)")
    assert not run.exists(), "it is not in the way of the corrected command"


def test_what_a_method_raises_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, run = tmp_path / "plugin.py", tmp_path / "run"
    path.write_text(METHOD.format(**USUAL | {"weights": "losses.sqare()"}))
    words = f"--plugins {path} --agent.critic-smto.name mine --run-dir {run}"
    said = refused(["train", *LINE, *words.split()], capsys, "agent.critic_smto.name = 'mine'")
    assert "raised AttributeError: 'Tensor' object has no attribute 'sqare', line" in said
    assert not run.exists()


@pytest.mark.parametrize("space", ["parameters", "representation"])
def test_a_method_of_a_supervised_run_is_named(
    space: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = tmp_path / "plugin.py", tmp_path / "run"
    path.write_text(METHOD.format(**USUAL | {"weights": "losses * torch.nan"}))
    words = f"--plugins {path} --smto.name mine --smto.gradient-space {space} --run-dir {run}"
    said = refused(["supervised", "supervised_digits", *words.split()], capsys)
    assert "smto.name = 'mine': Mine.weights gave NaN in 2 of 2 numbers, must give" in said
    assert not run.exists()


NETWORK = """
import torch
from torch import nn
from mtrl.networks import register_network

@register_network("mine")
class Mine(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.copies = shape.copies
        self.layer = nn.Linear(shape.inputs, shape.outputs)

    def forward(self, x):
        y = self.layer(x).expand(self.copies, *x.shape[:-1], -1)
        return {outputs}
"""
# what the network does, and what must be said of it
NETWORKS = {
    "NaN": ("(y - 10.0).log()", "Mine.forward gave NaN in 128 of 128 numbers"),
    "fewer samples": ("y[..., :6, :]", "Mine.forward gave a tensor of shape [1, 4, 6, 4]"),
    "another type": ("y.double()", "Mine.forward gave numbers of type float64"),
}


@pytest.mark.parametrize(("outputs", "expected"), NETWORKS.values(), ids=NETWORKS.keys())
def test_a_network_is_named(
    outputs: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = tmp_path / "plugin.py", tmp_path / "run"
    path.write_text(NETWORK.format(outputs=outputs))
    words = f"--plugins {path} --network.architecture mine --run-dir {run}"
    said = refused(["train", *LINE, *words.split()], capsys, expected)
    assert f"network.architecture = 'mine': {expected}, must give finite float32" in said
    assert "outputs [copies, task, sample, dim] = [1, 4, 8, 4] (of the actor, at the fir" in said
    assert not run.exists()


def test_a_good_one_trains_as_if_nobody_had_looked(
    tmp_path: Path, run_mtrl: Mtrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random numbers of the method included."""
    path = tmp_path / "plugin.py"
    text = NETWORK.format(outputs="y")
    path.write_text(
        text + "from mtrl.smto import register\nfrom mtrl.smto.random_weighting import RLWNormal\n"
        '@register("mine")\nclass MyMethod(RLWNormal):\n    "Mine."\n'
    )
    words = ("--plugins", path, "--network.architecture", "mine", "--agent.smto.name", "mine")
    succeeded(run_mtrl.toy(tmp_path / "looked", *words))
    monkeypatch.setattr("mtrl.options.first_update.is_own", lambda thing: False)
    succeeded(run_mtrl.toy(tmp_path / "not", *words))
    states = [final_state(tmp_path / name)["agent"] for name in ("looked", "not")]
    assert differences(*states) == []


def test_what_is_ours_is_not_looked_at() -> None:
    assert not is_own(type(create("pcgrad", 2)))
    assert not is_own(type(create("nash_mtl", 2, ema=0.5)))
    assert not is_own(registry.describe_network("moore").make)

    class Mine(SMTO):
        def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
            return torch.ones(3)

    assert is_own(type(create(Mine, 2, ema=0.5)))
    method = Mine(2)
    with checked(method), pytest.raises(Unusable, match=r"shape \[3\], must give .* = \[2\]"):
        method.combine(torch.ones(2, 5), torch.ones(2))
    assert method.weights(losses=torch.ones(2)).shape == (3,), "it is checked no more"
    assert wrong_with(torch.ones(2), (2,), torch.ones(1)) == ""


def test_listings_of_own_methods_and_networks(
    tmp_path: Path, run_mtrl: Mtrl, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plugin.py"
    path.write_text(METHOD.format(**USUAL) + NETWORK.format(outputs="y").replace("mine", "net"))
    assert "mine:" not in run_mtrl("list", "methods").stdout
    assert "mine: needs gramian" in run_mtrl("list", "methods", "--plugins", path).stdout
    done = run_mtrl("list", "networks", "--plugins", path.name, cwd=tmp_path)
    assert "\nnet:" in done.stdout
    refused(["list", "methods", "--plugins", "nowhere.py"], capsys, "plugins = 'nowhere.py': no su")
    refused(["list", "methods", "--plugin", str(path)], capsys, "did you mean '--plugins'")
    refused(["list", "method"], capsys, "list needs one of tasks, ")
    assert str(REPOSITORY) not in done.stderr
