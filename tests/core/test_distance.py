"""Distances between texts against SciPy's matrix functions, in the span of two texts and in all dimensions."""

import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geomprobe.core.distance import (
    Distance,
    covariance_distances,
    js_leading_term,
    text_distances,
    vector_distances,
)
from geomprobe.errors import GeomprobeError

few = settings(max_examples=40, deadline=None, derandomize=True)
DISTANCES = get_args(Distance)


def logdet(a: np.ndarray) -> float:
    return float(np.linalg.slogdet(a).logabsdet)


def printed_logdet(a: np.ndarray, b: np.ndarray) -> float:
    """As the paper prints it; a matrix and itself are at a distance of rounding, of either sign under the root."""
    return math.sqrt(max(0.0, logdet((a + b) / 2) - (logdet(a) + logdet(b)) / 2))


def larger_logarithms(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``log λ`` of the eigenvalues of ``A⁻¹B`` above one: those below lose digits, and are the others' reciprocals."""
    values = scipy.linalg.eigh(b, a, eigvals_only=True)
    return np.asarray(np.log(values[values > 1]))


TWINS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "logdet": printed_logdet,
    "js": lambda a, b: printed_logdet(np.eye(len(a)) + 100 * a, np.eye(len(a)) + 100 * b),
    "riemann": lambda a, b: math.hypot(*larger_logarithms(a, b), *larger_logarithms(b, a)),
    "log_euclidean": lambda a, b: float(np.linalg.norm(scipy.linalg.logm(a) - scipy.linalg.logm(b))),
    "frobenius": lambda a, b: float(np.linalg.norm(a - b)),
}


def twin(distance: Distance, sigmas: Tensor, delta: float) -> Tensor:
    plain = list(sigmas.numpy() + (0 if distance == "js" else delta) * np.eye(sigmas.shape[-1]))
    pairs = [[0.0 if a is b else TWINS[distance](a, b) for a in plain] for b in plain]
    return torch.tensor(pairs, dtype=torch.float64)


def texts(*lengths: int, width: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(n, width, generator=generator, dtype=torch.float64) for n in lengths]
    return [torch.nn.functional.normalize(text, dim=1) for text in rows]


def covariances(rows: list[Tensor]) -> Tensor:
    return torch.stack([text.mT @ text / len(text) for text in rows])


def close(got: Tensor, expected: Tensor, atol: float = 1e-8) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=atol)


@pytest.mark.parametrize("distance", DISTANCES)
def test_full_covariances_agree_with_scipy(distance: Distance) -> None:
    sigmas = covariances(texts(30, 50, 80, 40, width=8))
    close(covariance_distances(sigmas, distance, delta=1e-3), twin(distance, sigmas, 1e-3))


@pytest.mark.parametrize("distance", DISTANCES)
def test_singular_covariances_agree_with_scipy_at_the_paper_s_delta(distance: Distance) -> None:
    rows = texts(3, 7, 2, 5, width=24)
    expected = twin(distance, covariances(rows), 1e-6)
    for got in (text_distances(rows, distance, delta=1e-6), covariance_distances(covariances(rows), distance, delta=1e-6)):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("width", [24, 100], ids=["each-pair-in-its-span", "all-in-one-span-first"])
def test_short_texts_agree_with_scipy_in_all_dimensions(distance: Distance, width: int) -> None:
    rows = texts(3, 11, 7, 1, 5, width=width)
    close(text_distances(rows, distance, delta=1e-2), twin(distance, covariances(rows), 1e-2))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("delta", [1e-2, 1e-6])
def test_rows_and_covariances_agree(distance: Distance, delta: float) -> None:
    """Also where rows outnumber half the dimensions, and at the default δ on singular covariances."""
    for width in (9, 40):
        rows = texts(4, 6, 5, width=width)
        by_rows = text_distances(rows, distance, delta=delta)
        assert by_rows.isfinite().all()
        torch.testing.assert_close(
            by_rows, covariance_distances(covariances(rows), distance, delta=delta), rtol=1e-7, atol=1e-8
        )


