"""Lemma 3.6 against sums written out and distributions built in full, and the laws fitted to exact values."""

import math
import random

import mpmath  # type: ignore[import-untyped]  # comes with torch
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from geomprobe.errors import GeomprobeError
from geomprobe.theory.information import conditional_entropy, entropy
from geomprobe.theory.power_law import fit_power_law
from geomprobe.theory.skills import SkillModel, fit_degrees, untold_by_data, untold_by_data_limit
from tests.theory.test_information import joints

few = settings(max_examples=50, deadline=None, derandomize=True)
alphas = [0.2, 0.5, 1.0, 2.0]
skills = np.unique(np.geomspace(100, 1e5, 25).astype(int))
"""So many that rounding to whole skills does not show."""


def large(alpha: float) -> SkillModel:
    return SkillModel(alpha, M=10**12, B=1.5, C=6.0)


@few
@given(st.floats(0.1, 3), st.integers(1, 200), st.integers(0, 250))
def test_lemma_3_6_is_the_sum(alpha: float, m: int, n: int) -> None:
    model = SkillModel(alpha, m, 1.5, 6.0)
    shares = model.degrees()
    assert shares.sum() == pytest.approx(1)
    np.testing.assert_allclose(shares[1:] / shares[:-1], (np.arange(2, m + 1) / np.arange(1, m)) ** -(1 + alpha))
    expected = 1.5 * shares[:n].sum() + 6.0 * shares[n:].sum()
    assert float(model.conditional_entropy(n)) == pytest.approx(expected, rel=1e-10)


def test_lemma_3_6_is_the_conditional_entropy_of_a_distribution() -> None:
    """p(x, y) built in full: a learned skill leaves two texts, another leaves eight, and no two skills share a text."""
    model, n = SkillModel(0.7, 6, math.log(2), math.log(8)), 2
    joint = np.zeros((6 * 8, 6))
    for k, share in enumerate(model.degrees()):
        left = 2 if k < n else 8
        joint[8 * k : 8 * k + left, k] = share / left
    assert conditional_entropy(joint, given=1) == pytest.approx(float(model.conditional_entropy(n)), rel=1e-12)
    assert entropy(joint.sum(1)) == pytest.approx(float(model.entropy(n)), rel=1e-12)  # Lemma 3.17


@pytest.mark.parametrize("alpha", alphas)
def test_lemma_3_6_tends_to_its_limit(alpha: float) -> None:
    """With an error that falls as 1/n, until n comes near M."""
    model = SkillModel(alpha, 10**15, 1.5, 6.0)
    for n in (100, 10_000):
        excess = (float(model.conditional_entropy(n)) - 1.5) / (float(model.conditional_entropy_limit(n)) - 1.5)
        finite = (n / model.M) ** alpha
        assert excess == pytest.approx(1, abs=(1 + alpha) / n + 2 * finite)


