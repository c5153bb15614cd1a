"""The contract of all multi-task optimisers, and the registry."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from smto_cases import ALL, cases, direction, make, options_of, random_jacobian, step

from mtrl.smto import SMTO, GramianSMTO, RandomSMTO, available, create, describe, register
from mtrl.smto import registry as smto_registry
from mtrl.smto.base import LearnedSMTO
from mtrl.smto.source import gram_matrix

RANDOM = {name for name in ALL if "seed" in options_of(name)}
OWN_LENGTH = {"nash_mtl", "fairgrad"}
"""Their direction's length does not follow that of the gradients."""
OTHER_SCALE = OWN_LENGTH | {
    "cagrad", "rgd", "graddrop_random", "si", "gls", "go4align", "db_mtl",
}  # fmt: skip
"""Equal gradients do not come back unchanged (UW and others leave that scale by learning)."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zero_rows", [[0], [1, 2], [0, 1, 2, 3]])
@pytest.mark.parametrize("name", ALL)
def test_zero_gradients_are_finite(name, zero_rows, dtype):
    jacobian = random_jacobian(4).to(dtype)
    jacobian[zero_rows] = 0.0
    direction = make(name, 4).combine(jacobian, torch.zeros(4, dtype=dtype))
    assert direction.dtype == dtype
    assert direction.isfinite().all()
    if len(zero_rows) == 4:
        assert (direction == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-15, 1e-10, 1e-3, 1e10, 1e15])
@pytest.mark.parametrize("name", sorted(set(ALL) - OWN_LENGTH))
def test_direction_scales_with_the_gradients(name, scale, dtype):
    jacobian, losses = random_jacobian(6, dim=9, seed=1).to(dtype), torch.ones(6, dtype=dtype)
    plain = make(name, 6).combine(jacobian, losses)
    scaled = make(name, 6).combine(jacobian * scale, losses)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    assert scaled.isfinite().all()
    np.testing.assert_allclose((scaled / scale).numpy(), plain.numpy(), rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
@given(case=cases())
@settings(max_examples=15)
def test_directions_are_finite_and_zero_for_zero_gradients(name, case):
    ours = make(name, case.num_tasks).combine(case.jacobian, case.losses)
    assert ours.shape == case.jacobian[0].shape
    assert ours.isfinite().all()
    if case.kind == "all zero":
        assert (ours == 0).all()


@pytest.mark.parametrize("name", ALL)
@given(case=cases(num_tasks=(3, 10)))
@settings(max_examples=8)
def test_float32_gradients_are_handled_too(name, case):
    smto = make(name, case.num_tasks)
    for _ in range(3):
        ours = step(smto, case.jacobian.float(), case.losses.float())
        assert ours.dtype == torch.float32
        assert ours.isfinite().all()


@pytest.mark.parametrize("name", sorted(set(ALL) - OTHER_SCALE))
@given(case=cases(("equal",)))
@settings(max_examples=10)
def test_equal_gradients_come_back_unchanged(name, case):
    ours = make(name, case.num_tasks).combine(case.jacobian, case.losses)
    np.testing.assert_allclose(ours.numpy(), case.jacobian[0].numpy(), rtol=2e-6)


IN_ORDER = {"fixed", "ldc_mtl", "pcd"}
"""Weights are given by task, compare each task with the next one, or prefer one task."""


@pytest.mark.parametrize("name", sorted(set(ALL) - RANDOM - IN_ORDER))
@given(case=cases(("random", "agreeing", "low rank"), num_tasks=(2, 3, 10), scales=(1.0,)))
@settings(max_examples=6)
def test_relabelling_the_tasks_changes_nothing(name, case):
    labels = torch.randperm(case.num_tasks, generator=torch.Generator().manual_seed(3))
    plain, moved = make(name, case.num_tasks), make(name, case.num_tasks)
    for progress in (1.0, 0.7, 0.9):
        losses = case.losses**progress
        before = step(plain, case.jacobian, losses)
        after = step(moved, case.jacobian[labels], losses[labels])
    size = float(before.abs().max()) + 0.01 * float(case.jacobian.norm(dim=1).max())
    np.testing.assert_allclose(after.numpy(), before.numpy(), rtol=1e-5, atol=1e-5 * size)


@pytest.mark.parametrize("name", [n for n in ALL if describe(n).needs != "jacobian"])
def test_combine_is_weights_times_jacobian(name):
    jacobian, losses = random_jacobian(5, seed=2), torch.arange(5, dtype=torch.float64) - 2.0
    weights = make(name, 5).weights(losses=losses, gramian=jacobian @ jacobian.T)
    assert weights.shape == (5,)
    expected = (weights[:, None] * jacobian).sum(0)
    np.testing.assert_allclose(direction(name, jacobian, losses), expected, rtol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_inputs_stay_as_they_are(name):
    jacobian, losses = random_jacobian(4), torch.tensor([0.5, -1.0, 2.0, 3.0]).double()
    before = jacobian.clone(), losses.clone()
    smto = make(name, 4)
    for _ in range(3):
        step(smto, jacobian, losses)
    assert torch.equal(jacobian, before[0])
    assert torch.equal(losses, before[1])


# -- state --------------------------------------------------------------------------------------

STATEFUL = RANDOM | {
    "uw", "imtl_l", "imtl", "dwa", "famo", "gradnorm", "cdtt", "si", "autoscale", "gradvac",
    "gls", "go4align", "ldc_mtl", "db_mtl", "excess_mtl", "modo", "pcd",
}  # fmt: skip
LOWER_BOUND_ALONE = {"si", "gls"}
"""Their state, which no loss has moved here."""
SHORT = {"dwa": {"window": 2}, "autoscale": {"total_steps": 40, "windows": 3}}


def steps(smto, first, last):
    """Directions of the steps first..last of one fixed stream of gradients and losses."""
    outputs = []
    for k in range(first, last):
        losses = random_jacobian(4, dim=1, seed=100 + k)[:, 0] + 1.0
        outputs.append(step(smto, random_jacobian(4, dim=6, seed=k), losses))
    return torch.stack(outputs)


GRAMIAN = tuple(n for n in ALL if "update_every" in options_of(n))
WEIGHTED = tuple(n for n in ALL if "ema" in options_of(n))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((n, {}) for n in ALL),
        *((n, {"update_every": 4}) for n in GRAMIAN),
        *((n, {"ema": 0.8}) for n in WEIGHTED),
        ("cagrad", {"ema": 0.8, "update_every": 4}),
    ],
)
def test_a_restored_method_continues_bit_for_bit(name, options):
    options = options | SHORT.get(name, {})
    original, restored = make(name, 4, **options), make(name, 4, **options)
    if "seed" in options_of(name):
        restored = make(name, 4, seed=99, **options)
    steps(original, 0, 14)
    state = copy.deepcopy(original.state_dict())
    extra = state["_extra_state"]
    assert (len(state) > 1 or bool(extra)) == (
        name in STATEFUL or bool(options.keys() & {"update_every", "ema"})
    )
    uninterrupted = steps(original, 14, 24)
    restored.load_state_dict(state)
    assert torch.equal(steps(restored, 14, 24), uninterrupted)
    if (len(state) > 1 or extra) and (name not in LOWER_BOUND_ALONE or "ema" in options):
        # The state matters: a fresh instance goes elsewhere.
        assert not torch.equal(steps(make(name, 4, **options), 14, 24), uninterrupted)


def addresses(smto):
    """Of all that a captured step changes in place."""
    tensors = [*smto.buffers(), *smto.parameters()]
    if isinstance(smto, LearnedSMTO):
        tensors += [value for state in smto.adam.state.values() for value in state.values()]
    return [tensor.data_ptr() for tensor in tensors]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((n, {}) for n in ALL),
        *((n, {"update_every": 4}) for n in GRAMIAN),
        *((n, {"ema": 0.8}) for n in WEIGHTED),
    ],
)
def test_a_method_that_starts_again_is_as_new_in_the_same_tensors(name, options):
    """As at `agent.resets`: with larger losses and other gradients than before."""
    options = options | SHORT.get(name, {})
    used, fresh = make(name, 4, **options), make(name, 4, **options)
    steps(used, 0, 10)
    places = addresses(used)
    used.start_again(make(name, 4, **options))
    assert places == addresses(used)
    if isinstance(used, RandomSMTO):
        fresh.generator.set_state(used.generator.get_state())
    alike = torch.equal(steps(used, 14, 24), steps(fresh, 14, 24))
    assert alike == (name != "autoscale"), "which explores once"


def test_what_a_users_method_makes_at_its_first_step_becomes_zero():
    class Lazy(SMTO):
        def __init__(self, num_tasks):
            super().__init__(num_tasks)
            self.register_buffer("mean", None)

        def weights(self, *, losses=None, gramian=None):
            self.mean = losses.detach().clone() if self.mean is None else self.mean + losses
            return torch.full_like(losses, 1 / self.num_tasks)

    used = Lazy(3)
    used.weights(losses=torch.ones(3))
    used.start_again(Lazy(3))
    assert used.mean.tolist() == [0.0, 0.0, 0.0]


def test_a_copied_state_is_a_copy():
    """As PyTorch's modules do: going on with the copy leaves the original where it is."""
    for name in ("uw", "famo", "gradnorm"):
        original, copied = make(name, 4), make(name, 4)
        steps(original, 0, 3)
        copied.load_state_dict(original.state_dict())
        steps(copied, 3, 6)
        assert not torch.equal(original.parameter, copied.parameter)
        there = copy.deepcopy(original)
        there.load_state_dict(original.state_dict())
        assert torch.equal(steps(there, 3, 6), steps(original, 3, 6)), name
        assert torch.equal(original.parameter, copied.parameter), name


