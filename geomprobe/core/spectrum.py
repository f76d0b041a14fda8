"""Pure functions of the eigenvalues of a covariance. Natural logarithms throughout.

Every function takes eigenvalues ``(…, d)`` in any order, non-negative to rounding, and returns ``(…,)``. None of them looks at
how many rows the covariance was estimated from, except where ``n`` is an argument: with n < d rows the rank is at most n,
whatever the model, so compare only numbers measured on equally many tokens.
"""

import math

import torch
from torch import Tensor

__all__ = [
    "alpha_req",
    "condition_number",
    "effective_rank",
    "equal_spectrum_entropy",
    "log_volume",
    "matrix_entropy",
    "max_rate_distortion_entropy",
    "participation_ratio",
    "rank_ratio",
    "rankme",
    "rate_distortion_entropy",
    "stable_rank",
]

_FITTED = slice(3, 100)
"""Which eigenvalues, of the largest first, α-ReQ is fitted to."""

_WHOLE_ROOT, _WHOLE_LOG = 2.0, 128.0
"""How many times the floor an eigenvalue must be to count whole: where its root is taken, and where its logarithm is."""


def log_volume(eigenvalues: Tensor, epsilon: float = 0.1) -> Tensor:
    """``logdet(I + d/ε² Σ)``, in nats: the part of the rate-distortion entropy that depends on the spectrum.

    Rounding of either sign in a null space is not clipped: it cancels in the sum, and its positive half alone would not.
    """
    width = eigenvalues.shape[-1]
    return torch.log1p(width / epsilon**2 * eigenvalues).sum(-1)


def rate_distortion_entropy(eigenvalues: Tensor, n: Tensor | float, epsilon: float = 0.1) -> Tensor:
    """``L = (d + n)/2 · logdet(I + d/ε² Σ)`` in nats (Def. 3.1): the cost of coding n rows to distortion ε.

    It grows with n by construction; use the normalised value to compare. It is not the entropy of the tokens.

    >>> float(rate_distortion_entropy(torch.tensor([0.5, 0.5]), n=2.0))  # doctest: +ELLIPSIS
    18.46...
    """
    width = eigenvalues.shape[-1]
    return (width + n) / 2 * log_volume(eigenvalues, epsilon)


def max_rate_distortion_entropy(width: int, n: Tensor | float, epsilon: float = 0.1) -> Tensor:
    """The largest value of ``L`` over unit rows: ``(d + n)/2 · d·log(1 + 1/ε²)``, reached at ``Σ = I/d``."""
    return torch.as_tensor((width + n) / 2 * width * math.log1p(1 / epsilon**2), dtype=torch.float64)


def equal_spectrum_entropy(rank_ratio: Tensor | float, epsilon: float = 0.1) -> Tensor:
    """Eq. 1: the normalised entropy of a covariance with r equal eigenvalues, from r/d alone.

    ``(r/d)·log(1 + (1/ε²)/(r/d)) / log(1 + 1/ε²)``. It stands in for a measured entropy only as far as the spectrum is flat.

    >>> float(equal_spectrum_entropy(1.0))
    1.0
    """
    ratio = torch.as_tensor(rank_ratio, dtype=torch.float64)
    entropy: Tensor = torch.special.xlog1py(ratio, 1 / (epsilon**2 * ratio)) / math.log1p(1 / epsilon**2)
    return entropy


def matrix_entropy(eigenvalues: Tensor) -> Tensor:
    """``H = −Σ p log p`` with p the eigenvalues divided by their sum (von Neumann entropy), in nats; 0 to log d.

    >>> float(matrix_entropy(torch.tensor([1.0, 1.0, 0.0])))  # log 2
    0.6931471824645996
    """
    eigenvalues = eigenvalues.clamp_min(0)
    shares = eigenvalues / eigenvalues.sum(-1, keepdim=True)
    entropy: Tensor = -torch.special.xlogy(shares, shares).sum(-1)
    return entropy


def effective_rank(eigenvalues: Tensor) -> Tensor:
    """``e^H`` (Roy & Vetterli 2007), 1 to d: how many equal directions would have the same entropy."""
    return matrix_entropy(eigenvalues).exp()


def rank_ratio(eigenvalues: Tensor) -> Tensor:
    """``r/d`` with r the effective rank. Divides by d, so a wider model scores lower at the same geometry."""
    return effective_rank(eigenvalues) / eigenvalues.shape[-1]


