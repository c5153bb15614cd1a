"""RotoGrad: every task sees the shared representation through a rotation of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtrl.supervised.networks import MultiTaskNetwork

BURN_IN = 20
"""Iterations after which the reference norms are taken again (as in the authors' code)."""
SMALLEST_NORM = 1e-30


class RotatedNetwork(MultiTaskNetwork):
    """RotoGrad (Javaloy & Valera 2022, Algorithm 1) around a network; any SMTO may follow.

    Head k sees r_k = R_k z, R_k in SO(d), identities at first. G_k: loss k's gradient at z, all
    samples in one vector; U_k = G_k / |G_k|. Two things happen to the G_k (`at_z`):

    Directions: R_k descends -<R_k^T dl_k/dr_k, mean_j U_j>, which turns the tasks' gradients
    towards each other. R_k = exp(A_k - A_k^T), so it stays a rotation; A has an optimiser of its
    own. Against the authors' code: the paper's inner product, not a squared distance; divided by
    |G_k|, to which Adam is indifferent while it changes slowly; j = k is left out of the mean,
    where its share of the gradient is zero but for rounding, which Adam would blow up.

    Magnitudes: G_k becomes C U_k, C = sum_k a_k |G_k|, a_k proportional to |G_k| / |G_k at the
    start|: tasks that converge slowly decide. The paper's step is the sum of these, `unitary`
    takes their mean. A single task is left as it is, exactly.
    """

    generators: nn.Parameter
    """A [task, d, d]; what is below the diagonal counts."""
    reference: Tensor
    """[task] |G_k| at the start."""
    steps: Tensor

    def __init__(self, network: MultiTaskNetwork, size: int) -> None:
        """size: d, the leading channels of z that are rotated (the paper: the smaller the z)."""
        super().__init__(network.encoder, network.heads)
        tasks = len(self.heads)
        self.generators = nn.Parameter(torch.zeros(tasks, size, size))
        self.register_buffer("reference", torch.ones(tasks))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def rotations(self) -> Tensor:
        """R [task, d, d]."""
        lower = self.generators.tril(-1)
        return torch.linalg.matrix_exp(lower - lower.mT)

    def views(self, z: Tensor) -> list[Tensor]:
        return [rotate(z, rotation) for rotation in self.rotations().detach()]

    @torch.no_grad()
    def at_z(self, rows: Tensor) -> Tensor:
        rotations = self.rotations()
        pairs = zip(rows, rotations, strict=True)
        at_z = torch.stack([rotate(row, rotation.mT) for row, rotation in pairs])
        norms = at_z.flatten(1).norm(dim=1).clamp(min=SMALLEST_NORM)
        each = (slice(None), *(None,) * (rows.ndim - 1))

        units = at_z / norms[each]
        others = (units.sum(0) - units) / len(rows)
        size = self.generators.shape[-1]
        ours, theirs = (_samples(values[:, :, :size]) for values in (rows / norms[each], others))
        self.generators.grad = self._slope(ours.mT @ theirs)

        renew = (self.steps == 0) | (self.steps == BURN_IN)
        self.reference.copy_(torch.where(renew, norms, self.reference))
        self.steps += 1
        progress = norms / self.reference
        common = (progress / progress.sum() * norms).sum()
        return at_z * (common / norms)[each]

    def _slope(self, products: Tensor) -> Tensor:
        """Gradient of -sum_k <R_k, P_k> at A; products: P [task, d, d]."""
        with torch.enable_grad():
            alignment = -(self.rotations() * products).sum()
        return torch.autograd.grad(alignment, self.generators)[0]


def rotate(z: Tensor, rotation: Tensor) -> Tensor:
    """R [d, d] times the first d channels of z [sample, channel, ...]."""
    size = len(rotation)
    turned = torch.einsum("ij,nj...->ni...", rotation, z[:, :size])
    return torch.cat([turned, z[:, size:]], 1) if size < z.shape[1] else turned


def _samples(values: Tensor) -> Tensor:
    """[task, sample, channel, ...] -> [task, sample and place, channel]."""
    return values.movedim(2, -1).flatten(1, -2)