def test_whole_numbers_are_numbers():
    assert torch.equal(
        steps(make("graddrop_random", 4, p=0), 0, 3), steps(make("graddrop_random", 4, p=0.0), 0, 3)
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", sorted(RANDOM))
def test_random_numbers_move_with_the_method(name):
    one, two = (make(name, 4).to("cuda") for _ in range(2))
    jacobian = random_jacobian(4, dim=6).cuda()
    losses = jacobian[:, 0].abs()
    assert torch.equal(one.combine(jacobian, losses), two.combine(jacobian, losses))


def test_a_state_of_another_number_of_tasks_is_refused():
    with pytest.raises(RuntimeError, match="size mismatch for lower_bound"):
        create("uw", 3).load_state_dict(create("uw", 4).state_dict())


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_seeds_decide_the_random_numbers(name):
    sequences = [steps(make(name, 4, seed=seed), 0, 6) for seed in (1, 1, 2)]
    assert torch.equal(sequences[0], sequences[1])
    assert not torch.equal(sequences[0], sequences[2])


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_the_global_random_stream_is_left_alone(name):
    before = torch.get_rng_state()
    steps(make(name, 4), 0, 2)
    assert torch.equal(before, torch.get_rng_state())


# -- reuse of weights ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRAMIAN)
def test_weights_are_reused_between_updates(name):
    smto, reference = make(name, 3, update_every=3), make(name, 3)
    losses = torch.tensor([1.0, 2.0, 3.0]).double()
    for k in range(7):
        jacobian = random_jacobian(3, dim=5, seed=k)
        if k % 3 == 0:
            assert smto.needs == "gramian"
            gramian = jacobian @ jacobian.T
            expected = reference.weights(losses=losses, gramian=gramian)
            weights = smto.weights(losses=losses, gramian=gramian)
        else:
            assert smto.needs == "losses"
            weights = smto.weights(losses=losses)
        assert torch.equal(weights, expected)


def test_update_every_needs_a_positive_number():
    with pytest.raises(ValueError, match="update_every must be at least 1, not 0"):
        create("mgda", 3, update_every=0)


# -- losses of any sign -------------------------------------------------------------------------

POSITIVE = tuple(name for name in ALL if describe(name).wants_positive_losses)


def test_these_methods_want_positive_losses():
    assert set(POSITIVE) == {
        "uw", "imtl_l", "si", "gls", "dwa", "famo", "imtl", "cdtt", "gradnorm", "go4align",
        "ldc_mtl", "db_mtl",
    }  # fmt: skip
    assert create("mgda", 2, normalisation="loss+").wants_positive_losses
    assert not create("mgda", 2, normalisation="l2").wants_positive_losses
    assert create("autoscale", 2, cost="loss_scale").wants_positive_losses


@pytest.mark.parametrize("name", POSITIVE)
def test_falling_negative_losses_are_survived(name):
    smto, jacobian = make(name, 3, **SHORT.get(name, {})), random_jacobian(3, dim=6)
    for k in range(40):
        losses = torch.tensor([5.0 - k, -1e4 * k, 0.5]).double()
        assert step(smto, jacobian, losses).isfinite().all()
    if "weights" in vars(type(smto)):
        weights = smto.weights(losses=losses)
        assert (weights > 0).all()


def test_positive_losses_are_shifted_only_after_a_negative_one():
    smto = create("si", 2)
    for losses, expected in [
        ((3.0, 5.0), (3.0, 5.0)),  # untouched
        ((-2.0, 4.0), (0.2, 4.0)),  # the first task's lower bound is now -2, with a margin of 10 %
        ((3.0, 4.0), (5.2, 4.0)),
        ((-1.0, 0.0), (1.2, 1e-8)),
        ((-4.0, 1.0), (0.4, 1.0)),
    ]:
        weights = smto.weights(losses=torch.tensor(losses).double())
        np.testing.assert_allclose(1.0 / (2.0 * weights), expected, rtol=1e-12)
    np.testing.assert_allclose(smto.state_dict()["lower_bound"], [-4.0, 0.0])


# -- the public entry point ---------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["unitary", "mgda", "graddrop"])
def test_combine_names_the_task_with_a_non_finite_input(name, bad):
    jacobian, losses = random_jacobian(4), torch.ones(4).double()
    jacobian[2, 1] = bad
    with pytest.raises(ValueError, match="non-finite gradient of task 2"):
        make(name, 4).combine(jacobian, losses)
    losses[1] = bad
    with pytest.raises(ValueError, match="non-finite loss of task 1"):
        make(name, 4).combine(random_jacobian(4), losses)


@pytest.mark.parametrize("shape", [(3, 5), (4,), (4, 5, 1)])
def test_combine_names_a_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"Jacobian \[4, P\]"):
        create("unitary", 4).combine(torch.ones(shape), torch.ones(4))


