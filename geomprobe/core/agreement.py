"""Measures of agreement between two sets of weights on earlier tokens, for each target token."""

import torch
from torch import Tensor

__all__ = ["jaccard", "precision", "rank_correlation"]


def jaccard(first: Tensor, second: Tensor) -> Tensor:
    """Return ``|A ∩ B| / |A ∪ B|`` of two sets of picks, given as bool tensors ``(…, T)``; NaN where both sets are empty.

    >>> jaccard(torch.tensor([True, True, False]), torch.tensor([False, True, True]))
    tensor(0.3333, dtype=torch.float64)
    """
    return (first & second).sum(-1).double() / (first | second).sum(-1)


def precision(picked: Tensor, weights: Tensor, among: Tensor) -> Tensor:
    """Return the precision at k: the share of the k largest ``weights`` that are ``picked``, with k the number of picks.

    NaN where nothing is picked. For random weights the expected value is ``k / |among|``. All tensors are ``(…, T)``; only
    tokens in ``among`` are considered.

    >>> precision(torch.tensor([True, True, False]), torch.tensor([0.5, 0.1, 0.4]), torch.tensor([True, True, True]))
    tensor(0.5000, dtype=torch.float64)
    """
    order = torch.where(among, weights, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    count = picked.sum(-1, keepdim=True)
    top = torch.arange(weights.shape[-1], device=weights.device) < count
    return (picked.gather(-1, order) & top).sum(-1).double() / count.squeeze(-1)


def rank_correlation(first: Tensor, second: Tensor, among: Tensor) -> Tensor:
    """Return Spearman's rank correlation over the tokens in ``among``; equal values share their mean rank.

    NaN where all values of either input are equal.

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
    """Mean ranks. Values outside ``among`` come first, which shifts all other ranks by the same number."""
    values = torch.where(among, values.double(), -torch.inf).contiguous()
    ordered = values.sort(-1).values
    return (torch.searchsorted(ordered, values) + torch.searchsorted(ordered, values, right=True)).double() / 2
