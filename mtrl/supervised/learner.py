"""One network, one optimiser, one SMTO: batch -> losses per task -> direction -> step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtrl.device.streams import stream_seed
from mtrl.files.user_code import is_own
from mtrl.gradients.optimizer import torch_optimizer
from mtrl.schema import ConfigError, user_path
from mtrl.smto import SMTO
from mtrl.smto.first_step import Unusable, checked
from mtrl.smto.registry import create_for_run
from mtrl.supervised import methods
from mtrl.supervised.auto_lambda import AutoLambda, Prepared, look_ahead
from mtrl.supervised.config import SupervisedConfig
from mtrl.supervised.data import Batch, Loader
from mtrl.supervised.gradients import Outcome, backward, task_losses
from mtrl.supervised.networks import load_encoder
from mtrl.supervised.problems import Problem
from mtrl.supervised.rotograd import RotatedNetwork
from mtrl.supervised.step_size import StepSize


class Score(NamedTuple):
    """One metric of one task on a whole split."""

    task: str
    metric: str
    value: float
    higher_is_better: bool


class Learner:
    def __init__(
        self, config: SupervisedConfig, problem: Problem, total_steps: int, device: torch.device
    ) -> None:
        self.config, self.problem, self.device = config, problem, device
        torch.manual_seed(config.seed)  # weights, then dropout; the networks draw from no other
        self.network = problem.network()
        self.network.to(device)
        self.losses = [task.loss for task in problem.tasks]
        self.step_size = StepSize(config.train)
        self.optimizer = torch_optimizer(
            config.train.optimizer,
            self.network.weights().values(),
            config.train.lr,
            betas=config.train.betas,
            l2=config.train.l2,
            weight_decay=config.train.weight_decay,
            kernels=True,
        )
        self.rotation_optimizer: torch.optim.Adam | None = None
        if config.rotograd.enabled:
            size = min(config.rotograd.size or problem.channels, problem.channels)
            self.network = RotatedNetwork(self.network, size).to(device)
            self.rotation_optimizer = torch.optim.Adam([self.network.generators], fused=True)
        self.smto = self._create_smto(total_steps)
        self._is_checked = not is_own(type(self.smto))
        """Whether the method gives what an update can use; our own do."""

    def load_start_weights(self) -> None:
        """Where there is no checkpoint: what `network.weights` names, if anything."""
        if self.config.network.weights:
            load_encoder(self.network, user_path(self.config.network.weights))

    def _create_smto(self, total_steps: int) -> SMTO:
        config = self.config
        try:
            smto = create_for_run(
                methods.find(config.smto.name),
                config.num_tasks,
                config.smto.options,
                seed=stream_seed(config.seed, "smto"),
                total_steps=total_steps,
            )
        except ValueError as error:  # what depends on the length, which the data decide
            raise ConfigError(
                "smto.options",
                config.smto.options,
                f"{error} (train.epochs = {config.train.epochs} are {total_steps} steps)",
            ) from None
        return smto.to(self.device)

    def update(
        self, batch: Batch, epoch: int, *, diagnostic: bool = False, held_out: Batch | None = None
    ) -> Outcome:
        """One step. diagnostic: make the Gramian on the shared parameters; changes nothing.

        held_out: samples that are not trained on, for Auto-Lambda.
        """
        config = self.config
        self.network.train()
        inputs, targets = self.problem.prepare(batch.inputs), self.problem.targets(batch)
        lr = self.step_size.at(epoch)
        if isinstance(self.smto, AutoLambda):
            if held_out is None:
                raise ValueError("auto_lambda needs a held-out batch")
            unseen = Prepared(self.problem.prepare(held_out.inputs), self.problem.targets(held_out))
            training = Prepared(inputs, targets)
            lambdas = self.smto.parameter
            self.smto.learn(look_ahead(lambdas, self.network, self.losses, training, unseen, lr))
        with nullcontext() if self._is_checked else self._first_step():
            outcome = backward(
                self.network,
                self.losses,
                self.smto,
                inputs,
                targets,
                space=config.gradient_space,
                chunk_size=config.smto.chunk_size,
                samples=config.smto.gradient_samples,
                diagnostic=diagnostic,
            )
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        if self.rotation_optimizer is not None:
            self.rotation_optimizer.param_groups[0]["lr"] = config.rotograd.lr * lr
            self.rotation_optimizer.step()
        if self.smto.wants_losses_after:
            with torch.no_grad():  # where the network drops, by another mask: as FAMO's authors
                losses = task_losses(self.network, self.losses, inputs, targets)
            self.smto.after_step(losses)
        return outcome

    @contextmanager
    def _first_step(self) -> Iterator[None]:
        """ConfigError where a user's own method gives what no update can use."""
        try:
            with checked(self.smto):
                yield
        except Unusable as error:
            name = self.config.smto.name
            raise ConfigError("smto.name", name, f"{error} (at the first update)") from None
        self._is_checked = True

    @torch.no_grad()
    def evaluate(self, loader: Loader) -> list[Score]:
        """All metrics on a split, dropout off."""
        self.network.eval()
        sums: dict[tuple[int, int], Tensor] = {}
        for batch in loader.in_order(self.config.train.batch_size):
            outputs = self.network(self.problem.prepare(batch.inputs))
            targets = self.problem.targets(batch)
            for i, task in enumerate(self.problem.tasks):
                for j, metric in enumerate(task.metrics):
                    seen = metric.statistics(outputs[i], targets[i])
                    sums[i, j] = sums[i, j] + seen if (i, j) in sums else seen
        return [
            Score(task.name, metric.name, float(metric.value(sums[i, j])), metric.higher_is_better)
            for i, task in enumerate(self.problem.tasks)
            for j, metric in enumerate(task.metrics)
        ]

    def certificates(self) -> dict[str, Tensor]:
        return {f"shared/{name}": value for name, value in self.smto.certificates().items()}

    # -- state ----------------------------------------------------------------------------------

    def _stateful(self) -> dict[str, Any]:
        names = ["network", "optimizer", "smto"]
        if self.config.train.lr_patience:
            names.append("step_size")
        if self.rotation_optimizer is not None:
            names.append("rotation_optimizer")
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        state = {name: part.state_dict() for name, part in self._stateful().items()}
        state["dropout"] = torch.get_rng_state()
        if self.device.type == "cuda":
            state["dropout_cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["dropout"])
        if self.device.type == "cuda" and "dropout_cuda" in state:
            torch.cuda.set_rng_state(state["dropout_cuda"], self.device)
