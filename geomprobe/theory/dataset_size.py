"""The scaling law for dataset size (section 3.1): ``H(X) = C + A·D·Σ p_skill(y_i)²`` with ``Z_α = D^γ``, which tends to a power
``D^{1−2γ}`` of the dataset size D above C. Entropies are in nats.

For infinitely many skills ``Z_α = ζ(1+α) ≈ 1/α`` as α → 0. For M skills it is at most ``Σ_{k≤M} 1/k ≈ log M + 0.58``, so that
``Z_α ≈ 1/α`` takes more than ``e^{1/α}`` skills.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from geomprobe.errors import GeomprobeError
from geomprobe.theory.information import distribution
from geomprobe.theory.skills import power_sum

__all__ = ["alpha_of_area", "entropy_from_data", "fisher_information", "squared_shares"]

Floats = NDArray[np.float64]

_ALPHAS = (1e-8, 40.0)
"""Range in which α is searched. Closer to 0, ``1 + α`` loses the digits of α. Above it, ``Z_α`` rounds to 1."""


def fisher_information(p: ArrayLike, scores: ArrayLike) -> Floats:
    """Return ``F = E_{x∼p} [∇log p(x) ∇log p(x)ᵀ]``, ``(parameters, parameters)``.

    For a small Δθ both ``KL(p_{θ+Δθ} ‖ p_θ)`` and ``KL(p_θ ‖ p_{θ+Δθ})`` tend to ``½ ΔθᵀFΔθ``, and
    ``E ‖log p_{θ+Δθ} − log p_θ‖²`` tends to ``ΔθᵀFΔθ``.

    Args:
        p: the distribution, ``(n,)``.
        scores: the gradient ∇log p(x) with respect to the parameters for every x, ``(n, parameters)``.

    Raises:
        GeomprobeError: if ``p`` is not a distribution, or there is not one row of scores for each outcome.
    """
    probabilities, rows = distribution(p), np.asarray(scores, np.float64)
    if rows.ndim != 2 or probabilities.shape != rows.shape[:1]:
        raise GeomprobeError(
            f"fisher_information takes scores of shape (outcomes, parameters), got {rows.shape} for p of {probabilities.shape}"
        )
    information: Floats = rows.T @ (probabilities[:, None] * rows)
    return information


def squared_shares(alpha: float, M: float = math.inf) -> float:
    """Return ``Σ_{k≤M} p_skill(y_k)²`` under the degree law.

    The paper replaces sums by integrals and gets ``α² / (2α + 1)``. The sum is 1.2 times as large at α = 1, and π²/6 times as
    large as α → 0.

    >>> round(squared_shares(1.0), 6)  # ζ(4) / ζ(2)²
    0.4
    """
    return float(power_sum(2 * (1 + alpha), 0, M) / power_sum(1 + alpha, 0, M) ** 2)


def alpha_of_area(area: float, M: float = math.inf) -> float:
    """Return the α > 0 whose ``Z_α = Σ_{k≤M} k^{−(α+1)}`` is ``area``.

    Raises:
        GeomprobeError: if M skills have no such area for any α between 1e-8 and 40.

    >>> round(alpha_of_area(1000.0), 6)  # about 1/1000
    0.001001
    """
    most, least = (float(power_sum(1 + alpha, 0, M)) for alpha in _ALPHAS)
    if not least <= area <= most:
        raise GeomprobeError(f"Z_α of {M:g} skills lies between 1 and {most:.4g}, got {area:g}: take more skills, or less data")
    logarithm = brentq(lambda t: float(power_sum(1 + math.exp(t), 0, M)) - area, *map(math.log, _ALPHAS), xtol=1e-14)
    return math.exp(logarithm)


def entropy_from_data(D: ArrayLike, gamma: float, *, A: float = 1.0, C: float = 0.0, M: float = math.inf) -> Floats:
    """Return ``H(X) = C + A·D·Σ p_skill(y_i)²`` of datasets of size D, with the α for which ``Z_α = D^γ``.

    It falls with D only for γ > ½.

    Args:
        D: dataset sizes, above 1.
        gamma: γ > 0.
        A: the constant in ``E ‖log p(x | y) − log p(x)‖² ∼ A·D·p_skill(y)``.
        C: ``H(X | Y = y)`` of every skill. All skills are comprehended here.
        M: number of skills.

    Raises:
        GeomprobeError: if M skills have no ``Z_α`` as large as ``D^γ``.
    """
    sizes = np.asarray(D, np.float64)
    shares = [squared_shares(alpha_of_area(float(size) ** gamma, M), M) for size in sizes.ravel()]
    return np.asarray(C + A * sizes * np.reshape(shares, sizes.shape))
