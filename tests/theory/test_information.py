"""Entropy against SciPy and sums written out, and codes against the bounds."""

import itertools
import math

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
@given(distributions.filter(all))
def test_huffman_codes_keep_shannons_bounds(p: NDArray[np.float64]) -> None:
    words = information.huffman_code(p)
    assert all(not b.startswith(a) for a, b in itertools.permutations(words, 2))
    length = information.expected_code_length(p, [len(word) for word in words])
    least, below = information.code_length_bounds(p)
    assert least - 1e-12 <= length < below


@few
@given(st.lists(st.integers(1, 50), min_size=2, max_size=4))
def test_no_prefix_code_is_shorter_than_huffmans(counts: list[int]) -> None:
    p = np.array(counts) / sum(counts)
    best = information.expected_code_length(p, [len(word) for word in information.huffman_code(p)])
    lengths = itertools.product(range(1, len(p) + 1), repeat=len(p))
    kraft = [each for each in lengths if sum(2.0**-n for n in each) <= 1]  # those of a prefix code, by Kraft
    assert best == pytest.approx(min(information.expected_code_length(p, each) for each in kraft))


def test_a_dyadic_code_is_as_long_as_the_entropy() -> None:
    p = [0.5, 0.25, 0.125, 0.125]
    lengths = [len(word) for word in information.huffman_code(p)]
    assert lengths == [1, 2, 3, 3]
    assert information.expected_code_length(p, lengths) == pytest.approx(information.code_length_bounds(p)[0])


@pytest.mark.parametrize("p", [[0.5, 0.6], [1.5, -0.5], [math.nan, 1.0], []])
def test_what_is_no_distribution_is_refused(p: list[float]) -> None:
    with pytest.raises(GeomprobeError, match="sum to 1"):
        information.entropy(p)


def test_kl_of_different_outcomes_is_refused() -> None:
    with pytest.raises(GeomprobeError, match="same outcomes"):
        information.kl_divergence([1.0], [0.5, 0.5])