@pytest.mark.parametrize("distance", DISTANCES)
@few
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 6))
def test_symmetric_zero_on_equal_texts_and_blind_to_rotation(distance: Distance, seed: int, n: int, m: int) -> None:
    first, second = texts(n, m, width=14, seed=seed)
    got = text_distances([first, second, first], distance, delta=1e-3)
    assert torch.equal(got, got.mT)
    assert torch.equal(got.diagonal(), torch.zeros(3, dtype=torch.float64))
    assert float(got[0, 2]) == pytest.approx(0, abs=1e-9)
    assert float(got[0, 1]) == pytest.approx(float(got[1, 2]), rel=1e-9)
    assert float(got[0, 1]) > 1e-6
    turn = torch.linalg.qr(torch.randn(14, 14, dtype=torch.float64)).Q
    close(text_distances([first @ turn, second @ turn, first @ turn], distance, delta=1e-3), got)


@pytest.mark.parametrize("distance", DISTANCES)
@few
@given(st.integers(0, 1000))
def test_triangle_inequality(distance: Distance, seed: int) -> None:
    for rows in (texts(3, 4, 2, width=20, seed=seed), texts(9, 12, 30, width=4, seed=seed)):
        d = text_distances(rows, distance)
        assert float(d[0, 1]) <= float(d[0, 2] + d[2, 1]) + 1e-9


def test_commuting_covariances_give_numbers_one_can_work_out() -> None:
    """Σ₁ = diag(a), Σ₂ = diag(b): everything is a sum over the diagonal."""
    a, b, delta = torch.tensor([1.0, 0.5, 0.0]).double(), torch.tensor([0.25, 0.5, 2.0]).double(), 0.25
    pair = torch.stack([a.diag(), b.diag()])
    x, y = a + delta, b + delta
    expected = {
        "logdet": (((x + y) / 2).log() - (x * y).log() / 2).sum().sqrt(),
        "js": ((1 + 50 * (a + b)).log() - ((1 + 100 * a) * (1 + 100 * b)).log() / 2).sum().sqrt(),
        "riemann": (x / y).log().norm(),
        "log_euclidean": (x / y).log().norm(),
        "frobenius": (a - b).norm(),
    }
    for distance in DISTANCES:
        close(covariance_distances(pair, distance, delta=delta)[0, 1], expected[distance])


@pytest.mark.parametrize("lengths", [(40, 60), (2, 3)], ids=["full-rank", "singular"])
def test_theorem_a_1_js_tends_to_its_leading_term(lengths: tuple[int, int]) -> None:
    """With the next term of the series: ``−γ² tr((A+B)(A−B)²) / (4√2‖A−B‖)``, so the ratio is 1 − O(γ)."""
    sigmas = covariances(texts(*lengths, width=6))
    a, b = sigmas.numpy()
    norm = float(np.linalg.norm(a - b))
    next_term = float(np.trace((a + b) @ (a - b) @ (a - b))) / (math.sqrt(32) * norm)
    for gamma in (1e-2, 1e-4, 1e-6):
        leading = float(js_leading_term(sigmas, gamma)[0, 1])
        assert leading == pytest.approx(math.sqrt(gamma**2 / 8) * norm, rel=1e-12)
        js = float(covariance_distances(sigmas, "js", gamma=gamma)[0, 1])
        assert js / leading == pytest.approx(1, abs=2 * gamma)
        assert (leading - js) / gamma**2 == pytest.approx(next_term, rel=2 * gamma + 1e-6)
    assert js_leading_term(sigmas, 1e-2).diagonal().tolist() == [0, 0]


def test_theorem_a_1_assumes_a_small_gamma() -> None:
    sigmas = torch.stack([torch.diag(torch.tensor([2.0, 1.0])), torch.eye(2)])
    assert float(js_leading_term(sigmas, 0.49)[0, 1]) == pytest.approx(0.49 / math.sqrt(8))
    with pytest.raises(GeomprobeError, match=r"gamma below 1/max\(‖A‖, ‖B‖\) = 0\.5, got 0\.5"):
        js_leading_term(sigmas, 0.5)
    with pytest.raises(GeomprobeError, match=r"above 0, got 1\.0 and -1"):
        js_leading_term(sigmas, -1)
    with pytest.raises(GeomprobeError, match="symmetric"):
        js_leading_term(torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]), 0.1)


