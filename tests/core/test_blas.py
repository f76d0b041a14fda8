"""Symmetric products and factors by SciPy's BLAS, against NumPy in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geomprobe.core import blas
from geomprobe.core.cholesky import log_pivots
from geomprobe.core.symmetric import assemble, panel_starts, panels


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


EPS = {torch.float32: 1e-6, torch.float64: 1e-14}


def rows(*shape: int, layout: str = "rows") -> Tensor:
    """Unit rows ``(…, n, k)`` with a layout in memory: row by row, column by column, or a part of something larger."""
    z = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    unit: Tensor = z / torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    if layout == "columns":
        return unit.mT.contiguous().mT
    if layout == "part":
        return torch.cat([unit, unit], dim=-1)[..., : shape[-1]]
    return unit


@pytest.mark.parametrize("layout", ["rows", "columns", "part"])
@pytest.mark.parametrize("shape", [(64, 1), (2, 3, 70, 200), (300, 40), (3, 257, 64), (2, 1, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_panels_hold_the_lower_triangle_and_zeros(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    a = rows(*shape, layout=layout)
    starts = panel_starts(shape[-2])
    parts = blas.panels(a, starts, dtype)
    expected = a.double() @ a.double().mT
    for i, part in zip(starts, parts, strict=True):
        wanted = expected[..., i:, i : i + starts.step].tril()
        assert part.dtype == dtype
        torch.testing.assert_close(part.double(), wanted, rtol=0, atol=EPS[dtype])
        assert not part.triu(1).any()
    torch.testing.assert_close(assemble(parts).double(), expected, rtol=0, atol=EPS[dtype])


@pytest.mark.parametrize("wins", [True, False])
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_both_libraries_give_the_same(wins: bool, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    a = rows(16, 130, 90)
    monkeypatch.setattr(blas, "_wins", lambda: wins)
    whole = assemble(panels(a, dtype))
    assert whole.dtype == (dtype or torch.float32)
    torch.testing.assert_close(whole.double(), a.double() @ a.double().mT, rtol=0, atol=EPS[whole.dtype])
    pivots, bad = log_pivots(whole.double() * 1e4)
    factor = np.linalg.cholesky(np.eye(130) + 1e4 * whole.double().numpy())
    np.testing.assert_allclose(pivots.numpy(), np.log(np.diagonal(factor, axis1=-2, axis2=-1)), rtol=0, atol=1e-9)
    assert not bad.any()


@pytest.mark.parametrize("wins", [True, False])
def test_bad_pivots_are_counted_for_each_matrix(wins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_wins", lambda: wins)
    matrices = torch.zeros(2, 3, 80, 80, dtype=torch.float64)
    matrices[1, 2, 40, 40] = -3
    matrices[1, 1, 50, 3] = matrices[0, 1, 60, 60] = torch.nan
    pivots, bad = log_pivots(matrices)
    assert bad.tolist() == [[0, 61, 0], [0, 51, 41]]
    assert not pivots[:, 0].any()


def test_openblas_keeps_its_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    a = rows(7, 100, 64)
    get, set_to = blas._thread_functions()
    before = get()
    set_to(2)
    inside, plain = [], blas._int

    def seen(value: int) -> Any:
        inside.append(get())
        return plain(value)

    monkeypatch.setattr(blas, "_int", seen)
    try:
        whole = assemble(blas.panels(a, panel_starts(100), torch.float64))
        assert get() == 2
    finally:
        set_to(before)
    assert set(inside) == {1}
    torch.testing.assert_close(whole, a.double() @ a.double().mT, rtol=0, atol=1e-14)


def test_a_scipy_without_these_functions_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    blas._wins.cache_clear()
    monkeypatch.setattr(blas, "_function", missing)
    assert not blas.factors_faster(torch.zeros(64, 100, 100))
    blas._wins.cache_clear()


def test_the_measurement_is_made_once_and_says_one_of_both() -> None:
    blas._wins.cache_clear()
    matrices = torch.zeros(64, 64, 64)
    first = blas.factors_faster(matrices)
    assert blas._wins.cache_info().misses == 1
    assert {blas.factors_faster(matrices) for _ in range(3)} == {first}
    assert blas._wins.cache_info().misses == 1


def test_matrices_that_scipy_does_not_fit_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_wins", lambda: True)
    assert blas.multiplies_faster(torch.zeros(2, 64, 512))
    assert not blas.multiplies_faster(torch.zeros(4, 64, 500))
    assert not blas.multiplies_faster(torch.zeros(4, 5000, 16))
    assert blas.factors_faster(torch.zeros(64, 64))
    assert not blas.factors_faster(torch.zeros(4, 63, 63))
    assert not blas.factors_faster(torch.zeros(4, 64, 64, device="meta"))
    assert not blas.multiplies_faster(torch.zeros(2, 64, 512, requires_grad=True))
    assert not blas.multiplies_faster(torch.zeros(2, 64, 512, dtype=torch.bfloat16))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not blas.factors_faster(torch.zeros(64, 64))
