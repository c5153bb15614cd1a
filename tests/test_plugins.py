"""Methods from a user's own file; the example is the one of docs/smto.md, word for word."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import gymnasium
import pytest
import torch
from conftest import REPOSITORY, TINY, Mtrl, succeeded
from test_cli import TOY, refused

import mtrl
from mtrl.config import Config, load_yaml
from mtrl.options.methods import method_options
from mtrl.options.plugins import load_plugins
from mtrl.schema import ConfigError
from mtrl.smto import available, create, describe
from mtrl.smto import registry as smto_registry

DOCS = (REPOSITORY / "docs/smto.md").read_text()


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smto_registry, "_METHODS", dict(smto_registry._METHODS))


@pytest.fixture
def example(tmp_path: Path) -> Path:
    (text,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    assert text.count("\n") <= 21
    path = tmp_path / "my_method.py"
    path.write_text(text)
    return path


def config(*plugins: Path | str) -> Config:
    return Config(plugins=tuple(map(str, plugins)))


def test_documented_example_from_python(example: Path) -> None:
    load_plugins(config(example))
    assert "mine" in available()
    smto = create("mine", num_tasks=2, power=2.0)
    jacobian = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    direction = smto.combine(jacobian, torch.ones(2))
    torch.testing.assert_close(direction, torch.tensor([0.8, 0.4]))  # weights 4 : 1


def test_examples_of_the_readme() -> None:
    text = (REPOSITORY / "README.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, {"__name__": "imported"})  # tests/test_python.py runs a longer one
    jacobian = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    direction = create("mine", num_tasks=2).combine(jacobian, torch.ones(2))
    torch.testing.assert_close(direction, torch.tensor([2 / 3, 2 / 3]))  # weights 2 : 1


def test_documented_example_trains_resumes_and_evaluates(
    example: Path, run_mtrl: Mtrl, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = "--plugins my_method.py --agent.smto.name mine --agent.smto.options power=0.5"
    short = ("--train.total-steps", 800, "--network.width", 8, "--evaluation.every", 0)
    line = ("train", TOY, *TINY, "--run-dir", run, *options.split(), *short)
    done = run_mtrl(*line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    stored = load_yaml(run / "config.yaml")
    assert stored.plugins == (str(example),), "an absolute path"
    assert stored.agent.smto.options == {"power": 0.5}
    # From another folder.
    done = run_mtrl("resume", run, "--train.total-steps", 880)
    assert done.returncode == 0, done.stderr[-3000:]
    done = run_mtrl("evaluate", run, "--checkpoint", "latest", "--episodes-per-task", 1)
    assert done.returncode == 0, done.stderr[-3000:]


HEAD = "from mtrl.smto import SMTO, register\n\n\n@register('mine')\n"
BAD = {
    "import fails": ("x = 1\ny = 1 / 0\n", ["ZeroDivisionError: division by zero", "line 2"]),
    "syntax": ("def f(:\n", ["SyntaxError", "line 1"]),
    "no method": ("x = 1\n", ["registers no method"]),
    "name taken": (
        "from mtrl.smto import SMTO, register\n\n\n@register('pcgrad')\nclass Mine(SMTO): ...\n",
        ["ValueError", "'pcgrad' is taken"],
    ),
    "leaves": ("import sys\nsys.exit(3)\n", ["SystemExit: 3", "line 2"]),
    "needs something else": (
        f"{HEAD}class Mine(SMTO):\n    needs = 'gram'\n",
        ["method mine: needs = 'gram' must be one of losses, gramian, jacobian"],
    ),
    "no method at all": (f"{HEAD}class Mine: ...\n", ["method mine: must be a class derived from"]),
    "an option without a default": (
        f"{HEAD}class Mine(SMTO):\n    def __init__(self, num_tasks, *, power): ...\n",
        ["method Mine: its option 'power' needs a default"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_plugin(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, expected = BAD[case]
    path = tmp_path / "plugin.py"
    path.write_text(text)
    arguments = ["--plugins", str(path), "--run-dir", str(tmp_path / "run")]
    refused(["train", TOY, *arguments], capsys, f"plugins = '{path}'".split("/")[0], *expected)
    assert not (tmp_path / "run").exists()


NOT_MADE = {
    "it raises": ("1 / 0", "ZeroDivisionError: division by zero, line 7"),
    "no super().__init__": ("pass", "must call super().__init__(num_tasks)"),
}


@pytest.mark.parametrize("case", NOT_MADE)
def test_a_method_that_cannot_be_made(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body, said = NOT_MADE[case]
    path, start = tmp_path / "plugin.py", "    def __init__(self, num_tasks):\n"
    path.write_text(f"{HEAD}class Mine(SMTO):\n{start}        {body}\n")
    line = ["--plugins", str(path), "--agent.smto.name", "mine", "--run-dir", str(tmp_path / "run")]
    refused(["train", TOY, *line], capsys, "agent.smto.name = 'mine'", said)
    assert not (tmp_path / "run").exists()


def test_a_cell_that_runs_again_and_a_file_under_two_names_replace_their_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for power in (1.0, 2.0):
        cell = f"{HEAD}class Mine(SMTO):\n    def __init__(self, num_tasks, power={power}): ...\n"
        exec(cell, {"__name__": "notebook"})
        assert method_options("mine") == {"power": power}, "positional ones are options too"
    monkeypatch.delitem(smto_registry._METHODS, "mine")
    (tmp_path / "imported.py").write_text(f"{HEAD}class Mine(SMTO): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("imported")
    load_plugins(config(tmp_path / "imported.py"))
    (tmp_path / "other.py").write_text(f"{HEAD}class Mine(SMTO): ...\n")
    with pytest.raises(ConfigError, match="the method name 'mine' is taken by Mine"):
        load_plugins(config(tmp_path / "other.py"))


METHOD = """
from helpers import NAME
from mtrl.smto import register
from mtrl.smto.base import SMTO

