"""Fits of the degree law of section 3, ``p_skill(y_k) ∝ k^{−(α+1)}``, to counted degrees. The law has no number in the
paper."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import chdtrc, ndtri, softmax

from geomprobe.errors import GeomprobeError

__all__ = ["DegreeLaw", "fit_degrees"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DegreeLaw:
    """The degree law fitted by :func:`fit_degrees`.

    Attributes:
        alpha: α of ``k^{−(α+1)}``.
        interval: confidence interval of α.
        p_value: the probability that degrees drawn from the fitted law are as far from it as these, by a χ² test; NaN if too
            few skills are used often enough for the test.
    """

    alpha: float
    interval: tuple[float, float]
    p_value: float


def fit_degrees(degrees: ArrayLike, *, confidence: float = 0.95) -> DegreeLaw:
    """Return the α of the degree law under which ``degrees`` are most likely, if every edge draws its skill independently.

    At the maximum the mean of log k equals its expectation under the law. Fitting a line to the logarithms of degrees instead
    would be biased: small degrees have biased logarithms, and a degree of 0 has none. The interval is Wald's, from the Fisher
    information ``N·Var(log k)``.

    Args:
        degrees: the degrees of skills k = 1 … M, ``(M,)``, in the order of the law. If they were sorted by the degrees
            themselves, the law would look steeper than it is.
        confidence: the confidence level of the interval.

    Raises:
        GeomprobeError: if there are fewer than two skills, a degree is negative or not finite, or all edges belong to the first
            or to the last skill.
    """
    counts = np.asarray(degrees, np.float64)
    if counts.ndim != 1 or not np.isfinite(counts).all() or (counts < 0).any() or not (counts[1:].any() and counts[:-1].any()):
        raise GeomprobeError(
            "fit_degrees takes the number of uses of each skill, in the order of the law: finite numbers of at least 0, not "
            "all of which belong to the first or all to the last skill"
        )
    if not 0 < confidence < 1:
        raise GeomprobeError(f"confidence lies between 0 and 1, got {confidence}")
    logs, total = np.log(np.arange(1, len(counts) + 1)), float(counts.sum())
    mean = float(counts @ logs) / total
    exponent = float(brentq(lambda s: float(softmax(-s * logs) @ logs) - mean, -100, 100, xtol=1e-12))
    shares = softmax(-exponent * logs)
    error = 1 / np.sqrt(total * float(shares @ np.square(logs - mean)))
    reach = float(ndtri((1 + confidence) / 2) * error)
    return DegreeLaw(exponent - 1, (exponent - 1 - reach, exponent - 1 + reach), _goodness(counts, total * shares))


def _goodness(counts: Floats, expected: Floats) -> float:
    """χ² over cells in which at least 5 are expected; all others share one cell. One parameter was fitted."""
    often = expected >= 5
    cells = np.array([*zip(counts[often], expected[often], strict=True), (counts[~often].sum(), expected[~often].sum())])
    cells = cells[cells[:, 1] >= 5]
    if len(cells) < 3:
        return float("nan")
    return float(chdtrc(len(cells) - 2, (np.square(cells[:, 0] - cells[:, 1]) / cells[:, 1]).sum()))