@pytest.mark.parametrize("name", sorted(set(GRAMIAN) | {"autoscale"}))
def test_a_missing_gramian_is_named(name):
    with pytest.raises(ValueError, match=r"(?i)needs the gramian"):
        make(name, 2).weights(losses=torch.ones(2))


@pytest.mark.parametrize("name", [*sorted(set(POSITIVE) - {"db_mtl"}), "stch", "pbi"])
def test_missing_losses_are_named(name):
    with pytest.raises(ValueError, match="needs the losses"):
        make(name, 2).weights(gramian=torch.eye(2).double())


@pytest.mark.parametrize("num_tasks", [2, 10, 50])
@pytest.mark.parametrize("columns", [300, 4096, 10_000, 300_000])
def test_the_gramian_has_the_precision_of_the_gradients_however_long_they_are(num_tasks, columns):
    # All products are positive, the worst case: a float32 sum of 300,000 is wrong by 1e-5.
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.rand(num_tasks, columns, generator=generator)
    gramian, exact = gram_matrix(jacobian), jacobian.double() @ jacobian.double().T
    assert gramian.dtype == torch.float32
    np.testing.assert_allclose(gramian, exact, rtol=1e-6)
    np.testing.assert_allclose(gram_matrix(jacobian.double()), exact, rtol=1e-11)


