"""The entropy temperatures: one per task, or one for all."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl import losses
from mtrl.config import AgentConfig
from mtrl.gradients.optimizer import Optimizer
from mtrl.smto import SMTO


class Temperature:
    def __init__(
        self,
        config: AgentConfig,
        num_tasks: int,
        target_entropy: float,
        smto: SMTO,
        device: torch.device,
    ) -> None:
        self.num_tasks, self.target_entropy, self.smto = num_tasks, target_entropy, smto
        entries = num_tasks if config.temperature == "per_task" else 1
        log_alpha = torch.full((entries,), config.initial_temperature).log()
        self.log_alpha = log_alpha.to(device).requires_grad_()
        self.optimizer = Optimizer([self.log_alpha], config.temperature_lr)

    def alpha(self) -> Tensor:
        """[task], detached."""
        return self.log_alpha.detach().exp().expand(self.num_tasks)

    @torch.no_grad()
    def step(self, log_prob: Tensor) -> None:
        """Towards the target entropy, given mean log-probabilities [task]."""
        self.optimizer.step([self.direction(self.smto, log_prob)])
        if self.smto.wants_losses_after:
            self.smto.after_step(self.losses(log_prob))

    def losses(self, log_prob: Tensor) -> Tensor:
        """[task]."""
        return losses.temperature_loss(self.log_alpha, log_prob, self.target_entropy)

    @torch.no_grad()
    def direction(self, smto: SMTO, log_prob: Tensor) -> Tensor:
        loss = self.losses(log_prob)
        # -exp(log alpha) c is its own derivative. One temperature: all tasks move it; a
        # temperature per task: the Jacobian is diagonal.
        jacobian = loss[:, None] if len(self.log_alpha) == 1 else loss.diag()
        return smto.direction(jacobian, loss)
