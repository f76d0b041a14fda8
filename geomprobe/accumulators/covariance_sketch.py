"""A covariance too wide to keep, by what it does to a few random directions."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from geomprobe.accumulators.covariance import row_shapes, row_sums
from geomprobe.accumulators.state import State, zeros
from geomprobe.core.rows import Rows

__all__ = ["CovarianceSketch", "random_directions", "sketched_eigenvalues"]


@dataclass(frozen=True)
class CovarianceSketch:
    """``ΣΩ`` in place of Σ, for k random orthonormal directions Ω ``(d, k)``: k/d of the memory, and sums all the same.

    State (float64): ``n``, ``texts``, ``sum``, ``norm`` and ``norm_sq`` as in
    :class:`~geomprobe.accumulators.covariance.Covariance`,
    and ``image`` ``Σzzᵀ Ω`` ``(d, k)``.

    Args:
        rank: k, how many directions.
        center: subtract each text's mean row before scaling to length one.
        seed: of Ω. States of different seeds do not add, and are told apart.
        exact: float64 products, for distortions much smaller than the paper's.
    """

    rank: int
    center: bool = False
    seed: int = 0
    exact: bool = False

    def new_state(self, width: int, device: torch.device) -> State:
        return zeros(row_shapes(width) | {"trace": (), "image": (width, min(self.rank, width))}, device)

    def contribution(self, rows: Rows) -> State:
        z = rows.unit(self.center).flatten(-3, -2)
        z = z.double() if self.exact else z
        directions = random_directions(rows.width, self.rank, self.seed).to(z)
        return row_sums(rows, z) | {"trace": z.double().square().sum((-2, -1)), "image": z.mT @ (z @ directions)}


@lru_cache(maxsize=4)
def random_directions(width: int, rank: int, seed: int) -> Tensor:
    """Orthonormal directions ``(width, rank)``, at most as many as the width, in float32 on the CPU.

    The same for the same arguments in every process.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False):
        draw = torch.randn(width, rank, generator=generator, dtype=torch.float64)
        directions: Tensor = torch.linalg.qr(draw).Q
        return directions.float()


def sketched_eigenvalues(state: State, accumulator: CovarianceSketch) -> tuple[Tensor, Tensor]:
    """Eigenvalues of Σ ``(d,)`` as far as the sketch knows them, ascending, and the residual: the share of tr Σ it does not.

    The first k are those of the Nyström approximation ``Σ̂ = ΣΩ (ΩᵀΣΩ)⁻¹ ΩᵀΣ``, which never exceed the true ones; what is
    missing of the trace, which is known, is spread evenly over the rest (over ``min(n, d) − k`` of them). With τ the residual:

    - the k largest are each at most ``τ·tr Σ`` too low, and their errors sum to at most that: a bound that is measured;
    - beforehand, ``E τ·tr Σ ≤ (1 + r/(k − r − 1)) Σ_{j>r} λ_j`` for every ``r < k − 1`` (Tropp et al. 2017, Thm 4.1): a
      spectrum that falls quickly loses nearly nothing, and one of rank k or less nothing at all;
    - H is off by at most ``τ log(d − 1) − τ log τ − (1 − τ) log(1 − τ)`` for τ up to ½ (Audenaert 2007);
    - ``logdet(I + cΣ)`` is at least that of the k values alone, and at most that plus ``d·log(1 + cτ tr Σ/d)``.
    """
    n, width, k = state["n"], state["sum"].shape[0], state["image"].shape[1]
    if not bool(n > 0):
        return torch.full_like(state["sum"], torch.nan), torch.full_like(n, torch.nan)
    directions = random_directions(width, accumulator.rank, accumulator.seed).to(state["image"])
    image, trace = state["image"] / n, state["trace"] / n
    core = directions.mT @ image
    values, vectors = torch.linalg.eigh((core + core.mT) / 2)
    # What is smaller than rounding of the products is no direction of Σ.
    kept = values > torch.finfo(torch.float64 if accumulator.exact else torch.float32).eps * k * values[-1]
    root = torch.where(kept, vectors / values.where(kept, 1).sqrt(), 0)
    known = torch.linalg.svdvals(image @ root).square()
    missing = (trace - known.sum()).clamp_min(0)
    unknown = int(min(float(n), width)) - k
    rest = torch.zeros(width - k, dtype=known.dtype, device=known.device)
    if unknown > 0:
        rest[-unknown:] = missing / unknown
    return torch.cat([rest, known]).sort().values, missing / trace.clamp_min(torch.finfo(trace.dtype).tiny)
