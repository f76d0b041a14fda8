"""Functions of eigenvalues against NumPy on the matrix itself, and the order they must keep."""

import itertools
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geomprobe.core import spectrum

few = settings(max_examples=50, deadline=None, derandomize=True)
spectra = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e3)), min_size=1, max_size=12).filter(any)


def random_covariance(n: int, width: int, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    rows = np.random.default_rng(seed).standard_normal((n, width)) * np.linspace(0.1, 2, width)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows.T @ rows / n)


def eigenvalues(n: int, width: int, seed: int = 0) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(torch.from_numpy(random_covariance(n, width, seed)))
    return values.clamp_min(0)


def near(expected: float) -> object:
    return pytest.approx(expected, rel=1e-12)  # float64 on both sides


@pytest.mark.parametrize("n", [3, 8, 50])
@pytest.mark.parametrize("epsilon", [0.1, 1.0])
def test_rate_distortion_entropy_is_definition_3_1(n: int, epsilon: float) -> None:
    sigma, width = random_covariance(n, 8), 8
    logdet = np.linalg.slogdet(np.eye(width) + width / epsilon**2 * sigma).logabsdet
    values = eigenvalues(n, width)
    assert float(spectrum.log_volume(values, epsilon)) == near(logdet)
    assert float(spectrum.rate_distortion_entropy(values, n, epsilon)) == near((width + n) / 2 * logdet)


@pytest.mark.parametrize("epsilon", [0.1, 1.0])
def test_entropy_is_largest_on_equal_eigenvalues(epsilon: float) -> None:
    most = spectrum.max_rate_distortion_entropy(8, 20.0, epsilon)
    assert most.dtype == torch.float64  # a float32 maximum made the normalised entropy 3e-8 wrong, and larger than 1
    assert float(most) == near((8 + 20) / 2 * 8 * math.log(1 + 1 / epsilon**2))
    flat = torch.full((8,), 1 / 8, dtype=torch.float64)
    assert float(spectrum.rate_distortion_entropy(flat, 20.0, epsilon)) == near(float(most))
    assert spectrum.rate_distortion_entropy(eigenvalues(20, 8), 20.0, epsilon) < most


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equation_1_is_the_entropy_of_equal_eigenvalues(rank: int) -> None:
    values = torch.tensor([1 / rank] * rank + [0.0] * (8 - rank), dtype=torch.float64)
    normalised = spectrum.rate_distortion_entropy(values, 5.0) / spectrum.max_rate_distortion_entropy(8, 5.0)
    assert float(spectrum.equal_spectrum_entropy(rank / 8)) == near(float(normalised))


def test_equation_1_runs_from_0_to_1() -> None:
    values = spectrum.equal_spectrum_entropy(torch.linspace(0, 1, 11))
    assert float(values[0]) == 0
    assert float(values[-1]) == near(1)
    assert (values.diff() > 0).all()


@pytest.mark.parametrize("n", [5, 40])
def test_ranks_are_those_of_the_matrix(n: int) -> None:
    sigma, values = random_covariance(n, 8), eigenvalues(n, 8)
    sigma_p = sigma / np.trace(sigma)
    trace = np.trace(sigma)
    assert float(spectrum.stable_rank(values)) == near(trace / np.linalg.norm(sigma, 2))
    assert float(spectrum.participation_ratio(values)) == near(trace**2 / np.sum(sigma**2))
    # −tr(P log P) through a matrix logarithm; a trace of 1e-9 on the null space keeps it finite and moves H by 2e-7.
    blurred = (1 - 1e-9) * sigma_p + 1e-9 * np.eye(8) / 8
    entropy = -np.trace(blurred @ scipy.linalg.logm(blurred)).real
    assert float(spectrum.matrix_entropy(values)) == pytest.approx(entropy, abs=2e-7)
    assert float(spectrum.effective_rank(values)) == near(math.exp(float(spectrum.matrix_entropy(values))))
    assert float(spectrum.rank_ratio(values)) == near(float(spectrum.effective_rank(values)) / 8)


def test_condition() -> None:
    assert float(spectrum.condition_number(eigenvalues(40, 8))) == pytest.approx(
        np.linalg.cond(random_covariance(40, 8)), rel=1e-10
    )
    for seed in range(50):  # one direction short, the rounded eigenvalue may be a positive 1e-17
        assert float(spectrum.condition_number(eigenvalues(7, 8, seed))) == math.inf
    for times, singular in ((7, True), (9, False)):  # of the rounding of one; there are eight
        values = torch.ones(8, dtype=torch.float64)
        values[3] = times * torch.finfo(torch.float64).eps
        assert (float(spectrum.condition_number(values)) == math.inf) == singular


