"""How much the tasks' gradients conflict, from their Gramian alone.

g_i: gradient of task i on the shared parameters; G = (g_i . g_j) [m, m] in float64. Nothing here
waits for the device until `Diagnostics.flush`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class GradientMetrics(NamedTuple):
    """Scalars on the Gramian's device. Zero gradients have cosine 0 with all others."""

    cosine_mean: Tensor
    """Mean over pairs i < j of cos_ij = g_i.g_j / (|g_i| |g_j|); NaN for one task."""
    cosine_min: Tensor
    """Smallest cos_ij of a pair; NaN for one task."""
    conflict_ratio: Tensor
    """Share of pairs with cos_ij < 0 (conflicting gradients: Yu et al. 2020, Definition 1)."""
    magnitude_similarity: Tensor
    """Mean over pairs of 2 |g_i| |g_j| / (|g_i|^2 + |g_j|^2) (Yu et al. 2020, Definition 2);
    1 for two zero gradients."""
    condition_number: Tensor
    """sqrt(l_max / l_min) of G: the gradient matrix's largest over smallest singular value
    (Senushkin et al. 2023, Aligned-MTL), over the eigenvalues above l_max m eps, with the eps of
    float32, in which the gradients are computed; 1 for G = 0."""
    alignment: Tensor
    """Mean over tasks of the cosine between g_i and the mean gradient (Gama & Grassi 2025)."""
    sum_norm: Tensor
    """|sum_i g_i|: zero at a stationary point of the unitary loss (Kurin et al. 2022, 5.3)."""


def cosines(gramian: Tensor) -> Tensor:
    """cos_ij [m, m] in [-1, 1]; 1 on the diagonal, 0 beside a zero gradient."""
    gramian = gramian.double()
    norms = gramian.diagonal().clamp(min=0.0).sqrt()
    products = norms[:, None] * norms
    safe = torch.where(products > 0, products, 1.0)
    cosine = torch.where(products > 0, gramian / safe, 0.0).clamp(-1.0, 1.0)
    return cosine.fill_diagonal_(1.0)


def gradient_metrics(gramian: Tensor) -> GradientMetrics:
    """Conflict metrics of G [m, m], in float64; NaN where G is not finite."""
    m, gramian = len(gramian), gramian.double()
    first, second = torch.triu_indices(m, m, offset=1, device=gramian.device)
    norms = gramian.diagonal().clamp(min=0.0).sqrt()
    cosine = cosines(gramian)
    pairs = cosine[first, second]
    # Norms relative to the largest: squares of tiny or huge ones would leave the range.
    relative = norms / torch.where(norms.amax() > 0, norms.amax(), 1.0)
    a, b = relative[first], relative[second]
    squares = a.square() + b.square()
    similarity = torch.where(squares > 0, 2.0 * a * b / squares.clamp(min=1e-300), 1.0)
    none = gramian.new_full((), torch.nan)

    finite = gramian.isfinite().all()  # LAPACK raises otherwise; a bad loss is reported elsewhere
    eigenvalues = torch.linalg.eigvalsh(torch.where(finite, gramian, 0.0))
    largest = eigenvalues[-1]
    kept = eigenvalues > largest * m * torch.finfo(torch.float32).eps
    smallest = torch.where(kept, eigenvalues, torch.inf).amin()
    condition = torch.where(largest > 0, (largest / smallest).sqrt(), 1.0)
    condition = torch.where(finite, condition, torch.nan)

    with_sum = gramian.sum(1)
    sum_norm = with_sum.sum().clamp(min=0.0).sqrt()
    product = norms * sum_norm
    alignment = torch.where(product > 0, with_sum / torch.where(product > 0, product, 1.0), 0.0)
    return GradientMetrics(
        cosine_mean=pairs.mean() if m > 1 else none,
        cosine_min=pairs.amin() if m > 1 else none,
        conflict_ratio=(pairs < 0).double().mean() if m > 1 else none,
        magnitude_similarity=similarity.mean() if m > 1 else none,
        condition_number=condition,
        alignment=alignment.clamp(-1.0, 1.0).mean(),
        sum_norm=sum_norm,
    )


class Diagnostics:
    """Means of metrics, cosines and solver certificates between two log lines."""

    def __init__(self) -> None:
        self._scalars: dict[str, list[Tensor]] = {}
        self._gramians: dict[str, list[Tensor]] = {}
        self.heat_maps: dict[str, NDArray[np.float64]] = {}
        """{loss: cosines [task, task]}, the mean over the last log interval that had any."""

    def add(self, gramians: Mapping[str, Tensor], certificates: Mapping[str, Tensor]) -> None:
        """gramians {loss: [m, m]}; certificates {"<loss>/<name>": scalar}.

        Keeps copies: a captured update writes the next ones to the same place.
        """
        for name, value in certificates.items():
            self._scalars.setdefault(f"smto/{name}", []).append(value.clone())
        for loss, gramian in gramians.items():
            self._gramians.setdefault(loss, []).append(gramian.clone())

    def flush(self) -> dict[str, float]:
        """{tag: mean} since the last flush (empty if nothing was added); waits for the device."""
        scalars = {tag: torch.stack(seen).cpu() for tag, seen in self._scalars.items()}
        for loss, seen in self._gramians.items():
            gramians = torch.stack(seen).cpu()
            metrics = zip(*map(gradient_metrics, gramians), strict=True)
            scalars |= {
                f"gradients/{loss}/{name}": torch.stack(values)
                for name, values in zip(GradientMetrics._fields, metrics, strict=True)
            }
            self.heat_maps[loss] = torch.stack([*map(cosines, gramians)]).mean(0).numpy()
        self._scalars, self._gramians = {}, {}
        return {tag: float(values.double().mean()) for tag, values in scalars.items()}
