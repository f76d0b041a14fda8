"""Definitions 2.1 to 2.3, 3.2 and 3.3 and Lemma 3.17 against SciPy and sums written out."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from geomprobe.errors import GeomprobeError
from geomprobe.theory import information

few = settings(max_examples=100, deadline=None, derandomize=True)
weights = st.one_of(st.just(0.0), st.floats(1e-6, 1))
distributions = st.lists(weights, min_size=1, max_size=12).filter(any).map(lambda w: np.array(w) / sum(w))


@st.composite
def joints(draw: st.DrawFn, *shape: int) -> NDArray[np.float64]:
    """Joint distributions with impossible outcomes among them."""
    size = math.prod(shape)
    p = np.array(draw(st.lists(weights, min_size=size, max_size=size).filter(any))).reshape(shape)
    return np.asarray(p / p.sum())


@few
@given(distributions)
def test_entropy_is_scipys(p: NDArray[np.float64]) -> None:
    assert information.entropy(p) == pytest.approx(scipy.stats.entropy(p), abs=1e-12)
    assert 0 <= information.entropy(p) <= math.log(len(p)) + 1e-12


@few
@given(joints(3, 2, 4))
def test_conditional_entropy_is_the_sum_and_obeys_the_chain_rule(p: NDArray[np.float64]) -> None:
    by_hand = -sum(
        p[x, y, z] * math.log(p[x, y, z] / p[:, y, z].sum())
        for x, y, z in itertools.product(range(3), range(2), range(4))
        if p[x, y, z]
    )
    assert information.conditional_entropy(p, (1, 2)) == pytest.approx(by_hand, abs=1e-12)
    assert information.conditional_entropy(p, (1, -1)) == pytest.approx(by_hand, abs=1e-12)
    for given_axis in range(3):
        others = tuple({0, 1, 2} - {given_axis})
        left = information.entropy(p) - information.entropy(p.sum(others))
        assert information.conditional_entropy(p, given_axis) == pytest.approx(left, abs=1e-12)
    assert information.conditional_entropy(p, (0, 1, 2)) == 0


@few
@given(joints(5), joints(5))
def test_kl_is_scipys_and_zero_only_on_equals(p: NDArray[np.float64], q: NDArray[np.float64]) -> None:
    assert information.kl_divergence(p, q) == pytest.approx(scipy.stats.entropy(p, q), abs=1e-12)
    assert information.kl_divergence(p, p) == 0
    if math.isfinite(kl := information.kl_divergence(p, q)):
        assert kl >= np.abs(p - q).sum() ** 2 / 2 - 1e-12  # Pinsker


@few
@given(joints(4, 3))
def test_entropies_given_each_outcome_are_scipys(p: NDArray[np.float64]) -> None:
    found = information.entropies_given(p)
    expected = [scipy.stats.entropy(p[:, y]) if p[:, y].any() else math.nan for y in range(3)]  # SciPy normalises
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_lemma_3_17_on_1000_random_joints() -> None:
    """H(X) − H(X | Y) = Σ p(y) KL(p(· | y) ‖ p), the left side by sums written out."""
    draw = np.random.default_rng(0)
    for _ in range(1000):
        p = draw.gamma(0.5, size=draw.integers(2, 8, 2)) + 1e-12
        p /= p.sum()
        p_x, p_y = p.sum(1), p.sum(0)
        told = -float(np.sum(p_x * np.log(p_x))) + float(np.sum(p * np.log(p / p_y)))
        divergences = [float(np.sum(p[:, y] / p_y[y] * np.log(p[:, y] / p_y[y] / p_x))) for y in range(len(p_y))]
        np.testing.assert_allclose(information.divergences(p), divergences, rtol=0, atol=1e-12)
        assert abs(told - float(p_y @ information.divergences(p))) < 1e-12
        assert abs(information.entropy(p_x) - information.conditional_entropy(p) - told) < 1e-12


def test_outcomes_that_never_occur_have_no_entropy_and_no_divergence() -> None:
    p = np.array([[0.5, 0.0], [0.5, 0.0]])
    assert np.isnan(information.entropies_given(p)).tolist() == [False, True]
    assert np.isnan(information.divergences(p)).tolist() == [False, True]


# -- codes ------------------------------------------------------------------------------------------------------------------


@few
@given(st.lists(st.text("01", max_size=4), min_size=1, max_size=6))
def test_a_code_is_instantaneous_if_no_codeword_is_a_prefix_of_another(code: list[str]) -> None:
    assert information.is_instantaneous(code) == all(not b.startswith(a) for a, b in itertools.permutations(code, 2))


@few
@given(distributions.filter(all))
def test_huffman_codes_keep_shannons_bounds(p: NDArray[np.float64]) -> None:
    words = information.huffman_code(p)
    assert information.is_instantaneous(words)
    length = information.expected_code_length(p, words)
    assert length == pytest.approx(sum(share * len(word) for share, word in zip(p, words, strict=True)))
    bits = scipy.stats.entropy(p, base=2)
    assert bits - 1e-12 <= length < bits + 1


@few
@given(st.lists(st.integers(1, 50), min_size=2, max_size=4))
def test_no_instantaneous_code_is_shorter_than_huffmans(counts: list[int]) -> None:
    p = np.array(counts) / sum(counts)
    best = information.expected_code_length(p, information.huffman_code(p))
    lengths = itertools.product(range(1, len(p) + 1), repeat=len(p))
    kraft = [each for each in lengths if sum(2.0**-n for n in each) <= 1]  # those of an instantaneous code, by Kraft
    assert best == pytest.approx(min(float(p @ each) for each in kraft))


def test_a_dyadic_code_is_as_long_as_the_entropy() -> None:
    """So that the bound is not strict; and it is in bits: in nats H is less."""
    p = [0.5, 0.25, 0.125, 0.125]
    assert information.huffman_code(p) == ["0", "10", "110", "111"]
    assert information.expected_code_length(p, information.huffman_code(p)) == 1.75
    assert information.entropy(p) / math.log(2) == pytest.approx(1.75, abs=1e-15)


def test_capacity_increases_from_0_to_1() -> None:
    w = np.geomspace(1e-6, 1e6, 200)
    capacity = information.awgn_capacity(w)
    np.testing.assert_allclose(capacity, [float(x * math.log(1 + 1 / x)) for x in w], rtol=1e-9)
    assert (np.diff(capacity) > 0).all()
    assert 0 < capacity[0] < 1e-4
    assert 1 - 1e-6 < capacity[-1] < 1


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.nan, math.inf])
def test_bandwidths_that_have_no_capacity_are_refused(bandwidth: float) -> None:
    with pytest.raises(GeomprobeError, match="positive, finite bandwidths"):
        information.awgn_capacity([1.0, bandwidth])


# -- refusals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [[0.5, 0.6], [1.5, -0.5], [math.nan, 1.0], []])
def test_what_is_no_distribution_is_refused(p: list[float]) -> None:
    with pytest.raises(GeomprobeError, match="sum to 1"):
        information.entropy(p)


def test_kl_of_different_outcomes_is_refused() -> None:
    with pytest.raises(GeomprobeError, match="same outcomes"):
        information.kl_divergence([1.0], [0.5, 0.5])


def test_an_axis_that_is_not_there_is_refused() -> None:
    with pytest.raises(GeomprobeError, match=r"axes 2 were asked for, but the distribution has 2 axes"):
        information.conditional_entropy([[0.5, 0.0], [0.0, 0.5]], given=2)


@pytest.mark.parametrize("function", [information.entropies_given, information.divergences])
def test_a_pair_of_variables_has_two_axes(function: Callable[[list[float]], object]) -> None:
    with pytest.raises(GeomprobeError, match="two axes, got 1"):
        function([0.5, 0.5])


def test_a_code_has_a_codeword_for_each_outcome() -> None:
    with pytest.raises(GeomprobeError, match="one codeword for each of 2, got 3"):
        information.expected_code_length([0.5, 0.5], ["0", "10", "11"])
