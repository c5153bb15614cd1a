"""The Triton kernels compute what the tensor code and LAPACK compute.

Without a GPU Triton's interpreter runs them on the CPU. It has to be chosen before Triton is
imported, so it has a process of its own.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from smto_cases import KINDS, _jacobian
from torch import Tensor

from mtrl.smto import available, create, describe, solvers
from mtrl.smto.projection import GradVac, PCGrad

METHODS = [name for name in available() if describe(name).needs == "gramian"]
TOLERANCE = 3e-5
"""Relative to the largest weight. Eigenvalues of uneven gradients count in units down to 1e-6 of
the largest, where 4e-16 is 4e-10, and at the cut-off of 1e-3 the ratio's sixth power counts: 2e-6
for one eigenvalue; 7e-6 was seen with 50."""


def gramians(m: int, kinds: tuple[str, ...] = KINDS) -> list[Tensor]:
    """float32, as in training."""
    rng = np.random.default_rng(m)
    jacobians = [torch.from_numpy(_jacobian(kind, m, rng)) for kind in kinds]
    return [(jacobian @ jacobian.T).float() for jacobian in jacobians]


def weights(name: str, matrices: list[Tensor], **options: Any) -> list[Tensor]:
    """Weights [m] of one step per Gramian, from one instance, and the certificates after it."""
    m, device = len(matrices[0]), matrices[0].device
    smto = create(name, m, **options).to(device)
    losses = torch.linspace(0.1, 3.0, m, dtype=torch.float64, device=device)
    results = []
    for step, gramian in enumerate(matrices):
        if isinstance(smto, PCGrad | GradVac):  # the same orders on any device
            generator = torch.Generator().manual_seed(step)
            order = torch.rand(m, m, generator=generator).argsort(dim=1).to(device)
            results.append(smto.project(gramian.double(), order))
        else:
            results.append(smto.weights(losses=losses * (step + 1), gramian=gramian))
        results += smto.certificates().values()
    return results


def assert_close(ours: Tensor, expected: Tensor, what: object = "") -> None:
    size = float(expected.abs().max())
    difference = float((ours.cpu() - expected.cpu()).abs().max())
    assert difference <= TOLERANCE * max(size, 1e-3), what


# -- by the interpreter ---------------------------------------------------------------------------


def _call(function: str, arguments: list[Any], options: dict[str, Any]) -> Any:
    """In the interpreter's process: a kernel, or `weights` with every solve by a kernel."""
    from mtrl.smto import kernels

    assert solvers.INTERPRETED
    if function == "takes":
        return solvers.kernels(*arguments) is kernels
    return (weights if function == "weights" else getattr(kernels, function))(*arguments, **options)


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., Any]]:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton (Linux on x86_64)")
    context = multiprocessing.get_context("spawn")
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, context) as pool:
        patch.setenv("TRITON_INTERPRET", "1")
        yield lambda function, *arguments, **options: pool.submit(
            _call, function, list(arguments), options
        ).result()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_same_weights_by_kernels(name: str, interpreted: Any) -> None:
    matrices = gramians(3, ("random", "opposite", "one zero"))
    expected = weights(name, matrices)
    for k, ours in enumerate(interpreted("weights", name, matrices)):
        assert_close(ours, expected[k], k)


@pytest.mark.parametrize("name", ["gradvac", "pcgrad"])
def test_projections_for_ten_tasks(name: str, interpreted: Any) -> None:
    matrices = gramians(10, ("conflicting", "collinear", "one zero", "all zero"))
    expected = weights(name, matrices)
    for k, ours in enumerate(interpreted("weights", name, matrices)):
        assert_close(ours, expected[k], k)


@pytest.mark.parametrize("m", [10, 17, 50])
def test_interior_point(m: int, interpreted: Any) -> None:
    cosine, lengths = solvers.cosines(gramians(m, ("low rank",))[0].double())
    matrix = solvers.convex(cosine, solvers.ridge(solvers.SINGLE, m))
    plane = lengths / lengths.max()
    ours = interpreted("interior_point", matrix, torch.zeros(m).double(), plane, 13, solvers.CENTRE)
    assert_close(ours, solvers.min_norm(matrix, plane))
    assert float(plane @ ours) == pytest.approx(1.0)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_balance(alpha: float, interpreted: Any) -> None:
    matrix = solvers.cosines(gramians(10, ("conflicting",))[0].double())[0]
    matrix, kappa = solvers.convex(matrix, 1e-4), torch.linspace(0.1, 1.0, 10).double()
    ours = interpreted("balance", matrix, kappa, alpha, 20)
    assert_close(ours, solvers.balance(matrix, kappa, alpha, 20))


@pytest.mark.parametrize(("m", "columns"), [(2, 7), (10, 1500), (50, 3000)])
def test_the_gramian(m: int, columns: int, interpreted: Any) -> None:
    memory = torch.randn(m, columns + 5, generator=torch.Generator().manual_seed(m))
    for jacobian in (memory[:, :columns], memory[:, 5:].contiguous(), memory[:, ::2]):
        exact = jacobian.double() @ jacobian.double().T
        ours = interpreted("gramian", jacobian)
        assert float((ours - exact).abs().max()) <= 1e-6 * float(exact.max())


