"""Entropies per text against NumPy on each text's own covariance."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from geomprobe.accumulators.state import State, add
from geomprobe.accumulators.text_entropy import TextEntropySum
from geomprobe.core.rows import Rows
from tests.accumulators.harness import WIDTH, packed, padded, texts

Values = dict[str, float]


def twin(text: Tensor, epsilon: float, center: bool) -> Values:
    """One text by the definitions: covariance d×d, its determinant and its eigenvalues."""
    rows = text.numpy()
    rows = rows - rows.mean(0) if center else rows
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 1e-12)
    (n, width), sigma = rows.shape, rows.T @ rows / len(rows)
    nats = (width + n) / 2 * np.linalg.slogdet(np.eye(width) + width / epsilon**2 * sigma).logabsdet
    shares = np.linalg.eigvalsh(sigma)
    shares = shares[shares > 1e-14] / sigma.trace() if sigma.any() else np.ones(1)
    entropy = -float(np.sum(shares * np.log(shares)))
    rank = min(n - center, width)
    return {
        "texts": 1,
        "entropy": nats / ((width + n) / 2 * width * np.log(1 + epsilon**-2)),
        "entropy_nats": nats,
        "matrix_entropy": entropy,
        "effective_rank": np.exp(entropy),
        "matrix_entropy_log_n": entropy / np.log(rank) if rank > 1 else 0,
        "log_n_texts": rank > 1,
    }


def state_of(accumulator: TextEntropySum, rows: Rows) -> State:
    state = accumulator.new_state(rows.width, torch.device("cpu"))
    add(state, accumulator.contribution(rows))
    return state


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("epsilon", [0.1, 1.0])
@pytest.mark.parametrize("spectrum", [False, True])
@pytest.mark.parametrize("layout", ["left", "mixed", "packed"])
def test_sums_are_numpys_text_by_text(epsilon: float, center: bool, spectrum: bool, layout: str) -> None:
    stream = texts()
    rows = packed(stream) if layout == "packed" else padded(stream, layout)
    state = state_of(TextEntropySum(epsilon=epsilon, center=center, spectrum=spectrum), rows)
    expected = [twin(text, epsilon, center) for text in stream]
    assert len(state) == (7 if spectrum else 3)
    for name, value in state.items():
        assert float(value) == pytest.approx(sum(one[name] for one in expected), rel=1e-11, abs=1e-12), name


def test_one_row_has_entropy_log_1_over_epsilon_squared() -> None:
    state = state_of(TextEntropySum(spectrum=True), Rows(texts()[1].unsqueeze(0)))
    assert float(state["entropy_nats"]) == pytest.approx((WIDTH + 1) / 2 * math.log(1 + WIDTH / 0.01), rel=1e-12)
    assert float(state["matrix_entropy"]) == pytest.approx(0, abs=1e-14)
    assert float(state["effective_rank"]) == pytest.approx(1, rel=1e-14)
    assert float(state["log_n_texts"]) == 0  # H/log min(n, d) is 0/0 for one row: not averaged in


# Float32 norms are off by 6e-8; at ε = 1e-5 every pivot of 1 is what rounding of d/(nε²) = 1e11 leaves.
@pytest.mark.parametrize(("epsilon", "tolerance"), [(0.1, 1e-7), (1e-3, 1e-7), (1e-5, 1e-4)])
def test_equal_rows_are_one_direction_at_any_epsilon(epsilon: float, tolerance: float) -> None:
    """A float32 factor was 2e-3 off here at ε = 0.1 and not finite at ε = 1e-3, which no later text would have mended."""
    n, width = 40, 512
    row = torch.randn(width, generator=torch.Generator().manual_seed(0))
    state = state_of(TextEntropySum(epsilon=epsilon), Rows(row.expand(1, n, width)))
    expected = (width + n) / 2 * math.log(1 + width * epsilon**-2)
    assert float(state["entropy_nats"]) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equal_rows_less_their_mean_are_a_point(dtype: torch.dtype) -> None:
    """What rounding leaves of them has a length of 1e-7 or 1e-16, and is not a direction."""
    row = texts()[0][:1].to(dtype)
    for n in (2, 3, 300):
        for place in (None, torch.zeros(1, n, dtype=torch.long)):
            rows = Rows(row.expand(1, n, WIDTH), text=place, texts=1)
            state = state_of(TextEntropySum(center=True, spectrum=True), rows)
            measured = [float(state[name]) for name in ("entropy", "entropy_nats", "matrix_entropy", "effective_rank")]
            assert measured == [0, 0, 0, 1]
