"""Products and Cholesky factors with the accuracy of float64 from products in float32, for devices with slow float64.

A row is divided by the power of two next to its length and split into ``h + m + r``: h in multiples of 2⁻¹¹, m in multiples of
2⁻²¹, and the rest r. All partial sums of ``hhᵀ`` are multiples of 2⁻²² below 4, so float32 holds them exactly, in any order.
The other products of parts are at most 2⁻¹² times as large, and so are their rounding errors:

    abᵀ = h h'ᵀ + (h m'ᵀ + m h'ᵀ) + (m m'ᵀ + (h + m) r'ᵀ + r (h' + m')ᵀ)  up to r r'ᵀ, about 2⁻⁴⁴

The first product is added to the others in float64. This is six products in float32 instead of one in float64, at an error of
about 2⁻³⁸ of the lengths of both rows. A split into two parts, with three products, had an error of 2e-6 nats per token on a
model of width 64, instead of 3e-7.

A Cholesky factor is computed by blocks of 32 columns. Only these are factored, and applied to the rows below them, in float64:
48/n of the operations of an n×n factor. All other work is products as above.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor

__all__ = ["log_pivots", "panels", "stream_gains"]

_HIGH, _MIDDLE = 2.0**11, 2.0**21

_BLOCK = 32
"""Number of columns of a Cholesky factor that are computed in float64 at once."""


class _Parts(NamedTuple):
    """Rows ``(…, n, k)`` as ``scale · (high + middle + rest)``, with the parts in float32 and the scale ``(…, n, 1)`` in
    float64."""

    scale: Tensor
    high: Tensor
    middle: Tensor
    rest: Tensor

    @classmethod
    def of(cls, rows: Tensor, lengths: Tensor | None = None) -> Self:
        """Split rows, whose lengths ``(…, n, 1)`` are at most about ``lengths``, by default their own."""
        if lengths is None:
            lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        scale = _power_of_two(lengths)
        rows = rows / scale
        high = torch.round(rows * _HIGH) / _HIGH
        low = rows - high
        middle = torch.round(low * _MIDDLE) / _MIDDLE
        return cls(scale.double(), high.float(), middle.float(), (low - middle).float())

    def at(self, rows: slice, columns: slice = slice(None)) -> Self:
        """Return the parts of some rows and columns."""
        parts = (each[..., rows, columns] for each in self[1:])
        return type(self)(self.scale[..., rows, :], *parts)

    def times(self, other: "_Parts") -> Tensor:
        """Return ``a @ bᵀ`` ``(…, n, n')`` in float64."""
        whole, others = self.high + self.middle, other.high + other.middle
        product = (self.high @ other.high.mT).double()
        product += self.high @ other.middle.mT + self.middle @ other.high.mT
        product += whole @ other.rest.mT + self.rest @ others.mT + self.middle @ other.middle.mT
        return product.mul_(self.scale).mul_(other.scale.mT)


def _power_of_two(lengths: Tensor) -> Tensor:
    """The power of two next to each length, 1 for a length of 0."""
    return torch.exp2(torch.where(lengths > 0, lengths, 1).log2().round())


def panels(a: Tensor, starts: range) -> list[Tensor]:
    """Return the panels of ``a @ aᵀ`` (:mod:`geomprobe.core.symmetric`) in float64, for rows a ``(…, n, k)`` of any length."""
    parts = _Parts.of(a)
    return [parts.at(slice(i, None)).times(parts.at(slice(i, i + starts.step))) for i in starts]


def log_pivots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return what :func:`geomprobe.core.cholesky.log_pivots` does: the logarithms of the diagonal of the factor of ``I +
    matrix``, and the index of the first bad pivot. ``matrix`` ``(…, n, n)`` in float64 is changed in place."""
    matrix.diagonal(dim1=-2, dim2=-1).add_(1)
    pivots, bad, _ = _factor(matrix, matrix.diagonal(dim1=-2, dim2=-1).sqrt().unsqueeze(-1))
    return pivots, bad


def stream_gains(rows: Tensor, sigma: float) -> Tensor:
    """Return the information gain of every unit row ``(…, T, d)`` on all rows before it, ``(…, T)``, as
    :class:`geomprobe.core.streaming_gain.GainStream` does, in memory that does not grow with T²."""
    *batch, length, width = rows.shape
    outer = torch.eye(width, dtype=torch.float64, device=rows.device).expand(*batch, width, width).clone()
    gains = [rows.new_empty((*batch, 0), dtype=torch.float64)]
    for start in range(0, length, width):
        block = whitened = rows[..., start : start + width, :]
        if start:
            # The rows under a matrix A = RRᵀ come out of its factorisation multiplied by R⁻ᵀ.
            lengths = [outer.diagonal(dim1=-2, dim2=-1).sqrt(), torch.linalg.vector_norm(block, dim=-1).double()]
            whitened = _factor(torch.cat([outer, block.double()], dim=-2), torch.cat(lengths, dim=-1).unsqueeze(-1))[2]
        gain, bad = log_pivots(_gram(whitened) * sigma**-2)
        gains.append(torch.where(bad.unsqueeze(-1) == 0, gain, torch.nan))
        if start + width < length:
            outer += _gram(block.mT) * sigma**-2
    return torch.cat(gains, dim=-1)


def _gram(a: Tensor) -> Tensor:
    parts = _Parts.of(a)
    return parts.times(parts)


def _factor(tall: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logarithms of the pivots of the square at the top of ``tall`` ``(…, n + b, n)``, the index of the first bad
    one, and the last b rows times ``R⁻ᵀ``, where R is the factor of the square. Rows of the result are at most ``lengths``
    ``(…, n + b, 1)`` long. Only the lower triangle is read."""
    *batch, rows, n = tall.shape
    empty = [torch.zeros(tall.shape, dtype=torch.float32, device=tall.device) for _ in range(3)]
    done = _Parts(_power_of_two(lengths), *empty)  # the factor, less its diagonal blocks
    bottom = tall.new_empty((*batch, rows - n, n))
    bad = torch.zeros(batch, dtype=torch.int32, device=tall.device)
    pivots = [tall.new_empty((*batch, 0))]
    for i in range(0, n, _BLOCK):
        j = min(i + _BLOCK, n)
        column = tall[..., i:, i:j]
        if i:  # less the product of what was computed before
            column = column - done.at(slice(i, None), slice(i)).times(done.at(slice(i, j), slice(i)))
        corner, wrong = torch.linalg.cholesky_ex(column[..., : j - i, :])
        bad = torch.where((bad == 0) & (wrong > 0), i + wrong, bad)
        pivots.append(corner.diagonal(dim1=-2, dim2=-1).log())
        if j < rows:
            below = torch.linalg.solve_triangular(corner.mT, column[..., j - i :, :], upper=True, left=False)
            bottom[..., i:j] = below[..., max(n - j, 0) :, :]
            for whole, part in zip(done[1:], _Parts.of(below, lengths[..., j:, :])[1:], strict=True):
                whole[..., j:, i:j] = part
    return torch.cat(pivots, dim=-1), bad, bottom
