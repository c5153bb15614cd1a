from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gradient_cases import combined_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from test_agent import make_agent, make_batch, parameters
from test_task_gradients import problem, separate_backwards

from mtrl.gradients.diagnostics import Diagnostics, cosines, gradient_metrics
from mtrl.run.images import AGREE, CONFLICT, draw_heat_map
from mtrl.smto import available, create, describe


def slow_metrics(jacobian: np.ndarray) -> dict[str, float]:
    """The same from J, pair by pair, in NumPy."""
    m = len(jacobian)
    total, mean = jacobian.sum(0), jacobian.mean(0)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / lengths) if lengths > 0 else 0.0

    pairs, similarities = [], []
    for i in range(m):
        for j in range(i + 1, m):
            a, b = jacobian[i], jacobian[j]
            pairs.append(cosine(a, b))
            squares = a @ a + b @ b
            lengths = np.linalg.norm(a) * np.linalg.norm(b)
            similarities.append(2 * lengths / squares if squares > 0 else 1.0)
    singular = np.linalg.svd(jacobian, compute_uv=False)
    kept = singular[singular**2 > singular[0] ** 2 * m * np.finfo(np.float32).eps]
    return {
        "cosine_mean": float(np.mean(pairs)),
        "cosine_min": min(pairs),
        "conflict_ratio": float(np.mean([c < 0 for c in pairs])),
        "magnitude_similarity": float(np.mean(similarities)),
        "condition_number": float(kept[0] / kept[-1]) if singular[0] > 0 else 1.0,
        "alignment": float(np.mean([cosine(g, mean) for g in jacobian])),
        "sum_norm": float(np.linalg.norm(total)),
    }


@given(
    m=st.integers(2, 12),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-15, 1.0, 1e15]),
    kind=st.sampled_from(["random", "conflicting", "a zero row", "spread norms", "rank 2"]),
)
@settings(max_examples=80)
def test_metrics_equal_the_pairwise_ones(m: int, seed: int, scale: float, kind: str) -> None:
    rng = np.random.default_rng(seed)
    jacobian = rng.normal(size=(m, 30))
    if kind == "conflicting":
        jacobian[::2] -= 3.0 * jacobian[1]
    elif kind == "a zero row":
        jacobian[-1] = 0.0
    elif kind == "spread norms":
        jacobian *= np.logspace(-1, 1, m)[:, None]
    elif kind == "rank 2":
        jacobian = rng.normal(size=(m, 2)) @ rng.normal(size=(2, 30))
    jacobian *= scale
    matrix = torch.from_numpy(jacobian)
    got = gradient_metrics(matrix @ matrix.T)._asdict()
    for name, expected in slow_metrics(jacobian).items():
        floor = 1e-6 * (np.linalg.norm(jacobian, axis=1).max() if name == "sum_norm" else 1.0)
        assert got[name].item() == pytest.approx(expected, rel=1e-5, abs=floor), name


def test_known_values() -> None:
    jacobian = torch.tensor([[3.0, 0.0], [0.0, 4.0], [-3.0, 0.0]], dtype=torch.float64)
    got = gradient_metrics(jacobian @ jacobian.T)
    assert got.cosine_mean.item() == pytest.approx(-1 / 3)
    assert got.cosine_min.item() == pytest.approx(-1.0)
    assert got.conflict_ratio.item() == pytest.approx(1 / 3)
    assert got.magnitude_similarity.item() == pytest.approx((24 / 25 + 24 / 25 + 1) / 3)
    assert got.condition_number.item() == pytest.approx(math.sqrt(18 / 16))  # l = 18, 16, 0
    assert got.alignment.item() == pytest.approx(1 / 3)
    assert got.sum_norm.item() == pytest.approx(4.0)


def test_no_gradient_and_no_pair() -> None:
    nothing = gradient_metrics(torch.zeros(3, 3, dtype=torch.float64))
    assert nothing == (0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
    one = gradient_metrics(torch.full((1, 1), 4.0, dtype=torch.float64))
    assert [value.item() for value in one[4:]] == [1.0, 1.0, 2.0]
    assert all(value.isnan() for value in one[:4]), "there are no pairs"


METHODS = ["unitary", "rlw_normal", "pcgrad", "graddrop"]


@pytest.mark.parametrize("method", METHODS)
def test_looking_does_not_change_training_bits(method: str) -> None:
    plain, looking = (make_agent(smto=method, max_grad_norm=1.0) for _ in range(2))
    places = [part.gramian.data_ptr() for part in (looking.critic, looking.actor)]
    for k in range(3):
        one = plain.update(make_batch(seed=k))
        two = looking.update(make_batch(seed=k), gramians=True)
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a, b) or (a.isnan().all() and b.isnan().all())
    assert torch.equal(parameters(plain), parameters(looking))
    for part in ("critic", "actor"):
        assert getattr(plain, part).gramian.isnan().all(), "nobody asked for it"
        assert getattr(looking, part).gramian.isfinite().all()
    # Captured updates of several kinds write to the same place.
    assert places == [part.gramian.data_ptr() for part in (looking.critic, looking.actor)]
    noise = (torch.rand(4, generator=agent.generator) for agent in (plain, looking))
    assert torch.equal(*noise)


