"""One forward and few backwards against the slow double loop, on a network with BatchNorm."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mtrl.smto import SMTO, GradDrop, available, create
from mtrl.smto.base import gram_matrix, options_of
from mtrl.supervised.auto_lambda import AutoLambda, Prepared
from mtrl.supervised.gradients import Space, backward
from mtrl.supervised.networks import MultiTaskNetwork

TASKS = 3
SPACES: tuple[Space, ...] = ("parameters", "representation")


def make_network(tasks: int = TASKS) -> MultiTaskNetwork:
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 5)
    )
    return MultiTaskNetwork(encoder, [nn.Linear(5, 4) for _ in range(tasks)])


def make_batch(tasks: int = TASKS) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(6, 1, 8, 8, generator=generator)
    return inputs, [torch.randint(4, (6,), generator=generator) for _ in range(tasks)]


def test_heads_of_reused_weights_stay_plain() -> None:
    """update_every: between two solutions the encoder is weighted, the heads are not."""
    network, smto = make_network(), create("mgda", TASKS, update_every=2)
    solved = run(network, smto, "parameters")
    reused = run(network, smto, "parameters")  # the same batch and parameters
    assert_close(reused, solved)


def make_smto(name: str, tasks: int = TASKS) -> SMTO:
    options: dict[str, object] = {"seed": 3} if "seed" in options_of(name) else {}
    if "total_steps" in options_of(name):
        options["total_steps"] = 100
    if name == "fixed":
        options["weights"] = [1.0, 2.0, 3.0][:tasks]
    return create(name, tasks, **options)


def slow(
    network: MultiTaskNetwork, smto: SMTO, inputs: Tensor, targets: list[Tensor], space: Space
) -> dict[str, Tensor]:
    """The definition: m passes of autograd, then the method, then the heads."""
    m = len(targets)
    z = network.encoder(inputs)
    z.retain_grad()
    losses = [
        functional.cross_entropy(head(z), target)
        for head, target in zip(network.heads, targets, strict=True)
    ]
    shared = list(network.encoder.parameters())
    values = torch.stack(losses).detach()
    weights = smto.weights(losses=values) if smto.needs == "losses" else None

    def direction(rows: Tensor) -> Tensor:
        if weights is not None:
            return weights.to(rows.dtype) @ rows
        if smto.needs == "gramian":
            w = smto.weights(losses=values, gramian=gram_matrix(rows))
            return w.to(rows.dtype) @ rows
        return smto.direction(rows, values)

    found = {}
    if space == "parameters" or weights is not None:
        jacobian = torch.stack(
            [
                torch.cat(
                    [g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True)]
                )
                for loss in losses
            ]
        )
        pieces = direction(jacobian).split([p.numel() for p in shared])
    else:
        rows = torch.stack([torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in losses])
        if isinstance(smto, GradDrop):
            at_z = slow_graddrop(smto, z.detach(), rows)
        else:
            at_z = direction(rows.flatten(1)).view_as(z)
        pieces = torch.autograd.grad(z, shared, at_z, retain_graph=True)
    for (name, parameter), piece in zip(network.encoder.named_parameters(), pieces, strict=True):
        found[f"encoder.{name}"] = piece.view_as(parameter)
    for i, (head, loss) in enumerate(zip(network.heads, losses, strict=True)):
        factor = 1.0 / m if weights is None else float(weights[i])
        for name, parameter in head.named_parameters():
            (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True)
            found[f"heads.{i}.{name}"] = factor * gradient
    return found


def slow_graddrop(smto: GradDrop, z: Tensor, rows: Tensor) -> Tensor:
    """Chen et al. 2020, Algorithm 1, number by number."""
    m, samples, width = rows.shape
    u = torch.rand(width, generator=smto.generator)
    result = torch.zeros(samples, width)
    for k in range(width):
        sums = [float((z[:, k].sign() * rows[i, :, k]).sum()) for i in range(m)]
        purity = 0.5 * (1 + sum(sums) / sum(abs(s) for s in sums))
        for i in range(m):
            keep = sums[i] > 0 if purity > u[k] else sums[i] < 0
            result[:, k] += keep * rows[i, :, k] / m
    return result


def run(
    network: MultiTaskNetwork, smto: SMTO, space: Space, *, chunk_size: int = 1, look: bool = False
) -> dict[str, Tensor]:
    inputs, targets = make_batch(len(network.heads))
    losses = [functional.cross_entropy] * len(targets)
    backward(network, losses, smto, inputs, targets, space=space, chunk_size=chunk_size, look=look)
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-6, msg=name)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", available())
def test_every_method_in_both_spaces(name: str, space: Space) -> None:
    network = make_network()
    other = copy.deepcopy(network)
    smto, same = make_smto(name), make_smto(name)
    inputs, targets = make_batch()
    for _ in range(2):  # stateful methods: a second step
        wanted = slow(other, same, inputs, targets, space)
        assert_close(run(network, smto, space), wanted)
    # BatchNorm: one update of the running statistics per step, as in the slow network.
    for (key, ours), theirs in zip(
        network.state_dict().items(), other.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, msg=key)


@pytest.mark.parametrize("chunk_size", [2, 3, 5])
def test_batched_backward_passes_agree(chunk_size: int) -> None:
    wanted = run(make_network(), make_smto("pcgrad"), "parameters")
    found = run(make_network(), make_smto("pcgrad"), "parameters", chunk_size=chunk_size)
    assert_close(found, wanted)


@pytest.mark.parametrize("name", ["unitary", "rlw_normal", "pcgrad", "graddrop"])
@pytest.mark.parametrize("space", SPACES)
def test_looking_changes_nothing(name: str, space: Space) -> None:
    seen = run(make_network(), make_smto(name), space, look=True)
    unseen = run(make_network(), make_smto(name), space)
    assert all(torch.equal(seen[key], unseen[key]) for key in unseen)


def test_the_look_is_on_the_shared_parameters() -> None:
    network = make_network()
    inputs, targets = make_batch()
    losses = [functional.cross_entropy] * TASKS
    look = backward(
        network, losses, make_smto("mgda"), inputs, targets, space="representation", look=True
    ).gramian
    again = make_network()
    outputs = again(inputs)
    rows = []
    for output, target in zip(outputs, targets, strict=True):
        loss = functional.cross_entropy(output, target)
        gradients = torch.autograd.grad(loss, again.encoder.parameters(), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    jacobian = torch.stack(rows).double()
    assert look is not None
    torch.testing.assert_close(look, jacobian @ jacobian.T, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", ["unitary", "pcgrad", "mgda", "imtl_g", "cagrad"])
def test_a_single_task_is_ordinary_training(name: str, space: Space) -> None:
    options = {"c": 0.0} if name == "cagrad" else {}
    smto = create(name, 1, **options)
    found = run(make_network(1), smto, space)
    network = make_network(1)
    inputs, targets = make_batch(1)
    functional.cross_entropy(network(inputs)[0], targets[0]).backward()
    assert_close(found, {n: p.grad for n, p in network.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    "name", ["unitary", "mgda", "edm", "imtl_g", "cagrad", "nash_mtl", "pcgrad", "famo", "uw"]
)
def test_identical_tasks_get_equal_weights(name: str, space: Space) -> None:
    """Gama & Grassi 2025, appendix: under symmetry every such method is unitary.

    Equal gradients make every convex combination a min-norm point, so the solvers' rounding shows
    in the weights, but not in the direction.
    """
    network = make_network()
    for head in network.heads[1:]:
        head.load_state_dict(network.heads[0].state_dict())
    inputs, targets = make_batch(1)
    losses = [functional.cross_entropy] * TASKS
    outcome = backward(network, losses, make_smto(name), inputs, targets * TASKS, space=space)
    assert outcome.weights is not None
    weights = outcome.weights / outcome.weights.sum()
    assert torch.allclose(weights, torch.full_like(weights, 1 / TASKS), atol=5e-3)


# -- Auto-Lambda --------------------------------------------------------------------------------


def test_the_look_ahead_against_exact_second_derivatives() -> None:
    network = make_network().double()
    network.encoder[2] = nn.Tanh()  # smooth: ReLU's kinks spoil finite differences
    alpha, lambdas = 0.1, [0.2, 0.5, 0.3]
    training, held_out = (
        Prepared(inputs.double(), targets) for inputs, targets in (make_batch(), other_batch())
    )
    smto = AutoLambda(TASKS)
    smto.parameter.copy_(torch.tensor(lambdas))
    before = copy.deepcopy(network.state_dict())
    losses_of = [functional.cross_entropy] * TASKS
    found = smto.gradient(network, losses_of, training, held_out, alpha)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())

    weights = torch.tensor(lambdas, dtype=torch.float64, requires_grad=True)
    parameters = dict(network.named_parameters())

    def losses(values: dict[str, Tensor], data: Prepared) -> Tensor:
        outputs = torch.func.functional_call(copy.deepcopy(network), values, (data.inputs,))
        pairs = zip(outputs, data.targets, strict=True)
        return torch.stack([functional.cross_entropy(*pair) for pair in pairs])

    step = torch.autograd.grad(
        losses(parameters, training) @ weights, list(parameters.values()), create_graph=True
    )
    ahead = {n: p - alpha * g for (n, p), g in zip(parameters.items(), step, strict=True)}
    (exact,) = torch.autograd.grad(losses(ahead, held_out).mean(), weights)
    torch.testing.assert_close(found, exact, rtol=0.02, atol=1e-4 * float(exact.abs().max()))


def other_batch() -> tuple[Tensor, list[Tensor]]:
    inputs, targets = make_batch()
    return inputs.flip(0) + 0.3, [target.roll(1) for target in targets]


def test_auto_lambda_favours_the_task_that_helps() -> None:
    """Held-out samples whose labels agree with one task's training labels alone."""
    network = make_network()
    inputs, targets = make_batch()
    wrong = [targets[0], (targets[1] + 1) % 4, (targets[2] + 2) % 4]
    smto = AutoLambda(TASKS, lr=0.01)
    losses_of = [functional.cross_entropy] * TASKS
    for _ in range(20):
        smto.look_ahead(network, losses_of, Prepared(inputs, targets), Prepared(inputs, wrong), 0.1)
    weights = smto.weights(losses=torch.ones(TASKS))
    assert weights.argmax() == 0
    assert (weights >= 0).all()
