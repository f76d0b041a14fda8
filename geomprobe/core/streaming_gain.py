"""Information gain of rows that arrive one after another, in memory that does not grow with their number."""

from functools import partial

import torch
from torch import Tensor

from geomprobe.core.cholesky import GrowingCholesky

__all__ = ["GainStream"]


class GainStream:
    """The information gain of each row given all rows before it, exact for any number of rows, in O(d²) memory per stream.

    The first d rows extend a factor of ``I + σ⁻²ZZᵀ``. Then these rows are added to the d×d matrix ``A = I + σ⁻²ZᵀZ = RRᵀ``,
    and a new factor is started for the *whitened* rows ``R⁻¹z``. It gives the same gains, because
    ``det(A + σ⁻²ZᵀZ) = det A · det(I + σ⁻²(ZR⁻ᵀ)(ZR⁻ᵀ)ᵀ)``. This is repeated after every d rows. No sum is updated by a
    rank-one formula, so rounding errors do not accumulate.

    Args:
        width: number of values per row, d.
        sigma: noise σ.
        batch: leading dimensions of the rows, one stream for each entry.
        device: device of the factors.
        block: number of rows after which a new factor is started. Default: d. The result does not depend on it.
    """

    def __init__(
        self,
        width: int,
        sigma: float = 0.01,
        *,
        batch: tuple[int, ...] = (),
        device: torch.device | str = "cpu",
        block: int | None = None,
    ) -> None:
        self.sigma = sigma
        self.length = 0
        self._block = block or width
        self._new_block = partial(GrowingCholesky, width, sigma, batch=batch, device=device)
        self._factor = self._new_block()
        self._outer = torch.zeros((*batch, width, width), dtype=torch.float64, device=device)
        self._whitener: Tensor | None = None
        self._pending: list[Tensor] = []

    def append(self, rows: Tensor) -> Tensor:
        """Append unit rows ``(…, b, d)``, with zeros for missing rows, and return their gains in nats, ``(…, b)``."""
        rows, done = rows.double(), 0
        gains = [rows[..., :0, 0]]
        while done < rows.shape[-2]:
            part = rows[..., done : done + self._block - self._factor.length, :]
            gains.append(self._append(part))
            done += part.shape[-2]
        return torch.cat(gains, dim=-1)

    def _append(self, rows: Tensor) -> Tensor:
        """Append rows that fit into the current block."""
        whitened = rows
        if self._whitener is not None:
            whitened = torch.linalg.solve_triangular(self._whitener, rows.mT, upper=False).mT
        gains = self._factor.append(whitened)
        self._pending.append(rows)
        self.length += rows.shape[-2]
        if self._factor.length == self._block:
            self._fold()
        return gains

    def _fold(self) -> None:
        """Add the rows of the block to the d×d form, and start the next block from it."""
        block = torch.cat(self._pending, dim=-2)
        self._outer += block.mT @ block * self.sigma**-2
        scaled = self._outer.clone()
        scaled.diagonal(dim1=-2, dim2=-1).add_(1)
        self._whitener = torch.linalg.cholesky_ex(scaled)[0]
        self._factor = self._new_block()
        self._pending = []
