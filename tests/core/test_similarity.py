"""Comparisons against NumPy by the formulas as printed, and what they must not see."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from geomprobe.core.similarity import debiased_cka, effective_rank_difference, mean_velocity
from geomprobe.errors import GeomprobeError

Array = NDArray[np.float64]
few = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)


def features(n: int, width: int, seed: int) -> Tensor:
    """Rows around a common one, as hidden states are."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, width))) + 2


def gram(rows: Tensor) -> Tensor:
    return rows @ rows.mT


def hsic(k: Array, m: Array) -> float:
    """Song et al. (2012), equation 5."""
    n = len(k)
    k, m, one = k - np.diag(np.diag(k)), m - np.diag(np.diag(m)), np.ones(len(k))
    middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float((np.trace(k @ m) + middle - 2 / (n - 2) * one @ k @ m @ one) / (n * (n - 3)))


@pytest.mark.parametrize("n", [4, 5, 30])
@pytest.mark.parametrize("width", [3, 100])
def test_cka_is_numpys(n: int, width: int) -> None:
    a, b = features(n, width, 0), features(n, 7, 1)
    b[:, 0] += 3 * a[:, 0]
    k, m = gram(a).numpy(), gram(b).numpy()
    expected = hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))
    assert float(debiased_cka(gram(a), gram(b))) == pytest.approx(expected, rel=1e-9)


def test_hsic_is_unbiased_over_every_choice_of_four_tokens() -> None:
    """The twin's own check: the estimate of n tokens is the mean of those of its subsets."""
    k, m = gram(features(6, 3, 0)).numpy(), gram(features(6, 3, 1)).numpy()
    parts = [[i for i in range(6) if i not in pair] for pair in itertools.combinations(range(6), 2)]
    mean = np.mean([hsic(k[np.ix_(part, part)], m[np.ix_(part, part)]) for part in parts])
    assert mean == pytest.approx(hsic(k, m), rel=1e-9)


@few
@given(seeds, st.integers(4, 20), st.integers(1, 30), st.floats(1e-3, 1e3))
def test_cka_sees_no_rotation_scale_shift_or_order(seed: int, n: int, width: int, scale: float) -> None:
    a, b = features(n, width, seed), features(n, 5, seed + 1)
    rotation = torch.linalg.qr(features(width, width, seed + 2)).Q
    moved = scale * a @ rotation + 5
    assert float(debiased_cka(gram(a), gram(moved))) == pytest.approx(1, abs=1e-6)
    same = float(debiased_cka(gram(a), gram(b)))
    assert -1 - 1e-12 <= same <= 1 + 1e-12
    assert float(debiased_cka(gram(moved), gram(b))) == pytest.approx(same, abs=1e-6)
    assert float(debiased_cka(gram(b), gram(a))) == pytest.approx(same, rel=1e-9)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert float(debiased_cka(gram(a[order]), gram(b[order]))) == pytest.approx(same, abs=1e-9)


def test_unrelated_features_have_none_even_with_fewer_tokens_than_dimensions() -> None:
    n, width = 40, 400
    k, m = (gram(torch.stack([features(n, width, seed + i) for seed in range(50)])) for i in (0, 1000))
    values = debiased_cka(k, m)
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(50) < 0.05
    centring = torch.eye(n).double() - 1 / n
    k, m = centring @ k @ centring, centring @ m @ centring
    plain = (k * m).sum((-2, -1)) / (k.square().sum((-2, -1)) * m.square().sum((-2, -1))).sqrt()
    assert float(plain.mean()) == pytest.approx(width / (n + width), abs=0.01)


def test_leading_dimensions_are_pairs_one_by_one() -> None:
    grams = gram(torch.stack([features(9, 4, seed) for seed in range(3)]))
    grid = debiased_cka(grams.unsqueeze(1), grams.unsqueeze(0))
    for i, j in np.ndindex(3, 3):
        assert float(grid[i, j]) == pytest.approx(float(debiased_cka(grams[i], grams[j])), rel=1e-12)
    assert grid.diagonal().tolist() == pytest.approx([1, 1, 1], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_cka_is_nan_where_it_is_undefined(dtype: torch.dtype) -> None:
    rows = features(50, 6, 0).to(dtype)
    other = gram(features(50, 3, 1).to(dtype))
    nearly = torch.nn.functional.normalize(rows[:1] * torch.arange(1, 51, dtype=dtype).unsqueeze(1))  # equal but for rounding
    assert gram(nearly).min() < gram(nearly).max()
    equal = (gram(rows[:1].expand(50, 6)), gram(nearly))
    for empty in (*equal, torch.zeros(50, 50, dtype=dtype), torch.eye(50, dtype=dtype)):
        assert debiased_cka(empty, other).isnan()
        assert debiased_cka(other, empty).isnan()
    for n in range(4):
        assert debiased_cka(gram(rows[:n]), other[:n, :n]).isnan()
    narrow = 1 + 1e-2 * rows  # cosines of 0.9999 are variance enough
    assert float(debiased_cka(gram(narrow), gram(rows))) == pytest.approx(1, abs=1e-2)


def test_effective_rank_difference() -> None:
    assert float(effective_rank_difference(math.log(9), math.log(4))) == pytest.approx(5, rel=1e-14)
    entropies = torch.tensor([[1.0, 2.0], [0.5, 2.0]])
    expected = torch.tensor([math.e - math.exp(0.5), 0.0]).double()
    torch.testing.assert_close(effective_rank_difference(*entropies), expected)


@few
@given(seeds, st.integers(1, 20), st.floats(1e-6, 1))
def test_velocity_is_numpys_and_has_its_bounds(seed: int, width: int, rate: float) -> None:
    a, b = (rows / rows.norm(dim=-1, keepdim=True) for rows in (features(9, width, seed), -features(9, width, seed + 1)))
    velocity = mean_velocity(a, b, rate)
    assert velocity.tolist() == pytest.approx([math.dist(x, y) / rate for x, y in zip(a, b, strict=True)], rel=1e-12)
    assert bool((velocity <= 2 / rate * (1 + 1e-12)).all())
    assert float(mean_velocity(a.mean(0), a.mean(0), rate)) == 0
    rotation = torch.linalg.qr(features(width, width, seed)).Q
    torch.testing.assert_close(mean_velocity(a @ rotation, b @ rotation, rate), velocity)


def test_velocity_without_a_learning_rate_or_of_other_shapes() -> None:
    assert math.isnan(mean_velocity(torch.zeros(2), torch.ones(2), 0.0))
    with pytest.raises(GeomprobeError, match=r"\(2,\) and \(3,\): expected those of the same sites of one model"):
        mean_velocity(torch.zeros(2), torch.zeros(3), 0.1)
