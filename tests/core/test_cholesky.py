"""One factor against scikit-learn, determinants and normal equations; the paper's Theorem 4.1 against both."""

import mpmath  # type: ignore[import-untyped]  # comes with torch
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct
from sklearn.linear_model import Ridge
from torch import Tensor

from geomprobe.accumulators.information_gain import InformationGainSum
from geomprobe.accumulators.state import add
from geomprobe.core.cholesky import (
    exact_increment,
    gains,
    information_gain,
    posterior_variance,
    ridge_coefficients,
    scaled_factor,
    theorem_4_1_as_printed,
)
from geomprobe.core.rows import Rows
from geomprobe.core.streaming_gain import GainStream
from tests.accumulators.harness import padded, texts

few = settings(max_examples=40, deadline=None, derandomize=True)
sigmas = pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0])


def unit(n: int, width: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, width, generator=generator, dtype=torch.float64) + 0.5, dim=-1)


def log_determinant(z: Tensor, sigma: float) -> float:
    """``½ logdet(I + σ⁻²K)`` through an LU factorisation."""
    rows = z.numpy()
    return float(np.linalg.slogdet(np.eye(len(rows)) + rows @ rows.T / sigma**2).logabsdet) / 2


def rounding(sigma: float) -> float:
    """Error of float64 when K is multiplied by σ⁻² and its determinant taken, per token: 1e-12 at σ = 1, 1e-10 at σ = 0.01."""
    return 1e-12 + 1e-14 * sigma**-2


@sigmas
@pytest.mark.parametrize("n", [1, 5, 20])
def test_information_gain_is_the_log_determinant(n: int, sigma: float) -> None:
    z = unit(n)
    assert float(information_gain(z @ z.mT, sigma)) == pytest.approx(log_determinant(z, sigma), abs=rounding(sigma))
    # and the same d×d, as the whole stream has it
    assert float(information_gain(z.mT @ z, sigma)) == pytest.approx(log_determinant(z, sigma), abs=rounding(sigma))
    # and the mutual information H(y) − H(y|f) of the Gaussian reading y ~ N(0, K + σ²I), f ~ N(0, K)
    spread = np.linalg.eigvalsh(z.numpy() @ z.numpy().T + sigma**2 * np.eye(n))
    assert float(information_gain(z @ z.mT, sigma)) == pytest.approx(np.log(spread / sigma**2).sum() / 2, abs=rounding(sigma))


@sigmas
def test_every_gain_is_a_difference_of_log_determinants(sigma: float) -> None:
    z = unit(20)
    factor, info = scaled_factor(z @ z.mT, sigma)
    assert int(info) == 0
    logs = [log_determinant(z[:t], sigma) for t in range(21)]
    np.testing.assert_allclose(gains(factor).numpy(), np.diff(logs), rtol=0, atol=rounding(sigma))


@sigmas
def test_posterior_variance_is_the_gaussian_processs(sigma: float) -> None:
    z = unit(20)
    variance = posterior_variance(scaled_factor(z @ z.mT, sigma)[0], sigma)
    assert float(variance[0]) == pytest.approx(1, rel=1e-12)
    kernel = DotProduct(sigma_0=0, sigma_0_bounds="fixed")
    for t in range(1, 20):
        process = GaussianProcessRegressor(kernel, alpha=sigma**2, optimizer=None).fit(z[:t].numpy(), np.zeros(t))
        std = process.predict(z[t : t + 1].numpy(), return_std=True)[1]
        # It subtracts from ‖z‖² = 1 what the context explains: absolute, not relative, to the rounding of 1/σ² conditioning.
        assert float(variance[t]) == pytest.approx(float(std[0]) ** 2, abs=1e-11)


