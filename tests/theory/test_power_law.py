"""Fits of power laws: laws they must recover, when they must prefer another, and how often their intervals hold."""

import math

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from geomprobe.errors import GeomprobeError
from geomprobe.theory.power_law import PowerLaw, fit_power_law

Floats = NDArray[np.float64]
few = settings(max_examples=50, deadline=None, derandomize=True)
exponents = st.one_of(st.floats(-3, -0.05), st.floats(0.05, 3))
sizes = np.geomspace(7e7, 1.2e10, 8)
"""Parameters of a family of models, such as Pythia's."""


@few
@given(exponents, st.floats(-5, 5), st.sampled_from([-1, 1]), st.floats(0.1, 10), st.integers(4, 12), st.floats(1.2, 4))
def test_exact_laws_are_recovered(exponent: float, constant: float, sign: int, size: float, n: int, step: float) -> None:
    x = step ** np.arange(n) * 3
    y = constant + sign * size * (x / x[0]) ** exponent
    law = fit_power_law(x, y, resamples=20)
    assert law.best == "power"
    assert law.weights["power"] > 0.99
    assert law.exponent == pytest.approx(exponent, rel=1e-5, abs=1e-7)
    assert law.constant == pytest.approx(constant, rel=1e-4, abs=1e-4 * np.abs(y).max())
    assert law.coefficient * x[0] ** law.exponent == pytest.approx(sign * size, rel=1e-3)
    np.testing.assert_allclose(law(x), y, rtol=0, atol=1e-10 * np.abs(y).max())
    assert law.r2 == pytest.approx(1)
    assert law.exponent_interval == pytest.approx((exponent, exponent), rel=1e-3, abs=1e-5)


def noisy(x: Floats, noise: float, seed: int) -> Floats:
    law: Floats = 1 + 2 * (x / x[0]) ** -0.4
    return law + noise * np.random.default_rng(seed).standard_normal(len(x))


@pytest.mark.parametrize("seed", range(20))
def test_no_other_curve_is_closer(seed: int) -> None:
    """Against a search over a fine grid of exponents, each with NumPy's least squares."""
    y = noisy(sizes, 0.3, seed)
    law = fit_power_law(sizes, y, resamples=1)
    relative, span = np.log(sizes / sizes[0]), math.log(sizes[-1] / sizes[0])

    def error(exponent: float) -> float:
        basis = np.stack([np.ones(8), np.expm1(exponent * (relative - span / 2))], 1)
        return float(np.square(y - basis @ np.linalg.lstsq(basis, y)[0]).sum())

    grid = np.linspace(-10, 10, 4000)
    at = min(grid, key=error)
    twin = scipy.optimize.minimize_scalar(error, bounds=(max(at - 0.005, -10), min(at + 0.005, 10)), method="bounded")
    assert float(np.square(y - law(sizes)).sum()) <= float(twin.fun) * (1 + 1e-7)


def test_scipy_finds_the_same_law_from_a_good_start() -> None:
    y = noisy(sizes, 0.02, 0)
    law = fit_power_law(sizes / sizes[0], y, resamples=1)
    twin, _ = scipy.optimize.curve_fit(lambda x, a, b, c: a + b * x**c, sizes / sizes[0], y, p0=(1, 2, -0.4), xtol=1e-12)
    assert (law.constant, law.coefficient, law.exponent) == pytest.approx(tuple(twin), rel=1e-5)


@few
@given(st.floats(-100, 100), st.integers(4, 30))
def test_constant_data_are_called_constant(level: float, n: int) -> None:
    law = fit_power_law(np.arange(1, n + 1), np.full(n, level))
    assert law.best == "constant"
    assert (law.constant, law.coefficient, law.exponent, law.r2) == pytest.approx((level, 0, 0, 0))
    assert law.exponent_interval[0] < -1 < 1 < law.exponent_interval[1]  # nothing is known of it
    np.testing.assert_allclose(law([0.5, 7e9]), level)


def test_noise_is_rarely_called_a_law() -> None:
    noise = np.random.default_rng(0).standard_normal((100, 8))
    best = [fit_power_law(sizes, 5 + row, resamples=1).best for row in noise]
    assert best.count("power") <= 5
    assert best.count("constant") >= 75


