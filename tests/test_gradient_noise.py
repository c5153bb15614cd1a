"""What the scripts that look into a checkpoint say, against what is known of gradients."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, final_state

SCRIPT = REPOSITORY / "scripts/gradient_noise.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_products_against_loops(script: dict[str, Any]) -> None:
    jacobians = torch.randn(3, 4, 7, dtype=torch.float64, generator=torch.manual_seed(1))
    found, rows = script["products"](jacobians), jacobians.numpy()
    pairs = [(d, e) for d in range(3) for e in range(3) if d != e]
    for i in range(4):
        for j in range(4):
            across = np.mean([rows[d, i] @ rows[e, j] for d, e in pairs])
            assert found.across[i, j] == pytest.approx(across)
        lengths = [np.linalg.norm(rows[d, i]) for d in range(3)]
        same = [rows[d, i] @ rows[e, i] / (lengths[d] * lengths[e]) for d, e in pairs]
        assert found.same_task[i] == pytest.approx(np.mean(same))
        assert found.signal[i] == pytest.approx(found.across[i, i] / np.square(lengths).mean())
    cosine = rows[2, 1] @ rows[2, 3] / (np.linalg.norm(rows[2, 1]) * np.linalg.norm(rows[2, 3]))
    assert found.cosines[2, 4] == pytest.approx(cosine)  # pairs 01 02 03 12 13 23


def test_noise_hides_cosines_but_not_from_the_estimate(script: dict[str, Any]) -> None:
    """Three gradients of length 1 at known angles, in noise of length 3 (signal 1 / 10)."""
    parameters, draws = 3_000, 40
    true = torch.zeros(3, parameters)
    true[0, 0] = 1.0
    true[1, :2] = torch.tensor([-0.8, 0.6])
    true[2, 1] = 1.0  # cosines -0.8, 0, 0.6
    noise = torch.randn(draws, 3, parameters, generator=torch.manual_seed(0))
    found = script["products"](true + 3.0 * noise / parameters**0.5)
    assert np.abs(found.cosines).mean() < 0.1
    # An estimate's standard deviation: noise of one batch on another's, 9 / sqrt(3000) = 0.16 for
    # each of 780 pairs, and on the signal, 3 / sqrt(3000 * 40) = 0.01: 0.02 in all.
    assert found.expected_cosines == pytest.approx([-0.8, 0.0, 0.6], abs=0.1)
    assert found.signal == pytest.approx([0.1] * 3, abs=0.015)


def test_a_runs_checkpoint(
    reference: Path,
    script: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(path.stat().st_mtime_ns for path in reference.rglob("*"))
    line = [str(SCRIPT), str(reference), "--samples", "4", "1024", "--draws", "4"]
    monkeypatch.setattr("sys.argv", [*line, "--figure", str(tmp_path / "new/conflict.png")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    out = capsys.readouterr().out
    assert out.startswith("step 1,600; 400 transitions of each task")
    assert (tmp_path / "new/conflict.png").is_file()
    rows = re.findall(r"^\| (\w+) \| (\d+) \| ([\d.]+) \| .* \| (-?[\d.]+) \|$", out, re.MULTILINE)
    signal = {(loss, int(samples)): float(share) for loss, samples, _, share in rows}
    for loss in ("critic", "actor"):
        assert signal[loss, 4] < signal[loss, 1024] <= 1.0
        assert f"expected gradients of the {loss}: " in out
    assert sorted(path.stat().st_mtime_ns for path in reference.rglob("*")) == before

    for options, said in (
        (["--draws", "1"], "--draws at least 2"),
        (["--checkpoint", str(reference / "checkpoints/best.pt")], "best.pt"),
        (["--checkpoint", str(reference / "config.yaml")], "config.yaml"),
    ):
        monkeypatch.setattr("sys.argv", line[:2] + options)
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert caught.value.code == 2
        assert said in capsys.readouterr().err


def test_rows_are_the_gradients_of_the_tasks_losses(
    reference: Path, script: dict[str, Any]
) -> None:
    """Of one backward per task; on the batch that the generator gives, and its noise."""
    saved = script["Saved"](*script["read"](reference, None))
    assert saved.step == final_state(reference)["step"]
    rows = saved.jacobians(32, torch.Generator().manual_seed(3))["critic"]
    agent, generator = saved.agent, torch.Generator().manual_seed(3)
    alpha = agent.temperature.alpha()
    batch = saved.replay.sample(32, generator, alpha)
    noise = torch.randn(batch.actions.shape, generator=generator)
    inputs = agent.critic_inputs(batch, noise, alpha, None)
    losses, _ = agent._critic_loss(agent.critic.network, *inputs)
    for row, loss in zip(rows, losses, strict=True):
        parameters = list(agent.critic.network.parameters())
        parts = torch.autograd.grad(loss, parameters, retain_graph=True)
        whole = torch.cat([part.flatten() for part in parts])
        torch.testing.assert_close(row, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_course_of_methods(
    reference: Path,
    optimizer: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On the same batches plain scalarisation is on the same course, to the last bit."""
    path = REPOSITORY / "scripts/method_influence.py"
    monkeypatch.syspath_prepend(path.parent)
    main = runpy.run_path(str(path))["main"]
    more = ["--", "--agent.optimizer", optimizer]
    main([str(reference), "--methods", "unitary", "mgda", "--updates", "10", "3", *more])
    out = capsys.readouterr().out.splitlines()
    assert out[2] == "| after updates | critic, 3 | critic, 10 | actor, 3 | actor, 10 |"
    rows = {row.split(" | ")[0]: re.findall(r"([-\d.]+) \(", row) for row in out[4:]}
    assert rows["| unitary"] == ["1.000"] * 4
    for name in ("| unitary, other batches", "| mgda"):
        assert all(-1.0 <= float(cosine) < 0.999 for cosine in rows[name]), rows

    with pytest.raises(SystemExit) as caught:
        main([str(reference), "--methods", "no_such"])
    assert caught.value.code == 2
    assert "no_such" in capsys.readouterr().err