def stable_rank(eigenvalues: Tensor) -> Tensor:
    """``‖Z‖_F² / ‖Z‖₂² = Σλ / λ_max``, 1 to d (Def. 4.2). It is at most the rank."""
    return eigenvalues.sum(-1) / eigenvalues.amax(-1)


def participation_ratio(eigenvalues: Tensor) -> Tensor:
    """``(Σλ)² / Σλ²``, 1 to d; between the stable rank and the effective rank."""
    return eigenvalues.sum(-1).square() / eigenvalues.square().sum(-1)


def rankme(eigenvalues: Tensor, floor: float = 0.0) -> Tensor:
    """RankMe (Garrido et al. 2023): ``exp(−Σ p log p)`` with ``p = √λ / Σ√λ``, the shares of *singular* values; 1 to d.

    At least the effective rank, because roots are more even than eigenvalues: it weighs small directions more, down to those
    that are rounding, which they drown by adding 1e-7 to every p and which are left out here. Theirs is of embeddings as they
    come, a probe's of unit rows. It is no accuracy: they rank models of one kind by it.

    Args:
        floor: eigenvalues of at most this share of the largest are left out as rounding, and those of up to twice as much
            count in part. NaN where none is left.

    >>> float(rankme(torch.tensor([1.0, 1.0, 1e-9]), floor=1e-6))
    2.0
    """
    return effective_rank(_above(floor, _WHOLE_ROOT, eigenvalues, eigenvalues) * eigenvalues.clamp_min(0).sqrt())


def alpha_req(eigenvalues: Tensor, floor: float = 0.0) -> Tensor:
    """α-ReQ (Agrawal et al. 2022): the exponent of ``λ_j ∝ j^−α``; 0 or more, 0 for equal eigenvalues.

    Least squares of log λ on log j for j from 4 to 100, the largest first, with weights 1/j, by which every octave of j weighs
    the same: what their code does, over ranges that vary. Theirs are eigenvalues of the covariance of features as they come,
    less their mean; a probe's of unit rows, less each text's mean or none. It says how fast a spectrum falls, not whether it
    is a power law.

    Args:
        floor: eigenvalues of at most this share of the largest are left out as rounding, and those of up to 128 times as
            much count in part. NaN where fewer than two are left.

    >>> float(alpha_req(torch.arange(1, 50).double() ** -1.5))  # doctest: +ELLIPSIS
    1.5...
    """
    fitted = eigenvalues.sort(dim=-1, descending=True).values[..., _FITTED]
    j = torch.arange(1, eigenvalues.shape[-1] + 1, dtype=eigenvalues.dtype, device=eigenvalues.device)[_FITTED]
    weights = _above(floor, _WHOLE_LOG, fitted, eigenvalues) / j
    weights = weights / weights.sum(-1, keepdim=True)
    x, y = j.log(), fitted.where(weights > 0, 1).log()
    x = x - (weights * x).sum(-1, keepdim=True)
    return -(weights * x * y).sum(-1) / (weights * x.square()).sum(-1)


def _above(floor: float, whole: float, values: Tensor, eigenvalues: Tensor) -> Tensor:
    """How much of each of ``values`` counts: 0 up to ``floor`` of the largest eigenvalue, 1 from ``whole`` times as much on.

    Between them a straight line. A step would let rounding decide about whatever lies beside it, one direction in or out: on
    trained models of width 128 that moved RankMe by 1e-3 and α-ReQ by 3e-3. Where roots are taken a short line will do, and a
    long one would take away much of what RankMe counts: a quarter, on SmolLM2, one up to 128 times the floor. For logarithms
    one up to eight times was too steep: two ways to the same rows of tiny models had an α-ReQ 2e-4 apart, with this one 3e-5.
    """
    edge = floor * eigenvalues.amax(-1, keepdim=True)
    share = (values - edge) / ((whole - 1) * edge)  # without a floor infinite, or NaN for 0
    return torch.where(values > edge, share.clamp_max(1), 0)


def condition_number(eigenvalues: Tensor) -> Tensor:
    """``λ_max / λ_min``, infinite for a singular covariance (always, when n < d), to rounding: ``λ_min ≤ d·eps·λ_max``."""
    largest, smallest = eigenvalues.amax(-1), eigenvalues.amin(-1)
    rounding = eigenvalues.shape[-1] * torch.finfo(eigenvalues.dtype).eps * largest
    return largest / torch.where(smallest > rounding, smallest, 0)
