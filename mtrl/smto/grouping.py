"""Tasks in groups, one weight for each."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.smto.base import SMTO
from mtrl.smto.registry import register


@register("go4align")
class GO4Align(SMTO):
    """GO4Align (Shen et al. 2024, the authors' code): tasks in groups that share a weight.

    Indicators w_i = p_i (sum_j l_j) / l_i, where p, from 1/m, is multiplied by exp(-step_size l)
    and normalised at each step; the tasks are clustered by w, and a task's weight is the mean of
    its group, divided by m: with equal losses the mean scale, otherwise not. p remembers all
    losses: the longer the training, the more it favours tasks of small losses. Clusters are the
    optimal ones (Fisher 1958, by dynamic programming; the authors: Lloyd's iterations from a random
    start). `groups` above the number of tasks count as that number; 1 makes all weights equal. Our
    default of 2 is a guess, the step size is that of the authors' code.
    """

    needs = "losses"
    capturable = True
    wants_positive_losses = True
    log_share: Tensor
    """[m] log p."""

    def __init__(self, num_tasks: int, *, groups: int = 2, step_size: float = 1e-4) -> None:
        super().__init__(num_tasks)
        if groups < 1:
            raise ValueError(f"groups must be at least 1, not {groups}")
        if not step_size >= 0:
            raise ValueError(f"step_size must not be negative, but is {step_size}")
        self.groups, self.step_size = min(groups, num_tasks), step_size
        self.register_buffer("log_share", torch.zeros(num_tasks, dtype=torch.float64))

    def weights(self, *, losses: Tensor | None = None, gramian: Tensor | None = None) -> Tensor:
        losses = self.observe(losses)
        self.log_share.copy_((self.log_share - self.step_size * losses).log_softmax(0))
        indicators = self.log_share.exp() * losses.mean() / losses
        return clustered(indicators, self.groups)


def clustered(values: Tensor, groups: int) -> Tensor:
    """Values [m] -> [m]: each replaced by the mean of its cluster, of `groups` optimal ones.

    Optimal: with the least sum of squared distances; on a line clusters are then intervals.
    """
    ordered, order = values.sort()
    m = len(values)
    index = torch.arange(m, device=values.device)
    first, last = index[:, None], index  # of an interval, both included
    unit = ordered.abs().max().clamp(min=1e-300)
    centred = (ordered - ordered.mean()) / unit
    size = (last - first + 1).clamp(min=1)

    def total(numbers: Tensor) -> Tensor:
        """[m, m] sums over intervals."""
        ends = numbers.cumsum(0)
        return ends - (ends - numbers)[:, None]

    scatter = total(centred.square()) - total(centred).square() / size
    scatter = torch.where(first <= last, scatter.clamp(min=0.0), torch.inf)
    best, starts = scatter[0], []  # of the intervals up to `last`
    for _ in range(groups - 1):
        before = torch.cat([best.new_full((1,), torch.inf), best[:-1]])
        best, start = (before[:, None] + scatter).min(0)
        starts.append(start)
    label, end = torch.zeros_like(index), index[-1:]
    for start in reversed(starts):
        begin = start.gather(0, end)
        label += index >= begin
        end = (begin - 1).clamp(min=0)
    member = (label == index[:groups, None]).to(values)  # [group, m]
    means = (member @ ordered) / member.sum(1)
    return torch.empty_like(values).scatter(0, order, means @ member)
