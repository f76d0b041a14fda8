"""Entropy of finite distributions (Defs 2.1–2.3), and what it says of code lengths (Defs 3.2–3.3). Natural logarithms.

A distribution is an array of probabilities of any shape, one axis to a variable.
"""

import heapq
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr, rel_entr

from geomprobe.errors import GeomprobeError

__all__ = [
    "code_length_bounds",
    "conditional_entropy",
    "distribution",
    "entropy",
    "expected_code_length",
    "huffman_code",
    "kl_divergence",
]

Floats = NDArray[np.float64]


def distribution(p: ArrayLike) -> Floats:
    """``p`` as float64.

    Raises:
        GeomprobeError: an entry is negative or not finite, or they do not sum to 1 within 1e-9.
    """
    values = np.asarray(p, np.float64)
    if not np.isfinite(values).all() or (values < 0).any() or abs(values.sum() - 1) > 1e-9:
        raise GeomprobeError(f"probabilities are at least 0 and sum to 1, got a sum of {values.sum():g}: divide by it")
    return values


def entropy(p: ArrayLike) -> float:
    """``H(X) = −Σ p log p`` in nats (Def. 2.1), joint over all axes.

    >>> entropy([0.5, 0.5])  # log 2
    0.6931471805599453
    """
    return float(entr(distribution(p)).sum())


def conditional_entropy(joint: ArrayLike, given: int | tuple[int, ...]) -> float:
    """``H(X | Y) = −Σ p(x, y) log p(x | y)`` in nats (Def. 2.2): Y are the axes ``given``, X the others.

    >>> conditional_entropy([[0.5, 0], [0, 0.5]], given=1)  # each is known from the other
    0.0
    """
    p = distribution(joint)
    axes = (given,) if isinstance(given, int) else given
    others = tuple(set(range(p.ndim)) - {axis % p.ndim for axis in axes})
    return -float(rel_entr(p, p.sum(axis=others, keepdims=True)).sum()) + 0.0  # not −0


def kl_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """``KL(p ‖ q) = Σ p log(p/q)`` in nats (Def. 2.3). Infinite where p has what q has not.

    Raises:
        GeomprobeError: not distributions, or over different outcomes.
    """
    first, second = distribution(p), distribution(q)
    if first.shape != second.shape:
        raise GeomprobeError(
            f"kl_divergence compares distributions over the same outcomes, got {first.shape} and {second.shape}"
        )
    return max(float(rel_entr(first, second).sum()), 0.0)


def expected_code_length(p: ArrayLike, lengths: ArrayLike) -> float:
    """``Σ p(x) ℓ(x)`` in bits (Def. 3.2), of code words of ``lengths`` bits."""
    return float((distribution(p) * np.asarray(lengths, np.float64)).sum())


def code_length_bounds(p: ArrayLike) -> tuple[float, float]:
    """``H`` and ``H + 1`` in bits (Def. 3.3, Shannon's source coding): the best prefix code's expected length is at least the
    first, and below the second where every outcome has a probability above 0.
    """
    bits = entropy(p) / math.log(2)
    return bits, bits + 1


def huffman_code(p: Sequence[float] | Floats) -> list[str]:
    """A prefix code of least expected length (Huffman 1952): one word of 0s and 1s for each outcome of p ``(n,)``.

    >>> huffman_code([0.5, 0.25, 0.25])
    ['0', '10', '11']
    """
    heap = [(float(weight), outcome, [outcome]) for outcome, weight in enumerate(distribution(p))]
    words = [""] * len(heap)
    heapq.heapify(heap)
    while len(heap) > 1:
        pair = heapq.heappop(heap), heapq.heappop(heap)
        for bit, (_, _, outcomes) in zip("01", pair, strict=True):
            for outcome in outcomes:
                words[outcome] = bit + words[outcome]
        (weight, first, outcomes), (other, _, more) = pair
        heapq.heappush(heap, (weight + other, first, outcomes + more))
    return words
