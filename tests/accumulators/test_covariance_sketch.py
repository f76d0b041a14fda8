"""A sketched covariance against the whole one: what it knows is never too much, and what it does not know is said."""

import math

import pytest
import torch
from torch import Tensor

from geomprobe import GeomprobeError, RepresentationEntropy
from geomprobe.accumulators.covariance import Covariance, eigenvalues
from geomprobe.accumulators.covariance_sketch import CovarianceSketch, random_directions, sketched_eigenvalues
from geomprobe.accumulators.state import State, merge
from geomprobe.core.rows import Rows
from geomprobe.core.spectrum import log_volume, matrix_entropy
from tests.accumulators.harness import texts
from tests.metrics.measure import scalars_of

WIDTH = 96


def hidden(n: int, decay: float, seed: int = 0) -> Tensor:
    """Rows ``(1, n, WIDTH)`` whose covariance has eigenvalues that fall like ``j^-decay``."""
    draw = torch.randn(1, n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draw * torch.arange(1, WIDTH + 1).double() ** (-decay / 2)


def whole(rows: Rows) -> Tensor:
    return eigenvalues(Covariance(exact=True).contribution(rows))


def sketched(rows: Rows, rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    accumulator = CovarianceSketch(rank=rank, seed=seed)
    return sketched_eigenvalues(merge([accumulator.contribution(rows)]), accumulator)


@pytest.mark.parametrize("n", [5, 20, 400])
def test_a_sketch_of_the_rank_or_more_is_exact(n: int) -> None:
    rows = Rows(hidden(n, 1.0))
    values, residual = sketched(rows, min(n, WIDTH))
    torch.testing.assert_close(values, whole(rows).clamp_min(0), rtol=1e-5, atol=1e-7)
    assert float(residual) == pytest.approx(0, abs=1e-6)


def test_of_few_rows_no_more_directions_are_completed_than_there_are_rows() -> None:
    values, residual = sketched(Rows(hidden(20, 1.0)), 12)
    assert float(residual) > 0.01
    assert int((values > 0).sum()) == 20
    assert float(values.sum()) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("decay", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("rank", [4, 16, 64])
def test_what_it_knows_is_never_too_much_and_the_residual_bounds_the_rest(rank: int, decay: float, seed: int) -> None:
    rows = Rows(hidden(400, decay, seed))
    exact = whole(rows)
    trace = float(exact.sum())
    values, residual = sketched(rows, rank, seed)
    tau = float(residual)
    assert float(values.sum()) == pytest.approx(trace, rel=1e-6)
    completed = tau * trace / (WIDTH - rank)
    known = values[(values - completed).abs() > 1e-9][-rank:] if tau > 1e-7 else values[-rank:]
    errors = exact[-len(known) :] - known
    assert float(errors.min()) > -1e-6
    assert float(errors.clamp_min(0).sum()) <= tau * trace + 1e-6
    # Tropp et al. 2017, Theorem 4.1, is about the mean over draws of the directions.
    draws = [float(sketched(rows, rank, draw)[1]) * trace for draw in range(8)]
    bound = min((1 + r / (rank - r - 1)) * float(exact.flip(0)[r:].sum()) for r in range(rank - 1))
    assert sum(draws) / len(draws) <= bound
    # Audenaert 2007, for the spectra that the two numbers are read off.
    if 0 < tau <= 0.5:
        most = tau * math.log(WIDTH - 1) - tau * math.log(tau) - (1 - tau) * math.log1p(-tau)
        assert abs(float(matrix_entropy(values) - matrix_entropy(exact))) <= most
    low = float(log_volume(torch.cat([known, torch.zeros(WIDTH - len(known))])))
    c = WIDTH / 0.01
    assert low - 1e-3 <= float(log_volume(exact)) <= low + WIDTH * math.log1p(c * tau * trace / WIDTH) + 1e-3


def test_directions_are_the_same_everywhere_and_orthonormal() -> None:
    random_directions.cache_clear()
    with torch.inference_mode():
        first = random_directions(50, 8, 3)
    assert not first.is_inference()  # they are kept, and used in training too
    random_directions.cache_clear()
    assert torch.equal(first, random_directions(50, 8, 3))
    assert not torch.equal(first, random_directions(50, 8, 4))
    torch.testing.assert_close(first.mT @ first, torch.eye(8), rtol=0, atol=1e-6)


def test_the_metric_with_a_sketch_has_the_numbers_of_the_whole_and_says_what_is_missing() -> None:
    rows = Rows(hidden(400, 3.0))
    exact, approximate = (scalars_of(RepresentationEntropy(sketch=sketch), rows) for sketch in (None, 48))
    assert approximate.pop("sketch_residual") < 2e-3
    assert approximate.keys() == exact.keys()
    # How near the directions of this seed come; rounding is far less. d/ε² and roots lift what is spread evenly over the
    # unknown directions; fewer eigenvalues are left to fit.
    loose = {"entropy": 0.06, "entropy_nats": 0.06, "rankme": 0.15, "alpha_req": 0.05}
    assert approximate.pop("alpha_req_left_out") >= exact.pop("alpha_req_left_out")  # of what no direction was drawn for
    del approximate["rankme_left_out"], exact["rankme_left_out"]  # of the eigenvalues that are known
    for name, value in exact.items():
        assert approximate[name] == pytest.approx(value, rel=loose.get(name, 0.02)), name
        if name.startswith("text_") or name == "anisotropy":
            assert approximate[name] == pytest.approx(value, rel=1e-9)


def test_a_wide_state_is_small() -> None:
    """What a 70B-size model needs at every one of its 82 sites."""
    state: State = CovarianceSketch(rank=512).new_state(8192, torch.device("meta"))
    assert sum(value.numel() * 8 for value in state.values()) * 82 < 2.8e9
    exact = Covariance().new_state(8192, torch.device("meta"))
    assert sum(value.numel() * 8 for value in exact.values()) * 82 > 27e9


def test_more_directions_than_dimensions_are_all_of_them() -> None:
    rows = Rows(hidden(400, 1.0))
    values, residual = sketched(rows, 5 * WIDTH)
    torch.testing.assert_close(values, whole(rows), rtol=1e-5, atol=1e-8)
    assert float(residual) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("epsilon", [0.1, 0.01, 1e-3])
def test_the_bound_of_the_entropy_holds_at_small_distortions(epsilon: float) -> None:
    """Float32 products left a spectrum that falls fast more than it should know."""
    decay = torch.exp(-torch.arange(WIDTH) / 6)
    rows = Rows((torch.randn(1, 500, WIDTH, generator=torch.Generator().manual_seed(0)) * decay).float())
    accumulator = CovarianceSketch(rank=48, exact=epsilon < 0.05)
    values, residual = sketched_eigenvalues(merge([accumulator.contribution(rows)]), accumulator)
    exact, trace = whole(rows), float(values.sum())
    completed = float(residual) * trace / (WIDTH - 48)
    known = torch.where((values - completed).abs() < 1e-6 * completed, 0, values)
    low = float(log_volume(known, epsilon))
    most = low + WIDTH * math.log1p(float(residual) * trace / epsilon**2)
    assert low - 1e-3 <= float(log_volume(exact, epsilon)) <= most + 1e-3


def test_nothing_seen_and_bad_arguments() -> None:
    accumulator = CovarianceSketch(rank=3)
    values, residual = sketched_eigenvalues(accumulator.new_state(8, torch.device("cpu")), accumulator)
    assert values.isnan().all()
    assert residual.isnan()
    for bad in (0, -1, 2.5):
        with pytest.raises(GeomprobeError, match="sketch="):
            RepresentationEntropy(sketch=bad)  # type: ignore[arg-type]
    exact = scalars_of(RepresentationEntropy(sketch=8), Rows(texts()[2].unsqueeze(0)))
    assert exact["sketch_residual"] == pytest.approx(0, abs=1e-6)