@register(NAME)
class Mine(SMTO):
    needs = "losses"

    def weights(self, *, losses=None, gramian=None):
        return losses.new_ones(self.num_tasks, dtype=float) / self.num_tasks
"""


def test_plugins_import_files_beside_them_and_neighbours_of_one_name_stay_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, found = list(sys.path), set(sys.modules)
    for folder in ("first", "second"):
        (tmp_path / folder / "parts").mkdir(parents=True)
        (tmp_path / folder / "parts/__init__.py").write_text(f"NAME = '{folder}'\n")
        (tmp_path / folder / "helpers.py").write_text("from parts import NAME\n")
        (tmp_path / folder / "method.py").write_text(METHOD)
    # A module of this process that happens to have the name, too.
    elsewhere = ModuleType("parts")
    monkeypatch.setitem(sys.modules, "parts", elsewhere)
    load_plugins(config(*(tmp_path / folder / "method.py" for folder in ("first", "second"))))
    assert {"first", "second"} <= set(available())
    assert sys.path == before
    assert sys.modules["parts"] is elsewhere
    new = set(sys.modules) - found - {"parts"}
    assert not any(name.split(".")[0] in ("helpers", "method") for name in new)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("helpers")


def test_two_plugins_share_the_file_beside_them(tmp_path: Path) -> None:
    """It registers something, so it must not be imported twice."""
    (tmp_path / "helpers.py").write_text(METHOD.replace("from helpers import NAME", "NAME = 'own'"))
    for name in ("one", "two"):
        text = METHOD.replace("from helpers import NAME", f"import helpers\nNAME = '{name}'")
        (tmp_path / f"{name}.py").write_text(text)
    load_plugins(config(tmp_path / "one.py", tmp_path / "two.py"))
    assert {"one", "two", "own"} <= set(available())


def test_a_plugin_whose_neighbour_fails_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(sys.path)
    (tmp_path / "helpers.py").write_text("x = 1 / 0\n")
    (tmp_path / "method.py").write_text(METHOD)
    with pytest.raises(ConfigError, match="ZeroDivisionError: division by zero, line 2"):
        load_plugins(config(tmp_path / "method.py"))
    assert sys.path == before
    assert "helpers" not in sys.modules


def test_a_method_with_a_neighbour_is_compiled(tmp_path: Path) -> None:
    """The compiler looks for the module of every function that a method calls."""
    (tmp_path / "helpers.py").write_text(
        "HALF = 0.5\n\ndef even(losses):\n    return losses.new_full(losses.shape, HALF).double()\n"
    )
    text = METHOD.replace("import NAME", "import even").replace(
        "register(NAME)", "register('half')"
    )
    (tmp_path / "method.py").write_text(
        text.replace(
            "losses.new_ones(self.num_tasks, dtype=float) / self.num_tasks", "even(losses)"
        )
    )
    load_plugins(config(tmp_path / "method.py"))
    weights = torch.compile(create("half", num_tasks=2).weights, backend="eager", fullgraph=True)
    assert weights(losses=torch.ones(2)).tolist() == [0.5, 0.5]


def test_a_methods_plugin_that_has_moved(
    example: Path, run_mtrl: Mtrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy acts without its method; a resumed run is told where it is."""
    run, moved = tmp_path / "run", tmp_path / "elsewhere.py"
    short = ("--train.total-steps", 480, "--network.width", 8, "--evaluation.every", 0)
    line = (
        "train",
        TOY,
        *TINY,
        "--run-dir",
        run,
        "--plugins",
        example,
        "--agent.smto.name",
        "mine",
    )
    succeeded(run_mtrl(*line, *short))
    example.rename(moved)
    without = {name: method for name, method in smto_registry._METHODS.items() if name != "mine"}
    monkeypatch.setattr(smto_registry, "_METHODS", without)  # as in another process
    succeeded(run_mtrl("evaluate", run, "--checkpoint", "latest", "--episodes-per-task", 1))
    policy = tmp_path / "policy.pt2"
    succeeded(run_mtrl("export", run, "--checkpoint", "latest", "--out", policy))
    longer = ("resume", run, "--train.total-steps", 560)
    before = (run / "config.yaml").read_bytes()
    done = run_mtrl(*longer)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"plugins = '{example}': no such file" in done.stderr
    assert (run / "config.yaml").read_bytes() == before
    succeeded(run_mtrl(*longer, "--plugins", moved))
    assert load_yaml(run / "config.yaml").plugins == (str(moved),)
    assert load_yaml(run / "config.yaml").train.total_steps == 560