@pytest.mark.parametrize("name", ALL)
def test_no_tasks_is_an_error(name):
    with pytest.raises(ValueError, match=r"tasks|weights"):
        make(name, 0)


def test_unknown_method_lists_the_valid_ones():
    with pytest.raises(ValueError, match="pcgard") as caught:
        create("pcgard", 3)
    assert {"unitary", "fixed", "pcgrad"} <= set(available())
    assert all(name in str(caught.value) for name in available())


@pytest.mark.parametrize(
    ("name", "valid"),
    [("pcgrad", ["seed", "ema"]), ("fixed", ["weights"]), ("unitary", [])],
)
def test_unknown_option_lists_the_valid_ones(name, valid):
    with pytest.raises(ValueError, match="speed") as caught:
        create(name, 3, speed=1)
    assert all(option in str(caught.value) for option in [name, *valid])


def test_a_stateless_method_refuses_foreign_state():
    create("unitary", 3).load_state_dict(create("unitary", 3).state_dict())
    with pytest.raises(ValueError, match="generator"):
        create("unitary", 3).load_state_dict(create("pcgrad", 3).state_dict())


@pytest.fixture
def clean_registry(monkeypatch):
    monkeypatch.setattr(smto_registry, "_METHODS", dict(smto_registry._METHODS))
    monkeypatch.setattr(smto_registry, "_ALIASES", dict(smto_registry._ALIASES))


