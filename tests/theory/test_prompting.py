"""The lemmas on prompts and contexts, over random finite distributions."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from geomprobe.errors import GeomprobeError
from geomprobe.theory.information import conditional_entropy, kl_divergence
from geomprobe.theory.prompting import (
    context_change,
    context_information,
    irrelevant_contexts,
    is_perfect_prompt,
    prompted_entropy,
)
from tests.theory.test_information import joints

Floats = NDArray[np.float64]
few = settings(max_examples=100, deadline=None, derandomize=True)
prompts = st.lists(st.integers(0, 2), min_size=5, max_size=5)
close = 1e-9


def normalised(p: Floats, axis: int) -> Floats:
    total = p.sum(axis, keepdims=True)
    shares: Floats = np.divide(p, total, out=np.full_like(p, 1 / p.shape[axis]), where=total > 0)
    return shares


# -- prompts ----------------------------------------------------------------------------------------------------------------


@few
@given(joints(4, 5), prompts)
def test_lemma_3_10_a_prompt_loses_the_divergence_of_what_it_merges(p: Floats, prompt: list[int]) -> None:
    lost = 0.0
    for y, group in enumerate(prompt):
        merged = p[:, np.array(prompt) == group].sum(1)
        if p[:, y].sum():
            lost += p[:, y].sum() * kl_divergence(p[:, y] / p[:, y].sum(), merged / merged.sum())
    assert prompted_entropy(p, prompt) == pytest.approx(conditional_entropy(p, given=1) + lost, abs=close)
    assert lost >= 0


@few
@given(joints(4, 3), st.lists(st.floats(0.01, 1), min_size=5, max_size=5), prompts)
def test_theorem_3_11_perfect_prompts_lose_nothing(kinds: Floats, uses: list[float], prompt: list[int]) -> None:
    """Skills of one prompt are given the same texts."""
    p = normalised(kinds, 0)[:, prompt] * np.array(uses)
    p /= p.sum()
    assert is_perfect_prompt(p, prompt)
    assert prompted_entropy(p, prompt) == pytest.approx(conditional_entropy(p, given=1), abs=close)


@few
@given(joints(4, 5), prompts)
def test_theorem_3_11_only_perfect_prompts_lose_nothing(p: Floats, prompt: list[int]) -> None:
    lost = prompted_entropy(p, prompt) - conditional_entropy(p, given=1)
    if is_perfect_prompt(p, prompt, tolerance=1e-9):
        assert lost == pytest.approx(0, abs=close)
    if lost > close:
        assert not is_perfect_prompt(p, prompt)
    if not is_perfect_prompt(p, prompt, tolerance=0.01) and p.sum(0).min() > 0.01:
        assert lost > 1e-7  # by Pinsker, at least 0.01 · 0.005² / 2


@few
@given(joints(4, 5), st.permutations(range(5)))
def test_naming_the_skill_is_perfect(p: Floats, names: list[int]) -> None:
    assert is_perfect_prompt(p, names)
    assert prompted_entropy(p, names) == pytest.approx(conditional_entropy(p, given=1), abs=close)


def test_a_prompt_that_says_nothing_leaves_the_entropy_of_texts() -> None:
    p = np.array([[0.3, 0.1], [0.1, 0.5]])
    assert prompted_entropy(p, [0, 0]) == pytest.approx(-0.4 * np.log(0.4) - 0.6 * np.log(0.6))
    assert not is_perfect_prompt(p, [0, 0])


# -- contexts ---------------------------------------------------------------------------------------------------------------


@few
@given(joints(3, 2, 4))
def test_theorem_3_15_contexts_help_on_average(p: Floats) -> None:
    told = context_information(p)
    assert told == pytest.approx(conditional_entropy(p.sum(2), given=1) - conditional_entropy(p, given=(1, 2)), abs=close)
    assert told >= 0
    change = context_change(p)
    assert np.nansum(p.sum(0) * change) == pytest.approx(-told, abs=close)
    for of_skill in change:  # beside a bad context there is a good one
        if np.nanmax(of_skill, initial=-1) > close and p.min() > 1e-3:
            assert np.nanmin(of_skill) < 0
    assert np.array_equal(np.isnan(change), p.sum(0) == 0)


@few
@given(joints(3, 2), joints(2, 4))
def test_lemma_3_14_irrelevant_contexts_change_nothing(texts: Floats, contexts: Floats) -> None:
    """C may follow from the skill, but tells no more of the text."""
    p = normalised(texts, 0)[:, :, None] * contexts
    p /= p.sum()
    occurs = p.sum(0) > 0
    assert np.array_equal(irrelevant_contexts(p), occurs)
    assert np.abs(context_change(p)[occurs]).max() <= close
    assert context_information(p) == pytest.approx(0, abs=close)
    assert conditional_entropy(p, given=(1, 2)) == pytest.approx(conditional_entropy(p.sum(2), given=1), abs=close)


@few
@given(joints(3, 2, 4))
def test_lemma_3_14_only_irrelevant_contexts_all_tell_nothing(p: Floats) -> None:
    occurs = p.sum(0) > 0
    if context_information(p) > close:
        assert not irrelevant_contexts(p)[occurs].all()
    far = occurs & ~irrelevant_contexts(p, tolerance=0.01) & (p.sum(0) > 0.01)
    assert context_information(p) > 1e-7 or not far.any()


@few
@given(joints(3, 2, 4), st.integers(0, 3))
def test_one_irrelevant_context_among_others(p: Floats, c: int) -> None:
    """p(x | y, c) set to what the other contexts of y give on average, which then is p(x | y)."""
    assume((np.delete(p, c, 2).sum((0, 2)) > 0).all())
    p = p.copy()
    p[:, :, c] = normalised(np.delete(p, c, 2).sum(2), 0) * 0.1
    p /= p.sum()
    assert irrelevant_contexts(p)[:, c].all()
    assert np.abs(context_change(p)[:, c]).max() <= close


def test_good_and_bad_contexts_of_one_skill() -> None:
    """Two texts at odds 9 to 1: one context settles which, the other makes it a toss-up."""
    p = np.array([[0.8, 0.1], [0.0, 0.1]])[:, None, :]
    good, bad = context_change(p)[0]
    before = -0.9 * np.log(0.9) - 0.1 * np.log(0.1)
    assert (good, bad) == pytest.approx((-before, np.log(2) - before))
    assert not irrelevant_contexts(p).any()
    other = np.array([[0.3, 0.1], [0.1, 0.3]])[:, None, :] / 0.8  # as uncertain as each other, and less than both together
    assert (context_change(other) < 0).all()


def test_a_context_that_swaps_texts_is_none_of_the_three() -> None:
    """It tells something, at no change of entropy: 0.7 to 0.3 becomes 0.3 to 0.7."""
    p = np.array([[[0.03, 0.67]], [[0.07, 0.23]]])
    assert context_change(p)[0, 0] == pytest.approx(0, abs=close)
    assert not irrelevant_contexts(p)[0, 0]
    assert context_information(p) > 0.01


@pytest.mark.parametrize("prompt", [[0], [0, 1, 2], [[0, 1]]])
def test_a_prompt_for_each_skill_or_none(prompt: list[int]) -> None:
    with pytest.raises(GeomprobeError, match="each skill"):
        prompted_entropy(np.full((2, 2), 0.25), prompt)


def test_contexts_need_three_axes() -> None:
    with pytest.raises(GeomprobeError, match="three axes, got 2"):
        context_change(np.full((2, 2), 0.25))