@pytest.mark.parametrize(("n", "width"), [(5, 8), (40, 8), (60, 200), (500, 200)])
def test_rankme_is_of_singular_values_and_alpha_req_a_weighted_line(n: int, width: int) -> None:
    sigma = random_covariance(n, width)
    values = torch.from_numpy(np.linalg.eigvalsh(sigma))
    singular = scipy.linalg.svdvals(scipy.linalg.sqrtm(sigma + 1e-13 * np.eye(width)))
    singular = singular[: min(n, width)]
    shares = singular / singular.sum()
    assert float(spectrum.rankme(values, 1e-9)) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
    fitted = np.sort(values.numpy())[::-1][: min(n, width)][3:100]
    j = np.arange(4, 4 + len(fitted))
    slope, _ = np.polyfit(np.log(j), np.log(fitted), 1, w=j**-0.5)
    assert float(spectrum.alpha_req(values, 1e-9)) == pytest.approx(-slope, rel=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("width", [5, 64, 300])
def test_alpha_req_finds_the_power_whatever_the_scale_and_the_first_three(alpha: float, width: int) -> None:
    values = 7 * torch.arange(1, width + 1).double() ** -alpha
    values[:3] += torch.tensor([100.0, 10.0, 8.0])
    values[100:] = 0
    assert float(spectrum.alpha_req(values)) == pytest.approx(alpha, abs=1e-12)


def test_rounding_in_a_null_space_does_not_count() -> None:
    """Of either sign, at the size that float32 products leave; of a root it would be a thousandth."""
    clean = torch.zeros(400, dtype=torch.float64)
    clean[:50] = torch.arange(1, 51).double() ** -2
    noisy = clean + 1e-7 * torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for function in (spectrum.rankme, spectrum.alpha_req):
        assert float(function(noisy, 1e-6)) == pytest.approx(float(function(clean)), rel=1e-4)
        assert abs(float(function(noisy)) / float(function(clean)) - 1) > 0.01


@pytest.mark.parametrize("function", [spectrum.rankme, spectrum.alpha_req])
def test_at_the_floor_rounding_decides_nothing(function: Callable[[Tensor, float], Tensor]) -> None:
    """Ten eigenvalues that pass the floor together: what a step at it would change at once comes bit by bit."""
    fixed = torch.arange(1, 61).double() ** -2
    passing = 1e-6 * torch.logspace(-1, 2, 1000, dtype=torch.float64)
    course = function(torch.cat([fixed.expand(1000, 60), passing[:, None].expand(1000, 10)], 1), 1e-6)
    whole = course.max() - course.min()
    assert float(whole / course[0]) > 0.01
    assert float(course.diff().abs().max() / whole) < 0.03
    noise = 4e-9 * torch.randn(1000, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # of float32 products
    for share in (1.0, 2.0, 8.0):
        values = torch.cat([fixed, torch.full((10,), share * 1e-6, dtype=torch.float64)])
        assert (function(values + noise, 1e-6) / function(values, 1e-6)).numpy() == pytest.approx(1, abs=5e-4)


def test_what_is_undefined_is_nan() -> None:
    assert spectrum.rankme(torch.zeros(8)).isnan()
    assert spectrum.alpha_req(torch.zeros(8)).isnan()
    for values in ([1.0], [1.0, 0.5, 0.2], [1.0, 0.5, 0.2, 0.1], [1.0, 0.5, 0.2, 0.1, 0.0]):
        assert spectrum.alpha_req(torch.tensor(values)).isnan()
    assert not spectrum.alpha_req(torch.tensor([1.0, 0.5, 0.2, 0.1, 0.1])).isnan()


@few
@given(spectra, st.floats(1e-3, 1e3))
def test_ranks_are_ordered_and_free_of_scale(values: list[float], scale: float) -> None:
    given, scaled = torch.tensor(values, dtype=torch.float64), torch.tensor(values, dtype=torch.float64) * scale
    rank = sum(value > 0 for value in values)
    functions = (spectrum.stable_rank, spectrum.participation_ratio, spectrum.effective_rank, spectrum.rankme)
    chain = [1.0, *(float(function(given)) for function in functions), float(rank)]
    for low, high in itertools.pairwise(chain):
        assert low <= high * (1 + 1e-12)
    for function in (*functions, spectrum.matrix_entropy, spectrum.rank_ratio):
        assert float(function(scaled)) == pytest.approx(float(function(given)), rel=1e-10, abs=1e-12)
    assert float(spectrum.matrix_entropy(given)) >= -1e-15
    alpha, same = float(spectrum.alpha_req(given)), float(spectrum.alpha_req(scaled))
    assert same == pytest.approx(alpha, rel=1e-9, abs=1e-9, nan_ok=True)
    assert not alpha < -1e-12
    if all(values):
        assert float(spectrum.condition_number(scaled)) == pytest.approx(float(spectrum.condition_number(given)), rel=1e-12)


@few
@given(spectra, st.randoms(use_true_random=False))
def test_order_of_eigenvalues_does_not_matter(values: list[float], draw: random.Random) -> None:
    shuffled = draw.sample(values, len(values))
    for function in (
        spectrum.log_volume,
        spectrum.matrix_entropy,
        spectrum.stable_rank,
        spectrum.participation_ratio,
        spectrum.rankme,
        spectrum.alpha_req,
    ):
        one, other = (float(function(torch.tensor(order, dtype=torch.float64))) for order in (values, shuffled))
        assert one == pytest.approx(other, rel=1e-12, abs=1e-15, nan_ok=True)


def test_batches_are_spectra_one_by_one() -> None:
    batch = torch.stack([torch.stack([eigenvalues(n, 8, seed) for n in (5, 9, 40)]) for seed in (0, 1)])
    n = torch.tensor([5.0, 9.0, 40.0], dtype=torch.float64)
    for i, j in np.ndindex(2, 3):
        for function in (
            spectrum.log_volume,
            spectrum.matrix_entropy,
            spectrum.effective_rank,
            spectrum.rank_ratio,
            spectrum.stable_rank,
            spectrum.participation_ratio,
            spectrum.rankme,
            spectrum.alpha_req,
            spectrum.condition_number,
        ):
            assert float(function(batch)[i, j]) == near(float(function(batch[i, j])))
        assert float(spectrum.rate_distortion_entropy(batch, n)[i, j]) == near(
            float(spectrum.rate_distortion_entropy(batch[i, j], float(n[j])))
        )