@pytest.mark.parametrize("alpha", alphas)
@pytest.mark.parametrize("resource", ["parameters", "texts", "flops"])
def test_fitted_exponents_are_those_of_the_theorems(alpha: float, resource: str) -> None:
    model = large(alpha)
    learned = getattr(model, f"learned_from_{resource}")
    amounts = np.geomspace(1, 1e40, 2000)
    within = (learned(amounts) >= skills[0]) & (learned(amounts) <= skills[-1])
    amounts = amounts[within][:: max(1, int(within.sum()) // 20)]
    assert len(amounts) >= 10
    law = fit_power_law(amounts, model.conditional_entropy(learned(amounts)), resamples=10)
    assert law.best == "power"
    assert law.exponent == pytest.approx(model.exponents[resource], rel=0.02)
    assert {"parameters": -alpha, "texts": -alpha / (1 + alpha), "flops": -alpha / (alpha + 2)}[resource] == model.exponents[
        resource
    ]
    assert law.constant == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize("gamma", [0.6, 0.75, 1.0, 2.0])
def test_the_exponent_in_data_is_1_minus_2_gamma(gamma: float) -> None:
    law = fit_power_law(skills, untold_by_data(skills, gamma), resamples=10)
    assert law.best == "power"
    assert law.exponent == pytest.approx(1 - 2 * gamma, rel=0.02)
    np.testing.assert_allclose(untold_by_data(skills, gamma), untold_by_data_limit(skills, gamma), rtol=0.02)
    exact = untold_by_data(10, gamma) - untold_by_data(1000, gamma)
    assert float(exact) == pytest.approx(sum(k ** (-2 * gamma) for k in range(11, 1001)), rel=1e-9)


@few
@given(st.floats(0.1, 3), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.randoms(use_true_random=False))
def test_lemmas_3_6_and_3_17_of_any_distribution_with_assumption_3_5(
    alpha: float, m: int, left: int, more: int, draw: random.Random
) -> None:
    """A skill that is learned leaves ``left`` texts, another ``left + more``: from a common stock, or each skill its own."""
    model = SkillModel(alpha, m, math.log(left), math.log(left + more))
    for n in range(m + 1):
        shared, apart = np.zeros((12, m)), np.zeros((8 * m, m))
        for k, (share, nats) in enumerate(zip(model.degrees(), model.text_entropies(n), strict=True)):
            texts = round(math.exp(nats))
            shared[draw.sample(range(12), texts), k] = share / texts
            apart[8 * k : 8 * k + texts, k] = share / texts
        for joint in (shared, apart):
            assert conditional_entropy(joint, given=1) == pytest.approx(float(model.conditional_entropy(n)), abs=1e-12)
        assert entropy(apart.sum(1)) == pytest.approx(float(model.entropy(n)), abs=1e-12)
        assert entropy(shared.sum(1)) <= float(model.entropy(n)) + 1e-12  # texts of several skills tell less of them


@few
@given(joints(4, 3))
def test_lemma_3_17_of_any_joint_distribution(p: NDArray[np.float64]) -> None:
    told = entropy(p.sum(1)) - conditional_entropy(p, given=1)
    assert told == pytest.approx(entropy(p.sum(0)) - conditional_entropy(p, given=0), abs=1e-12)
    assert -1e-12 <= told <= entropy(p.sum(0)) + 1e-12
    tells = (p > 0).sum(1).max() == 1
    assert (conditional_entropy(p, given=0) > 0) != tells


@pytest.mark.parametrize("alpha", alphas)
@pytest.mark.parametrize("m", [1, 7, 10_000, 10_001, 300_000])
def test_the_entropy_of_skills_is_the_sum(alpha: float, m: int) -> None:
    model = SkillModel(alpha, m, 0.0, 1.0)
    assert model.skill_entropy == pytest.approx(scipy.stats.entropy(model.degrees()), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_the_entropy_of_endless_skills(alpha: float) -> None:
    s = mpmath.mpf(1 + alpha)
    endless = mpmath.log(mpmath.zeta(s)) - s * mpmath.zeta(s, derivative=1) / mpmath.zeta(s)
    assert SkillModel(alpha, 10**15, 0.0, 1.0).skill_entropy == pytest.approx(float(endless), rel=1e-12)


def test_theorem_3_18_entropy_scales_as_conditional_entropy() -> None:
    model = SkillModel(0.5, 10_000, 1.5, 6.0)
    n = np.arange(0, 10_001, 500)
    constant = model.entropy(n) - model.conditional_entropy(n)
    np.testing.assert_allclose(constant, scipy.stats.entropy(model.degrees()))


@pytest.mark.parametrize("alpha", alphas)
def test_theorem_3_18_has_the_exponent_and_the_constant(alpha: float) -> None:
    model = large(alpha)
    law = fit_power_law(skills, model.entropy(skills), resamples=10)
    assert law.exponent == pytest.approx(-alpha, rel=0.02)
    assert law.constant == pytest.approx(model.B + model.skill_entropy, abs=0.05)
    assert law(1e5) == pytest.approx(float(model.entropy_limit(1e5)), rel=0.01)


@pytest.mark.parametrize("alpha", alphas)
@pytest.mark.parametrize("resource", ["skills", "parameters", "texts", "flops"])
def test_limits_in_resources_are_met(alpha: float, resource: str) -> None:
    model = SkillModel(alpha, 10**15, 1.5, 6.0)
    amount = np.array([1e12, 1e14]) if resource in ("texts", "flops") else np.array([1e3, 1e4])
    learned = amount / 50 if resource == "skills" else getattr(model, f"learned_from_{resource}")(amount, per_skill=50)
    exact, limit = (h - 1.5 for h in (model.conditional_entropy(learned), model.limit_from(resource, amount, per_skill=50)))
    finite = 3 * (learned / model.M) ** alpha
    assert (np.abs(exact / limit - 1) <= 2 * (1 + alpha) / learned + finite + 2 * model.M**-alpha).all()


def test_an_unknown_resource_is_refused() -> None:
    with pytest.raises(GeomprobeError, match=r"'gold'.*skills, parameters, texts, flops"):
        large(1.0).limit_from("gold", 1.0)


# -- the law of degrees -----------------------------------------------------------------------------------------------------


def test_exact_degrees_give_alpha_back() -> None:
    for alpha in alphas:
        law = fit_degrees(1e6 * SkillModel(alpha, 500, 0.0, 1.0).degrees())
        assert law.alpha == pytest.approx(alpha, abs=1e-9)
        assert law.p_value == pytest.approx(1)


def test_intervals_of_alpha_hold_as_often_as_they_say() -> None:
    model = SkillModel(0.6, 200, 0.0, 1.0)
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
    with pytest.raises(GeomprobeError, match="how often each skill is used"):
        fit_degrees(degrees)


def test_the_confidence_of_a_degree_law_lies_between_0_and_1() -> None:
    with pytest.raises(GeomprobeError, match="between 0 and 1, got 1"):
        fit_degrees([3, 2, 1], confidence=1.0)


def test_resources_are_spent_on_whole_skills_that_exist() -> None:
    model = SkillModel(1.0, 10, 0.0, 1.0)
    assert model.learned_from_parameters([0, 29, 30, 95, 1e9], per_skill=30).tolist() == [0, 0, 1, 3, 10]
    texts = 200.0
    enough = int((texts * model.degrees() >= 5).sum())  # expected uses of each skill
    assert float(model.learned_from_texts(texts, per_skill=5)) == enough
    n = 4  # FLOPs that hold n skills and show each often enough
    flops = n * 30 * 5 / model.degrees()[n - 1]
    assert model.learned_from_flops([flops * 0.999, flops * 1.001], per_skill=150).tolist() == [n - 1, n]


def test_a_sampled_graph_has_the_degrees_of_the_model() -> None:
    model = SkillModel(0.8, 12, 0.0, 1.0)
    edges = model.sample_graph(20_000, seed=1)
    assert edges.shape == (20_000, 2)
    assert edges[:, 0].tolist() == list(range(20_000))
    degrees = np.bincount(edges[:, 1], minlength=12)
    assert scipy.stats.chisquare(degrees, 20_000 * model.degrees()).pvalue > 1e-3


def test_a_sampled_graph_has_every_edge_once_and_the_same_from_one_seed() -> None:
    model = SkillModel(0.8, 12, 0.0, 1.0)
    edges = model.sample_graph(50, 4)
    assert len({tuple(edge) for edge in edges.tolist()}) == len(edges) <= 200
    assert set(edges[:, 0].tolist()) == set(range(50))
    assert edges[:, 1].max() < 12
    assert np.array_equal(edges, model.sample_graph(50, 4))
    assert not np.array_equal(edges[:50], model.sample_graph(50, 4, seed=1)[:50])


@pytest.mark.parametrize("wrong", [(0.0, 10, 1.0, 2.0), (1.0, 0, 1.0, 2.0), (1.0, 10, 2.0, 2.0), (1.0, 10, -1.0, 2.0)])
def test_models_out_of_range_are_refused(wrong: tuple[float, int, float, float]) -> None:
    with pytest.raises(GeomprobeError, match="alpha > 0, M ≥ 1 and 0 ≤ B < C"):
        SkillModel(*wrong)


def test_an_infinite_sum_is_refused() -> None:
    with pytest.raises(GeomprobeError, match="gamma > 1/2"):
        untold_by_data(3, 0.5)
