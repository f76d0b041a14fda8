"""Def. 3.4 to Theorem 3.8 against sums written out, distributions built in full, and exponents of exact values."""

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
from geomprobe.theory.information import conditional_entropy, entropies_given
from geomprobe.theory.skills import SkillModel

Floats = NDArray[np.float64]
few = settings(max_examples=50, deadline=None, derandomize=True)
alphas = [0.3, 0.5, 1.0, 2.0]


def by_hand(alpha: float, m: int) -> Floats:
    """p_skill, from exactly rounded sums."""
    weights = [k ** -(alpha + 1) for k in range(1, m + 1)]
    return np.array(weights) / math.fsum(weights)


def exponent(x: Floats, y: Floats) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


# -- Def. 3.4, Assumption 3.5, Lemma 3.6 ------------------------------------------------------------------------------------


def test_conditional_entropy_is_the_sum_to_1e_9() -> None:
    model, p = SkillModel(alpha=0.5, M=10**5, B=5, C=1), by_hand(0.5, 10**5)
    left = np.append(np.cumsum(p[::-1])[::-1], 0.0)  # Σ_{i>n} p_i of n = 0 … M
    assert np.abs(model.conditional_entropy(np.arange(10**5 + 1)) - (1 + 4 * left)).max() < 1e-9
    for n in (0, 1, 500, 99_999, 10**5):
        total = math.fsum(p[:n]) * 1 + math.fsum(p[n:]) * 5  # the third line of the proof
        assert float(model.conditional_entropy(n)) == pytest.approx(total, abs=1e-9)


@few
@given(st.floats(0.1, 3), st.integers(1, 200), st.integers(0, 250))
def test_skills_have_the_degree_law_and_its_area(alpha: float, m: int, n: int) -> None:
    model, p = SkillModel(alpha, m, B=6.0, C=1.5), by_hand(alpha, m)
    np.testing.assert_allclose(model.p_skill(), p, rtol=1e-12)
    assert 1 / p[0] == pytest.approx(model.area, rel=1e-12)
    assert float(model.conditional_entropy(n)) == pytest.approx(1.5 * p[:n].sum() + 6.0 * p[n:].sum(), rel=1e-10)


@few
@given(st.floats(0.1, 3), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.randoms(use_true_random=False))
def test_lemma_3_6_of_any_distribution_with_assumption_3_5(
    alpha: float, m: int, few_texts: int, more: int, draw: random.Random
) -> None:
    """A skill that is comprehended leaves ``few_texts`` equally likely texts, any other one ``few_texts + more``."""
    model = SkillModel(alpha, m, B=math.log(few_texts + more), C=math.log(few_texts))
    for n in range(m + 1):
        joint = np.zeros((12, m))
        for k, share in enumerate(by_hand(alpha, m)):
            texts = draw.sample(range(12), few_texts if k < n else few_texts + more)
            joint[texts, k] = share / len(texts)
        np.testing.assert_allclose(model.skill_entropies(n), entropies_given(joint), rtol=0, atol=1e-12)
        assert conditional_entropy(joint) == pytest.approx(float(model.conditional_entropy(n)), abs=1e-12)


@pytest.mark.parametrize("alpha", alphas)
@pytest.mark.parametrize("m", [100, 10**12, math.inf])
def test_the_integral_of_lemma_3_6_exceeds_the_sum_by_less_than_a_skill(alpha: float, m: float) -> None:
    model = SkillModel(alpha, m, B=6.0, C=1.5)
    for n in (1, 10, 100):
        ends = np.linspace(math.log(n), min(math.log(m), math.log(n) + 200), 41)  # y = e^t; beyond, less than e^(−60) is left
        tail = mpmath.quad(lambda t: mpmath.exp(-alpha * t), ends.tolist())
        integral = float(model.conditional_entropy_integral(n))
        assert integral == pytest.approx(float(1.5 + 4.5 * tail / model.area), rel=1e-9)
        assert -1e-12 <= integral - float(model.conditional_entropy(n)) <= 4.5 * n ** -(alpha + 1) / model.area