ENVIRONMENT = """
import gymnasium
from gymnasium.envs.classic_control.pendulum import PendulumEnv
gymnasium.register("moved-pendulum-v0", PendulumEnv)
"""

OTHER_ENVIRONMENT = """
import gymnasium
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.wrappers import TransformObservation
def make(**options):
    env = PendulumEnv(**options)
    space = gymnasium.spaces.Box(-9.0, 9.0, (4,))
    return TransformObservation(env, lambda x: [*x, 1.0], space)
gymnasium.register("moved-pendulum-v0", make)
"""


def test_an_environments_plugin_that_has_moved(run_mtrl: Mtrl, tmp_path: Path) -> None:
    """It is needed to evaluate, not to export."""
    path, moved, run = tmp_path / "pendulum.py", tmp_path / "elsewhere.py", tmp_path / "run"
    path.write_text(ENVIRONMENT)
    short = ("--train.total-steps", 200, "--train.warmup-steps", 100, "--checkpoint.every", 100)
    name = "moved-pendulum-v0"
    line = ("train", TOY, *TINY, "--run-dir", run, "--plugins", path, "--env.tasks", name)
    succeeded(run_mtrl(*line, *short, "--env.horizon", 20, "--protocol", "none"))
    path.rename(moved)
    del gymnasium.registry[name]  # as in another process
    succeeded(run_mtrl("export", run, "--out", tmp_path / "policy.pt2"))
    evaluate = ("evaluate", run, "--checkpoint", "latest", "--episodes-per-task", 1)
    done = run_mtrl(*evaluate)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"plugins = '{path}': no such file" in done.stderr
    succeeded(run_mtrl(*evaluate, "--plugins", moved))

    other = tmp_path / "other.py"  # observations have another size by now
    other.write_text(OTHER_ENVIRONMENT)
    del gymnasium.registry[name]
    done = run_mtrl(*evaluate, "--plugins", other)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "checkpoint = 'latest': does not fit this run" in done.stderr
    policy = mtrl.load(run, "latest")
    with pytest.raises(ConfigError, match=r"env.tasks = .*of \(4, 1\), but the policy of \(3, 1\)"):
        mtrl.evaluate(policy, episodes_per_task=1, plugins=[other])


def test_missing_plugin_of_a_stored_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.py.*no such file"):
        load_plugins(config(tmp_path / "gone.py"))


def test_documented_table_is_complete() -> None:
    rows = [line for line in DOCS.split("## Settings")[0].splitlines() if line.startswith("| `")]
    documented = {}
    for row in rows:
        names, _, needs, options, _ = (cell.strip() for cell in row.strip("|").split("|"))
        words = re.findall(r"`(\w+)`", names)
        listed = [word for word in words if word in available()]
        aliases = [word for word in words if word not in available()]
        for name in listed:
            documented[name] = (needs, set(re.findall(r"`(\w+)`", options)))
            if len(listed) == 1:
                assert set(aliases) == set(describe(name).aliases), name
    assert set(documented) == set(available())
    letters = {"losses": "L", "gramian": "G", "jacobian": "J"}
    for name, (needs, options) in documented.items():
        method = describe(name)
        assert needs[0] == letters[method.needs], name
        assert needs.endswith("+") == method.wants_positive_losses, name
        assert options == set(method_options(name)) - {"ema"}, name  # has a paragraph of its own