def test_js_tends_to_logdet_as_gamma_grows() -> None:
    """On positive definite covariances, with an error that falls as 1/γ."""
    sigmas = covariances(texts(40, 60, width=6))
    limit = printed_logdet(*sigmas.numpy())
    errors = [abs(float(covariance_distances(sigmas, "js", gamma=gamma)[0, 1]) - limit) for gamma in (1e2, 1e4, 1e6)]
    assert errors[0] > 50 * errors[1] > 2500 * errors[2]
    assert errors[2] < 1e-4 * limit
    singular = covariances(texts(2, 3, width=6))  # and its square without limit on others
    js = [float(covariance_distances(singular, "js", gamma=gamma)[0, 1]) for gamma in (1e4, 1e6)]
    assert js[1] ** 2 - js[0] ** 2 == pytest.approx(math.log(100) * (5 - (2 + 3) / 2), rel=1e-2)


def test_riemann_is_blind_to_a_change_of_basis() -> None:
    sigmas = covariances(texts(40, 60, width=6)) + 0.1 * torch.eye(6)
    change = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moved = change @ sigmas @ change.mT
    close(covariance_distances(moved, "riemann", delta=1e-14), covariance_distances(sigmas, "riemann", delta=1e-14))


@pytest.mark.parametrize("distance", DISTANCES)
def test_close_covariances_keep_their_digits(distance: Distance) -> None:
    """A difference of log-determinants would leave none: squared, the distance is 1e-16 of them."""
    a = torch.diag(torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64))
    step = 1e-7 * torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64))
    near, far = (covariance_distances(torch.stack([a, a + k * step]), distance)[0, 1] for k in (1, 2))
    assert float(far / near) == pytest.approx(2, rel=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_chunks_change_nothing(distance: Distance, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = texts(3, 5, 4, 2, width=30)
    whole = text_distances(rows, distance)
    monkeypatch.setattr("geomprobe.core.distance._CHUNK", 1)
    torch.testing.assert_close(text_distances(rows, distance), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_one_text_is_at_no_distance(distance: Distance) -> None:
    assert text_distances(texts(3, width=30), distance).tolist() == [[0.0]]


def test_vectors_are_compared_without_cancellation() -> None:
    vectors = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    vectors[3] = vectors[1]
    vectors[4] = vectors[1] + 1e-6
    got = vector_distances(vectors)
    assert got[1, 3] == 0
    expected = torch.tensor([[math.dist(a, b) for a in vectors.tolist()] for b in vectors.tolist()], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([(3, 4), (3, 5)], {}, "all of one width"),
        ([(3, 4), (0, 4)], {}, "none of them empty"),
        ([], {}, "one or more texts"),
        ([(3, 4)], {"delta": 0.0}, "above 0, got 0.0"),
        ([(3, 4)], {"distance": "stein"}, "unknown distance 'stein': expected one of logdet, js"),
    ],
)
def test_what_cannot_be_compared_is_refused(rows: list[tuple[int, int]], options: dict[str, str], said: str) -> None:
    with pytest.raises(GeomprobeError, match=said):
        text_distances([torch.ones(*shape) for shape in rows], **({"distance": "riemann"} | options))  # type: ignore[arg-type]


def test_rows_that_are_not_finite_are_refused() -> None:
    with pytest.raises(GeomprobeError, match="finite rows"):
        text_distances([torch.tensor([[1.0, math.nan]])], "js")


@pytest.mark.parametrize("distance", ["logdet", "js", "riemann", "log_euclidean"])
def test_matrices_that_are_no_covariances_are_refused(distance: Distance) -> None:
    pair = torch.stack([torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, -0.5]])])
    with pytest.raises(GeomprobeError, match="not positive definite"):
        covariance_distances(pair, distance)
    with pytest.raises(GeomprobeError, match="symmetric"):
        covariance_distances(torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]), distance)