@pytest.mark.parametrize("which", ["critic", "actor"])
@pytest.mark.parametrize("method", METHODS)
def test_gramian_is_that_of_separate_backwards(which: str, method: str) -> None:
    agent = make_agent(tasks=4, network={"layer_norm": True})
    task_loss, network, inputs = problem(agent, which)
    rows, *_ = separate_backwards(task_loss, network, inputs)
    rows = rows.astype(np.float64)
    gramian = combined_gradients(create(method, 4), task_loss, network, inputs).gramian
    if method != "pcgrad":
        assert gramian is None, "computed for nothing"
        smto = create(method, 4)
        gramian = combined_gradients(smto, task_loss, network, inputs, gramian=True).gramian
    assert gramian is not None
    assert gramian.dtype == torch.float32
    lengths = np.linalg.norm(rows, axis=1)
    error = np.abs(gramian.numpy() - rows @ rows.T) / np.outer(lengths, lengths)
    assert error.max() < 1e-5


def test_means_between_flushes() -> None:
    generator = torch.Generator().manual_seed(0)
    gramians = []
    diagnostics = Diagnostics()
    assert diagnostics.flush() == {}
    for k in range(3):
        jacobian = torch.randn(4, 9, generator=generator, dtype=torch.float64)
        gramians.append(jacobian @ jacobian.T)
        gap = {"actor/duality_gap": torch.tensor(float(k))} if k else {}
        diagnostics.add({"actor": gramians[-1]}, gap)
    means = diagnostics.flush()
    expected = np.mean([gradient_metrics(g).cosine_mean.item() for g in gramians])
    assert means["gradients/actor/cosine_mean"] == pytest.approx(expected)
    assert means["smto/actor/duality_gap"] == pytest.approx(1.5), "mean of the two that had one"
    heat_map = diagnostics.heat_maps["actor"]
    np.testing.assert_allclose(heat_map, torch.stack([cosines(g) for g in gramians]).mean(0))
    assert diagnostics.flush() == {}
    assert diagnostics.heat_maps["actor"] is heat_map, "the last one stays for the next evaluation"


@pytest.mark.parametrize("tasks", [1, 3, 10, 50])
def test_heat_map_shows_agreement_in_red_and_conflict_in_blue(tasks: int) -> None:
    cosines = np.zeros((tasks, tasks))
    cosines[0, -1], cosines[-1, 0] = 1.0, -1.0  # with one task: conflict
    names = [f"a-task-of-some-length-{i}" for i in range(tasks)]
    pixels = draw_heat_map(names, cosines, "a title that is longer than two cells are wide")
    assert pixels.dtype == np.uint8
    image = pixels.transpose(1, 2, 0)
    for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
        assert (edge == 255).all(), "nothing is cut"

    def seen(colour: tuple[int, int, int]) -> np.ndarray:
        """Mean position, but for the scale of colours."""
        where = (image[:, : -75 if tasks > 1 else None] == colour).all(-1)
        assert where.sum() > 200
        return np.argwhere(where).mean(0)

    conflict = seen(CONFLICT)
    if tasks > 1:
        agree = seen(AGREE)
        assert agree[0] < conflict[0], "the first row is on top"
        assert agree[1] > conflict[1]


def test_a_gramian_that_is_not_finite_gives_nan_and_no_exception():
    gramian = torch.eye(3, dtype=torch.float64)
    gramian[0, 1] = torch.nan
    metrics = gradient_metrics(gramian)
    assert metrics.condition_number.isnan()
    assert metrics.sum_norm.isnan()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "method", [name for name in available() if describe(name).needs == "gramian"]
)
def test_no_method_raises_in_the_update_for_gradients_that_are_not_finite(method, value):
    """The loop names the task whose loss is not finite; a solver's exception would hide it."""
    gramian = torch.full((3, 3), value, dtype=torch.float64)
    create(method, 3).weights(losses=torch.ones(3), gramian=gramian)
