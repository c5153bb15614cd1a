"""PaCo's diverged tasks: left out of an update, then restarted from the others."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_architectures import TASKS, make_agent, make_batch
from torch import Tensor, nn

from mtrl.agent import Agent
from mtrl.device.compiled import MANY
from mtrl.networks.paco import PaCo

BAD = 1
"""The task that diverges."""
OTHERS = [0, 2]


def agent(reset_above: float = 1e3, smto: str = "pcgrad", **sections: Any) -> Agent:
    options = {"sets": 2, "reset_above": reset_above}
    return make_agent("paco", smto, network={"options": options}, **sections)


def networks(agent: Agent) -> Iterator[nn.Module]:
    yield from (agent.actor.network, agent.critic.network, agent.target_critic)


def rows(agent: Agent) -> list[Tensor]:
    """Coefficients [copies, task, set] of actor, critics and target critics."""
    parts = [part for network in networks(agent) for part in network.modules()]
    return [part.coefficients.rows.detach()[:, :, 0] for part in parts if isinstance(part, PaCo)]


def diverge(agent: Agent, task: int | slice = BAD) -> None:
    with torch.no_grad():
        for coefficients in rows(agent)[1:]:
            coefficients[:, task] = 30.0  # to the fourth power in the values


def parameters(agent: Agent) -> Tensor:
    return torch.cat([p.detach().flatten() for n in networks(agent) for p in n.parameters()])


@pytest.mark.parametrize("smto", ["unitary", "pcgrad", "graddrop"])
def test_a_diverged_task_starts_again_from_the_others_which_do_not_notice(smto: str) -> None:
    ours, without = agent(smto=smto), agent(0.0, smto)
    for each in (ours, without):
        diverge(each)
    places = [coefficients.data_ptr() for coefficients in rows(ours)]
    losses = ours.update(make_batch(0), gramians=True).critic_loss
    assert losses[BAD] > 1e3, "it is shown"
    without.update(make_batch(0))
    shares = []
    for index, (found, plain) in enumerate(zip(rows(ours), rows(without), strict=True)):
        # Their own coefficients take their own gradients. The actor's come through the critics,
        # whose shared sets have taken another step; Adam's first step is the step size, whatever
        # the gradient's length, but for rounding.
        tolerance = 0.0 if index else 1e-6
        torch.testing.assert_close(found[:, OTHERS], plain[:, OTHERS], rtol=0, atol=tolerance)
        # Two sets and two other tasks: the mixture is the solution of a system.
        shares.append(torch.linalg.solve(found[:, OTHERS].mT.double(), found[:, BAD].double()))
    for found in torch.cat(shares):
        torch.testing.assert_close(found, shares[0][0], rtol=1e-3, atol=1e-3)  # one for all
        assert found.min() > 0
        assert float(found.sum()) == pytest.approx(1.0, abs=1e-3)
    assert [coefficients.data_ptr() for coefficients in rows(ours)] == places
    assert float(ours.update(make_batch(1)).critic_loss[BAD]) < 100


def test_what_tasks_share_does_not_follow_a_diverged_one() -> None:
    ours = agent()
    diverge(ours)
    ours.update(make_batch(0), gramians=True)
    for loss in ("critic", "actor"):
        gramian = getattr(ours, loss).gramian
        assert not gramian[BAD].any()
        assert (gramian.diagonal()[OTHERS] > 0).all()


def test_nothing_changes_while_no_task_diverges() -> None:
    one, two = agent(), agent(0.0)
    for each in (one, two):
        each.update(make_batch(0))
    assert torch.equal(parameters(one), parameters(two))


def test_where_all_diverge_there_is_nothing_to_start_from() -> None:
    ours = agent()
    diverge(ours, slice(None))
    ours.update(make_batch(0))
    for coefficients in rows(ours)[1:]:
        assert (coefficients > 29.0).all()


def test_the_actor_need_not_be_updated() -> None:
    ours = agent()
    diverge(ours)
    before = rows(ours)[0].clone()
    ours.update(make_batch(0), actor=False)
    assert torch.equal(rows(ours)[0][:, OTHERS], before[:, OTHERS])
    assert not torch.equal(rows(ours)[0][:, BAD], before[:, BAD])


@pytest.mark.parametrize("smto", ["unitary", "pcgrad"])
def test_a_restored_agent_restarts_the_same_way(smto: str) -> None:
    one, two = agent(1e-3, smto), agent(1e-3, smto)  # every task all the time, or nearly
    for k in range(2):
        one.update(make_batch(k))
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for k in range(2, 4):
        for each in (one, two):
            diverge(each)
            each.update(make_batch(k))
        assert torch.equal(parameters(one), parameters(two))


def test_the_compiler_takes_it_too() -> None:
    ours, batch = agent(smto="unitary"), make_batch(0)
    diverge(ours)
    noise, alpha = torch.zeros_like(batch.actions), ours.temperature.alpha()
    diverged = torch.arange(len(TASKS)) == BAD
    for part, given in (
        (ours.critic, (batch, noise, alpha, None)),
        (ours.actor, (batch.observations, noise, alpha, diverged)),
    ):
        eager = part.direction(*given)
        with torch._dynamo.config.patch(  # as `compiled` does
            trace_autograd_ops=True, recompile_limit=MANY, accumulated_recompile_limit=MANY
        ):
            quick = torch.compile(part.direction, fullgraph=True, backend="eager")(*given)
        torch.testing.assert_close(quick.losses, eager.losses)
        for a, b in zip(quick.gradients, eager.gradients, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_update_restarts_tasks() -> None:
    from test_capture import WARM_UPS, Learner

    device = torch.device("cuda")
    learner = Learner("pcgrad", device, network="paco", options={"sets": 2, "reset_above": 1e3})
    update = learner.captured()
    for _ in range(WARM_UPS + 1):
        update()
    assert update.is_captured
    before = rows(learner.agent)[1][:, OTHERS].clone()
    for _ in range(2):
        diverge(learner.agent)
        update()
        for coefficients in rows(learner.agent):
            assert (coefficients[:, BAD].abs() < 1e3).all()
    assert not torch.equal(rows(learner.agent)[1][:, OTHERS], before)


def test_an_impossible_threshold_is_refused() -> None:
    with pytest.raises(ValueError, match="reset_above must not be negative, but is -1"):
        agent(-1.0)