def test_a_logarithm_is_not_called_a_power_law() -> None:
    x = np.geomspace(1, 1000, 8)
    exact = fit_power_law(x, 2 + 3 * np.log(x))
    assert exact.best == "log-linear"
    np.testing.assert_allclose(exact(x), 2 + 3 * np.log(x), atol=1e-3)  # the nearest power law is as good as one
    rough = fit_power_law(x, 2 + 3 * np.log(x) + 0.3 * np.random.default_rng(0).standard_normal(8))
    assert rough.best == "log-linear"


@pytest.mark.slow
@pytest.mark.parametrize(("n", "confidence"), [(5, 0.95), (8, 0.8), (20, 0.95)])
def test_intervals_hold_as_often_as_they_say(n: int, confidence: float) -> None:
    x, trials = np.geomspace(1, 1e4, n), 200
    laws = [fit_power_law(x, noisy(x, 0.03, seed), confidence=confidence, resamples=200, seed=seed) for seed in range(trials)]
    exponent = sum(law.exponent_interval[0] <= -0.4 <= law.exponent_interval[1] for law in laws) / trials
    constant = sum(law.constant_interval[0] <= 1 <= law.constant_interval[1] for law in laws) / trials
    chance = 3 * math.sqrt(confidence * (1 - confidence) / trials)
    assert exponent == pytest.approx(confidence, abs=chance + 0.01)
    assert constant == pytest.approx(confidence, abs=chance + 0.01)


def test_weights_are_those_of_aicc() -> None:
    y = noisy(sizes, 0.3, 1)
    law = fit_power_law(sizes, y, resamples=1)
    line = np.poly1d(np.polyfit(np.log(sizes), y, 1))(np.log(sizes))
    errors = {"power": y - law(sizes), "log-linear": y - line, "constant": y - y.mean()}
    aicc = {}
    for (name, error), k in zip(errors.items(), (4, 3, 2), strict=True):
        aicc[name] = 8 * math.log(error @ error / 8) + 2 * k + 2 * k * (k + 1) / (8 - k - 1)
    sum_ = sum(math.exp(-value / 2) for value in aicc.values())
    assert law.weights == pytest.approx({name: math.exp(-value / 2) / sum_ for name, value in aicc.items()})
    assert law.best == min(aicc, key=aicc.__getitem__)


def test_five_points_go_without_the_correction() -> None:
    law = fit_power_law(sizes[:5], noisy(sizes[:5], 0.3, 1))
    assert all(map(math.isfinite, law.weights.values()))
    assert sum(law.weights.values()) == pytest.approx(1)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_units_do_not_matter(scale: float) -> None:
    y = noisy(sizes, 0.05, 3)
    law, other = fit_power_law(sizes, y), fit_power_law(sizes * scale, y * scale)
    assert other.exponent == pytest.approx(law.exponent, rel=1e-6)
    assert other.exponent_interval == pytest.approx(law.exponent_interval, rel=1e-5)
    assert other.constant == pytest.approx(law.constant * scale, rel=1e-6)
    assert other.weights == pytest.approx(law.weights, rel=1e-6)


def test_the_same_seed_gives_the_same_intervals() -> None:
    y = noisy(sizes, 0.1, 3)
    assert fit_power_law(sizes, y) == fit_power_law(sizes, y)
    assert fit_power_law(sizes, y) != fit_power_law(sizes, y, seed=1)


def test_a_law_is_called_with_any_shape() -> None:
    law = PowerLaw(1.0, 2.0, -1.0, (1, 1), (-1, -1), 1.0, {"power": 1.0}, "power")
    np.testing.assert_allclose(law([[1.0, 2.0], [4.0, 8.0]]), np.array([[3, 2], [1.5, 1.25]]))
    assert float(law(2)) == 2


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        ([1, 2, 3], [1, 2, 3], "at least 4 points"),
        ([1, 2, 3, 3], [1, 2, 3, 4], "of different x, got 3"),
        ([0, 1, 2, 3], [1, 2, 3, 4], "positive x, got 0"),
        ([1, 2, 3, 4], [1, 2, math.nan, 4], "NaN"),
        ([1, 2, math.inf, 4], [1, 2, 3, 4], "finite"),
        ([1, 2, 3, 4], [1, 2, 3], "as many x as y"),
    ],
)
def test_points_no_law_can_be_fitted_to_are_refused(x: list[float], y: list[float], said: str) -> None:
    with pytest.raises(GeomprobeError, match=said):
        fit_power_law(x, y)


@pytest.mark.parametrize("options", [{"confidence": 1.0}, {"resamples": 0}])
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(GeomprobeError, match="confidence lies between 0 and 1"):
        fit_power_law([1, 2, 3, 4], [1, 2, 3, 4], **options)