@pytest.mark.usefixtures("clean_registry")
def test_a_users_method_becomes_available():
    @register("test_largest_loss")
    class LargestLoss(SMTO):
        """Only the task with the largest loss."""

        def __init__(self, num_tasks, *, power=1.0):
            super().__init__(num_tasks)
            self.power = power

        def weights(self, *, losses=None, gramian=None):
            return torch.nn.functional.one_hot(losses.argmax(), self.num_tasks) * self.power

    assert "test_largest_loss" in available()
    jacobian, losses = random_jacobian(3), torch.tensor([0.0, 5.0, 1.0], dtype=torch.float64)
    direction = create("test_largest_loss", 3, power=2.0).combine(jacobian, losses)
    assert torch.equal(direction, 2.0 * jacobian[1])
    with pytest.raises(ValueError, match="power"):
        create("test_largest_loss", 3, strength=2.0)


@pytest.mark.usefixtures("clean_registry")
def test_a_user_method_on_the_gramian_gets_the_common_options():
    @register("test_shortest", "test_alias")
    class Shortest(GramianSMTO):
        """Only the task with the shortest gradient."""

        def solve(self, gramian, losses):
            return torch.nn.functional.one_hot(gramian.diagonal().argmin(), self.num_tasks).double()

    assert describe("test_alias") == (
        "test_shortest",
        ("test_alias",),
        "gramian",
        False,
        {"ema": 0.0, "update_every": 1},
        "Only the task with the shortest gradient.",
    )
    jacobian = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    ours = create("test_alias", 2, update_every=2).combine(jacobian, torch.ones(2))
    assert torch.equal(ours, jacobian[1])


def test_aliases_create_the_same_method():
    assert describe("nash").name == "nash_mtl"
    assert type(create("nash", 2)) is type(create("nash_mtl", 2))
    assert not set(describe("nash_mtl").aliases) & set(available())


def test_methods_are_listed_by_what_they_need():
    needs = [describe(name).needs for name in available()]
    assert needs == sorted(needs, key=["losses", "gramian", "jacobian"].index)
    assert len(needs) == 38


@pytest.mark.parametrize("name", ALL)
def test_every_method_is_described_by_its_paper_and_its_options(name):
    method = describe(name)
    assert method.text.endswith(".")
    assert method.text[:-1].isprintable()
    assert ("20" in method.text) or name in ("unitary", "fixed", "si")  # a year
    smto = make(name, 3, **{k: v for k, v in method.options.items() if k != "weights"})
    assert smto.needs == method.needs


@pytest.mark.usefixtures("clean_registry")
def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="pcgrad"):
        register("pcgrad")(SMTO)
    with pytest.raises(ValueError, match="'nash' is taken by NashMTL"):
        register("test_mine", "nash")(SMTO)
    assert create("pcgrad", 2).needs == "gramian"
