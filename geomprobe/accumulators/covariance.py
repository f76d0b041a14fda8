"""The running covariance of rows, and the quantities computed from it."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from geomprobe.accumulators.state import State, zeros
from geomprobe.core.precision import tensor_cores
from geomprobe.core.rows import Rows
from geomprobe.core.symmetric import assemble, panel_starts, panels

__all__ = ["Covariance", "Which", "covariance", "eigenvalues", "mean_cosine", "outer", "rounding", "row_shapes", "row_sums"]
__all__ += ["selected_rows"]

Which = Literal["all", "last", "mean"]
"""Which rows count: those of all tokens, the last one of each text, or the mean of each text's rows."""


@dataclass(frozen=True)
class Covariance:
    """Sums over rows z, from which ``Σ = ZᵀZ/n`` and its spectrum are computed.

    State (float64): ``n``, the number of rows; ``texts``; ``sum`` Σz ``(d,)``; ``norm`` Σ‖h‖ and ``norm_sq`` Σ‖h‖² of the rows
    before scaling; and ``outer_0``, ``outer_1`` …, which hold Σzzᵀ ``(d, d)`` as panels of its lower triangle
    (:mod:`geomprobe.core.symmetric`).

    Products over one forward are computed in float32 and added in float64. A running covariance that was kept in bf16 had a
    measured error of 6.5%; this one has an error of 1e-6. In the null space of n < d rows, float32 leaves noise of both signs.
    It cancels in a log determinant as long as it is not clipped and its factor stays below 1e6; the relative error is 1e-6 at
    the paper's d/ε².

    Args:
        center: whether to subtract the mean row of each text before scaling rows to length one, as in Wei et al. (2024). The
            paper does not.
        exact: whether to compute products in float64 too, at twice the cost. Needed for a noise or distortion much smaller than
            the paper's, and for what is left of Σ after a mean has been subtracted.
        unit: whether rows are scaled to length one. Rows that are not have products in float64, because one massive activation
            would hide all else in the rounding of float32.
        rows: which rows count. ``"last"`` takes the last row of each text, and ``"mean"`` the mean of its rows, after they were
            centred and scaled as above. The mean is not scaled again.
    """

    name: ClassVar[str] = "covariance"
    version: ClassVar[int] = 1

    center: bool = False
    exact: bool = False
    unit: bool = True
    rows: Which = "all"

    def new_state(self, width: int, device: torch.device) -> State:
        starts = panel_starts(width)
        parts = {f"outer_{k}": (width - i, min(starts.step, width - i)) for k, i in enumerate(starts)}
        return zeros(row_shapes(width) | parts, device)

    def contribution(self, rows: Rows) -> State:
        z = selected_rows(rows, self)
        with tensor_cores(z.device):
            parts = panels(z.mT)
        return row_sums(rows, z, self.rows) | {f"outer_{i}": part for i, part in enumerate(parts)}


def selected_rows(rows: Rows, covariance: "_Options") -> Tensor:
    """Return the rows z ``(…, n, d)`` of a covariance with these options. Rows that do not count are zero."""
    if covariance.unit:
        z = rows.unit(covariance.center)
        z = z.double() if covariance.exact else z
    else:
        z = rows.raw(covariance.center)
    return z.flatten(-3, -2) if covariance.rows == "all" else rows.one_per_text(z, covariance.rows)


def row_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the sums of :func:`row_sums` by name."""
    return {"n": (), "texts": (), "sum": (width,), "norm": (), "norm_sq": ()}


def row_sums(rows: Rows, z: Tensor, which: Which = "all") -> State:
    """Return the sums of :class:`Covariance` other than Σzzᵀ, for ``rows`` and the selected rows z ``(…, n, d)``."""
    norms = torch.where(rows.valid, rows.norms, 0).double().flatten(-2)
    sums = {"sum": z.sum(-2), "norm": norms.sum(-1), "norm_sq": norms.square().sum(-1)}
    return {"n": rows.used if which == "all" else rows.seen, "texts": rows.seen} | sums


def outer(state: State) -> Tensor:
    """Return ``Σzzᵀ`` ``(d, d)``."""
    return assemble([value for name, value in sorted(state.items()) if name.startswith("outer_")])


def covariance(state: State, *, center: bool = False) -> Tensor:
    """Return ``Σ = Σzzᵀ / n`` ``(d, d)``, the second moment of the rows, or with ``center`` their covariance ``Σ − z̄z̄ᵀ`` about
    the mean of all rows. NaN when n = 0."""
    sigma = outer(state) / state["n"]
    if center:
        mean = state["sum"] / state["n"]
        sigma = sigma - torch.outer(mean, mean)
    return sigma


def eigenvalues(state: State, *, center: bool = False) -> Tensor:
    """Return the eigenvalues of :func:`covariance` in ascending order. Without ``center``, their sum is 1 when all rows have
    length one. Those of a null space are rounding errors of either sign."""
    sigma = covariance(state, center=center)
    if not sigma.isfinite().all():
        return torch.full(sigma.shape[:1], torch.nan, dtype=sigma.dtype)
    values: Tensor = torch.linalg.eigvalsh(sigma)
    return values


def rounding(exact: bool) -> float:
    """Return the size of rounding errors as a share of the largest eigenvalue, for functions that take roots or logarithms:
    about 1e-6, or 1e-13 with ``exact``.

    In directions that contain no row, float32 products left up to 1.1e-7 λ_max on a trained model, and 4.6e-7 (four eps) for
    thousands of rows in one forward. With float64 products the remaining error is eps², the square of the rounding of float32
    rows, and was up to 5e-14. Eight times either leaves a margin.
    """
    eps = torch.finfo(torch.float32).eps
    return 8 * (eps**2 if exact else eps)


def mean_cosine(state: State) -> Tensor:
    """Return the anisotropy, the mean cosine between two different rows: ``(‖Σz‖² − n) / (n(n − 1))`` (Ethayarajh 2019).

    It is 1 when all rows point in the same direction, about 0 when directions are spread evenly, and NaN when n < 2. It is an
    average over all pairs of rows, also of different texts; it does not say whether a few dimensions dominate it.
    """
    n = state["n"]
    squared = state["trace"] if "trace" in state else outer(state).trace()  # n, unless some rows are zero
    return torch.where(n > 1, (state["sum"].square().sum() - squared) / (n * (n - 1)), torch.nan)


class _Options(Protocol):
    """The options that :class:`Covariance` and its sketch share."""

    @property
    def center(self) -> bool: ...
    @property
    def exact(self) -> bool: ...
    @property
    def unit(self) -> bool: ...
    @property
    def rows(self) -> Which: ...