@sigmas
def test_ridge_is_scikit_learns_and_satisfies_the_normal_equations(sigma: float) -> None:
    z = unit(20)
    factor, _ = scaled_factor(z @ z.mT, sigma)
    coefficients, variance = ridge_coefficients(factor), posterior_variance(factor, sigma)
    assert not coefficients.triu().any()
    for t in range(1, 20):
        past, target, beta = z[:t].numpy(), z[t].numpy(), coefficients[t, :t].numpy()
        ridge = Ridge(alpha=sigma**2, fit_intercept=False, solver="svd").fit(past.T, target)
        np.testing.assert_allclose(beta, ridge.coef_, rtol=0, atol=rounding(sigma))
        gradient = past @ (past.T @ beta - target) + sigma**2 * beta
        np.testing.assert_allclose(gradient, 0, rtol=0, atol=1e-13 * max(1, 1e-2 / sigma**2))
        objective = np.square(target - past.T @ beta).sum() + sigma**2 * np.square(beta).sum()
        assert float(variance[t]) == pytest.approx(objective, abs=1e-12)  # its least value is the posterior variance


@few
@given(st.integers(1, 9), st.integers(0, 1000), st.sampled_from([0.001, 0.01, 0.3, 1.0, 4.0]))
def test_exact_increment_is_the_difference_of_log_determinants(n: int, seed: int, sigma: float) -> None:
    """To 1e-12 at any σ: both sides in 50 digits, so that σ⁻² = 1e6 rounds neither."""
    with mpmath.workdps(50):
        z = mpmath.matrix(unit(n + 1, width=6, seed=seed).tolist())
        gram, noise = z * z.T, mpmath.mpf(sigma) ** 2
        cross = gram[:n, n]
        explained = cross.T * mpmath.lu_solve(gram[:n, :n] + noise * mpmath.eye(n), cross)
        whole, before = (mpmath.log(mpmath.det(mpmath.eye(t) + gram[:t, :t] / noise)) / 2 for t in (n + 1, n))
        variance, difference = float(gram[n, n] - explained[0]), float(whole - before)
    increment = exact_increment(torch.tensor(variance, dtype=torch.float64), sigma)
    assert float(increment) == pytest.approx(difference, abs=1e-12)


def bordered_log_determinant(z: Tensor, sigma: float, border: float) -> float:
    """Increment of ``½ logdet [[I + σ⁻²K, b·k], [b·kᵀ, 1 + σ⁻²‖z‖²]]`` over ``½ logdet(I + σ⁻²K)``."""
    matrix = z.numpy() @ z.numpy().T / sigma**2 + np.eye(len(z))
    cross = z[:-1].numpy() @ z[-1].numpy()
    matrix[-1, :-1] = matrix[:-1, -1] = border * cross
    return float(np.linalg.slogdet(matrix).logabsdet - np.linalg.slogdet(matrix[:-1, :-1]).logabsdet) / 2


@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("length", [1.0, 0.6])
def test_theorem_4_1_as_printed_drops_a_sigma(sigma: float, length: float) -> None:
    z = unit(6) * torch.tensor([1, 1, 1, 1, 1, length], dtype=torch.float64).unsqueeze(1)
    variance = posterior_variance(scaled_factor(z @ z.mT, sigma)[0], sigma)[-1]
    printed = float(theorem_4_1_as_printed(variance, length**2, sigma))
    exact = float(exact_increment(variance, sigma))
    assert exact == pytest.approx(bordered_log_determinant(z, sigma, sigma**-2), abs=1e-11)
    assert printed == pytest.approx(bordered_log_determinant(z, sigma, 1), abs=1e-11)  # the off-diagonal without its σ⁻²
    if sigma == 1:
        assert printed == pytest.approx(exact, abs=1e-12)
    else:
        assert abs(printed - exact) > 1e-3


def test_theorem_4_1_as_printed_hardly_depends_on_the_context() -> None:
    variances = torch.tensor([1e-4, 1.0], dtype=torch.float64)  # a repeated direction, and a new one
    # Half the difference of the variances, times σ², over 1 + σ⁻²; of logarithms near 9, which float64 rounds by 2e-15.
    assert float(theorem_4_1_as_printed(variances).diff()) == pytest.approx((1 - 1e-4) * 1e-4 / 10001 / 2, rel=0, abs=1e-14)
    assert float(exact_increment(variances).diff()) == pytest.approx(np.log(10001 / 2) / 2, rel=1e-12)


