"""Running covariance of unit rows, and the sums read off it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from geomprobe.accumulators.state import State, zeros
from geomprobe.core.rows import Rows
from geomprobe.core.symmetric import assemble, panel_starts, panels

__all__ = ["Covariance", "covariance", "eigenvalues", "mean_cosine", "outer", "rounding", "row_shapes", "row_sums"]


@dataclass(frozen=True)
class Covariance:
    """Sums over unit rows z, enough for ``Σ = ZᵀZ/n`` and everything spectral.

    State (float64): ``n`` rows, ``texts``, ``sum`` Σz ``(d,)``, ``norm`` Σ‖h‖ and ``norm_sq`` Σ‖h‖² of the rows before
    scaling, and ``outer_0`` …: Σzzᵀ ``(d, d)`` as panels of its lower triangle (:mod:`geomprobe.core.symmetric`).

    Products are float32 over one forward and are added in float64: a running covariance kept in bf16 was measured 6.5% off,
    one kept so 1e-6. What float32 leaves in the null space of n < d rows is noise of both signs, which cancels in a log
    determinant as long as nothing clips it and what multiplies it stays below 1e6: 1e-6 relative at d/ε² of the paper.

    Args:
        center: subtract each text's mean row before scaling to length one (Wei et al. 2024). The paper does not.
        exact: float64 products too, twice as dear, for noise or distortion much smaller than the paper's.
    """

    center: bool = False
    exact: bool = False

    def new_state(self, width: int, device: torch.device) -> State:
        starts = panel_starts(width)
        parts = {f"outer_{k}": (width - i, min(starts.step, width - i)) for k, i in enumerate(starts)}
        return zeros(row_shapes(width) | parts, device)

    def contribution(self, rows: Rows) -> State:
        z = rows.unit(self.center).flatten(-3, -2)
        z = z.double() if self.exact else z
        return row_sums(rows, z) | {f"outer_{i}": part for i, part in enumerate(panels(z.mT))}


def row_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of :func:`row_sums` by name."""
    return {"n": (), "texts": (), "sum": (width,), "norm": (), "norm_sq": ()}


def row_sums(rows: Rows, z: Tensor) -> State:
    """The sums of :class:`Covariance` that need no product: of ``rows`` and of their unit rows z ``(…, n, d)``."""
    norms = torch.where(rows.valid, rows.norms, 0).double().flatten(-2)
    sums = {"sum": z.sum(-2), "norm": norms.sum(-1), "norm_sq": norms.square().sum(-1)}
    return {"n": rows.used, "texts": rows.seen} | sums


def outer(state: State) -> Tensor:
    """``Σzzᵀ`` ``(d, d)``."""
    return assemble([value for name, value in sorted(state.items()) if name.startswith("outer_")])


def covariance(state: State) -> Tensor:
    """``Σ = Σzzᵀ / n`` ``(d, d)``: the second moment of unit rows, not centred by a global mean. NaN when n = 0."""
    return outer(state) / state["n"]


def eigenvalues(state: State) -> Tensor:
    """Eigenvalues of Σ, ascending. Their sum is 1 when no row is zero; those of a null space are rounding, of either sign."""
    sigma = covariance(state)
    if not sigma.isfinite().all():
        return torch.full(sigma.shape[:1], torch.nan, dtype=sigma.dtype)
    values: Tensor = torch.linalg.eigvalsh(sigma)
    return values


def rounding(exact: bool) -> float:
    """What share of the largest eigenvalue may be rounding, for functions that take roots or logs: 1e-6, ``exact`` 1e-13.

    In directions that hold no row, float32 products were measured to leave up to 1.1e-7 λ_max on a trained model, and 4.6e-7,
    four eps, of thousands of rows in one forward. With float64 products what is left is the square of how float32 rows
    themselves round, eps², and was up to 5e-14. Eight of either leaves room.
    """
    eps = torch.finfo(torch.float32).eps
    return 8 * (eps**2 if exact else eps)


def mean_cosine(state: State) -> Tensor:
    """Anisotropy: the mean cosine between two different rows, ``(‖Σz‖² − n) / (n(n − 1))`` (Ethayarajh 2019).

    1 when all rows point one way, about 0 when directions are spread evenly. NaN when n < 2. It is an average over all pairs,
    of any two texts; it does not say whether a few dimensions carry it.
    """
    n = state["n"]
    squared = state["trace"] if "trace" in state else outer(state).trace()  # n, unless some rows are zero
    return torch.where(n > 1, (state["sum"].square().sum() - squared) / (n * (n - 1)), torch.nan)
