"""Functions of the eigenvalues of a covariance: entropies, effective rank and other ranks. All logarithms are natural.

Every function takes eigenvalues ``(…, d)`` in any order, which are non-negative up to rounding, and returns ``(…,)``. Unless
``n`` is an argument, the result does not account for the number of rows that the covariance was estimated from. With n < d rows
the rank is at most n for any model, so compare only numbers measured on equally many tokens.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "ALPHA_RANGE",
    "PowerLaw",
    "alpha_req",
    "clipped_matrix_entropy",
    "condition_number",
    "effective_rank",
    "equal_spectrum_entropy",
    "log_volume",
    "matrix_entropy",
    "max_rate_distortion_entropy",
    "participation_ratio",
    "power_law",
    "rank_ratio",
    "rankme",
    "rankme_left_out",
    "rate_distortion_entropy",
    "stable_rank",
]

ALPHA_RANGE = (4, 100)
"""The first and the last rank to which α-ReQ is fitted by default. The largest eigenvalue has rank 1."""

_WHOLE_ROOT, _WHOLE_LOG = 2.0, 128.0
"""Multiples of the floor from which an eigenvalue has full weight: where square roots are taken, and where logarithms are."""


def log_volume(eigenvalues: Tensor, epsilon: float = 0.1) -> Tensor:
    """Return ``logdet(I + d/ε² Σ)`` in nats, the part of the rate-distortion entropy that depends on the spectrum.

    Rounding errors of either sign in a null space are not clipped, because they cancel in the sum.
    """
    width = eigenvalues.shape[-1]
    return torch.log1p(width / epsilon**2 * eigenvalues).sum(-1)


def rate_distortion_entropy(eigenvalues: Tensor, n: Tensor | float, epsilon: float = 0.1) -> Tensor:
    """Return ``L = (d + n)/2 · logdet(I + d/ε² Σ)`` in nats (Def. 3.1), the cost of coding n rows to distortion ε.

    It grows with n by construction, so use the normalised value for comparisons. It is not the entropy of the tokens.

    >>> float(rate_distortion_entropy(torch.tensor([0.5, 0.5]), n=2.0))  # doctest: +ELLIPSIS
    18.46...
    """
    width = eigenvalues.shape[-1]
    return (width + n) / 2 * log_volume(eigenvalues, epsilon)


def max_rate_distortion_entropy(width: int, n: Tensor | float, epsilon: float = 0.1) -> Tensor:
    """Return the maximum of ``L`` over unit rows, ``(d + n)/2 · d·log(1 + 1/ε²)``, which is attained at ``Σ = I/d``."""
    return torch.as_tensor((width + n) / 2 * width * math.log1p(1 / epsilon**2), dtype=torch.float64)


def equal_spectrum_entropy(rank_ratio: Tensor | float, epsilon: float = 0.1) -> Tensor:
    """Return the normalised entropy of a covariance with r equal eigenvalues, given r/d (Eq. 1).

    ``(r/d)·log(1 + (1/ε²)/(r/d)) / log(1 + 1/ε²)``. It approximates a measured entropy only if the spectrum is nearly flat.

    >>> float(equal_spectrum_entropy(1.0))
    1.0
    """
    ratio = torch.as_tensor(rank_ratio, dtype=torch.float64)
    entropy: Tensor = torch.special.xlog1py(ratio, 1 / (epsilon**2 * ratio)) / math.log1p(1 / epsilon**2)
    return entropy


def matrix_entropy(eigenvalues: Tensor) -> Tensor:
    """Return ``H = −Σ p log p`` in nats, with p the eigenvalues divided by their sum (von Neumann entropy); 0 to log d.

    >>> float(matrix_entropy(torch.tensor([1.0, 1.0, 0.0])))  # log 2
    0.6931471824645996
    """
    eigenvalues = eigenvalues.clamp_min(0)
    shares = eigenvalues / eigenvalues.sum(-1, keepdim=True)
    entropy: Tensor = -torch.special.xlogy(shares, shares).sum(-1)
    return entropy


def clipped_matrix_entropy(gram: Tensor) -> Tensor:
    """Return the matrix entropy of a symmetric matrix ``(…, n, n)`` whose negative entries are set to zero, as in the code of
    Skean et al. (2025). The clipped matrix need not be positive semi-definite: its negative eigenvalues are left out. NaN for a
    matrix of zeros.

    >>> round(float(clipped_matrix_entropy(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]))), 6)  # log 2
    0.693147
    """
    return matrix_entropy(torch.linalg.eigvalsh(gram.clamp_min(0)))


def effective_rank(eigenvalues: Tensor) -> Tensor:
    """Return the effective rank ``e^H`` (Roy & Vetterli 2007), 1 to d: the number of equal directions with the same entropy."""
    return matrix_entropy(eigenvalues).exp()


def rank_ratio(eigenvalues: Tensor) -> Tensor:
    """Return ``r/d`` with r the effective rank. At the same effective rank, a wider model has a smaller value."""
    return effective_rank(eigenvalues) / eigenvalues.shape[-1]


def stable_rank(eigenvalues: Tensor) -> Tensor:
    """Return the stable rank ``‖Z‖_F² / ‖Z‖₂² = Σλ / λ_max``, 1 to d (Def. 4.2). It is at most the rank."""
    return eigenvalues.sum(-1) / eigenvalues.amax(-1)


def participation_ratio(eigenvalues: Tensor) -> Tensor:
    """Return the participation ratio ``(Σλ)² / Σλ²``, 1 to d, which is between the stable rank and the effective rank."""
    return eigenvalues.sum(-1).square() / eigenvalues.square().sum(-1)


def rankme(eigenvalues: Tensor, floor: float = 0.0) -> Tensor:
    """Return RankMe (Garrido et al. 2023), ``exp(−Σ p log p)`` with ``p = √λ / Σ√λ``, the shares of *singular* values; 1 to d.

    It is at least the effective rank, because square roots are more even than the eigenvalues: small directions have more
    weight. This includes directions that contain only rounding errors. Garrido et al. suppress them by adding 1e-7 to every p;
    here they are left out. Garrido et al. use embeddings without scaling, and a probe uses unit rows. RankMe is not an
    accuracy; its authors use it to rank models of one kind.

    Args:
        floor: eigenvalues up to this share of the largest are left out as rounding errors, and those up to twice that share are
            weighted down. NaN if none is left.

    >>> float(rankme(torch.tensor([1.0, 1.0, 1e-9]), floor=1e-6))
    2.0
    """
    return effective_rank(_above(floor, _WHOLE_ROOT, eigenvalues, eigenvalues) * eigenvalues.clamp_min(0).sqrt())


def rankme_left_out(eigenvalues: Tensor, floor: float, rank: int) -> Tensor:
    """Return the largest share of ``Σ√λ`` that :func:`rankme` with this floor may have left out, 0 to 1.

    An eigenvalue that counts with a weight w < 1 is in truth at most itself plus the floor, so that at most
    ``(1 − w) √(max(λ, floor) + floor)`` is left out. Of a covariance of known ``rank``, only so many eigenvalues can be more
    than rounding errors. It is 0 for a floor of 0.

    >>> round(float(rankme_left_out(torch.tensor([1.0, 1.0, 1e-9]), floor=1e-6, rank=3)), 6)  # √2e-6 / (2 + √2e-6)
    0.000707
    """
    values = eigenvalues.clamp_min(0).sort(dim=-1, descending=True).values[..., : max(rank, 1)]
    edge = floor * values.amax(-1, keepdim=True)
    weights = _above(floor, _WHOLE_ROOT, values, values)
    missing = ((1 - weights) * (torch.maximum(values, edge) + edge).sqrt()).sum(-1)
    return missing / (missing + (weights * values.sqrt()).sum(-1))


class PowerLaw(NamedTuple):
    """The fit of a power law to a spectrum.

    Attributes:
        alpha: the exponent α of ``λ_j ∝ j^−α``.
        r2: the weighted coefficient of determination of log λ, at most 1; NaN for equal eigenvalues.
        left_out: the share of the weights that lies on ranks left out or weighted down as rounding errors, 0 to 1.
    """

    alpha: Tensor
    r2: Tensor
    left_out: Tensor


def alpha_req(eigenvalues: Tensor, floor: float = 0.0, ranks: tuple[int, int] = ALPHA_RANGE) -> Tensor:
    """Return the exponent α of :func:`power_law`.

    >>> float(alpha_req(torch.arange(1, 50).double() ** -1.5))  # doctest: +ELLIPSIS
    1.5...
    """
    return power_law(eigenvalues, floor, ranks).alpha


def power_law(eigenvalues: Tensor, floor: float = 0.0, ranks: tuple[int, int] = ALPHA_RANGE) -> PowerLaw:
    """Return α-ReQ (Agrawal et al. 2022), the exponent of ``λ_j ∝ j^−α``; 0 or more, and 0 for equal eigenvalues.

    It is a least-squares fit of log λ on log j over the ranks j = 4 … 100 in descending order of λ, with weights 1/j, so that
    every octave of j has the same weight. This is what the authors' code does, over varying ranges of j. They use the
    covariance of features after subtracting their mean. α-ReQ tells how fast a spectrum decays, not whether it is a power law;
    R² tells how much of the decay a power law describes.

    Args:
        floor: eigenvalues up to this share of the largest are left out as rounding errors, and those up to 128 times that share
            are weighted down. NaN if fewer than two are left.
        ranks: the first and the last rank of the fit; the largest eigenvalue has rank 1.

    >>> fit = power_law(torch.arange(1, 50).double() ** -1.5)
    >>> round(float(fit.alpha), 6), round(float(fit.r2), 6)
    (1.5, 1.0)
    """
    fitted = slice(ranks[0] - 1, ranks[1])
    values = eigenvalues.sort(dim=-1, descending=True).values[..., fitted]
    j = torch.arange(1, eigenvalues.shape[-1] + 1, dtype=eigenvalues.dtype, device=eigenvalues.device)[fitted]
    weights = _above(floor, _WHOLE_LOG, values, eigenvalues) / j
    left_out = 1 - weights.sum(-1) / (1 / j).sum()
    weights = weights / weights.sum(-1, keepdim=True)
    x, y = j.log(), values.where(weights > 0, 1).log()
    x, y = (each - (weights * each).sum(-1, keepdim=True) for each in (x, y))
    along, spread = (weights * x * y).sum(-1), (weights * x.square()).sum(-1)
    slope = along / spread
    return PowerLaw(-slope, slope * along / (weights * y.square()).sum(-1), left_out)


def _above(floor: float, whole: float, values: Tensor, eigenvalues: Tensor) -> Tensor:
    """The weight of each of ``values``: 0 up to ``floor`` times the largest eigenvalue, 1 from ``whole`` times that threshold,
    and linear in between.

    With a step instead of the linear part, rounding would decide whether a direction near the threshold counts: on trained
    models of width 128 this changed RankMe by 1e-3 and α-ReQ by 3e-3. For square roots a short linear part is enough, and a
    long one removes much of RankMe (a quarter on SmolLM2, up to 128 times the floor). For logarithms, a linear part up to eight
    times the floor was too steep: two ways to compute the same rows of tiny models gave values of α-ReQ that differed by 2e-4,
    against 3e-5 here.
    """
    edge = floor * eigenvalues.amax(-1, keepdim=True)
    share = (values - edge) / ((whole - 1) * edge)  # infinite if the floor is 0, or NaN for a value of 0
    return torch.where(values > edge, share.clamp_max(1), 0)


def condition_number(eigenvalues: Tensor) -> Tensor:
    """Return ``λ_max / λ_min``. It is infinite for a covariance that is singular up to rounding (``λ_min ≤ d·eps·λ_max``), as
    every covariance of n < d rows is."""
    largest, smallest = eigenvalues.amax(-1), eigenvalues.amin(-1)
    rounding = eigenvalues.shape[-1] * torch.finfo(eigenvalues.dtype).eps * largest
    return largest / torch.where(smallest > rounding, smallest, 0)
