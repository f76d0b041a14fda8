"""Entropy of finite distributions (Defs 2.1 to 2.3), code lengths (Defs 3.2 and 3.3), and the divergence of Lemma 3.17.

A distribution is an array of probabilities; each axis of a joint distribution is one variable. Entropies are in nats, except
that code lengths count binary symbols: compare them with ``entropy(p) / log(2)``.
"""

import heapq
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr, rel_entr

from geomprobe.errors import GeomprobeError

__all__ = [
    "awgn_capacity",
    "conditional_entropy",
    "distribution",
    "divergences",
    "entropies_given",
    "entropy",
    "expected_code_length",
    "huffman_code",
    "is_instantaneous",
    "kl_divergence",
]

Floats = NDArray[np.float64]


def distribution(p: ArrayLike) -> Floats:
    """Return ``p`` as a float64 array.

    Raises:
        GeomprobeError: if an entry is negative or not finite, or the entries do not sum to 1 within 1e-9.
    """
    values = np.asarray(p, np.float64)
    if not np.isfinite(values).all() or (values < 0).any():
        raise GeomprobeError("probabilities must be finite, at least 0 and sum to 1: some entries are negative or not finite")
    if abs(values.sum() - 1) > 1e-9:
        raise GeomprobeError(f"probabilities must sum to 1, got a sum of {values.sum():g}: divide by it")
    return values


def entropy(p: ArrayLike) -> float:
    """Return ``H(X) = −Σ p(x) log p(x)`` (Def. 2.1), or the joint entropy if ``p`` has several axes.

    >>> entropy([0.5, 0.5])  # log 2
    0.6931471805599453
    """
    return float(entr(distribution(p)).sum())


def conditional_entropy(joint: ArrayLike, given: int | tuple[int, ...] = 1) -> float:
    """Return ``H(X | Y) = −Σ p(y) Σ p(x | y) log p(x | y)`` (Def. 2.2).

    Args:
        joint: the joint distribution.
        given: the axes of Y. All other axes are X.

    Raises:
        GeomprobeError: if ``joint`` is not a distribution, or has no such axis.

    >>> conditional_entropy([[0.5, 0], [0, 0.5]])  # each variable determines the other
    0.0
    """
    p = distribution(joint)
    axes = (given,) if isinstance(given, int) else given
    if not all(-p.ndim <= axis < p.ndim for axis in axes):
        raise GeomprobeError(f"conditional_entropy: axes {given} were asked for, but the distribution has {p.ndim} axes")
    others = tuple(set(range(p.ndim)) - {axis % p.ndim for axis in axes})
    return -float(rel_entr(p, p.sum(axis=others, keepdims=True)).sum()) + 0.0  # + 0.0 turns −0.0 into 0.0


def entropies_given(joint: ArrayLike) -> Floats:
    """Return ``H(X | Y = y)`` of every y (the inner sum of Def. 2.2), ``(skills,)``; NaN where p(y) = 0.

    Args:
        joint: p(x, y), ``(texts, skills)``.
    """
    p = _pair("entropies_given", joint)
    with np.errstate(invalid="ignore"):
        return np.asarray(entr(p / p.sum(0)).sum(0))


def kl_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """Return ``KL(P ‖ Q) = −Σ P(x) log(Q(x) / P(x))`` (Def. 2.3). It is infinite where Q(x) = 0 < P(x).

    Raises:
        GeomprobeError: if they are not distributions, or have different outcomes.
    """
    first, second = distribution(p), distribution(q)
    if first.shape != second.shape:
        raise GeomprobeError(
            f"kl_divergence compares distributions over the same outcomes, got shapes {first.shape} and {second.shape}"
        )
    return max(float(rel_entr(first, second).sum()), 0.0)  # rounding may leave −1e-17


def divergences(joint: ArrayLike) -> Floats:
    """Return ``KL(p(· | y) ‖ p)`` of every y, ``(skills,)``; NaN where p(y) = 0.

    Assumption 3.16 says that these divergences do not change during training, and Lemma 3.17 that their mean under p(y) is
    ``H(X) − H(X | Y)``.

    Args:
        joint: p(x, y), ``(texts, skills)``.
    """
    p = _pair("divergences", joint)
    with np.errstate(invalid="ignore"):
        return np.asarray(rel_entr(p / p.sum(0), p.sum(1, keepdims=True)).sum(0))


def is_instantaneous(code: Sequence[str]) -> bool:
    """Return whether no codeword is a prefix of another one (Def. 3.2). Two equal codewords are prefixes of each other.

    >>> is_instantaneous(["0", "10", "11"]), is_instantaneous(["0", "01"])
    (True, False)
    """
    words = sorted(code)  # a word stands directly before those that begin with it
    return not any(longer.startswith(word) for word, longer in itertools.pairwise(words))


def expected_code_length(p: ArrayLike, code: Sequence[str]) -> float:
    """Return ``l(C) = Σ p(x) |C(x)|`` in binary symbols (Def. 3.3).

    For an instantaneous code it is at least ``entropy(p) / log(2)``, and equal to it if each codeword has ``−log₂ p(x)``
    symbols.

    Args:
        p: ``(n,)``.
        code: one codeword for each outcome.

    Raises:
        GeomprobeError: if ``p`` is not a distribution, or there is not one codeword for each outcome.
    """
    probabilities = distribution(p)
    if probabilities.shape != (len(code),):
        raise GeomprobeError(f"expected_code_length takes one codeword for each of {probabilities.size}, got {len(code)}")
    return float(probabilities @ [len(word) for word in code])


def huffman_code(p: ArrayLike) -> list[str]:
    """Return an instantaneous code of least expected length (Huffman 1952): a codeword for each outcome of ``p``, ``(n,)``.

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


def awgn_capacity(bandwidth: ArrayLike) -> Floats:
    """Return ``W log(1 + 1/W)`` of bandwidths W > 0 (the remark after Def. 3.4), in nats. It increases with W, from 0 to 1.

    Raises:
        GeomprobeError: if a bandwidth is not a positive finite number.
    """
    w = np.asarray(bandwidth, np.float64)
    if not (np.isfinite(w) & (w > 0)).all():
        raise GeomprobeError("awgn_capacity takes positive, finite bandwidths")
    return np.asarray(w * np.log1p(1 / w))


def _pair(what: str, joint: ArrayLike) -> Floats:
    p = distribution(joint)
    if p.ndim != 2:
        raise GeomprobeError(f"{what} takes a joint distribution p(x, y) of two axes, got {p.ndim}")
    return p
