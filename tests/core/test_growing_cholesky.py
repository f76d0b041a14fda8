"""The factor that grows against the factor of the whole Gram matrix, and what an append costs."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from geomprobe.core.cholesky import GrowingCholesky, gains, posterior_variance, ridge_coefficients, scaled_factor

few = settings(max_examples=40, deadline=None, derandomize=True)
AGREE = 1e-9  # what the two forms of the factor owe each other, in float64 at σ = 0.01


def unit(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(draw + 0.5, dim=-1)


def grown(z: Tensor, sizes: list[int], sigma: float = 0.01) -> tuple[GrowingCholesky, Tensor]:
    factor = GrowingCholesky(z.shape[-1], sigma, batch=tuple(z.shape[:-2]))
    parts = [factor.append(rows) for rows in torch.split(z, sizes, dim=-2)]
    return factor, torch.cat(parts, dim=-1)


def assert_is_the_factor_of(factor: GrowingCholesky, gain: Tensor, z: Tensor) -> None:
    whole, info = scaled_factor(z @ z.mT, factor.sigma)
    assert not info.any()
    assert factor.length == z.shape[-2]
    assert torch.equal(factor.rows, z)
    for actual, expected in (
        (gain, gains(whole)),
        (factor.factor, whole),
        (posterior_variance(factor.factor, factor.sigma), posterior_variance(whole, factor.sigma)),
        (ridge_coefficients(factor.factor), ridge_coefficients(whole)),
    ):
        torch.testing.assert_close(actual, expected, rtol=AGREE, atol=AGREE)


@few
@given(st.lists(st.integers(0, 7), min_size=1, max_size=8), st.integers(0, 1000), st.sampled_from([0.01, 0.1, 1.0]))
def test_appending_in_any_portions_gives_the_factor_of_one_gram(sizes: list[int], seed: int, sigma: float) -> None:
    z = unit(sum(sizes), 8, seed=seed)  # up to 56 rows in 8 dimensions: most are spanned by the rows before
    assert_is_the_factor_of(*grown(z, sizes, sigma), z)


@pytest.mark.parametrize("sizes", [[1] * 30, [30], [10, 1, 1, 18], [1, 29]], ids=str)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_batches_of_streams(sizes: list[int], batch: tuple[int, ...]) -> None:
    z = unit(*batch, 30, 8)
    assert_is_the_factor_of(*grown(z, sizes), z)


def test_absent_rows_gain_nothing_and_change_nothing() -> None:
    z = unit(2, 12, 8)
    absent = torch.zeros(2, 12, dtype=torch.bool)
    absent[0, [0, 3, 4]] = absent[1, 7:] = True
    z[absent] = 0
    factor, gain = grown(z, [1, 4, 2, 5])
    assert not gain[absent].any()
    assert_is_the_factor_of(factor, gain, z)
    for stream, missing, measured in zip(z, absent, gain, strict=True):
        alone = grown(stream[~missing], [1] * int((~missing).sum()))[1]
        torch.testing.assert_close(measured[~missing], alone, rtol=AGREE, atol=AGREE)


def test_a_row_that_repeats_gains_half_log_two_less() -> None:
    """K of t equal rows has the one eigenvalue t: row t gains ``½ log((1 + tσ⁻²) / (1 + (t−1)σ⁻²))``."""
    z = unit(1, 8).expand(20, 8)
    times = torch.arange(1, 21, dtype=torch.float64) * 1e4
    expected = ((1 + times) / (1 + times - 1e4)).log() / 2
    torch.testing.assert_close(grown(z, [1] * 20)[1], expected, rtol=0, atol=1e-11)


def test_half_precision_rows_are_taken_as_they_are() -> None:
    z = unit(10, 8).bfloat16()
    assert_is_the_factor_of(*grown(z, [4, 6]), z.double())


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the work of every product, solve and factor, as the largest of ``m·n·k`` that its shapes allow."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work: dict[str, int] = {}
        self.copied = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm"):
            self.add("product", args[0].numel() * args[1].shape[-1])
        elif name == "linalg_solve_triangular":
            self.add("solve", args[0].shape[-1] * args[1].numel())
        elif name == "linalg_cholesky_ex":
            self.add("factor", args[0].shape[-1] * args[0].numel())
        elif name == "new_zeros":
            self.copied += out.numel()
        return out

    def add(self, kind: str, work: int) -> None:
        self.work[kind] = self.work.get(kind, 0) + work


@pytest.mark.parametrize("b", [1, 5])
@pytest.mark.parametrize("t", [32, 128, 400])
def test_an_append_costs_btd_and_bt2(t: int, b: int) -> None:
    """The work of one append, counted and not timed: cross products b·t·d, a solve b·t², and b-sized corners."""
    width = 16
    factor, _ = grown(unit(t, width), [t])
    factor.append(unit(1, width))  # the room grows here, not in what is counted
    room = factor._rows.shape[-2]
    assert room <= t + max(64, t / 4)
    with Products() as counted:
        factor.append(unit(b, width, seed=1))
    assert counted.copied == 0
    assert counted.work == {
        "product": b * room * width + b * b * width + b * b * room,
        "solve": room * room * b,
        "factor": b**3,
    }


def test_a_stream_is_copied_a_bounded_number_of_times() -> None:
    """Room grows by 64 rows, later by a quarter: n of them give squares that sum to less than three of the last."""
    length, width = 1200, 4
    with Products() as counted:
        factor, _ = grown(unit(length, width), [1] * length)
    assert factor.factor.shape == (length, length)
    room = factor._rows.shape[-2]
    assert room <= 1.25 * length
    assert counted.copied <= 3 * room**2 + 5 * room * width
    assert counted.work["factor"] == length
