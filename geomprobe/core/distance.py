"""Distances between texts (section 4.3, Appendix A): between the covariances of their rows, or between one vector of each text.

The covariance of a text with rows Z ``(n, d)`` is ``Σ = ZᵀZ/n``, without centring. All numbers are float64. With
``A = Σ₁ + δI`` and ``B = Σ₂ + δI``:

=================  =======================================================  ==============================================
``logdet``         ``√(logdet((A + B)/2) − ½ logdet(AB))``                  root of the S-divergence (Sra 2016): a metric
``js``             ``√(logdet(I + γ(Σ₁+Σ₂)/2) − ½ Σᵢ logdet(I + γΣᵢ))``     ``logdet`` with δ = 1/γ
``riemann``        ``‖log(A^{−½} B A^{−½})‖_F``                             affine-invariant
``log_euclidean``  ``‖log A − log B‖_F``
``frobenius``      ``‖Σ₁ − Σ₂‖_F``                                          no δ in it; ``js`` for small γ, times γ/√8
=================  =======================================================  ==============================================

A text of n < d tokens has a singular covariance: ``logdet``, ``riemann`` and ``log_euclidean`` are then infinite without δ, and
grow with ``log(1/δ)`` and the number of directions that only one text uses. Compare only distances for the same δ, between
texts of about the same length.

The first three are functions of the eigenvalues λ of ``A⁻¹B``, and are computed from ``t = (λ − 1)/(λ + 1)``, the eigenvalues
of ``(A + B)^{−½} (B − A) (A + B)^{−½}``: ``logdet`` is ``√(−½ Σ log(1 − t²))`` and ``riemann`` is ``2‖artanh t‖``. No
log-determinants are subtracted, so texts that are nearly equal, and a small γ, keep their digits.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from geomprobe.errors import GeomprobeError

__all__ = ["Distance", "covariance_distances", "js_leading_term", "text_distances", "vector_distances"]

Distance = Literal["logdet", "js", "riemann", "log_euclidean", "frobenius"]

_CHUNK = 2**21
"""Number of entries of the matrices in one chunk: 16 MiB in float64."""

_INDEFINITE = (
    "a covariance is not positive definite, even with δ added: give a larger delta, or the rows of the texts to text_distances"
)


def text_distances(rows: Sequence[Tensor], distance: Distance, *, delta: float = 1e-6, gamma: float = 100.0) -> Tensor:
    """Return the distances between the covariances of k texts, ``(k, k)`` float64, symmetric, with zeros on the diagonal.

    Two covariances differ only in the span of the rows of both texts, so each pair is compared there, which is exact: the
    coordinates of all rows are taken in a basis of this span, which has 2n directions instead of d.

    Args:
        rows: the rows of k texts, ``(n_i, d)`` each. They are not scaled here: scale them to length one first to get the
            paper's covariances.
        distance: one of the distances in the table of this module.
        delta: δ of ``logdet``, ``riemann`` and ``log_euclidean``.
        gamma: γ of ``js``. The paper's is 100, the 1/ε² of its entropy.

    Raises:
        GeomprobeError: if a text has no rows, another width, or rows that are not finite; or if δ or γ is not positive.
    """
    delta = _regulariser(distance, delta, gamma)
    widths = {text.shape[1:] for text in rows}
    if len(widths) != 1 or any(text.ndim != 2 or not len(text) or not text.isfinite().all() for text in rows):
        raise GeomprobeError(
            "text_distances: expected one or more texts of finite rows (n, d), none of them empty, and all of one width d"
        )
    padded = torch.nn.utils.rnn.pad_sequence([text.double() / len(text) ** 0.5 for text in rows], batch_first=True)
    k, n, width = padded.shape
    if 2 * n >= width:
        return covariance_distances(padded.mT @ padded, distance, delta=delta, gamma=gamma)
    if k * n < width:
        padded = _coordinates(padded.flatten(0, 1)).view(k, n, -1)
    if distance == "log_euclidean":  # log A − log δ·I = VᵀV of these rows
        _, singular, directions = torch.linalg.svd(padded, full_matrices=False)
        padded = torch.log1p(singular.square() / delta).sqrt().unsqueeze(-1) * directions

    def between(i: Tensor, j: Tensor) -> Tensor:
        pair = _coordinates(torch.cat([padded[i], padded[j]], 1))
        first, second = pair[:, :n], pair[:, n:]
        return _between(first.mT @ first, second.mT @ second, distance, delta)

    return _all_pairs(k, n * padded.shape[-1], between)


def covariance_distances(covariances: Tensor, distance: Distance, *, delta: float = 1e-6, gamma: float = 100.0) -> Tensor:
    """Return the distances between k covariances ``(k, d, d)``, which are those that :func:`text_distances` returns for their
    texts.

    ``logdet``, ``js`` and ``riemann`` solve a d×d eigenproblem for each pair. For texts of fewer than d/2 rows,
    :func:`text_distances` is far cheaper.

    Raises:
        GeomprobeError: if a matrix is not finite, not symmetric, or not positive definite after δ was added; or if δ or γ is
            not positive.
    """
    delta = _regulariser(distance, delta, gamma)
    sigma = _checked(covariances)
    if distance == "log_euclidean":
        values, directions = torch.linalg.eigh(sigma)
        sigma = (directions * (values + delta).log().unsqueeze(-2)) @ directions.mT

    def between(i: Tensor, j: Tensor) -> Tensor:
        return _between(sigma[i], sigma[j], distance, delta)

    return _all_pairs(len(sigma), sigma.shape[-1] ** 2, between)


def js_leading_term(covariances: Tensor, gamma: float) -> Tensor:
    """Return the leading term of ``js`` for γ → 0 (Theorem A.1), ``√(γ²/8) ‖A − B‖_F``, between k covariances ``(k, d, d)``, as
    ``(k, k)``.

    The theorem prints a remainder of O(γ³). This is the remainder of the squared distances. That of the distances is O(γ²),
    with the leading part ``−γ² tr((A + B)(A − B)²) / (4√2 ‖A − B‖_F)``, which is not zero for covariances ``A ≠ B``.

    Raises:
        GeomprobeError: if a matrix is not finite or not symmetric, or γ is not below ``1/max(‖A‖, ‖B‖)``, as the theorem
            assumes.

    >>> js_leading_term(torch.stack([torch.zeros(2, 2), torch.eye(2)]), 0.5)
    tensor([[0.0000, 0.2500],
            [0.2500, 0.0000]], dtype=torch.float64)
    """
    _regulariser("js", 1.0, gamma)
    limit = 1 / float(torch.linalg.matrix_norm(_checked(covariances), ord=2).max())
    if gamma >= limit:
        raise GeomprobeError(
            f"Theorem A.1 assumes gamma below 1/max(‖A‖, ‖B‖) = {limit:.4g}, got {gamma:g}: give a smaller one"
        )
    return covariance_distances(covariances, "frobenius") * (gamma / 8**0.5)


def vector_distances(vectors: Tensor) -> Tensor:
    """Return the Euclidean distances ``(k, k)`` between one vector of each text ``(k, d)``, such as its mean row or its last
    row.

    >>> vector_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    tensor([[0., 5.],
            [5., 0.]], dtype=torch.float64)
    """
    return torch.cdist(vectors.double(), vectors.double(), compute_mode="donot_use_mm_for_euclid_dist")


def _regulariser(distance: str, delta: float, gamma: float) -> float:
    """The number that is added to the diagonal."""
    if distance not in get_args(Distance):
        raise GeomprobeError(f"unknown distance {distance!r}: expected one of {', '.join(get_args(Distance))}")
    if not (delta > 0 and gamma > 0):
        raise GeomprobeError(f"expected delta and gamma above 0, got {delta} and {gamma}")
    return 1 / gamma if distance == "js" else delta


def _checked(covariances: Tensor) -> Tensor:
    sigma = covariances.double()
    if sigma.ndim != 3 or not sigma.isfinite().all() or not torch.allclose(sigma, sigma.mT, rtol=1e-6, atol=1e-12):
        raise GeomprobeError(f"expected covariances as finite symmetric matrices (k, d, d), got shape {tuple(sigma.shape)}")
    return sigma


def _all_pairs(k: int, size: int, between: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """``between`` of the indices of every pair i < j, ``(k, k)``, in chunks of about ``_CHUNK / size`` pairs."""
    first, second = torch.triu_indices(k, k, 1)
    pieces = [between(i, j) for i, j in zip(*(ends.split(max(1, _CHUNK // size)) for ends in (first, second)), strict=True)]
    values = torch.cat(pieces)
    if not values.isfinite().all():
        raise GeomprobeError(_INDEFINITE)
    distances = values.new_zeros(k, k)
    distances[first, second] = distances[second, first] = values
    return distances


def _coordinates(rows: Tensor) -> Tensor:
    """The coordinates ``(…, n, min(n, d))`` of rows ``(…, n, d)`` in an orthonormal basis of a space that contains them."""
    triangle: Tensor = torch.linalg.qr(rows.mT, mode="r").R
    return triangle.mT


def _between(a: Tensor, b: Tensor, distance: str, delta: float) -> Tensor:
    """Distances between matrices ``(…, m, m)``, covariances before δ or their logarithms: ``(…)``."""
    if distance in ("frobenius", "log_euclidean"):
        norms: Tensor = torch.linalg.matrix_norm(a - b)
        return norms
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    root, fault = torch.linalg.cholesky_ex(a + b + 2 * delta * identity)
    if fault.any():
        raise GeomprobeError(_INDEFINITE)
    half = torch.linalg.solve_triangular(root, b - a, upper=False)
    t = torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, half.mT, upper=False))
    if distance == "riemann":
        distances: Tensor = 2 * torch.linalg.vector_norm(t.atanh(), dim=-1)
        return distances
    return (-torch.log1p(-t.square()).sum(-1) / 2).sqrt()