@few
@given(st.integers(1, 12), st.integers(0, 1000), st.sampled_from([0.01, 0.3, 1.0]))
def test_more_rows_tell_more_each_less_in_any_order(n: int, seed: int, sigma: float) -> None:
    z = unit(n, width=5, seed=seed)
    factor, _ = scaled_factor(z @ z.mT, sigma)
    assert (gains(factor) >= -rounding(sigma)).all()
    assert (gains(factor) <= np.log1p(sigma**-2) / 2 + 1e-12).all()
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    shuffled = information_gain(z[order] @ z[order].mT, sigma)
    assert float(shuffled) == pytest.approx(float(gains(factor).sum()), abs=n * rounding(sigma))
    again = torch.cat([z, z[:1]])
    repeated = gains(scaled_factor(again @ again.mT, sigma)[0])[-1]
    assert float(repeated) <= float(gains(factor)[0]) + rounding(sigma)  # submodular: the second look tells less


def test_factor_that_fails_is_told_and_left_out() -> None:
    indefinite = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    assert int(scaled_factor(indefinite, 0.01)[1]) > 0
    rows = Rows(padded(texts(), "right").hidden[:, :8], padded(texts(), "right").mask[:, :8])  # longer than d: no Gram matrix
    (gram,) = rows.gram()
    gram[2] = -1
    accumulator = InformationGainSum()
    state, others = accumulator.new_state(8, torch.device("cpu")), accumulator.new_state(8, torch.device("cpu"))
    add(state, accumulator.contribution(rows))
    add(others, accumulator.contribution(padded([text[:8] for i, text in enumerate(texts()) if i != 2], "right", length=8)))
    assert float(state.pop("failed")) == 1
    assert float(others.pop("failed")) == 0
    for name, value in others.items():
        torch.testing.assert_close(state[name], value, rtol=1e-11, atol=1e-11)


def test_a_long_text_of_which_a_gain_is_not_finite_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator, rows = InformationGainSum(), padded(texts(), "right")  # longer than d
    expected = accumulator.contribution(padded([text for i, text in enumerate(texts()) if i != 2], "right", length=14))
    append = GainStream.append

    def fails(self: GainStream, rows: Tensor) -> Tensor:
        gain = append(self, rows)
        gain[2, 3] = torch.nan
        return gain

    monkeypatch.setattr(GainStream, "append", fails)
    state = accumulator.contribution(rows)
    assert float(state.pop("failed")) == 1
    assert float(expected.pop("failed")) == 0
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-11, atol=1e-11)


@sigmas
def test_sums_by_position_are_numpys(sigma: float) -> None:
    stream = texts()
    accumulator = InformationGainSum(sigma=sigma)
    state = accumulator.new_state(8, torch.device("cpu"))
    add(state, accumulator.contribution(padded(stream, "mixed")))
    expected = np.zeros((4, 14))
    totals = []
    for text in stream:
        z = torch.nn.functional.normalize(text, dim=-1)
        gain = np.diff([log_determinant(z[:t], sigma) for t in range(len(z) + 1)])
        variance = sigma**2 * np.expm1(2 * gain)
        expected[:, : len(z)] += [gain, gain**2, variance, np.ones(len(z))]
        totals.append(gain.sum())
    for name, row in zip(("gain", "gain_sq", "variance", "count"), expected, strict=True):
        np.testing.assert_allclose(state[name].numpy(), row, rtol=0, atol=10 * rounding(sigma), err_msg=name)
    sums = [float(state[name]) for name in ("texts", "total", "total_sq", "failed")]
    np.testing.assert_allclose(sums, [6, np.sum(totals), np.sum(np.square(totals)), 0], rtol=10 * rounding(sigma))


def test_float32_rows_hold_a_thousandth_of_a_nat_per_token() -> None:
    """Norm-one rows in float32 against float64, 256 tokens around a common direction, at σ⁻² = 1e4."""
    hidden = torch.randn(1, 256, 96, generator=torch.Generator().manual_seed(0)) + 2
    low, high = (gains(scaled_factor(Rows(rows).gram(), 0.01)[0]) for rows in (hidden, hidden.double()))
    torch.testing.assert_close(low, high, rtol=0, atol=1e-5)  # measured 1e-6; the design allows 1e-3
