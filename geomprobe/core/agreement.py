"""How far two ways of weighing earlier tokens agree, target by target."""

import torch
from torch import Tensor

__all__ = ["jaccard", "precision", "rank_correlation"]


def jaccard(first: Tensor, second: Tensor) -> Tensor:
    """``|A ∩ B| / |A ∪ B|`` of two sets of picks ``(…, T)`` bool; NaN where both are empty.

    >>> jaccard(torch.tensor([True, True, False]), torch.tensor([False, True, True]))
    tensor(0.3333, dtype=torch.float64)
    """
    return (first & second).sum(-1).double() / (first | second).sum(-1)


def precision(picked: Tensor, weights: Tensor, among: Tensor) -> Tensor:
    """Precision at k: of the k largest ``weights`` the share that is ``picked``, k being how many are; NaN where none is.

    Weights drawn by lot would find ``k / |among|``.

    >>> precision(torch.tensor([True, True, False]), torch.tensor([0.5, 0.1, 0.4]), torch.tensor([True, True, True]))
    tensor(0.5000, dtype=torch.float64)
    """
    order = torch.where(among, weights, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    count = picked.sum(-1, keepdim=True)
    top = torch.arange(weights.shape[-1], device=weights.device) < count
    return (picked.gather(-1, order) & top).sum(-1).double() / count.squeeze(-1)


def rank_correlation(first: Tensor, second: Tensor, among: Tensor) -> Tensor:
    """Spearman's ρ over ``among``, equal values sharing their mean rank; NaN where either has one value only.

    >>> rank_correlation(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([9.0, 7.0, 8.0]), torch.tensor([True, True, True]))
    tensor(1., dtype=torch.float64)
    """
    count = among.sum(-1, keepdim=True)
    centred = [
        torch.where(among, ranks - torch.where(among, ranks, 0).sum(-1, keepdim=True) / count, 0)
        for ranks in (_ranks(values, among) for values in (first, second))
    ]
    product, *squares = (centred[0] * centred[1]).sum(-1), *(ranks.square().sum(-1) for ranks in centred)
    return product / (squares[0] * squares[1]).sqrt()


def _ranks(values: Tensor, among: Tensor) -> Tensor:
    """Mean ranks; those that are not among come first, and move the others by one number."""
    values = torch.where(among, values.double(), -torch.inf).contiguous()
    ordered = values.sort(-1).values
    return (torch.searchsorted(ordered, values) + torch.searchsorted(ordered, values, right=True)).double() / 2
