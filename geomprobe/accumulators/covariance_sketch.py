"""A sketch of the covariance by random directions, for models whose d×d covariances do not fit into memory."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from geomprobe.accumulators.covariance import Which, row_shapes, row_sums, selected_rows
from geomprobe.accumulators.state import State, zeros
from geomprobe.core.rows import Rows

__all__ = ["CovarianceSketch", "random_directions", "sketched_eigenvalues"]


@dataclass(frozen=True)
class CovarianceSketch:
    """The product ``ΣΩ`` instead of Σ, for k random orthonormal directions Ω ``(d, k)``. It needs k/d of the memory, and it is
    a sum, so states can still be added.

    State (float64): ``n``, ``texts``, ``sum``, ``norm`` and ``norm_sq`` as in
    :class:`~geomprobe.accumulators.covariance.Covariance`; ``trace``, the trace of ``Σzzᵀ``; and ``image`` ``Σzzᵀ Ω``
    ``(d, k)``.

    Args:
        rank: k, the number of directions.
        center: whether to subtract the mean row of each text before scaling rows to length one.
        seed: seed of the random directions Ω. States with different seeds cannot be added, and count as different
            accumulators.
        exact: whether to compute products in float64, for distortions much smaller than the paper's.
        unit: whether rows are scaled to length one.
        rows: which rows count, as in :class:`~geomprobe.accumulators.covariance.Covariance`.
    """

    name: ClassVar[str] = "covariance_sketch"
    version: ClassVar[int] = 1

    rank: int
    center: bool = False
    seed: int = 0
    exact: bool = False
    unit: bool = True
    rows: Which = "all"

    def new_state(self, width: int, device: torch.device) -> State:
        return zeros(row_shapes(width) | {"trace": (), "image": (width, min(self.rank, width))}, device)

    def contribution(self, rows: Rows) -> State:
        z = selected_rows(rows, self)
        directions = random_directions(rows.width, self.rank, self.seed).to(z)
        return row_sums(rows, z, self.rows) | {"trace": z.double().square().sum((-2, -1)), "image": z.mT @ (z @ directions)}


@lru_cache(maxsize=4)
def random_directions(width: int, rank: int, seed: int) -> Tensor:
    """Return orthonormal random directions ``(width, min(rank, width))`` in float32 on the CPU.

    The same arguments give the same directions in every process.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False):
        draw = torch.randn(width, rank, generator=generator, dtype=torch.float64)
        directions: Tensor = torch.linalg.qr(draw).Q
        return directions.float()


def sketched_eigenvalues(state: State, accumulator: CovarianceSketch, *, center: bool = False) -> tuple[Tensor, Tensor]:
    """Return approximate eigenvalues of Σ ``(d,)`` in ascending order, and the residual: the share of tr Σ that is missing from
    the sketch. With ``center``, Σ is the covariance about the mean of all rows.

    The k largest are the eigenvalues of the Nyström approximation ``Σ̂ = ΣΩ (ΩᵀΣΩ)⁻¹ ΩᵀΣ``, which never exceed the true ones.
    The trace of Σ is known, and the part of it that they leave is spread evenly over the ``min(n, d) − k`` next eigenvalues.
    With τ the residual:

    - each of the k largest eigenvalues is at most ``τ·tr Σ`` too low, and so is their sum: a bound that is itself measured;
    - the expected residual satisfies ``E τ·tr Σ ≤ (1 + r/(k − r − 1)) Σ_{j>r} λ_j`` for every ``r < k − 1`` (Tropp et al. 2017,
      Thm 4.1): it is close to zero for a spectrum that decays quickly, and zero for a rank of at most k;
    - the error of H is at most ``τ log(d − 1) − τ log τ − (1 − τ) log(1 − τ)`` for τ up to ½ (Audenaert 2007);
    - ``logdet(I + cΣ)`` is at least its value for the k eigenvalues alone, and exceeds it by at most ``d·log(1 + cτ tr Σ/d)``.
    """
    n, width, k = state["n"], state["sum"].shape[0], state["image"].shape[1]
    if not bool(n > 0):
        return torch.full_like(state["sum"], torch.nan), torch.full_like(n, torch.nan)
    directions = random_directions(width, accumulator.rank, accumulator.seed).to(state["image"])
    image, trace, mean = state["image"] / n, state["trace"] / n, state["sum"] / n * center
    image, trace = image - torch.outer(mean, mean @ directions), trace - mean.square().sum()
    core = directions.mT @ image
    values, vectors = torch.linalg.eigh((core + core.mT) / 2)
    # Eigenvalues below the rounding error of the products, before the mean was subtracted, belong to no direction of Σ.
    eps = torch.finfo(torch.float64 if accumulator.exact or not accumulator.unit else torch.float32).eps
    kept = values > eps * k * (values[-1] + mean.square().sum())
    root = torch.where(kept, vectors / values.where(kept, 1).sqrt(), 0)
    known = torch.linalg.svdvals(image @ root).square()
    missing = (trace - known.sum()).clamp_min(0)
    unknown = int(min(float(n), width)) - k
    rest = torch.zeros(width - k, dtype=known.dtype, device=known.device)
    if unknown > 0:
        rest[-unknown:] = missing / unknown
    return torch.cat([rest, known]).sort().values, missing / trace.clamp_min(torch.finfo(trace.dtype).tiny)
