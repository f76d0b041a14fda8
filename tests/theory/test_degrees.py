"""The degree law fitted to exact, sampled and foreign degrees."""

import math

import numpy as np
import pytest
import scipy.stats

from geomprobe.errors import GeomprobeError
from geomprobe.theory.degrees import fit_degrees
from geomprobe.theory.skills import SkillModel

alphas = [0.2, 0.5, 1.0, 2.0]


def test_exact_degrees_give_alpha_back() -> None:
    for alpha in alphas:
        law = fit_degrees(1e6 * SkillModel(alpha, 500, B=1.0, C=0.0).p_skill())
        assert law.alpha == pytest.approx(alpha, abs=1e-9)
        assert law.p_value == pytest.approx(1)


def test_intervals_of_alpha_hold_as_often_as_they_say() -> None:
    model = SkillModel(0.6, 200, B=1.0, C=0.0)
    laws = [fit_degrees(np.bincount(model.sample_graph(2000, seed=i)[:, 1], minlength=200)) for i in range(300)]
    held = sum(law.interval[0] <= 0.6 <= law.interval[1] for law in laws)
    assert 0.95 * 300 - 15 <= held <= 0.95 * 300 + 12  # 3 to 4 of its standard deviations
    assert scipy.stats.kstest([law.p_value for law in laws], "uniform").pvalue > 1e-3


def test_degrees_of_another_law_are_told_apart() -> None:
    exponential = np.random.default_rng(0).multinomial(
        20_000, np.exp(-np.arange(100) / 20) / np.exp(-np.arange(100) / 20).sum()
    )
    assert fit_degrees(exponential).p_value < 1e-6


def test_too_few_edges_leave_the_law_undecided() -> None:
    assert math.isnan(fit_degrees([3, 1, 1]).p_value)


@pytest.mark.parametrize("degrees", [[5], [5, 0, 0], [0, 0, 5], [1, -1, 2], [1, math.nan], [[1, 2], [3, 4]], []])
def test_degrees_that_tell_no_exponent_are_refused(degrees: list[float]) -> None:
    with pytest.raises(GeomprobeError, match="the number of uses of each skill"):
        fit_degrees(degrees)


def test_the_confidence_of_a_degree_law_lies_between_0_and_1() -> None:
    with pytest.raises(GeomprobeError, match="between 0 and 1, got 1"):
        fit_degrees([3, 2, 1], confidence=1.0)
