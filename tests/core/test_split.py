"""Products and factors in float32 parts, against float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from geomprobe.core import split
from geomprobe.core.cholesky import log_pivots
from geomprobe.core.precision import precision
from geomprobe.core.streaming_gain import GainStream
from geomprobe.core.symmetric import assemble, exact_panels, panel_starts

NATS = 2e-7  # of a token's gain at σ = 0.01; ten times less than is promised


def _unit(rows: Tensor) -> Tensor:
    return torch.nan_to_num(rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True), 0)


def cases() -> dict[str, Tensor]:
    """Unit rows ``(batch, T, d)`` in float32, of which many depend on others."""
    torch.manual_seed(0)
    decay = torch.arange(1, 65) ** -1.5
    padded = _unit(torch.randn(2, 50, 64))
    padded[0, 30:] = 0
    return {
        "spread": _unit(torch.randn(2, 70, 64)),
        "equal": _unit(torch.randn(2, 1, 64)).expand(2, 100, 64),
        "repeated": _unit(torch.randn(2, 5, 64)).repeat(1, 20, 1),
        "nearly equal": _unit(torch.randn(2, 1, 64) + 0.01 * torch.randn(2, 150, 64)),
        "power law": _unit(torch.randn(2, 300, 64) * decay),
        "one massive number": _unit(torch.randn(2, 150, 64) + 50 * torch.eye(64)[3]),
        "padded": padded,
        "one row": _unit(torch.randn(2, 1, 64)),
        "no row": torch.zeros(2, 0, 64),
    }


def exact_gains(z: Tensor, sigma: float = 0.01) -> Tensor:
    wide = z.double()
    identity = torch.eye(z.shape[-2], dtype=torch.float64)
    factor: Tensor = torch.linalg.cholesky(identity + sigma**-2 * wide @ wide.mT)
    return factor.diagonal(dim1=-2, dim2=-1).log()


@pytest.mark.parametrize("name", cases())
def test_gains_are_those_of_float64(name: str) -> None:
    z = cases()[name]
    with precision("split"):
        gram = assemble(exact_panels(z))
        gains, bad = log_pivots(1e4 * gram)
    assert gram.dtype == gains.dtype == torch.float64
    np.testing.assert_allclose(gains.numpy(), exact_gains(z).numpy(), rtol=0, atol=NATS)
    assert not bad.any()
    np.testing.assert_allclose(split.stream_gains(z, 0.01).numpy(), exact_gains(z).numpy(), rtol=0, atol=NATS)


def test_two_parts_of_twelve_bits_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of the first product must fit into the 24 bits of float32."""
    z = cases()["equal"]
    monkeypatch.setattr(split, "_HIGH", 2.0**13)
    with precision("split"):
        gains, _ = log_pivots(1e4 * assemble(exact_panels(z)))
    assert (gains - exact_gains(z)).abs().max() > 10 * NATS


@pytest.mark.parametrize("length", [1e-12, 1e-3, 0.7, 1.0, 1.5, 3e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_any_length(length: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = length * torch.randn(3, 130, 40, dtype=dtype) * torch.logspace(-3, 3, 130, dtype=dtype).unsqueeze(-1)
    wide = rows.double()
    lengths = wide.norm(dim=-1, keepdim=True)
    off = (assemble(split.panels(rows, panel_starts(130))) - wide @ wide.mT).abs() / (lengths * lengths.mT)
    assert off.max() < 2e-11


def test_a_stream_of_any_length_is_that_of_the_float64_stream() -> None:
    torch.manual_seed(0)
    z = _unit(torch.randn(2, 3, 90, 16) * torch.arange(1, 17) ** -1.0)
    z[0, 1, 70:] = 0
    expected = GainStream(16, batch=(2, 3)).append(z)
    np.testing.assert_allclose(split.stream_gains(z, 0.01).numpy(), expected.numpy(), rtol=0, atol=NATS)


def test_bad_pivots_are_found_in_every_block() -> None:
    matrix = torch.zeros(3, 70, 70, dtype=torch.float64)
    matrix[0, 5, 5] = matrix[2, 40, 40] = -2
    with precision("split"):
        pivots, bad = log_pivots(matrix)
    assert bad.tolist() == [6, 0, 41]
    assert not pivots[1].any()