def test_infinitely_many_skills_are_the_limit_of_many() -> None:
    many, endless = (SkillModel(1.0, m, B=5.0, C=1.0) for m in (10**15, math.inf))
    np.testing.assert_allclose(many.conditional_entropy([0, 10, 1000]), endless.conditional_entropy([0, 10, 1000]), rtol=1e-12)
    assert endless.area == pytest.approx(math.pi**2 / 6, rel=1e-15)
    assert endless.learned_from_flops(endless.flops_to_learn([3, 10**7])).tolist() == [3, 10**7]


# -- Theorems 3.7 and 3.8 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", alphas)
def test_exponents_of_theorems_3_7_and_3_8_are_within_2_percent(alpha: float) -> None:
    """Of H − C, at M = 10¹² and 100 ≤ n ≤ 10,000, from amounts that no skill ends at."""
    model = SkillModel(alpha, M=10**12, B=5, C=1)
    neurons = np.geomspace(100, 10_000, 50) * 30
    left = model.conditional_entropy(model.learned_from_parameters(neurons, r=30)) - 1
    assert exponent(neurons, left) == pytest.approx(-alpha, rel=0.02)
    least, most = model.flops_to_learn([100, 10_000], delta=0.1).tolist()
    flops = np.geomspace(least, most, 50)
    left = model.conditional_entropy(model.learned_from_flops(flops, delta=0.1)) - 1
    assert exponent(flops, left) == pytest.approx(-alpha / (alpha + 2), rel=0.02)


def test_every_r_neurons_comprehend_a_skill() -> None:
    model = SkillModel(1.0, 10, B=1.0, C=0.0)
    assert model.learned_from_parameters([0, 29, 30, 95, 1e9], r=30).tolist() == [0, 0, 1, 3, 10]


def test_skills_learned_from_flops_match_the_papers_sum() -> None:
    """S summed here over the first 500 skills; one FLOP less is one skill less."""
    model, p = SkillModel(alpha=0.5, M=10**5, B=5, C=1), by_hand(0.5, 10**5)
    for delta in (1.0, 0.25):
        S = sum((5 - 1) / (p_i * delta) for p_i in p[:500])
        assert float(model.learned_from_flops(S, delta)) == 500
        assert float(model.learned_from_flops(S - 1, delta)) == 499
        assert float(model.flops_to_learn(500, delta)) == pytest.approx(S, rel=1e-12)


@pytest.mark.parametrize("alpha", alphas)
@pytest.mark.parametrize("m", [1, 2, 777, 10**5])
def test_flops_of_every_skill_of_a_model(alpha: float, m: int) -> None:
    model, sums = SkillModel(alpha, m, B=5, C=1), np.cumsum(4 / by_hand(alpha, m))
    n = np.arange(1, m + 1)
    assert np.array_equal(model.learned_from_flops(sums), n)
    assert np.array_equal(model.learned_from_flops(sums * (1 - 1e-9)), n - 1)
    assert float(model.learned_from_flops(sums[-1] * 10)) == m  # there are no more
    np.testing.assert_allclose(model.flops_to_learn(n), sums, rtol=1e-11)


