"""Methods from a user's own file; the example is the one of docs/smto.md, word for word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, TINY, Mtrl
from test_cli import TOY, refused

from mtrl.config import Config, load_yaml
from mtrl.methods import method_options
from mtrl.plugins import load_plugins
from mtrl.schema import ConfigError
from mtrl.smto import available, create, describe
from mtrl.smto import base as smto_base

DOCS = (REPOSITORY / "docs/smto.md").read_text()


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smto_base, "_METHODS", dict(smto_base._METHODS))


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


BAD = {
    "import fails": ("x = 1\ny = 1 / 0\n", ["ZeroDivisionError: division by zero", "line 2"]),
    "syntax": ("def f(:\n", ["SyntaxError", "line 1"]),
    "no method": ("x = 1\n", ["registers no method"]),
    "name taken": (
        "from mtrl.smto import SMTO, register\n\n\n@register('pcgrad')\nclass Mine(SMTO): ...\n",
        ["ValueError", "'pcgrad' is taken"],
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
        assert options == set(method_options(name)), name
