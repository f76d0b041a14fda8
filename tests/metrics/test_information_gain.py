"""InformationGain and its curves against NumPy determinants."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from geomprobe.core.rows import Rows
from geomprobe.errors import GeomprobeError
from geomprobe.metrics.base import Curve
from geomprobe.metrics.information_gain import InformationGain
from tests.accumulators.harness import WIDTH, padded, texts
from tests.metrics.measure import curves_of, scalars_of

SCALARS = {"information_gain", "information_gain_per_dim", "gain_per_token", "stream_information_gain"}
CURVES = {"gain", "information_gain", "posterior_variance"}
ROUNDING = {0.01: 1e-9, 0.5: 1e-12}  # of K, times σ⁻²


def log_determinant(rows: NDArray[np.float64], sigma: float) -> float:
    z = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return float(np.linalg.slogdet(np.eye(len(z)) + z @ z.T / sigma**2).logabsdet) / 2


def increments(text: Tensor, sigma: float) -> NDArray[np.float64]:
    return np.diff([log_determinant(text.numpy()[:t], sigma) for t in range(len(text) + 1)])


@pytest.mark.parametrize("sigma", ROUNDING)
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_number_is_numpys(sigma: float, side: str) -> None:
    stream = texts()
    actual = scalars_of(InformationGain(sigma=sigma, stream=True), padded(stream, side))
    totals = [log_determinant(text.numpy(), sigma) for text in stream]
    expected = {
        "information_gain": np.mean(totals),
        "information_gain_per_dim": np.mean(totals) / WIDTH,
        "gain_per_token": np.sum(totals) / sum(map(len, stream)),
        "stream_information_gain": log_determinant(torch.cat(stream).numpy(), sigma),
    }
    assert actual.keys() == expected.keys() == SCALARS
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=ROUNDING[sigma]), name


@pytest.mark.parametrize("sigma", ROUNDING)
def test_every_curve_is_numpys(sigma: float) -> None:
    stream = texts()
    curves = curves_of(InformationGain(sigma=sigma), padded(stream, "left", length=30))
    assert curves.keys() == CURVES
    gains = np.full((len(stream), 12), np.nan)
    for row, text in zip(gains, stream, strict=True):
        row[: len(text)] = increments(text, sigma)
    counts = tuple(np.isfinite(gains).sum(0).tolist())
    assert counts == (6, 5, 4, 3, 3, 2, 2, 2, 1, 1, 1, 1)
    means = np.nanmean(gains, axis=0)
    assert all(curve.count == counts and len(curve) == 12 for curve in curves.values())
    near = 10 * ROUNDING[sigma]
    np.testing.assert_allclose(curves["gain"].mean, means, rtol=0, atol=near)
    # √(E[x²] − E[x]²) of numbers near 4.6 keeps 1e-8·4.6 of a spread of zero.
    np.testing.assert_allclose(np.array(curves["gain"].std), np.nanstd(gains, axis=0), rtol=0, atol=2e-7)
    np.testing.assert_allclose(curves["information_gain"].mean, np.cumsum(means), rtol=0, atol=near)
    variance = np.nanmean(sigma**2 * np.expm1(2 * gains), axis=0)
    np.testing.assert_allclose(curves["posterior_variance"].mean, variance, rtol=0, atol=near)
    assert curves["information_gain"].std is None
    assert curves["posterior_variance"].std is None


def test_the_curve_of_one_text_ends_at_its_information_gain() -> None:
    rows = Rows(texts()[2].unsqueeze(0))
    curve = curves_of(InformationGain(), rows)["information_gain"]
    assert curve.mean[-1] == pytest.approx(scalars_of(InformationGain(), rows)["information_gain"], rel=1e-12)


def test_the_curve_goes_on_after_a_row_of_nan() -> None:
    text = texts()[4].clone()
    text[3] = math.nan
    curves = curves_of(InformationGain(), Rows(text.unsqueeze(0)))
    assert curves["gain"].count == (1, 1, 1, 0, 1, 1, 1, 1)
    assert [t for t, mean in enumerate(curves["gain"].mean) if math.isnan(mean)] == [3]
    total = log_determinant(text[text[:, 0].isfinite()].numpy(), 0.01)
    assert curves["information_gain"].mean[-1] == pytest.approx(total, rel=1e-10)
    assert curves["information_gain"].mean[3] == curves["information_gain"].mean[2]


def test_first_token_gains_the_most_there_is() -> None:
    """``½ log(1 + σ⁻²)``, 4.61 nats, whatever the row; its posterior variance is 1."""
    rows = Rows(texts()[1].unsqueeze(0))
    metric = InformationGain(stream=True)
    numbers, curves = scalars_of(metric, rows), curves_of(metric, rows)
    for name in ("information_gain", "gain_per_token", "stream_information_gain"):
        assert numbers[name] == pytest.approx(math.log1p(1e4) / 2, rel=1e-12)
    assert numbers["information_gain_per_dim"] == pytest.approx(math.log1p(1e4) / 2 / WIDTH, rel=1e-12)
    assert curves["posterior_variance"].mean == pytest.approx((1.0,), rel=1e-12)
    assert curves["gain"].std == (0.0,)


def test_no_row_is_nan_and_no_exception() -> None:
    masked = Rows(torch.zeros(1, 3, WIDTH), torch.zeros(1, 3, dtype=torch.bool))
    numbers = scalars_of(InformationGain(), masked)
    assert math.isnan(numbers["information_gain"])
    assert math.isnan(numbers["gain_per_token"])
    assert all(len(curve) == 0 for curve in curves_of(InformationGain(), masked).values())


@pytest.mark.parametrize("sigma", [0, -1, math.nan, math.inf, 1e-6, 1e4])
def test_bad_sigma(sigma: float) -> None:
    with pytest.raises(GeomprobeError, match=r"sigma=.*expected a number"):
        InformationGain(sigma=sigma)


@pytest.mark.parametrize("sigma", [1e-5, 1e3])
def test_fewer_rows_than_dimensions_in_float32_at_the_ends_of_sigma(sigma: float) -> None:
    """The stream's ½ logdet(I + σ⁻²Σzzᵀ) was NaN from σ = 1e-3 on when Σzzᵀ was a float32 product."""
    hidden = torch.randn(1, 60, 64, generator=torch.Generator().manual_seed(0)) + 2
    numbers = scalars_of(InformationGain(sigma=sigma, stream=True), Rows(hidden))
    expected = log_determinant(hidden[0].double().numpy(), sigma)
    assert numbers["information_gain"] == pytest.approx(expected, rel=1e-6)
    assert numbers["stream_information_gain"] == pytest.approx(expected, rel=1e-6)


def test_equal_accumulators_are_shared() -> None:
    assert InformationGain() == InformationGain(sigma=0.01)
    assert InformationGain().accumulators == InformationGain().accumulators
    assert len({*InformationGain().accumulators, *InformationGain(sigma=0.1).accumulators}) == 2
    both = {*InformationGain(stream=True).accumulators, *InformationGain(sigma=0.1, stream=True).accumulators}
    assert len(both) == 3  # one covariance for every sigma
    assert "stream_information_gain" not in scalars_of(InformationGain(), Rows(texts()[1].unsqueeze(0)))


def test_curve_from_sums() -> None:
    total, count, squares = (torch.tensor(v, dtype=torch.float64) for v in ([6, 0, 5, 0], [3, 0, 1, 0], [14, 0, 25, 0]))
    curve = Curve.from_sums(total, count, squares)
    assert curve.count == (3, 0, 1)  # a hole stays, the end is dropped
    assert curve.mean == pytest.approx((2, math.nan, 5), nan_ok=True)
    assert curve.std == pytest.approx((math.sqrt(2 / 3), math.nan, 0), nan_ok=True)
