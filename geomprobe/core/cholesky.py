"""Information gain and ridge regression from one Cholesky factor of a Gram matrix.

With unit rows Z ``(T, d)``, K = ZZᵀ and noise σ², let ``K + σ²I = LLᵀ``. Then, for every token t given the tokens before it,

- the information gain is ``log(L_tt / σ)``, and the sum over tokens is ``I(y_T; f) = ½ logdet(I + σ⁻²K)`` (section 4.1);
- the posterior variance is ``σ_t² = L_tt² − σ²``, which is also the minimum of the ridge objective
  ``‖z_t − Zβ‖² + σ²‖β‖²``;
- the ridge coefficients on all earlier tokens are row t of ``−L_tt · L⁻¹``.

At the default noise σ⁻² is 1e4, for which a float32 factor is not accurate enough. All factors are computed in float64,
whatever the dtype of the rows, except for :func:`log_pivots` on devices with slow float64.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from geomprobe.core import blas, split
from geomprobe.core.precision import splits
from geomprobe.core.symmetric import scaled

__all__ = [
    "GrowingCholesky",
    "exact_increment",
    "factor_of_identity_plus",
    "gains",
    "information_gain",
    "information_gain_bound",
    "log_pivots",
    "posterior_variance",
    "ridge_coefficients",
    "scaled_factor",
    "theorem_4_1_as_printed",
]


def scaled_factor(gram: Tensor | Sequence[Tensor], sigma: float) -> tuple[Tensor, Tensor]:
    """Return the lower Cholesky factor of ``I + σ⁻²K`` in float64, and the index of the first bad pivot (0 if there is none).

    ``gram`` is ``(…, T, T)`` or its panels (:mod:`geomprobe.core.symmetric`). The factor is ``L/σ`` with the ``L`` of this
    module. This function does not wait for the device, and does not raise if a matrix is not positive definite: check the
    second value.
    """
    parts = [gram.double()] if isinstance(gram, Tensor) else gram
    return factor_of_identity_plus(scaled(parts, sigma**-2))


def factor_of_identity_plus(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lower Cholesky factor of ``I + matrix`` ``(…, n, n)``, and the index of the first bad pivot (0 if there is
    none).

    Only the lower triangle of ``matrix`` is read. ``matrix`` is changed in place.
    """
    matrix.diagonal(dim1=-2, dim2=-1).add_(1)
    # The lower triangle by rows is the upper triangle by columns, which is LAPACK's order: this avoids a transposing copy.
    factor, info = torch.linalg.cholesky_ex(matrix.mT, upper=True)
    return factor.mT, info


