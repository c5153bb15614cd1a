"""Deterministic evaluation: success rates and returns per task over goals.

While a run trains, snapshots of its policy are evaluated on workers of their own (`Evaluator`), and
the run follows the results (`Evaluations`).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from mtrl.agent import Agent
from mtrl.config import Config
from mtrl.device.compilation import MODULES
from mtrl.device.memory import snapshot
from mtrl.envs.vector import (
    IDLE,
    RESET,
    STEP,
    NonFiniteError,
    VectorEnv,
    WorkerError,
    make_vector_env,
)
from mtrl.networks.policy import DeterministicPolicy
from mtrl.run.callbacks import Callbacks
from mtrl.run.checkpoint import Writer

Policy = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Evaluation(NamedTuple):
    success: NDArray[np.bool_]
    """[task, episode] solved at any step of the episode."""
    returns: NDArray[np.float64]
    """[task, episode] undiscounted raw return (up to the first success, if episodes stop there)."""

    @property
    def task_success(self) -> NDArray[np.float64]:
        return self.success.mean(1)

    @property
    def success_mean(self) -> float:
        return float(self.success.mean())


def goal_schedule(config: Config, episodes: int, first: int = 0) -> NDArray[np.int64]:
    """Goals [task, episode] in fixed order from `first` on, without repeats.

    At most num_goals episodes: policy and simulation are deterministic, so a repeat says nothing.
    """
    episodes = min(episodes, config.env.num_goals)
    goals = (first + np.arange(episodes)) % config.env.num_goals
    return np.tile(goals, (config.num_tasks, 1))


def goals_at(config: Config, step: int, *, final: bool) -> NDArray[np.int64]:
    """Goals [task, episode] of the evaluation at `step`, or of the one that ends the run."""
    settings = config.evaluation
    if final:
        return goal_schedule(config, settings.final_episodes_per_task)
    before = max(step // settings.every - 1, 0) * settings.episodes_per_task  # 0: at step 0 too
    return goal_schedule(config, settings.episodes_per_task, first=before)


def frozen_policy(agent: Agent) -> Policy:
    """The deterministic policy as it is now, on NumPy arrays [task, dim], on the CPU."""
    return numpy_policy(copy.deepcopy(agent.policy).cpu().eval(), torch.device("cpu"))


def numpy_policy(network: DeterministicPolicy, device: torch.device) -> Policy:
    """A policy on `device` as a function of NumPy arrays [task, dim]."""

    @torch.no_grad()
    def policy(observations: NDArray[np.float32]) -> NDArray[np.float32]:
        with MODULES:  # in the thread of an `Evaluator`, beside a compilation
            actions = network(torch.tensor(observations, device=device))
        result: NDArray[np.float32] = actions.cpu().numpy()
        return result

    return policy


def evaluate(
    policy: Policy, envs: VectorEnv, goals: NDArray[np.int64], *, stop_at_success: bool = True
) -> Evaluation:
    """Run one episode per goal [task, episode]; tasks proceed through theirs independently.

    Raises WorkerError, which names the task, also where something is not finite.
    """
    m, episodes = goals.shape
    lanes = np.arange(m)
    success = np.zeros((m, episodes), dtype=np.bool_)
    returns = np.zeros((m, episodes))
    episode = np.zeros(m, dtype=np.int64)
    commands = np.full(m, RESET, dtype=np.uint8)
    actions = None
    while (commands != IDLE).any():
        current = np.minimum(episode, episodes - 1)
        next_goals = np.where(commands == RESET, goals[lanes, current], -1)
        envs.command(commands, next_goals, actions)
        outcome = envs.receive()
        stepped = commands == STEP
        returns[lanes, current] += np.where(stepped, outcome.rewards, 0.0)
        success[lanes, current] |= stepped & outcome.success
        ended = stepped & outcome.ended
        if stop_at_success:
            ended |= stepped & outcome.success
        episode += ended
        commands = np.where(ended, RESET, STEP).astype(np.uint8)
        commands[episode >= episodes] = IDLE
        actions = policy(outcome.observations)
    return Evaluation(success, returns)


class Evaluated(NamedTuple):
    """What came of one evaluation."""

    result: Evaluation
    seconds: float


class UnderWay(NamedTuple):
    """An evaluation that has been started."""

    step: int
    """Environment steps, when the snapshot was taken."""
    agent: dict[str, Any]
    """State of the agent then; empty at step 0, where it has learned nothing worth keeping."""
    goals: NDArray[np.int64]
    """[task, episode]"""
    future: Future[Evaluated]


class Evaluator:
    """Evaluates snapshots of the agent in the background, one at a time: `start`, `collect`.

    A thread drives workers that are there for evaluations alone. It mostly waits for them, and
    holds the interpreter for a fraction of a millisecond per step of all tasks.
    """

    def __init__(self, config: Config, envs: VectorEnv | None = None) -> None:
        """envs: one environment per task, the caller's to close; None = made when first needed."""
        self.config, self.envs = config, envs
        self._made = ExitStack()
        self._thread = ThreadPoolExecutor(1, "evaluation")
        self.under_way: UnderWay | None = None

    def start(self, step: int, agent: Agent, goals: NDArray[np.int64]) -> None:
        """Begin to evaluate the agent as it is now, at `step`, on goals [task, episode]."""
        assert self.under_way is None, "collect the one before first"
        if self.envs is None:
            self.envs = self._made.enter_context(make_vector_env(self.config))
        future = self._thread.submit(self._run, frozen_policy(agent), self.envs, goals)
        state = snapshot(agent.state_dict()) if step else {}
        self.under_way = UnderWay(step, state, goals, future)

    def _run(self, policy: Policy, envs: VectorEnv, goals: NDArray[np.int64]) -> Evaluated:
        started = time.monotonic()
        stop = self.config.evaluation.stop_at_success
        try:
            result = evaluate(policy, envs, goals, stop_at_success=stop)
        except NonFiniteError as error:
            raise WorkerError(f"{error} in an evaluation") from None
        return Evaluated(result, time.monotonic() - started)

    def finished(self) -> tuple[UnderWay, Evaluated] | None:
        """The evaluation under way and its result, if it is there. Does not wait.

        It stays the one under way until it is collected. Raises what went wrong (WorkerError).
        """
        if self.under_way is None or not self.under_way.future.done():
            return None
        return self.under_way, self.under_way.future.result()

    def collect(self) -> tuple[UnderWay, Evaluated]:
        """Wait for the evaluation under way. Raises WorkerError."""
        assert self.under_way is not None
        started, self.under_way = self.under_way, None
        return started, started.future.result()

    def close(self) -> None:
        """End the workers, and with them what is under way."""
        self._made.close()
        self._thread.shutdown()