@pytest.mark.parametrize(("alpha", "n"), [(0.5, 100_001), (0.5, 10**7), (1.0, 10**7), (1.0, 10**12), (2.0, 10**12)])
def test_flops_of_more_skills_than_are_added(alpha: float, n: int) -> None:
    """The sum of i^(α+1) by Faulhaber's formulas in integers, and where there is none, term by term."""
    model = SkillModel(alpha, M=10**12, B=5, C=1)
    if alpha == 0.5:
        powers = float((np.arange(1, n + 1, dtype=np.float64) ** 1.5).sum())
    else:
        powers = float(n * (n + 1) * (2 * n + 1) // 6 if alpha == 1.0 else (n * (n + 1) // 2) ** 2)
    S = 4 * model.area * powers
    assert float(model.flops_to_learn(n)) == pytest.approx(S, rel=1e-11)
    assert float(model.learned_from_flops(S)) == pytest.approx(n, rel=1e-11)


@pytest.mark.parametrize("alpha", alphas)
@pytest.mark.parametrize("resource", ["skills", "parameters", "flops"])
def test_asymptotes_are_met(alpha: float, resource: str) -> None:
    model, n = SkillModel(alpha, 10**15, B=6.0, C=1.5), np.array([1e3, 1e4])
    amount = {"skills": n, "parameters": 50 * n, "flops": model.flops_to_learn(n, delta=0.1)}[resource]
    coefficient, power = model.asymptote(resource, r=50, delta=0.1)
    assert power == pytest.approx({"skills": -alpha, "parameters": -alpha, "flops": -alpha / (alpha + 2)}[resource])
    finite = 2 * (n / model.M) ** alpha
    off = np.abs((model.conditional_entropy(n) - 1.5) / (coefficient * amount**power) - 1)
    assert (off <= 2 * (1 + alpha) / n + finite).all()


# -- the skill graph --------------------------------------------------------------------------------------------------------


def test_a_sampled_graph_has_the_degrees_of_the_model() -> None:
    model = SkillModel(0.8, 12, B=1.0, C=0.0)
    edges = model.sample_graph(20_000, seed=1)
    assert edges.shape == (20_000, 2)
    assert edges[:, 0].tolist() == list(range(20_000))
    degrees = np.bincount(edges[:, 1], minlength=12)
    assert scipy.stats.chisquare(degrees, 20_000 * by_hand(0.8, 12)).pvalue > 1e-3


def test_a_sampled_graph_has_every_edge_once_and_the_same_from_one_seed() -> None:
    model = SkillModel(0.8, 12, B=1.0, C=0.0)
    edges = model.sample_graph(50, 4)
    assert len({tuple(edge) for edge in edges.tolist()}) == len(edges) <= 200
    assert set(edges[:, 0].tolist()) == set(range(50))
    assert edges[:, 1].max() < 12
    assert np.array_equal(edges, model.sample_graph(50, 4))
    assert not np.array_equal(edges[:50], model.sample_graph(50, 4, seed=1)[:50])


# -- refusals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("b", "c"), [(1.0, 5.0), (2.0, 2.0), (math.inf, 1.0), (math.nan, 1.0)])
def test_a_skill_costs_less_once_it_is_comprehended(b: float, c: float) -> None:
    with pytest.raises(GeomprobeError, match=r"B > C: H\(X \| y\) is B before skill y is comprehended and C after"):
        SkillModel(1.0, 10, B=b, C=c)


@pytest.mark.parametrize(("alpha", "m"), [(0.0, 10), (-1.0, 10), (math.inf, 10), (1.0, 0), (1.0, 2.5), (1.0, math.nan)])
def test_models_out_of_range_are_refused(alpha: float, m: float) -> None:
    with pytest.raises(GeomprobeError, match="alpha > 0 and a whole number of skills M ≥ 1"):
        SkillModel(alpha, m, B=2.0, C=1.0)


@pytest.mark.parametrize("amount", [-1.0, math.nan, math.inf])
def test_amounts_that_nobody_can_spend_are_refused(amount: float) -> None:
    model = SkillModel(1.0, 10, B=2.0, C=1.0)
    for name, method in (
        ("n", model.conditional_entropy),
        ("n", model.flops_to_learn),
        ("N", model.learned_from_parameters),
        ("S", model.learned_from_flops),
    ):
        with pytest.raises(GeomprobeError, match=rf"^{name} must be finite and at least 0, got {amount:g}$"):
            method([1.0, amount])


def test_a_rate_of_0_is_refused() -> None:
    model = SkillModel(1.0, 10, B=2.0, C=1.0)
    with pytest.raises(GeomprobeError, match="delta must be positive and finite, got 0"):
        model.learned_from_flops(1.0, delta=0.0)
    with pytest.raises(GeomprobeError, match="r must be positive and finite, got -1"):
        model.learned_from_parameters(1.0, r=-1.0)


def test_skills_that_there_are_not_are_refused() -> None:
    with pytest.raises(GeomprobeError, match="there are 10 skills, got n = 11"):
        SkillModel(1.0, 10, B=2.0, C=1.0).flops_to_learn([3, 11])
    with pytest.raises(GeomprobeError, match="expected skills, parameters or flops"):
        SkillModel(1.0, 10, B=2.0, C=1.0).asymptote("gold")
    for method in (SkillModel.p_skill, lambda model: model.skill_entropies(3), lambda model: model.sample_graph(5)):
        with pytest.raises(GeomprobeError, match=r"at most 100,000,000 skills can be listed one by one, got M = 1e\+12"):
            method(SkillModel(1.0, 10**12, B=2.0, C=1.0))
