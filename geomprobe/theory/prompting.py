"""What prompts and contexts do to conditional entropy (§3), on finite joint distributions of a text X, the skill Y it calls
for and a context C, with axes in this order.

The forms proved here, in nats:

- A prompting function f writes a skill as a prompt. It is *perfect* if it takes for one another only skills with the same
  ``p(x | y)`` (Def. 3.9). Lemma 3.10: ``H(X | f(Y)) − H(X | Y) = Σ_y p(y) KL(p(x | y) ‖ p(x | f(y))) ≥ 0``. Theorem 3.11: it
  is 0 if and only if f is perfect; no prompt does better than naming the skill.
- In front of skill y, a context c is *irrelevant* if ``p(x | y, c) = p(x | y)`` (Def. 3.12), and *good* or *bad* as
  ``H(X | y, c)`` is below or above ``H(X | y)`` (Def. 3.13). Lemma 3.14: an irrelevant context changes no entropy, and if all
  are, ``H(X | Y, C) = H(X | Y)``. Theorem 3.15: ``H(X | Y) − H(X | Y, C) = I(X; C | Y) ≥ 0``: single contexts may be bad, but
  on average they help, so that beside every bad one of a skill there is a good one.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr, rel_entr

from geomprobe.errors import GeomprobeError
from geomprobe.theory.information import conditional_entropy, distribution

__all__ = ["context_change", "context_information", "irrelevant_contexts", "is_perfect_prompt", "prompted_entropy"]

Floats = NDArray[np.float64]


def prompted_entropy(joint: ArrayLike, prompt: ArrayLike) -> float:
    """``H(X | f(Y))`` (Lemma 3.10).

    Args:
        joint: p(x, y), ``(texts, skills)``.
        prompt: the number of the prompt f(y) of every skill, ``(skills,)``.

    Raises:
        GeomprobeError: not a joint distribution of two variables, or not one prompt to each skill.
    """
    p, groups = _prompted(joint, prompt)
    return conditional_entropy(p @ (groups[:, None] == np.unique(groups)), given=1)


def is_perfect_prompt(joint: ArrayLike, prompt: ArrayLike, *, tolerance: float = 1e-12) -> bool:
    """Whether f takes for one another only skills with the same ``p(x | y)`` to within ``tolerance`` (Def. 3.9). Skills that
    never occur do not count. Arguments as in :func:`prompted_entropy`.
    """
    p, groups = _prompted(joint, prompt)
    used = p.sum(0) > 0
    given, groups = p[:, used] / p[:, used].sum(0), groups[used]
    return all(bool((np.ptp(given[:, groups == group], axis=1) <= tolerance).all()) for group in np.unique(groups))


def context_change(joint: ArrayLike) -> Floats:
    """``H(X | y, c) − H(X | y)`` ``(skills, contexts)`` of p(x, y, c): below 0 a good context, above a bad one (Def. 3.13).
    NaN where y and c do not occur together.
    """
    p = _of_three(joint)
    return _entropies(p) - _entropies(p.sum(2, keepdims=True))


def irrelevant_contexts(joint: ArrayLike, *, tolerance: float = 1e-12) -> NDArray[np.bool_]:
    """Where ``p(x | y, c) = p(x | y)`` to within ``tolerance`` (Def. 3.12), ``(skills, contexts)``. Not where y and c do not
    occur together.
    """
    p = _of_three(joint)
    with np.errstate(invalid="ignore"):
        apart = np.abs(p / p.sum(0) - p.sum(2, keepdims=True) / p.sum((0, 2))[:, None])
    return np.asarray((apart <= tolerance).all(0))


def context_information(joint: ArrayLike) -> float:
    """``I(X; C | Y) = H(X | Y) − H(X | Y, C)`` (Theorem 3.15) of p(x, y, c): what contexts tell on average, in nats."""
    p = _of_three(joint)
    alike = np.divide(p.sum(2, keepdims=True) * p.sum(0), p.sum((0, 2))[:, None], out=np.zeros_like(p), where=p > 0)
    return max(float(rel_entr(p, alike).sum()), 0.0)


def _prompted(joint: ArrayLike, prompt: ArrayLike) -> tuple[Floats, NDArray[np.int64]]:
    p, groups = distribution(joint), np.asarray(prompt)
    if p.ndim != 2 or groups.shape != p.shape[1:]:
        raise GeomprobeError(f"a prompting function gives each skill of p(x, y) a prompt, got {groups.shape} for {p.shape}")
    return p, groups


def _of_three(joint: ArrayLike) -> Floats:
    p = distribution(joint)
    if p.ndim != 3:
        raise GeomprobeError(f"contexts are judged on a joint distribution p(x, y, c) of three axes, got {p.ndim}")
    return p


def _entropies(p: Floats) -> Floats:
    """``H(X | y, c)``, NaN where there is no such pair."""
    with np.errstate(invalid="ignore"):
        return np.asarray(entr(p / p.sum(0)).sum(0))
