"""Definitions 3.9, 3.12 and 3.13, Lemmas 3.10 and 3.14, Theorems 3.11 and 3.15, against sums written out."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import Generator
from numpy.typing import NDArray

from geomprobe.errors import GeomprobeError
from geomprobe.theory.prompting import (
    context_change,
    context_kind,
    context_kinds,
    is_perfect_prompt,
    prompted_entropies,
    prompted_entropy,
)
from tests.theory.test_information import joints

Floats = NDArray[np.float64]
few = settings(max_examples=100, deadline=None, derandomize=True)
prompts = st.lists(st.integers(0, 2), min_size=5, max_size=5)


def entropy(p: Floats) -> float:
    return -math.fsum(float(x) * math.log(x) for x in p if x > 0)


def mean_entropy(p: Floats) -> float:
    """H(X | Y) of p(x, y)."""
    return math.fsum(float(column.sum()) * entropy(column / column.sum()) for column in p.T if column.any())


def merged(p: Floats, prompt: list[int]) -> Floats:
    """p(x, ȳ)."""
    return np.stack([p[:, [y for y, each in enumerate(prompt) if each == name]].sum(1) for name in sorted(set(prompt))], 1)


# -- prompts ----------------------------------------------------------------------------------------------------------------


def perfect(kinds: Floats, uses: list[float], prompt: list[int]) -> Floats:
    """p(x, y) in which skills with one prompt have the same texts."""
    p = ((kinds + 1e-3) / (kinds + 1e-3).sum(0))[:, prompt] * np.array(uses)
    return np.asarray(p / p.sum())


@few
@given(joints(4, 3), st.lists(st.floats(0.01, 1), min_size=5, max_size=5), prompts)
def test_a_perfect_prompt_leaves_every_entropy(kinds: Floats, uses: list[float], prompt: list[int]) -> None:
    p = perfect(kinds, uses, prompt)
    assert is_perfect_prompt(p, prompt)
    of_skills = [entropy(column / column.sum()) for column in p.T]
    np.testing.assert_allclose(prompted_entropies(p, prompt), of_skills, rtol=0, atol=1e-12)  # Lemma 3.10
    assert prompted_entropy(p, prompt) == pytest.approx(mean_entropy(p), abs=1e-12)  # Theorem 3.11


@few
@given(joints(4, 5), prompts)
def test_prompts_are_perfect_by_their_definition(p: Floats, prompt: list[int]) -> None:
    together = merged(p, prompt)
    names = sorted(set(prompt))
    differ = 0.0
    for y, name in enumerate(prompt):
        if p[:, y].any():
            of_prompt = together[:, names.index(name)]
            differ = max(differ, float(np.abs(p[:, y] / p[:, y].sum() - of_prompt / of_prompt.sum()).max()))
    assert is_perfect_prompt(p, prompt, tolerance=differ + 1e-12)
    assert differ < 1e-9 or not is_perfect_prompt(p, prompt, tolerance=differ - 1e-10)


@few
@given(joints(4, 5), prompts)
def test_prompted_entropies_are_those_of_merged_skills(p: Floats, prompt: list[int]) -> None:
    together = merged(p, prompt)
    assert prompted_entropy(p, prompt) == pytest.approx(mean_entropy(together), abs=1e-12)
    of_prompts = [entropy(column / column.sum()) if column.any() else math.nan for column in together.T]
    expected = [of_prompts[sorted(set(prompt)).index(name)] for name in prompt]
    np.testing.assert_allclose(prompted_entropies(p, prompt), expected, rtol=0, atol=1e-12)


@few
@given(joints(4, 5), st.permutations(range(5)))
def test_a_prompt_of_its_own_for_each_skill_is_perfect(p: Floats, names: list[int]) -> None:
    assert is_perfect_prompt(p, names)
    assert prompted_entropy(p, names) == pytest.approx(mean_entropy(p), abs=1e-12)


def test_a_prompt_that_says_nothing_leaves_the_entropy_of_texts() -> None:
    p = np.array([[0.3, 0.1], [0.1, 0.5]])
    assert prompted_entropy(p, [0, 0]) == pytest.approx(-0.4 * np.log(0.4) - 0.6 * np.log(0.6))
    assert not is_perfect_prompt(p, [0, 0])


@pytest.mark.parametrize("prompt", [[0], [0, 1, 2], [[0, 1]]])
def test_a_prompt_for_each_skill_or_none(prompt: list[int]) -> None:
    with pytest.raises(GeomprobeError, match="one prompt for each skill"):
        prompted_entropy(np.full((2, 2), 0.25), prompt)


# -- contexts ---------------------------------------------------------------------------------------------------------------


def skill(draw: Generator, kind: str) -> tuple[Floats, Floats]:
    """p(x | y) and p(x | context, y)."""
    low, high = sorted((draw.dirichlet(np.full(5, 0.5)) for _ in range(2)), key=entropy)
    return {"irrelevant": (low, low * 0.7 / 0.7), "good": (high, low), "bad": (low, high)}[kind]


def context(draw: Generator, kinds: list[str]) -> tuple[Floats, Floats, Floats]:
    """Under the power law that the paper gives p_skill."""
    before, after = zip(*(skill(draw, kind) for kind in kinds), strict=True)
    weights = np.arange(1, len(kinds) + 1) ** -1.5
    return weights / weights.sum(), np.stack(before, 1), np.stack(after, 1)


def test_theorem_3_15_on_1000_contexts() -> None:
    """Good, bad or irrelevant for every skill: the sign, and equality where all are irrelevant."""
    draw = np.random.default_rng(0)
    seen = dict.fromkeys(("good", "bad", "irrelevant"), 0)
    for number in range(1000):
        kind = list(seen)[number % 3]
        kinds = [str(each) for each in draw.choice([kind, "irrelevant"], draw.integers(1, 9))]
        kinds[int(draw.integers(len(kinds)))] = kind
        p_skill, before, after = context(draw, kinds)
        assert context_kinds(before, after) == kinds
        assert context_kind(p_skill, before, after) == kind
        change = context_change(p_skill, before, after)
        by_hand = math.fsum(
            float(p) * (entropy(after[:, y]) - entropy(before[:, y])) for y, p in enumerate(p_skill)
        )  # Σ p_skill(y) [H(X | context, Y = y) − H(X | Y = y)]
        assert abs(change - by_hand) < 1e-12
        assert {"good": change < 0, "bad": change > 0, "irrelevant": abs(change) < 1e-12}[kind]
        seen[kind] += 1
    assert min(seen.values()) >= 333


def test_mixed_contexts_are_told_apart() -> None:
    draw = np.random.default_rng(1)
    signs = set()
    for _ in range(300):
        kinds = [str(kind) for kind in draw.permutation(["good", "bad", *draw.choice(["good", "bad", "irrelevant"], 2)])]
        parts = context(draw, kinds)
        assert context_kind(*parts) == "mixed"
        assert context_kinds(*parts[1:]) == kinds
        signs.add(context_change(*parts) > 0)
    assert signs == {True, False}  # of these the theorem says nothing


def test_a_context_that_swaps_texts_is_none_of_the_three() -> None:
    """It is relevant and changes no entropy: 0.7 to 0.3 becomes 0.3 to 0.7."""
    before, after = np.array([[0.7], [0.3]]), np.array([[0.3], [0.7]])
    assert context_kinds(before, after) == ["neither"]
    assert context_kind([1.0], before, after) == "mixed"
    assert context_change([1.0], before, after) == pytest.approx(0, abs=1e-15)


def test_the_strict_sign_needs_a_good_skill_of_positive_probability() -> None:
    before, after = np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([[0.9, 0.5], [0.1, 0.5]])
    assert context_kinds(before, after) == ["good", "irrelevant"]
    assert context_kind([0.0, 1.0], before, after) == "irrelevant"
    assert context_change([0.0, 1.0], before, after) == 0
    assert context_kind([0.1, 0.9], before, after) == "good"
    assert context_change([0.1, 0.9], before, after) < 0


def test_tolerance_decides_what_is_irrelevant() -> None:
    before, after = np.array([[0.5], [0.5]]), np.array([[0.6], [0.4]])
    assert context_kinds(before, after) == ["good"]
    assert context_kinds(before, after, tolerance=0.2) == ["irrelevant"]


def test_contexts_that_do_not_fit_are_refused() -> None:
    half = np.full((2, 3), 0.5)
    with pytest.raises(GeomprobeError, match=r"each of shape \(texts, skills\), got shapes \(2, 3\) and \(2, 2\)"):
        context_kinds(half, half[:, :2])
    with pytest.raises(GeomprobeError, match=r"got shapes \(2,\) and \(2,\)"):
        context_kinds(half[:, 0], half[:, 0])
    for wrong, said in ((0.6, "sum of 1.2"), (math.nan, "not finite"), (-0.5, "negative")):
        with pytest.raises(GeomprobeError, match=said):
            context_kinds(half, np.where(np.arange(3) == 1, wrong, half))
    with pytest.raises(GeomprobeError, match=r"one probability for each skill, got shape \(2,\) for skills \(3,\)"):
        context_change([0.5, 0.5], half, half)
