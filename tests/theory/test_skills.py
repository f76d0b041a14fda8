"""Lemma 3.6 against sums written out and distributions built in full, and the laws fitted to exact values."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from geomprobe.errors import GeomprobeError
from geomprobe.theory.information import conditional_entropy, entropy
from geomprobe.theory.power_law import fit_power_law
from geomprobe.theory.skills import SkillModel, untold_by_data, untold_by_data_limit

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


def test_theorem_3_18_entropy_scales_as_conditional_entropy() -> None:
    model = SkillModel(0.5, 10_000, 1.5, 6.0)
    n = np.arange(0, 10_001, 500)
    constant = model.entropy(n) - model.conditional_entropy(n)
    np.testing.assert_allclose(constant, scipy.stats.entropy(model.degrees()))


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
