"""Fits of ``L = L₀ + λY^γ``, and whether the points require a power law at all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geomprobe.errors import GeomprobeError

__all__ = ["PowerLaw", "fit_power_law"]

Floats = NDArray[np.float64]

_STEEPEST = 10.0
"""Largest exponent of the search."""
_LARGEST_CHANGE = 100.0
"""Largest ``|γ|·log(x_max/x_min)`` of the search. Beyond it, ``x^γ`` is a spike at one end."""
_SMALLEST_CHANGE = 1e-5
"""Smallest ``|γ|·log(x_max/x_min)`` of the search. Below it, ``x^γ`` is a logarithm, and its coefficient loses digits."""
_ROUNDING = 1e-12
"""Residuals below this share of the largest ``|y|`` are rounding errors, which do not distinguish models."""


@dataclass(frozen=True)
class PowerLaw:
    """``y = constant + coefficient · x^exponent``, fitted by :func:`fit_power_law`. Calling it with x gives y.

    ``weights`` are Akaike weights of ``"power"``, ``"log-linear"`` (a + b·log x) and ``"constant"``: how much the points
    support each of the three, compared with the others. They are not probabilities that a model is true. ``best`` is the model
    with the largest weight. Intervals assume that the power law is true, so look at ``weights`` first. ``r2`` is the share of
    the variance of y that is explained, and 0 if y does not vary.
    """

    constant: float
    coefficient: float
    exponent: float
    constant_interval: tuple[float, float]
    exponent_interval: tuple[float, float]
    r2: float
    weights: dict[str, float]
    best: str

    def __call__(self, x: ArrayLike) -> Floats:
        return self.constant + self.coefficient * np.asarray(x, np.float64) ** self.exponent


def fit_power_law(x: ArrayLike, y: ArrayLike, *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0) -> PowerLaw:
    """Return the least-squares fit of ``y = L₀ + λx^γ`` with bootstrap intervals, compared with fits of a + b·log x and of a
    constant.

    For each γ the best L₀ and λ solve a linear problem, so only γ is searched: over a grid, then by Gauss–Newton steps within a
    bracket (variable projection, Golub & Pereyra 1973; Kaufman 1975). No initial value is needed. The range is ``|γ| ≤ 10``,
    and smaller if x spans more than ``e^10``: ``|γ|·log(x_max/x_min) ≤ 100``. If γ is at an end of the range, the points do not
    determine it.

    Intervals are percentiles over ``resamples`` fits to the fitted values plus residuals drawn with replacement, scaled up by
    √(n/(n−3)) and, for each fit, by a random √((n−3)/χ²_{n−3}), as in Student's t for a linear model: few points give wide
    intervals. They assume that the noise has the same size at every x.

    Weights are computed from AICc. For fewer than 6 points the correction does not exist, and AIC is used, which favours the
    power law.

    Args:
        x: ``(n,)`` positive numbers, with at least 4 different values, because the three parameters fit any 3 points.
        y: ``(n,)``.
        confidence: the confidence level of both intervals.

    Raises:
        GeomprobeError: if there are too few points, x and y differ in length, a number is not finite, or an x is not positive.

    >>> law = fit_power_law([1, 2, 4, 8, 16], [3.0, 2.5, 2.25, 2.125, 2.0625])
    >>> round(law.constant, 6), round(law.coefficient, 6), round(law.exponent, 6), law.best
    (2.0, 1.0, -1.0, 'power')
    """
    points, values = _checked(x, y)
    if not 0 < confidence < 1 or resamples < 1:
        raise GeomprobeError(f"confidence lies between 0 and 1 and resamples is at least 1, got {confidence} and {resamples}")
    n, logs = len(points), np.log(points)
    middle = float(logs.mean())
    u = logs - middle  # about 0, so that expm1(γu) is log-linear for small γ
    limit = min(_STEEPEST, _LARGEST_CHANGE / float(np.ptp(u)))
    least = n * (_ROUNDING * float(np.abs(values).max())) ** 2
    total = _squares(values - values.mean())
    if total <= least:
        level = float(values.mean())
        weights = _akaike_weights([least, least, least], n)
        return PowerLaw(level, 0.0, 0.0, (level, level), (-limit, limit), 0.0, weights, "constant")

    gamma, base, slope = (float(part[0]) for part in _fit(u, values[None], limit))
    residuals = values - base - slope * np.expm1(gamma * u)
    straight = values - np.polynomial.Polynomial.fit(u, values, 1)(u)
    weights = _akaike_weights([max(e, least) for e in (_squares(residuals), _squares(straight), total)], n)

    draw = np.random.default_rng(seed)
    noise = draw.choice(residuals, (resamples, n)) * np.sqrt(n / draw.chisquare(n - 3, (resamples, 1)))
    gammas, bases, slopes = _fit(u, values - residuals + noise, limit)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    return PowerLaw(
        constant=base - slope,
        coefficient=slope * float(np.exp(-gamma * middle)),
        exponent=gamma,
        constant_interval=_pair(np.quantile(bases - slopes, tails)),
        exponent_interval=_pair(np.quantile(gammas, tails)),
        r2=1 - _squares(residuals) / total,
        weights=weights,
        best=max(weights, key=weights.__getitem__),
    )


def _checked(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    points, values = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if points.ndim != 1 or points.shape != values.shape:
        raise GeomprobeError(
            f"fit_power_law takes as many x as y, in one row each, got shapes {points.shape} and {values.shape}"
        )
    if not (np.isfinite(points).all() and np.isfinite(values).all()):
        raise GeomprobeError("fit_power_law takes finite numbers: leave out points that are NaN or infinite")
    if (points <= 0).any():
        raise GeomprobeError(f"fit_power_law takes positive x, got {points.min():g}")
    if len(np.unique(points)) < 4:
        raise GeomprobeError(f"fit_power_law takes at least 4 points of different x, got {len(np.unique(points))}")
    return points, values


def _fit(u: Floats, y: Floats, limit: float) -> tuple[Floats, Floats, Floats]:
    """γ, b and c ``(r,)`` of ``b + c·(e^{γu} − 1)`` for every row of y ``(r, n)``, with ``|γ| ≤ limit``."""
    span = float(np.ptp(u))
    grid = np.sinh(np.linspace(-1, 1, 200) * np.arcsinh(limit * span)) / span  # 200 is even: γ = 0 is not in it
    y_mean = y.mean(1, keepdims=True)
    centred = y - y_mean
    shapes = _unit(_centred(np.expm1(grid[:, None] * u)))
    best = np.square(centred @ shapes.T).argmax(1)
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
    gamma = grid[best]
    for _ in range(30):
        curve = np.expm1(gamma[:, None] * u)
        unit = _unit(_centred(curve))
        along = _centred(u * (curve + 1))  # the curve's derivative by γ
        along -= _dot(along, unit) * unit
        rest = centred - _dot(centred, unit) * unit
        scale = _dot(centred, unit) / np.linalg.norm(_centred(curve), axis=1, keepdims=True)
        descent = (scale * _dot(rest, along))[:, 0]  # of the squared error by γ, over −2
        low, high = np.where(descent > 0, gamma, low), np.where(descent > 0, high, gamma)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = gamma + descent / _dot(scale * along, scale * along)[:, 0]
        step = np.where((step > low) & (step < high), step, (low + high) / 2)
        step = np.where(np.abs(step) * span < _SMALLEST_CHANGE, np.copysign(_SMALLEST_CHANGE / span, step), step)
        moved, gamma = np.abs(step - gamma).max(), step
        if moved * span < 1e-9:
            break
    curve = np.expm1(gamma[:, None] * u)
    c = _dot(centred, _centred(curve))[:, 0] / np.square(_centred(curve)).sum(1)
    return gamma, y_mean[:, 0] - c * curve.mean(1), c


def _akaike_weights(errors: list[float], n: int) -> dict[str, float]:
    """Weights from the squared errors of the three models, simplest last. The noise's size counts as a parameter."""
    parameters = np.array([4, 3, 2])
    aic = 2.0 * parameters
    if min(errors) > 0:  # else y is 0 everywhere
        aic += n * np.log(errors)
    if n > parameters.max() + 1:
        aic = aic + 2 * parameters * (parameters + 1) / (n - parameters - 1)
    weights = np.exp((aic.min() - aic) / 2)
    return dict(zip(("power", "log-linear", "constant"), (weights / weights.sum()).tolist(), strict=True))


def _squares(a: Floats) -> float:
    return float(np.square(a).sum())


def _centred(a: Floats) -> Floats:
    centred: Floats = a - a.mean(1, keepdims=True)
    return centred


def _unit(a: Floats) -> Floats:
    unit: Floats = a / np.linalg.norm(a, axis=1, keepdims=True)
    return unit


def _dot(a: Floats, b: Floats) -> Floats:
    products: Floats = np.einsum("rn,rn->r", a, b)[:, None]
    return products


def _pair(a: Floats) -> tuple[float, float]:
    return float(a[0]), float(a[1])
