"""Comparisons of two models, or of two sites: the difference of effective ranks, and CKA."""

import torch
from torch import Tensor

__all__ = ["debiased_cka", "effective_rank_difference"]


def effective_rank_difference(untrained: Tensor | float, trained: Tensor | float) -> Tensor:
    """Return the Diff-eRank of Wei et al. (2024), ``e^H̄_untrained − e^H̄_trained``, from mean matrix entropies over the same
    texts.

    H̄ is ``centered_text_matrix_entropy`` at ``final_norm``, and the untrained model has the same configuration. The result is
    between ``−d`` and d, and positive if training reduced the number of directions that rows use. It is the exponential of a
    mean, not the difference of two mean effective ranks, and it does not measure quality across architectures.

    >>> round(float(effective_rank_difference(2.0, 1.0)), 3)
    4.671
    """
    before, after = (torch.as_tensor(entropy, dtype=torch.float64).exp() for entropy in (untrained, trained))
    return before - after


def debiased_cka(gram_a: Tensor, gram_b: Tensor) -> Tensor:
    """Return the debiased linear CKA of two Gram matrices ``ZZᵀ`` ``(…, n, n)`` of the same n tokens, as float64 ``(…)``.

    ``HSIC(A, B) / √(HSIC(A, A) HSIC(B, B))`` (Kornblith et al. 2019) with the unbiased HSIC of Song et al. (2012), as in Nguyen
    et al. (2021). The result is between −1 and 1. It is 1 for features that are equal up to rotation, isotropic scale and a
    shift of all rows, and 0 on average for unrelated features, for which the biased estimate is near ``d/(n + d)``. Values
    below 0 occur only by chance.

    CKA compares the distances between tokens, not what the features mean or what can be decoded from them, and directions of
    large variance dominate it. It is NaN for fewer than four tokens, and if all tokens are equal or equally far apart.
    """
    a, b = _u_centred(gram_a), _u_centred(gram_b)
    return _inner(a, b) / (_inner(a, a) * _inner(b, b)).sqrt()


def _u_centred(gram: Tensor) -> Tensor:
    """The Gram matrix without its diagonal, centred so that ``n(n − 3) HSIC = Σ AB`` (Székely & Rizzo 2014); NaN where only
    rounding errors remain."""
    n = gram.shape[-1]
    diagonal = torch.eye(n, dtype=torch.bool, device=gram.device)
    pairs = gram.double().masked_fill(diagonal, 0)
    if n < 4:
        return torch.full_like(pairs, torch.nan)
    sums = pairs.sum(-1, keepdim=True) / (n - 2)
    total = sums.sum(-2, keepdim=True) / (n - 1)
    centred = (pairs - sums - sums.mT + total).masked_fill(diagonal, 0)
    rounding = 8 * torch.finfo(gram.dtype).eps + n * torch.finfo(torch.float64).eps
    left, whole = (torch.linalg.matrix_norm(matrix, keepdim=True) for matrix in (centred, pairs))
    return torch.where(left > rounding * whole, centred, torch.nan)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-2, -1))
