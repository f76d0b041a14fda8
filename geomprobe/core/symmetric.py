"""Symmetric products ``a aᵀ`` of which only the lower triangle is computed, as panels of columns."""

from collections.abc import Sequence

import torch
from torch import Tensor

from geomprobe.core import blas, split
from geomprobe.core.precision import splits

__all__ = ["assemble", "exact_panels", "panel_starts", "panels", "scaled"]

_LEAST = 64
"""Least number of columns of a panel: for fewer, the matrix products cost more than they save."""


def panel_starts(n: int) -> range:
    """Return the first columns of the panels of an n×n matrix. There are at most four panels, of at least 64 columns each."""
    return range(0, max(n, 1), max(_LEAST, -(-n // 4)))


def panels(a: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return the lower triangle of ``a @ aᵀ`` for ``a`` of shape ``(…, n, k)`` as a list of panels, computed in ``dtype``, by
    default that of ``a``.

    Panel i contains the rows and columns from ``panel_starts(n)[i]`` on, and is meaningful in the lower triangle of the matrix
    only. This is up to 3/8 less work than the whole product, and half of it where :mod:`geomprobe.core.blas` is faster.

    >>> a = torch.tensor([[1.0], [2.0]])
    >>> panels(a)
    [tensor([[1., 2.],
            [2., 4.]])]
    """
    starts = panel_starts(a.shape[-2])
    if blas.multiplies_faster(a):
        return blas.panels(a, starts, dtype or a.dtype)
    a = a.to(dtype or a.dtype)
    return [a[..., i:, :] @ a[..., i : i + starts.step, :].mT for i in starts]


def exact_panels(a: Tensor) -> list[Tensor]:
    """Return :func:`panels` with the accuracy of float64, and in float64: of products in float64, or of parts in float32
    (:func:`geomprobe.core.precision.precision`)."""
    return split.panels(a, panel_starts(a.shape[-2])) if splits(a.device) else panels(a, torch.float64)


def assemble(parts: Sequence[Tensor]) -> Tensor:
    """Return the whole symmetric matrix ``(…, n, n)`` from its panels."""
    lower = scaled(parts, 1.0).tril()
    return lower + lower.tril(-1).mT


def scaled(parts: Sequence[Tensor], scale: Tensor | float) -> Tensor:
    """Return ``scale`` times the matrix, ``(…, n, n)``. Only its lower triangle is meaningful. ``scale`` is broadcast."""
    if len(parts) == 1:
        return parts[0] * scale
    n = parts[0].shape[-2]
    matrix = parts[0].new_empty((*parts[0].shape[:-1], n))
    for i, part in zip(panel_starts(n), parts, strict=True):
        torch.mul(part, scale, out=matrix[..., i:, i : i + part.shape[-1]])
    return matrix
