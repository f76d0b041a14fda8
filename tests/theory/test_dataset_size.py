"""Section 3.1 against sums written out, finite differences and the softmax family."""

import math

import mpmath  # type: ignore[import-untyped]  # comes with torch
import numpy as np
import pytest

from geomprobe.errors import GeomprobeError
from geomprobe.theory.dataset_size import alpha_of_area, entropy_from_data, fisher_information, squared_shares
from geomprobe.theory.skills import SkillModel


@pytest.mark.parametrize("seed", range(10))
def test_fisher_information_of_softmax(seed: int) -> None:
    """log p = θ − log Σ e^θ has F = diag(p) − ppᵀ, and the Hessian of both divergences is F."""
    draw = np.random.default_rng(seed)
    theta, step = draw.normal(size=5), 1e-3 * draw.normal(size=5)
    p, q = (np.exp(t) / np.exp(t).sum() for t in (theta, theta + step))
    fisher = fisher_information(p, np.eye(5) - p)
    np.testing.assert_allclose(fisher, np.diag(p) - np.outer(p, p), rtol=0, atol=1e-15)
    half = float(step @ fisher @ step) / 2
    assert float(np.sum(q * np.log(q / p))) == pytest.approx(half, rel=0.01)
    assert float(np.sum(p * np.log(p / q))) == pytest.approx(half, rel=0.01)
    squared = float(p @ np.log(q / p) ** 2)
    assert squared == pytest.approx(2 * half, rel=0.01)  # not half, as the paper prints
    assert squared != pytest.approx(half, rel=0.5)


@pytest.mark.parametrize("alpha", [0.05, 0.5, 1.0, 3.0])
def test_squared_shares_are_the_sum(alpha: float) -> None:
    p = SkillModel(alpha, 1000, B=1.0, C=0.0).p_skill()
    assert squared_shares(alpha, 1000) == pytest.approx(math.fsum(p**2), rel=1e-12)
    s = mpmath.mpf(1 + alpha)
    assert squared_shares(alpha) == pytest.approx(float(mpmath.zeta(2 * s) / mpmath.zeta(s) ** 2), rel=1e-12)


def test_squared_shares_are_the_papers_up_to_a_factor() -> None:
    def factor(alpha: float) -> float:
        return squared_shares(alpha) * (2 * alpha + 1) / alpha**2

    assert factor(1.0) == pytest.approx(1.2, abs=1e-12)  # 3 ζ(4) / ζ(2)²
    assert factor(1e-6) == pytest.approx(math.pi**2 / 6, rel=1e-5)


@pytest.mark.parametrize("alpha", [1e-4, 0.01, 0.5, 2.0])
@pytest.mark.parametrize("m", [1000, 10**12, math.inf])
def test_alpha_comes_back_from_the_area(alpha: float, m: float) -> None:
    assert alpha_of_area(SkillModel(alpha, m, B=1.0, C=0.0).area, m) == pytest.approx(alpha, rel=1e-6)


def test_an_area_is_about_1_over_alpha_of_infinitely_many_skills_only() -> None:
    assert SkillModel(0.01, math.inf, B=1.0, C=0.0).area == pytest.approx(100 + np.euler_gamma, abs=1e-3)
    assert SkillModel(0.01, 10**12, B=1.0, C=0.0).area == pytest.approx(24.7, abs=0.05)
    with pytest.raises(GeomprobeError, match=r"Z_α of 1e\+12 skills lies between 1 and 28\.21, got 40"):
        alpha_of_area(40.0, 10**12)
    with pytest.raises(GeomprobeError, match=r"got 0\.5"):
        alpha_of_area(0.5)


@pytest.mark.parametrize("gamma", [0.6, 0.75, 1.0, 2.0])
def test_the_exponent_in_dataset_size_is_1_minus_2_gamma(gamma: float) -> None:
    """Of H − C, where Z_α = D^γ lies between 100 and 10,000."""
    D = np.geomspace(100, 10_000, 30) ** (1 / gamma)
    left = entropy_from_data(D, gamma, A=3.0, C=1.0) - 1
    assert np.polyfit(np.log(D), np.log(left), 1)[0] == pytest.approx(1 - 2 * gamma, rel=0.02)


def test_entropy_from_data_is_c_and_the_sum() -> None:
    """With D chosen so that Z_α = D^γ holds for a known α."""
    model = SkillModel(0.3, 5000, B=1.0, C=0.0)
    D = model.area ** (1 / 0.75)
    expected = 2.0 + 3.0 * D * math.fsum(model.p_skill() ** 2)
    np.testing.assert_allclose(entropy_from_data([[D], [D]], 0.75, A=3.0, C=2.0, M=5000), [[expected]] * 2, rtol=1e-9)


def test_scores_that_do_not_fit_are_refused() -> None:
    with pytest.raises(GeomprobeError, match="scores of shape"):
        fisher_information([0.5, 0.5], np.ones((3, 2)))