def log_pivots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of the diagonal of the Cholesky factor of ``I + matrix`` ``(…, n)``, and the index of the first bad
    pivot (0 if there is none).

    They are the gains of tokens for ``σ⁻²K``, and half of the log determinant for any matrix. Only the lower triangle of
    ``matrix`` is read. ``matrix`` is changed in place.
    """
    if splits(matrix.device):
        return split.log_pivots(matrix)
    if not (matrix.is_contiguous() and blas.factors_faster(matrix)):
        factor, info = factor_of_identity_plus(matrix)
        return gains(factor), info
    matrix.diagonal(dim1=-2, dim2=-1).add_(1)
    info = blas.factor_in_place(matrix)
    return gains(matrix), info


def gains(factor: Tensor) -> Tensor:
    """Return the information gain of every token in nats, ``(…, T)``, from the factor of :func:`scaled_factor`.

    The gain of a row of zeros, such as padding, is exactly 0.
    """
    return factor.diagonal(dim1=-2, dim2=-1).log()


def information_gain(gram: Tensor, sigma: float = 0.01) -> Tensor:
    """Return ``I(y_T; f) = ½ logdet(I + σ⁻²K)`` in nats, ``(…,)``: the information that T noisy observations give about a
    function f drawn from a Gaussian process.

    It is a property of the rows only. It is neither the mutual information between tokens nor a loss.

    >>> information_gain(torch.eye(2), sigma=1.0)  # log 2
    tensor(0.6931, dtype=torch.float64)
    """
    return gains(scaled_factor(gram, sigma)[0]).sum(-1)


def information_gain_bound(width: int, length: int, sigma: float = 0.01) -> float:
    """``d·log(1 + σ⁻²T)`` in nats, above the information gain of any T unit rows of width d (section 4.1).

    The paper divides by d because of it. It is never reached: the eigenvalues of ZᵀZ sum to T, so ``½·d·log(1 + σ⁻²T/d)`` is
    a bound too.

    >>> round(information_gain_bound(width=2, length=3, sigma=1.0), 4)  # 2 log 4
    2.7726
    """
    return width * math.log1p(length / sigma**2)


def posterior_variance(factor: Tensor, sigma: float) -> Tensor:
    """Return the posterior variance ``σ_t²`` of every token given the tokens before it, ``(…, T)``, between 0 and ``‖z_t‖²``,
    from the factor of :func:`scaled_factor`."""
    return sigma**2 * (factor.diagonal(dim1=-2, dim2=-1).square() - 1)


def ridge_coefficients(factor: Tensor) -> Tensor:
    """Return the ridge coefficients of every token on all earlier tokens, ``(…, T, T)``, strictly lower triangular.

    Row t minimises ``‖z_t − Zβ‖² + σ²‖β‖²`` over earlier rows: ``−L_tt · (L⁻¹)_t`` (the scale of L cancels).
    """
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return -(factor.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) * inverse).tril(-1)


def exact_increment(variance: Tensor, sigma: float = 0.01) -> Tensor:
    """Return ``I_{T+1} − I_T = ½ log(1 + σ⁻² σ_T²(z_{T+1}))`` in nats, the exact increment of the information gain.

    Theorem 4.1 of the paper prints a different formula, see :func:`theorem_4_1_as_printed`.
    """
    return torch.log1p(variance * sigma**-2) / 2


def theorem_4_1_as_printed(variance: Tensor, norm_sq: Tensor | float = 1.0, sigma: float = 0.01) -> Tensor:
    """Return the increment that Theorem 4.1 of the paper prints, in nats. Use it only to reproduce the paper.

    The proof drops a factor σ⁻² from the off-diagonal block. Expanding ``det [[I + σ⁻²K, k], [kᵀ, 1 + σ⁻²‖z‖²]]`` by its Schur
    complement gives ``½ log(1 + σ⁻²‖z‖² − σ²(‖z‖² − σ_T²))``. The correct block is ``σ⁻²k``, which gives
    :func:`exact_increment`. The two agree at σ = 1 only; at σ = 0.01 this one hardly depends on the context.

    Args:
        variance: posterior variance ``σ_T²(z_{T+1})``.
        norm_sq: ``‖z_{T+1}‖²``, 1 for unit rows.
    """
    norm_sq = torch.as_tensor(norm_sq, dtype=variance.dtype)
    return torch.log1p(norm_sq * sigma**-2 - sigma**2 * (norm_sq - variance)) / 2


class GrowingCholesky:
    """The Cholesky factor of ``I + σ⁻²ZZᵀ``, extended as rows arrive. Appending b rows to t rows costs O(b·t·d + b·t²).

    One instance holds a batch of independent factors of the same length. A row that does not exist in one of them is given as
    zeros; it gains 0 and does not affect the rows after it.

    Args:
        width: number of values per row.
        sigma: noise σ.
        batch: leading dimensions of the rows, one factor for each entry.
        device: device of the factor.

    >>> factor = GrowingCholesky(width=2, sigma=1.0)
    >>> factor.append(torch.tensor([[1.0, 0.0]]))
    tensor([0.3466], dtype=torch.float64)
    >>> factor.append(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # the same direction again gains less
    tensor([0.2027, 0.3466], dtype=torch.float64)
    """

    def __init__(
        self, width: int, sigma: float = 0.01, *, batch: tuple[int, ...] = (), device: torch.device | str = "cpu"
    ) -> None:
        self.sigma = sigma
        self.length = 0
        self._rows = torch.zeros((*batch, 0, width), dtype=torch.float64, device=device)
        self._factor = torch.zeros((*batch, 0, 0), dtype=torch.float64, device=device)

    @property
    def rows(self) -> Tensor:
        """All rows so far, ``(…, t, d)``."""
        return self._rows[..., : self.length, :]

    @property
    def factor(self) -> Tensor:
        """The lower factor of ``I + σ⁻²K``, ``(…, t, t)``, as :func:`gains` and :func:`ridge_coefficients` take it."""
        return self._factor[..., : self.length, : self.length]

    def append(self, rows: Tensor) -> Tensor:
        """Append ``rows`` ``(…, b, d)`` and return their information gains in nats, ``(…, b)``."""
        rows = rows.to(self._rows)
        old, new = self.length, self.length + rows.shape[-2]
        self._reserve(new)
        # Use all allocated rows: those not filled yet are zero, and solving with a slice of the factor would copy it.
        cross = self._rows @ rows.mT * self.sigma**-2
        below = torch.linalg.solve_triangular(self._factor, cross, upper=False)
        corner = rows @ rows.mT * self.sigma**-2 - below.mT @ below
        corner.diagonal(dim1=-2, dim2=-1).add_(1)
        corner = torch.linalg.cholesky_ex(corner)[0]
        self._rows[..., old:new, :] = rows
        self._factor[..., old:new, :old] = below[..., :old, :].mT
        self._factor[..., old:new, old:new] = corner
        self.length = new
        return gains(corner)

    def _reserve(self, length: int) -> None:
        """Allocate space for ``length`` rows. It grows by a quarter, so that T appended tokens copy O(T) rows in total."""
        room = self._rows.shape[-2]
        if length <= room:
            return
        grown = max(length, room + max(64, room // 4)) if room else length
        rows = self._rows.new_zeros((*self._rows.shape[:-2], grown, self._rows.shape[-1]))
        factor = self._factor.new_zeros((*self._factor.shape[:-2], grown, grown))
        rows[..., : self.length, :] = self.rows
        factor[..., : self.length, : self.length] = self.factor
        factor[..., self.length :, self.length :].diagonal(dim1=-2, dim2=-1).fill_(1)  # rows not filled yet solve to zero
        self._rows, self._factor = rows, factor
