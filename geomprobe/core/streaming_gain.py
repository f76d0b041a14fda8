"""Information gain of a stream without end, in memory that does not grow."""

from functools import partial

import torch
from torch import Tensor

from geomprobe.core.cholesky import GrowingCholesky

__all__ = ["GainStream"]


class GainStream:
    """Information gain of each row on all rows before it, exact for any length, in O(d²) memory per stream.

    The first d rows are a growing factor of ``I + σ⁻²ZZᵀ``. Then the rows are folded into ``A = I + σ⁻²ZᵀZ = RRᵀ`` (d×d) and
    a new factor grows over *whitened* rows ``R⁻¹z``: since ``det(A + σ⁻²ZᵀZ) = det A · det(I + σ⁻²(ZR⁻ᵀ)(ZR⁻ᵀ)ᵀ)``, it gives
    the same gains; after every further d rows it is folded again. No sum is updated by a rank-one formula, so nothing drifts.

    Args:
        width: numbers per row, d.
        sigma: noise σ.
        batch: leading shape of the streams.
        device: where the factors live.
        block: rows between two folds, d by default; the numbers do not depend on it.
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
        """Add unit rows ``(…, b, d)``, zero where absent; returns their gains in nats, ``(…, b)``."""
        rows, done = rows.double(), 0
        gains = [rows[..., :0, 0]]
        while done < rows.shape[-2]:
            part = rows[..., done : done + self._block - self._factor.length, :]
            gains.append(self._append(part))
            done += part.shape[-2]
        return torch.cat(gains, dim=-1)

    def _append(self, rows: Tensor) -> Tensor:
        """Rows that fit into the current block."""
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
        """Put the block's rows into the d×d form, and start the next block on top of it."""
        block = torch.cat(self._pending, dim=-2)
        self._outer += block.mT @ block * self.sigma**-2
        scaled = self._outer.clone()
        scaled.diagonal(dim1=-2, dim2=-1).add_(1)
        self._whitener = torch.linalg.cholesky_ex(scaled)[0]
        self._factor = self._new_block()
        self._pending = []
