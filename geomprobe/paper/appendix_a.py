"""Theorem A.1 (Appendix A): the JS distance for small γ, and the order of its remainder after the leading term.

For covariances A and B and ``γ < 1/max(‖A‖, ‖B‖)`` the theorem says ``d_JS = √(γ²/8 ‖A − B‖²) + O(γ³)``. Its proof expands the
*square* of the distance, ``d²_JS = γ²/8 ‖A − B‖² − γ³/8 tr((A + B)(A − B)²) + O(γ⁴)``: there the remainder is O(γ³). The root
of this is ``√(γ²/8 ‖A − B‖²) − γ² tr((A + B)(A − B)²) / (4√2 ‖A − B‖) + O(γ³)``. The trace is positive for all covariances
``A ≠ B``, as ``A − B`` vanishes on every vector on which ``A + B`` does. So the remainder of the distance is O(γ²), and never
O(γ³).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomprobe.core.distance import covariance_distances, js_leading_term
from geomprobe.paper.experiment import Table, Verdict, span

__all__ = ["Remainder", "judge_theorem_a_1", "measure_theorem_a_1", "theorem_a_1_table"]

_SHARES = (1e-1, 1e-2, 1e-3, 1e-4)
"""γ as shares of ``1/max(‖A‖, ‖B‖)``. Orders are slopes over all but the first, where the next terms of the series count."""
_ROUNDING = 1e-12
"""Covariances that differ by less than this share of their norm count as equal."""
_TENDS = 1e-3
"""Largest difference from one of the ratio at the smallest γ."""
_ORDER = 0.05
"""Largest difference from an integer of a measured order."""


@dataclass(frozen=True)
class Remainder:
    """The JS distance and its remainder after the leading term. If both covariances are equal, only the name is known.

    Attributes:
        name: the name of the rows.
        shares: the values of γ, as shares of the largest γ that the theorem allows.
        ratio: the distance divided by its leading term, for each share.
        order: the order in γ of the remainder of the distance.
        order_of_square: the order in γ of the remainder of its square.
        coefficient: the coefficient of γ² in the remainder of the distance.
        predicted: the same coefficient, from the expansion.
    """

    name: str
    shares: Sequence[float] = ()
    ratio: Sequence[float] = ()
    order: float = math.nan
    order_of_square: float = math.nan
    coefficient: float = math.nan
    predicted: float = math.nan


def measure_theorem_a_1(name: str, rows: Tensor) -> Remainder:
    """Measure the JS distance between the covariances of the first and of the second half of ``rows`` ``(n, d)``, for
    decreasing γ."""
    coordinates = torch.linalg.qr(rows.double().mT).R.mT  # of the rows in their span: distances are the same there
    halves = coordinates.tensor_split(2)
    sigmas = torch.stack([half.mT @ half / len(half) for half in halves])
    difference = sigmas[0] - sigmas[1]
    norm = float(torch.linalg.matrix_norm(difference))
    largest = float(torch.linalg.matrix_norm(sigmas, ord=2).max())
    if norm <= _ROUNDING * largest:
        return Remainder(name)
    gammas = np.array(_SHARES) / largest
    js = np.array([float(covariance_distances(sigmas, "js", gamma=gamma)[0, 1]) for gamma in gammas.tolist()])
    leading = np.array([float(js_leading_term(sigmas, gamma)[0, 1]) for gamma in gammas.tolist()])
    return Remainder(
        name,
        _SHARES,
        ratio=(js / leading).tolist(),
        order=_order(gammas, leading - js),
        order_of_square=_order(gammas, leading**2 - js**2),
        coefficient=(js - leading)[-1] / gammas[-1] ** 2,
        predicted=-float(torch.trace(sigmas.sum(0) @ difference @ difference)) / (32**0.5 * norm),
    )


def _order(gammas: Any, remainder: Any) -> float:
    """The slope of the logarithm of a remainder against log γ."""
    return float(np.polyfit(np.log(gammas[1:]), np.log(np.abs(remainder[1:])), 1)[0])


def theorem_a_1_table(cases: Sequence[Remainder]) -> Table:
    """Return a table with one row for each result of :func:`measure_theorem_a_1`."""
    columns = ("rows", "ratio", f"at {_small(_SHARES[-1])}", "order: d", "of d²", "γ² term", "expected")
    rows = [
        (
            case.name,
            f"{case.ratio[0]:.4f}",
            f"{case.ratio[-1]:.6f}",
            f"{case.order:.2f}",
            f"{case.order_of_square:.2f}",
            f"{case.coefficient:z.4g}",
            f"{case.predicted:z.4g}",
        )
        for case in _told(cases)
    ]
    title = f"Theorem A.1: d_JS divided by √(γ²/8)‖A − B‖ for γ ≤ {_SHARES[0]:g}/max(‖A‖, ‖B‖), and the remainder"
    return Table(title, columns, rows)


def judge_theorem_a_1(cases: Sequence[Remainder]) -> list[Verdict]:
    """Return verdicts on whether the leading term is that of the paper, and whether the remainder has the order that it
    prints."""
    claims = (
        "Theorem A.1: for small γ the JS distance is √(γ²/8)‖A − B‖_F",
        "Theorem A.1 as printed: what remains of the distance is O(γ³)",
        "Theorem A.1 with O(γ²) for the distance, O(γ³) for its square",
    )
    told = _told(cases)
    if not told:
        why = "needs two texts of different covariances"
        return [Verdict(claims[0], None, why), *(Verdict(claim, None, why, "erratum") for claim in claims[1:])]
    off = max(abs(case.ratio[-1] - 1) for case in told)
    orders, squares = [case.order for case in told], [case.order_of_square for case in told]
    apart = max(abs(case.coefficient / case.predicted - 1) for case in told)
    return [
        Verdict(
            claims[0],
            off < _TENDS,
            f"their ratio differs from one by {_small(off)} at γ = {_small(_SHARES[-1])}/max(‖A‖, ‖B‖)",
        ),
        Verdict(
            claims[1],
            min(orders) > 3 - _ORDER,
            f"it falls as γ to the power of {span(orders, '.2f')}; the proof expands the square of the distance",
            "erratum",
        ),
        Verdict(
            claims[2],
            all(abs(one - 2) < _ORDER for one in orders) and all(abs(one - 3) < _ORDER for one in squares),
            f"powers of {span(orders, '.2f')} and {span(squares, '.2f')}; the γ² term is "
            f"−tr((A + B)(A − B)²)/(4√2‖A − B‖) to {_small(apart)}, which is not zero unless A = B",
            "erratum",
        ),
    ]


def _told(cases: Sequence[Remainder]) -> list[Remainder]:
    return [case for case in cases if not math.isnan(case.order)]


def _small(number: float) -> str:
    return f"{number:.0e}".replace("e-0", "e-")
