"""Properties of the token ids of a training batch: their entropy, and whether the batch was seen before.

Nothing here waits for the device.
"""

import torch
from torch import Tensor

__all__ = ["batch_hash", "remember", "token_entropy"]

_MIX = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
"""The multipliers of splitmix64, 0xbf58476d1ce4e5b9 and 0x94d049bb133111eb, as signed numbers."""

_STEP = -0x61C8864680B583EB
"""The increment of splitmix64, 0x9e3779b97f4a7c15, as a signed number."""


def token_entropy(ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the entropy of the unigram distribution of the tokens of a batch in nats, ``−Σ_v p_v log p_v`` with p_v the share
    of the tokens that are v, as a float64 scalar.

    It is between 0 (one token only) and the logarithm of the number of tokens or of the vocabulary, whichever is smaller, and
    NaN if there is no token. It is that of the sample: the entropy of the text that a batch is drawn from is larger, the more
    so the smaller the batch (Miller 1955), so compare batches of one size. It does not depend on the order of tokens.

    Args:
        ids: token ids of any shape.
        mask: which of them are tokens, of the same shape. ``None`` if all are.

    >>> token_entropy(torch.tensor([[5, 5, 7, 7]]))
    tensor(0.6931, dtype=torch.float64)
    """
    there = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    padding = torch.iinfo(torch.int64).min
    tokens = torch.where(there, ids.long(), padding).flatten().sort().values
    same = torch.searchsorted(tokens, tokens, right=True) - torch.searchsorted(tokens, tokens)
    total = there.sum().double()
    total = torch.where(total > 0, total, torch.nan)
    # −Σ_v p_v log p_v is a mean over tokens, of log n − log of how many tokens are the same.
    return total.log() - torch.where(tokens > padding, same.double().log(), 0).sum() / total


def batch_hash(ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return a hash of 64 bits of the texts of a batch, as an int64 scalar.

    It is the sum modulo 2⁶⁴ of a hash of each text, so that hashes of micro-batches, and of the batches of several ranks, add
    up to that of the step. It depends on the ids of the tokens and their order in the text, not on padding or on the order of
    texts. Texts without a token have the hash 0. Two different batches have the same hash with a probability of about 2⁻⁶⁴,
    unless somebody chose them so: it is not a cryptographic hash. (The mixer is that of splitmix64, Steele et al. 2014.)

    Args:
        ids: token ids ``(batch, length)``.
        mask: which of them are tokens, ``(batch, length)``. ``None`` if all are.

    >>> two = torch.tensor([[5, 7, 0], [9, 0, 0]])
    >>> batch_hash(two, two > 0) == batch_hash(torch.tensor([[9]])) + batch_hash(torch.tensor([[5, 7]]))
    tensor(True)
    """
    there = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    position = there.long().cumsum(1)
    tokens = torch.where(there, _mixed(_mixed(ids.long()) + position * _STEP), 0).sum(1)
    return torch.where(there.any(1), _mixed(tokens), 0).sum()


def _mixed(x: Tensor) -> Tensor:
    """The output function of splitmix64, a bijection of 64 bits, of ``x`` plus its increment. Products wrap around."""
    x = x + _STEP
    for shift, factor in zip((30, 27), _MIX, strict=True):
        x = (x ^ _right(x, shift)) * factor
    return x ^ _right(x, 31)


def _right(x: Tensor, shift: int) -> Tensor:
    """``x`` shifted to the right as an unsigned number."""
    return (x >> shift) & ((1 << (64 - shift)) - 1)


def remember(seen: Tensor, value: Tensor, *, most: int = 4096) -> tuple[Tensor, Tensor]:
    """Return the hashes seen so far with ``value`` appended, and whether it was among them, a bool scalar.

    The share of repeated batches is the mean of these truth values over steps, 0 to 1. Epochs repeat batches only if their
    order is not shuffled: a share above 0 within one epoch means that a loader repeats itself.

    Args:
        seen: hashes of the steps before ``(n,)``, int64; at first ``torch.empty(0, dtype=torch.int64)``.
        value: the hash of this step, from :func:`batch_hash`.
        most: how many of the latest hashes are kept.

    >>> seen, repeated = remember(torch.tensor([11, 12]), torch.tensor(11))
    >>> seen, repeated
    (tensor([11, 12, 11]), tensor(True))
    """
    return torch.cat([seen, value.view(1)])[-most:], (seen == value).any()
