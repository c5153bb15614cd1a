"""mtrl from Python; the examples are those of docs/python.md, word for word."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from conftest import ENVIRONMENT, REPOSITORY, TINY_OPTIONS, differences, final_state
from numpy.typing import NDArray
from smto_cases import published_head_weights
from torch import Tensor, nn

import mtrl
import mtrl.envs
from mtrl.run.callbacks import Callbacks
from mtrl.run.state import read_run
from mtrl.schema import ConfigError
from mtrl.smto import SMTO, available, check, create, describe

EXAMPLES = re.findall(
    r"```python\n(.*?)```", (REPOSITORY / "docs/python.md").read_text(), re.DOTALL
)


def test_import_is_light() -> None:
    code = "import sys, mtrl; sys.exit('torch' in sys.modules or 'gymnasium' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert set(mtrl.__all__) <= set(dir(mtrl))
    for name in mtrl.__all__:
        assert getattr(mtrl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = mtrl.trian


def test_documented_example_trains_stops_loads_and_evaluates(tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(EXAMPLES[0])
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = mtrl.load(tmp_path / "runs/early", "latest")
    assert run.config.agent.smto.name == "pcgrad"
    assert run.config.seed == 3


def test_documented_loop_and_environments() -> None:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for example in EXAMPLES[1:]:
        exec(example, names)
    assert all(p.grad is not None for p in names["encoder"].parameters())
    one, two = names["env"], names["same"]
    np.testing.assert_array_equal(one.reset()[0], two.reset()[0])
    observations, _ = names["several"].reset()
    assert observations.shape == (2, 39)
    for env in (one, two, names["several"]):
        env.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> mtrl.Run:
    return mtrl.train(
        "toy", TINY_OPTIONS, seed=1, run_dir=tmp_path_factory.mktemp("python") / "run"
    )


def test_a_callback_that_raises_does_not_silence_the_next() -> None:
    class Raises(mtrl.Callback):
        def on_log(self, step: int, values: dict[str, float]) -> bool | None:
            raise ValueError("mine")

    class Adds(mtrl.Callback):
        def on_log(self, step: int, values: dict[str, float]) -> bool | None:
            values["mine"] = float(step)
            return values["train/x"] == 1.0

        def on_evaluation(
            self, step: int, success: NDArray[np.bool_], returns: NDArray[np.float64]
        ) -> bool | None:
            return success.all()  # NumPy's own kind of bool, as documented

    warnings: list[str] = []
    callbacks = Callbacks((Raises(), Adds(), Raises()), warnings.append)
    values = {"train/x": 1.0}
    callbacks.on_log(7, values)
    assert values == {"train/x": 1.0, "mine": 7.0}
    assert callbacks.asked_to_stop
    assert str(callbacks.failure) == "mine"
    assert len(warnings) == 1, "one message, not one for each"
    for solved in (False, True):
        callbacks = Callbacks((Adds(),), warnings.append)
        callbacks.on_evaluation(7, np.array([[solved]]), np.zeros((1, 1)))
        assert callbacks.asked_to_stop == solved


def test_what_a_run_says(trained: mtrl.Run) -> None:
    assert trained.success_mean == pytest.approx(np.mean(list(trained.success.values())))
    assert list(trained.success) == ["toy-east", "toy-north", "toy-west", "toy-south"]
    every = trained.metrics()
    assert set(trained.metrics("eval/")) == {tag for tag in every if tag.startswith("eval/")}
    steps, values = every["eval/success_mean"]
    assert steps.tolist() == [0, 800, 1600]
    assert values[-1] == trained.success_mean


def test_a_policy_acts_on_any_shape(trained: mtrl.Run) -> None:
    policy = mtrl.load(trained, "latest")
    names = policy.task_names
    rows = np.random.default_rng(0).uniform(-1, 1, (5, 2))
    tasks = [0, 3, 1, 0, 2]
    actions = policy.act(rows, tasks)
    assert (actions.shape, actions.dtype) == ((5, 2), np.float32)
    for row, task, action in zip(rows, tasks, actions, strict=True):
        for observation in (row, row.tolist(), row.astype(np.float32)):
            np.testing.assert_allclose(policy.act(observation, names[task]), action, atol=1e-6)
        np.testing.assert_array_equal(policy.act(row, np.int64(task)), policy.act(row, task))
    one_task = policy.act(rows, "toy-west")
    np.testing.assert_allclose(one_task, policy.act(rows, [2] * 5), atol=1e-6)
    for observation, task, said in (
        ([0.0, 0.0], "toy-up", "unknown task 'toy-up'"),
        ([0.0, 0.0], 4, "task must be in 0..3"),
        ([0.0], 0, "expected observations"),
        (rows, [0, 1], "expected observations"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            policy.act(observation, task)  # type: ignore[arg-type]


def test_evaluate_is_the_run_s_own_evaluation(trained: mtrl.Run) -> None:
    again = mtrl.evaluate(mtrl.load(trained, "latest"), episodes_per_task=2)
    assert again.success_mean == trained.success_mean
    with pytest.raises(ConfigError, match="episodes_per_task = -3: must be at least 1"):
        mtrl.evaluate(trained, episodes_per_task=-3)
    with pytest.raises(ConfigError, match=r"checkpoint = 'besst': must be best, .* mean 'best'"):
        mtrl.load(trained, "besst")


class Log(mtrl.Callback):
    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def on_log(self, step: int, values: Any) -> None:
        assert "time/env_steps_per_s" in values
        self.heard.append(("log", step))

    def on_evaluation(self, step: int, success: Any, returns: Any) -> bool:
        assert success.shape == returns.shape == (4, 2)
        self.heard.append(("evaluation", step))
        return step == 800

    def on_checkpoint(self, step: int, path: Path) -> None:
        assert path.name == f"step_{step:012d}.pt"
        self.heard.append(("checkpoint", step))


def test_callbacks_hear_and_stop_and_the_run_resumes(trained: mtrl.Run, tmp_path: Path) -> None:
    log = Log()
    stopped = mtrl.train("toy", TINY_OPTIONS, seed=1, run_dir=tmp_path / "run", callbacks=[log])
    assert stopped.state == "stopped"
    assert stopped.status["reason"] == "stopped by a callback"
    assert 800 <= stopped.step < 1600
    assert ("evaluation", 800) in log.heard
    assert stopped.metrics("eval/")["eval/success_mean"].steps[-1] == 800
    assert stopped.status["best_success_mean"] == stopped.success_mean
    assert ("checkpoint", stopped.step) in log.heard
    assert ("log", 800) in log.heard
    finished = mtrl.train("toy", TINY_OPTIONS, seed=1, run_dir=tmp_path / "run", resume=True)
    assert finished.finished
    mine, theirs = final_state(finished.path), final_state(trained.path)
    assert differences(mine["agent"], theirs["agent"]) == [], "bitwise as if never stopped"


class Adds(mtrl.Callback):
    def on_log(self, step: int, values: dict[str, float]) -> None:
        values["mine/half"] = torch.tensor(step / 2)  # type: ignore[assignment]
        if step >= 800:
            values["mine/bad"] = "no number"  # type: ignore[assignment]


def test_what_a_callback_adds_is_logged_and_what_it_raises_loses_nothing(tmp_path: Path) -> None:
    run, short = tmp_path / "run", TINY_OPTIONS | {"checkpoint.every": 1600}
    with pytest.raises(ValueError, match="no number"):
        mtrl.train("toy", short, run_dir=run, callbacks=[Adds()])
    ended = read_run(run)
    assert (ended.state, ended.step) == ("failed", 800), "where every episode has ended"
    assert ended.status["reason"].startswith("ValueError: could not convert string")
    assert final_state(run, 800)["step"] == 800
    ((steps, values),) = ended.metrics("mine/").values()
    assert (list(steps), list(values)) == ([400], [200.0])
    assert "train/critic_loss/toy-east" in ended.metrics("train/critic_loss/")
    assert mtrl.train("toy", short, run_dir=run, resume=True).finished


class Misspelt(mtrl.Callback):
    def on_evaluate(self, *_: Any) -> None: ...


@pytest.mark.parametrize(
    ("callbacks", "said"),
    [
        ([Misspelt()], "callbacks = 'Misspelt.on_evaluate': must be one of on_log, on_evaluation"),
        ([Log], "must be instances of classes derived from mtrl.Callback"),
        (print, "must be instances of classes derived from mtrl.Callback"),
    ],
)
def test_what_would_never_be_called_is_refused(callbacks: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        mtrl.train("toy", TINY_OPTIONS, run_dir=tmp_path / "run", callbacks=callbacks)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"agent.gama": 1}, "agent.gama = 1: unknown key"),
        ({"agnet.gamma": 1}, "unknown key; allowed: name"),
        ({"agent.gamma": "x"}, "agent.gamma = 'x': must be a number"),
        ({"agent.gamma": 1.5}, "agent.gamma = 1.5"),
        ({"agent.smto.name": "pcgradd"}, "did you mean 'pcgrad'"),
        ({"agent.smto.name": "mgda", "agent.smto.options": {"c": 1}}, "agent.smto.options.c = 1"),
        ({"agent.gamma.x": 1}, "agent.gamma.x = 1: gamma has no keys"),
    ],
)
def test_what_is_not_allowed_leaves_nothing(
    overrides: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        mtrl.train("toy", TINY_OPTIONS | overrides, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_there_is_kept(trained: mtrl.Run) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        mtrl.train("toy", TINY_OPTIONS, run_dir=trained.path)


def test_options_of_another_method_are_dropped() -> None:
    from mtrl.config import Config
    from mtrl.options.command_line import with_settings

    cagrad = {"agent.smto.name": "cagrad", "agent.smto.options": {"c": 0.9}}
    base = with_settings(Config(), cagrad)
    assert with_settings(base, {"seed": 2}).agent.smto.options == {"c": 0.9}
    assert with_settings(base, {"agent.smto.name": "mgda"}).agent.smto.options == {}
    more = with_settings(base, {"agent.smto.options": {"update_every": 2}})
    assert more.agent.smto.options == {"c": 0.9, "update_every": 2}


# -- methods in a loop of one's own ---------------------------------------------------------------


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(5, 7)
        self.heads = nn.ModuleList(nn.Linear(7, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        features = self.shared(x).tanh()
        return torch.stack([head(features).square().mean() for head in self.heads])


OPTIONS: dict[str, dict[str, Any]] = {"fixed": {"weights": (0.2, 0.3, 0.5)}}
OWN_SCALE = ("cagrad", "fairgrad", "nash_mtl", "db_mtl")  # by their papers
ORDERED = ("ldc_mtl", "pcd")  # a chain of the tasks, a first task


@pytest.mark.parametrize("name", [n for n in available() if "seed" not in describe(n).options])
def test_backward_is_the_direction_of_the_explicit_jacobian(name: str) -> None:
    torch.manual_seed(1)
    network, x = TwoHeads().double(), torch.randn(11, 5, dtype=torch.float64)
    shared, own = list(network.shared.parameters()), list(network.heads.parameters())
    one, other = (create(name, 3, **OPTIONS.get(name, {})) for _ in range(2))
    for _ in range(2):  # the second step of methods with state
        losses = network(x)
        rows = [torch.autograd.grad(loss, shared, retain_graph=True) for loss in losses]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        before = copy.deepcopy(other)
        weights = None
        if other.weighs_losses and other.needs == "losses":
            weights = copy.deepcopy(other).weights(losses=losses.detach())
        elif other.weighs_losses and other.needs == "gramian":
            gramian = jacobian @ jacobian.T
            weights = copy.deepcopy(other).weights(losses=losses.detach(), gramian=gramian)
        expected = other.direction(jacobian, losses.detach())
        factors = published_head_weights(name, before, other, losses.detach(), weights)
        weighted = factors.detach().double() @ losses
        of_heads = torch.autograd.grad(weighted, own, retain_graph=True)
        for p in network.parameters():
            p.grad = None
        one.backward(losses, shared, own)
        found = torch.cat([p.grad.flatten() for p in shared if p.grad is not None])
        torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-6, atol=1e-9)
        for p, gradient in zip(own, of_heads, strict=True):
            torch.testing.assert_close(p.grad, gradient)
        with torch.no_grad():
            for p in shared:
                p -= 0.1 * p.grad
            for smto in (one, other):
                if smto.wants_losses_after:
                    smto.after_step(network(x))


def test_backward_accumulates_and_refuses() -> None:
    network, x = TwoHeads(), torch.randn(4, 5)
    smto = create("unitary", 3)
    for _ in range(2):
        smto.backward(network(x), network.shared.parameters())
    twice = network.shared.weight.grad
    network.zero_grad()
    network(x).mean().backward()
    torch.testing.assert_close(twice, 2 * network.shared.weight.grad)
    with pytest.raises(ValueError, match=r"expected losses \[3\], not \(2,\)"):
        smto.backward(network(x)[:2], network.shared.parameters())
    with pytest.raises(ValueError, match="must be finite"):
        smto.backward(network(x) * torch.nan, network.shared.parameters())


@pytest.mark.parametrize("name", available())
def test_our_own_methods_pass_the_check(name: str) -> None:
    options = {"weights": (0.25,) * 4} if name == "fixed" else {}
    check(name, own_scale=name in OWN_SCALE, ordered=name in ORDERED, **options)


class Wrong(SMTO):
    needs = "gramian"
    fault = ""

    def __init__(self, num_tasks: int) -> None:
        super().__init__(num_tasks)
        self.steps = 0

    def weights(self, *, losses: Any = None, gramian: Any = None) -> Tensor:
        self.steps += 1
        even = torch.full((self.num_tasks,), 1.0 / self.num_tasks)
        match self.fault:
            case "scale":
                return even * self.num_tasks
            case "order":
                return torch.arange(self.num_tasks) / sum(range(self.num_tasks))
            case "zero":
                scales = 1.0 / gramian.diagonal().sqrt()
                return scales / scales.sum()
            case "state":
                lengths = gramian.diagonal().float().clamp(min=1e-30)
                return torch.softmax(lengths.log() * self.steps, 0)
        return torch.full((self.num_tasks + 1,), 1.0)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("scale", "4.000 times the gradient"),
        ("order", "another direction when the tasks come in another order"),
        ("zero", "a direction that is not finite, zero gradients"),
        ("state", "another direction after its state was saved"),
    ],
)
def test_the_check_names_the_fault(fault: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wrong, "fault", fault)
    with pytest.raises(AssertionError, match=re.escape(said)):
        check(Wrong)


# -- environments ---------------------------------------------------------------------------------


def test_every_task_has_an_id() -> None:
    env = gymnasium.make("mtrl/toy-east")
    assert env.spec is not None
    env.reset(seed=0)
    ended = False
    for _ in range(20):
        *_, ended, _ = env.step(env.action_space.sample())
    assert ended, "the toy's own horizon"
    env.close()
    ids = [name for name in gymnasium.registry if name.startswith("mtrl/")]
    assert len(ids) == 54
