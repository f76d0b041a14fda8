"""Products ``a aᵀ`` of which only the lower triangle is computed, as column panels."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["assemble", "panel_starts", "panels", "scaled"]

_LEAST = 64
"""Columns of the narrowest panel: matrix products of fewer are slower than what they save."""


def panel_starts(n: int) -> range:
    """First columns of the panels of an n×n matrix: at most four, of at least 64 columns."""
    return range(0, max(n, 1), max(_LEAST, -(-n // 4)))


def panels(a: Tensor) -> list[Tensor]:
    """The lower triangle of ``a @ aᵀ`` for ``(…, n, k)``: panel i is ``(…, rows, columns)`` from row and column
    ``panel_starts(n)[i]`` on. Up to 3/8 less work than the whole.

    >>> a = torch.tensor([[1.0], [2.0]])
    >>> panels(a)
    [tensor([[1., 2.],
            [2., 4.]])]
    """
    starts = panel_starts(a.shape[-2])
    return [a[..., i:, :] @ a[..., i : i + starts.step, :].mT for i in starts]


def assemble(parts: Sequence[Tensor]) -> Tensor:
    """The whole symmetric matrix, ``(…, n, n)``."""
    lower = scaled(parts, 1.0).tril()
    return lower + lower.tril(-1).mT


def scaled(parts: Sequence[Tensor], scale: Tensor | float) -> Tensor:
    """``scale`` times the matrix, ``(…, n, n)``; what is above the lower triangle means nothing. ``scale`` broadcasts."""
    if len(parts) == 1:
        return parts[0] * scale
    n = parts[0].shape[-2]
    matrix = parts[0].new_empty((*parts[0].shape[:-1], n))
    for i, part in zip(panel_starts(n), parts, strict=True):
        torch.mul(part, scale, out=matrix[..., i:, i : i + part.shape[-1]])
    return matrix