class Evaluations:
    """Those of a run, and what follows from their results.

    A result is recorded at the step of its snapshot, by the first log line that finds it. What
    depends on it (the best agent, callbacks) waits until it is collected: before the next
    evaluation, before a checkpoint of a later step, and at the end. So no decision depends on the
    timing.
    """

    def __init__(
        self,
        config: Config,
        agent: Agent,
        writer: Writer,
        best: Path,
        callbacks: Callbacks,
        record: Callable[[int, Evaluation, float], None],
        learned_after: int,
    ) -> None:
        """writer: of `best`, the checkpoint of the best agent. record: step, result, seconds.
        learned_after: steps until which the agent is untrained, and never the best."""
        self.config, self.agent, self.writer, self.best = config, agent, writer, best
        self.callbacks, self.record, self.learned_after = callbacks, record, learned_after
        self.evaluator = Evaluator(config)
        self.best_success = -1.0
        self.last_success = math.nan
        self.last: Evaluation | None = None
        self._recorded: UnderWay | None = None

    def start(self, step: int, *, final: bool) -> None:
        """Deterministic, in environments of its own; touches no training state."""
        self.collect()
        self.evaluator.start(step, self.agent, goals_at(self.config, step, final=final))

    def record_finished(self, before: int) -> None:
        """What is finished by now, of an earlier step."""
        finished = self.evaluator.finished()
        if finished is not None and finished[0].step < before:
            self._record(*finished)

    def collect_earlier(self, step: int, *, wait: bool) -> bool:
        """`collect` what is not of this step, if there is such. wait: until it is finished."""
        started = self.evaluator.under_way
        if started is None or started.step >= step or not (wait or started.future.done()):
            return False
        self.collect()
        return True

    def collect(self) -> None:
        """What follows from the evaluation under way, if there is one. Waits for it."""
        if self.evaluator.under_way is None:
            return
        started, evaluated = self.evaluator.collect()
        self._record(started, evaluated)
        self.last = result = evaluated.result
        self.callbacks.on_evaluation(started.step, *result)
        # Of equals the one trained longest.
        if started.step > self.learned_after and result.success_mean >= self.best_success:
            self.best_success = result.success_mean
            self.writer.save(self.best, {"step": started.step, "agent": started.agent})

    def _record(self, started: UnderWay, evaluated: Evaluated) -> None:
        """Once."""
        if started is self._recorded:
            return
        self._recorded = started
        self.last_success = evaluated.result.success_mean
        self.record(started.step, *evaluated)

    def final(self, step: int) -> Evaluation:
        """Made again, only to be shown, where the run had been finished before."""
        if self.last is None:
            self.evaluator.start(step, self.agent, goals_at(self.config, step, final=True))
            _, (self.last, _) = self.evaluator.collect()
        return self.last

    def state_dict(self, step: int) -> dict[str, Any]:
        """Of a checkpoint at `step`: what is still under way, a resumed run begins again."""
        evaluating = None
        if (started := self.evaluator.under_way) is not None:
            agent = None if started.step == step else started.agent  # None: the checkpoint's
            evaluating = {"step": started.step, "agent": agent, "goals": started.goals.tolist()}
        return {
            "best_success": self.best_success,
            "last_success": self.last_success,
            "evaluating": evaluating,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """state: of the whole run. Leaves the agent that is evaluated in `agent`."""
        self.best_success, self.last_success = state["best_success"], state["last_success"]
        if (evaluating := state["evaluating"]) is not None:
            # {}: of step 0, when the agent was as it is now.
            agent = state["agent"] if evaluating["agent"] is None else evaluating["agent"]
            if agent:
                self.agent.load_state_dict(agent)
            self.evaluator.start(evaluating["step"], self.agent, np.array(evaluating["goals"]))


def success_table(names: Sequence[str], result: Evaluation) -> Table:
    """Per-task success and return, with the mean."""
    table = Table()
    table.add_column("task")
    table.add_column("success", justify="right")
    table.add_column("return", justify="right")
    for name, success, value in zip(
        names, result.task_success, result.returns.mean(1), strict=True
    ):
        table.add_row(name, f"{success:.2f}", _three_digits(value))
    table.add_section()
    table.add_row("mean", f"{result.success_mean:.3f}", _three_digits(result.returns.mean()))
    return table


def _three_digits(value: float) -> str:
    """Returns of tasks may differ a thousandfold."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def evaluation_json(names: Sequence[str], result: Evaluation, **extra: Any) -> dict[str, Any]:
    return {
        "success_mean": result.success_mean,
        "success": dict(zip(names, result.task_success.tolist(), strict=True)),
        "return": dict(zip(names, result.returns.mean(1).tolist(), strict=True)),
        "episodes_per_task": result.success.shape[1],
        **extra,
    }
