"""The running covariance against NumPy in float64, and the errors that made its products float64."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from geomprobe.accumulators.covariance import Covariance, covariance, eigenvalues, mean_cosine, outer, rounding
from geomprobe.accumulators.state import State, add
from geomprobe.core.rows import Rows
from geomprobe.core.spectrum import log_volume
from tests.accumulators.harness import WIDTH, padded, texts


def state_of(rows: Rows, *, center: bool = False) -> State:
    accumulator = Covariance(center=center)
    state = accumulator.new_state(rows.width, torch.device("cpu"))
    add(state, accumulator.contribution(rows))
    return state


@pytest.mark.parametrize("center", [False, True])
def test_sums_are_numpys(center: bool) -> None:
    stream = [text.numpy() for text in texts()]
    raw = np.concatenate(stream)
    shifted = np.concatenate([text - text.mean(0) if center else text for text in stream])
    norms = np.linalg.norm(shifted, axis=1, keepdims=True)
    unit = np.divide(shifted, norms, out=np.zeros_like(shifted), where=norms > 1e-12)  # the centred text of one row is zero
    state = state_of(padded(texts(), "left"), center=center)
    assert (float(state["n"]), float(state["texts"])) == (len(raw), len(stream))
    expected = {
        "sum": unit.sum(0),
        "norm": np.linalg.norm(raw, axis=1).sum(),
        "norm_sq": np.square(raw).sum(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(state[name].numpy(), value, rtol=1e-12, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(covariance(state).numpy(), unit.T @ unit / len(raw), rtol=1e-12, atol=1e-13)
    singular = np.linalg.svd(unit, compute_uv=False) ** 2 / len(raw)
    np.testing.assert_allclose(eigenvalues(state).numpy(), np.sort(singular), rtol=1e-9, atol=1e-13)


def test_mean_cosine_is_over_all_pairs_of_different_rows() -> None:
    stream = texts()
    cosines = cosine_similarity(torch.cat(stream).numpy())
    n = len(cosines)
    expected = cosines[~np.eye(n, dtype=bool)].mean()
    assert float(mean_cosine(state_of(padded(stream, "right")))) == pytest.approx(expected, rel=1e-12)


def test_mean_cosine_counts_rows_that_are_their_texts_mean_as_zeros() -> None:
    """The row of a text of one row is zero once it is centred, and at no angle to any other."""
    rows = padded(texts(), "left")
    z = rows.unit(center=True)[rows.mask].numpy()
    assert (z == 0).all(1).sum() == 1
    products = z @ z.T
    expected = products[~np.eye(len(z), dtype=bool)].mean()
    assert float(mean_cosine(state_of(rows, center=True))) == pytest.approx(expected, rel=1e-12)


def test_mean_cosine_of_known_rows() -> None:
    same = torch.tensor([[[1.0, 2.0], [2.0, 4.0], [0.5, 1.0]]])
    opposite = torch.tensor([[[1.0, 2.0], [-1.0, -2.0]]])
    assert float(mean_cosine(state_of(Rows(same)))) == pytest.approx(1, rel=1e-6)  # float32 rows
    assert float(mean_cosine(state_of(Rows(opposite)))) == pytest.approx(-1, rel=1e-6)
    assert math.isnan(mean_cosine(state_of(Rows(same[:, :1]))))


def test_nothing_seen_is_nan_and_no_exception() -> None:
    state = Covariance().new_state(WIDTH, torch.device("cpu"))
    assert eigenvalues(state).shape == (WIDTH,)
    assert eigenvalues(state).isnan().all()
    assert mean_cosine(state).isnan()


@pytest.mark.parametrize(("n", "width"), [(20, 576), (600, 256)])
def test_float32_rows_give_the_entropy_of_float64_rows(n: int, width: int) -> None:
    """Noise of float32 products in the null space, times d/ε² = 6e4, cancels where nothing clips it; clipped it is 2e-4."""
    hidden = torch.randn(1, n, width, generator=torch.Generator().manual_seed(0)) + 1
    low, high = (log_volume(eigenvalues(state_of(Rows(rows)))) for rows in (hidden, hidden.double()))
    # To first order the log determinant moves by d/ε² times the errors on the diagonal of Σ. Each is a sum of n products whose
    # mean is 1/d, off by √n·2⁻²⁴/d; d independent ones add up to √(n/d)·2⁻²⁴. Two standard deviations of that are allowed.
    assert float(low) == pytest.approx(float(high), rel=0, abs=2 * width / 0.1**2 * math.sqrt(n / width) * 2.0**-24)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("common", [0.0, 3.0])
def test_what_is_left_in_empty_directions_is_below_rounding_and_not_far(exact: bool, common: float) -> None:
    generator = torch.Generator().manual_seed(0)
    distinct = torch.randn(50, 512, generator=generator) + common * torch.randn(512, generator=generator)
    rows = distinct[torch.randint(50, (4000,), generator=generator)] * (1 + torch.rand(4000, 1, generator=generator))
    measured = Covariance(exact=exact).contribution(Rows(rows.unsqueeze(0)))
    values = eigenvalues(measured)
    left = float(values[:-50].abs().max() / values[-1])
    assert rounding(exact) / 1000 < left < rounding(exact) / 2
    assert float(values[-50] / values[-1]) > rounding(exact)


@pytest.mark.slow
def test_a_long_stream_does_not_drift() -> None:
    """Ten thousand forwards of the same rows: what a bf16 or float32 running sum loses, a float64 sum keeps."""
    rows = Rows(texts()[2].float().unsqueeze(0))
    accumulator = Covariance()
    state, once = accumulator.new_state(WIDTH, torch.device("cpu")), state_of(rows)
    for _ in range(10_000):
        add(state, accumulator.contribution(rows))
    torch.testing.assert_close(outer(state), outer(once) * 10_000, rtol=1e-11, atol=0)
    assert float(state["n"]) == 120_000
