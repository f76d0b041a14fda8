"""Gains of a stream without end against the one Gram matrix, far beyond d rows."""

import itertools

import mpmath  # type: ignore[import-untyped]  # comes with torch
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geomprobe.core.cholesky import GrowingCholesky, gains, scaled_factor
from geomprobe.core.streaming_gain import GainStream

few = settings(max_examples=40, deadline=None, derandomize=True)
AGREE = 1e-9  # in float64 at σ = 0.01


def unit(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(draw + 0.5, dim=-1)


def streamed(z: Tensor, sizes: list[int], sigma: float = 0.01, block: int | None = None) -> Tensor:
    stream = GainStream(z.shape[-1], sigma, batch=tuple(z.shape[:-2]), block=block)
    gain = torch.cat([stream.append(rows) for rows in torch.split(z, sizes, dim=-2)], dim=-1)
    assert stream.length == z.shape[-2]
    return gain


@few
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=8),
    st.integers(0, 1000),
    st.sampled_from([0.01, 0.1, 1.0]),
    st.sampled_from([None, 1, 3, 50]),
)
def test_any_portions_and_blocks_give_the_gains_of_one_gram(
    sizes: list[int], seed: int, sigma: float, block: int | None
) -> None:
    z = unit(sum(sizes), 6, seed=seed)
    expected = gains(scaled_factor(z @ z.mT, sigma)[0])
    torch.testing.assert_close(streamed(z, sizes, sigma, block), expected, rtol=AGREE, atol=AGREE)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_batches_with_absent_rows(batch: tuple[int, ...]) -> None:
    z = unit(*batch, 40, 6)
    absent = torch.rand(*batch, 40, generator=torch.Generator().manual_seed(1)) < 0.3
    z[absent] = 0
    gain = streamed(z, [1, 9, 30])
    assert not gain[absent].any()
    torch.testing.assert_close(gain, gains(scaled_factor(z @ z.mT, 0.01)[0]), rtol=AGREE, atol=AGREE)


# What rounding of σ⁻²Σzzᵀ leaves of a gain: 1e-16·σ⁻² in the worst case, on rows that others span.
@pytest.mark.parametrize(("sigma", "tolerance"), [(1.0, 1e-13), (0.01, 1e-11), (1e-4, 1e-7)])
def test_gains_are_those_of_fifty_digits(sigma: float, tolerance: float) -> None:
    z = unit(20, 4)
    with mpmath.workdps(50):
        rows = mpmath.matrix(z.tolist())
        noise = mpmath.mpf(sigma) ** 2
        total = mpmath.eye(4)
        logs = [mpmath.mpf(0)]
        for t in range(20):
            total += rows[t, :].T * rows[t, :] / noise
            logs.append(mpmath.log(mpmath.det(total)) / 2)
        expected = torch.tensor([float(new - old) for old, new in itertools.pairwise(logs)], dtype=torch.float64)
    torch.testing.assert_close(streamed(z, [20], sigma), expected, rtol=0, atol=tolerance)


def test_a_thousand_repeats_do_not_drift() -> None:
    """Row t of t equal rows gains ``½ log((1 + tσ⁻²) / (1 + (t−1)σ⁻²))``, down to 5e-4 nats."""
    times = torch.arange(1, 1001, dtype=torch.float64) * 1e4
    expected = (times.div(1 + times - 1e4).log() + torch.log1p(1 / times)) / 2
    torch.testing.assert_close(streamed(unit(1, 6).expand(1000, 6), [1000]), expected, rtol=0, atol=1e-10)


def test_memory_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """No factor that it makes is ever asked to hold more rows than one block."""
    longest = 0
    append = GrowingCholesky.append

    def watched(self: GrowingCholesky, rows: Tensor) -> Tensor:
        nonlocal longest
        gain = append(self, rows)
        longest = max(longest, self.length)
        return gain

    monkeypatch.setattr(GrowingCholesky, "append", watched)
    streamed(unit(500, 6), [7] * 71 + [3])
    assert longest == 6


def test_a_hundred_thousand_tokens_of_one_stream_are_those_of_one_determinant() -> None:
    """Portions of any size, far beyond d = 64 rows, against float64 NumPy on all rows up to a place at once."""
    width, length = 64, 100_000
    draw = torch.randn(length, width, generator=torch.Generator().manual_seed(0))
    z = torch.nn.functional.normalize(draw * torch.arange(1, width + 1) ** -0.5 + 0.5, dim=-1)
    stream = GainStream(width)
    total = torch.cat([stream.append(rows) for rows in torch.split(z, [7, 93, 1, 899, *[3000] * 33])]).cumsum(0)
    held = sum(tensor.numel() for tensor in (stream._factor._rows, stream._factor._factor, stream._outer, *stream._pending))
    assert held <= 6 * width**2, "memory does not grow with the stream"
    rows = z.double().numpy()
    for end in (50, 64, 65, 1000, 31_234, length):
        gram = rows[:end].T @ rows[:end]
        expected = np.linalg.slogdet(np.eye(width) + 1e4 * gram).logabsdet / 2
        assert float(total[end - 1]) == pytest.approx(expected, rel=1e-9)