@pytest.mark.parametrize("m", [2, 17])
def test_convex_raises_the_diagonal_of_indefinite_matrices_only(m: int, interpreted: Any) -> None:
    matrix = solvers.cosines(gramians(m, ("equal",))[0].double())[0]
    for shift in (1e-3, -1e-7):  # smallest eigenvalue
        given = matrix + shift * torch.eye(m, dtype=torch.float64)
        for added in (1e-9, torch.linspace(1e-9, 2e-8, m).double()):
            ours = interpreted("convex", given, added, 3e-5)
            raised = 3e-5 if shift < 0 else added
            diagonal = torch.eye(m, dtype=torch.float64) * raised
            torch.testing.assert_close(ours, given + diagonal, rtol=0.0, atol=1e-15)


def spectra(m: int) -> dict[str, Tensor]:
    """Symmetric matrices whose eigenvalues are difficult."""
    generator = torch.Generator().manual_seed(m)
    normal = torch.randn(m, m, dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(normal).Q

    def of(values: Tensor) -> Tensor:
        matrix = (basis * values) @ basis.T
        return 0.5 * (matrix + matrix.T)

    graded = torch.logspace(-12, 0, m, dtype=torch.float64)
    return {
        "random": normal @ normal.T,
        "graded": of(graded),
        "clustered": of(1.0 + 1e-9 * graded),
        "rank one": torch.outer(normal[0], normal[0]),
        "equal rows": torch.ones(m, m, dtype=torch.float64),
        "negative by rounding": of(graded - 1e-7),
        "tiny": 1e-200 * of(graded),
        "diagonal": graded.diag(),
        "zero": torch.zeros(m, m, dtype=torch.float64),
    }


def assert_decomposed(matrix: Tensor, values: Tensor, vectors: Tensor, name: str) -> None:
    expected = torch.linalg.eigvalsh(matrix)
    unit = 1e-12 * max(float(expected.abs().max()), 1e-250)
    assert float((values - expected).abs().max()) <= unit, name
    assert (values.diff() >= 0).all(), name
    products = vectors.T @ vectors
    assert float((products - torch.eye(len(matrix)).double()).abs().max()) <= 1e-12, name
    assert float((matrix @ vectors - vectors * values).abs().max()) <= unit, name


@pytest.mark.parametrize(
    ("m", "names"),
    [(m, tuple(spectra(2))) for m in (1, 2, 3)]
    + [(10, ("graded", "negative by rounding")), (16, ("graded",)), (17, ("clustered",))]
    + [(50, ("random",))],
)
def test_eigenvalues_and_vectors(m: int, names: tuple[str, ...], interpreted: Any) -> None:
    for name in names:
        matrix = spectra(m)[name]
        assert_decomposed(matrix, *interpreted("eigen", matrix), name)


def test_kernels_take_so_many_tasks_and_nothing_on_a_cpu(interpreted: Any) -> None:
    assert interpreted("takes", torch.eye(solvers.LARGEST))
    assert not interpreted("takes", torch.eye(solvers.LARGEST + 1))
    assert solvers.kernels(torch.eye(2)) is None


def test_without_a_device_or_a_compiler_the_tensor_code_does_it() -> None:
    """Triton compiles a part of its driver when it is first used, and raises where it cannot."""
    if importlib.util.find_spec("triton") is None or torch.cuda.is_available():
        pytest.skip("needs Triton (Linux on x86_64) that finds no device")
    with pytest.warns(UserWarning, match="without their kernels, slower: .*C compiler"):
        assert solvers._triton_kernels.__wrapped__() is None


# -- GPU ------------------------------------------------------------------------------------------

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize("m", [10, 50])
@pytest.mark.parametrize("name", METHODS)
def test_weights_on_cuda_are_those_of_the_tensor_code(name: str, m: int) -> None:
    for kind, gramian in zip(KINDS, gramians(m), strict=True):
        matrices = [gramian, 2.0 * gramian]
        expected = weights(name, matrices)
        on_device = [matrix.cuda() for matrix in matrices]
        assert solvers.kernels(on_device[0]) is not None
        for ours, theirs in zip(weights(name, on_device), expected, strict=True):
            assert_close(ours, theirs, kind)


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize("m", [10, 50, 64])
def test_eigenvalues_and_vectors_on_cuda(m: int) -> None:
    from mtrl.smto import kernels

    for name, matrix in spectra(m).items():
        values, vectors = kernels.eigen(matrix.cuda())
        assert_decomposed(matrix, values.cpu(), vectors.cpu(), name)


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize("setting", ["high", "highest"])
def test_the_gramian_is_no_tf32_product_on_cuda(setting: str) -> None:
    from mtrl.smto.source import gram_matrix

    before = torch.get_float32_matmul_precision()
    # TF32 holds multiples of 2^-10 here: it rounds all entries down, so products by 3e-4.
    steps = torch.randint(1024, (10, 10_000), generator=torch.Generator().manual_seed(0))
    jacobian = 1.0 + steps * 2.0**-10 + 2.0**-12
    exact = jacobian.double() @ jacobian.double().T
    torch.set_float32_matmul_precision(setting)
    try:
        ours = gram_matrix(jacobian.cuda()).cpu().double()
        assert torch.get_float32_matmul_precision() == setting
        assert torch.backends.cuda.matmul.allow_tf32 == (setting == "high")
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(ours, exact, rtol=3e-5, atol=0.0)
