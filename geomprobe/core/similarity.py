"""Comparisons of two models, or of two sites: the difference of effective ranks, CKA, and the velocity of mean rows."""

import torch
from torch import Tensor

from geomprobe.errors import GeomprobeError

__all__ = ["debiased_cka", "effective_rank_difference", "mean_velocity"]


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


def mean_velocity(before: Tensor, after: Tensor, learning_rate: Tensor | float) -> Tensor:
    """Return ``‖z̄_after − z̄_before‖ / η``, as float64 ``(…)``: how far the mean representation moved between two steps of a
    training, divided by the mean learning rate η of the steps between.

    A step of training is proportional to its learning rate: without the division, a warm-up looks like a fault. The result
    is not divided by the number of steps, because successive steps partly cancel: compare only pairs that are equally many
    steps apart. If
    both are means of rows of length one, the result is between 0 and ``2/η``. NaN if η is not above zero.

    Rows move if the texts change, too: both means must be those of the same texts. The mean hides what moves in opposite
    directions.

    Args:
        before: the mean row ``(…, d)`` at the earlier step.
        after: the mean row ``(…, d)`` of the same texts at the later step.
        learning_rate: η, the mean over the steps between.

    Raises:
        GeomprobeError: if the means have different shapes.

    >>> mean_velocity(torch.tensor([0.6, 0.0]), torch.tensor([0.6, 0.3]), 0.01)
    tensor(30.0000, dtype=torch.float64)
    """
    if before.shape != after.shape:
        raise GeomprobeError(
            f"mean_velocity() was given means of shape {tuple(before.shape)} and {tuple(after.shape)}: expected those of the "
            "same sites of one model"
        )
    rate = torch.as_tensor(learning_rate, dtype=torch.float64, device=after.device)
    moved: Tensor = torch.linalg.vector_norm(after.double() - before.double(), dim=-1)
    return moved / torch.where(rate > 0, rate, torch.nan)


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
