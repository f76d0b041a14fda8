"""How far groups of things lie apart, as a number with a p-value, and the plane that shows their distances best."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "beyond_controls", "classical_mds", "larger_than", "permutation_p", "rounded", "score", "silhouettes"]

Array = npt.NDArray[np.float64]

_PERMUTATIONS = 999
_ALPHA = 0.05
"""What p has to be below."""


def silhouettes(distances: Array, groups: npt.NDArray[np.int64]) -> Array:
    """Silhouettes ``(…, n)`` of n things in ``groups`` ``(…, n)`` 0, 1 …, each of two things or more.

    ``s = (b − a) / max(a, b)``: a is the mean distance to the others of a thing's own group, b that to the nearest other group
    (Rousseeuw 1987, as scikit-learn has it), for many groupings at once.

    >>> silhouettes(np.array([[0.0, 1, 4, 4], [1, 0, 4, 4], [4, 4, 0, 2], [4, 4, 2, 0]]), np.array([0, 0, 1, 1])).tolist()
    [0.75, 0.75, 0.5, 0.5]
    """
    member = groups[..., None] == np.arange(groups.max() + 1)
    sums, sizes = distances @ member.astype(float), member.sum(-2)[..., None, :]
    own = np.where(member, sums / (sizes - 1), 0.0).sum(-1)
    other = np.where(member, np.inf, sums / sizes).min(-1)
    return np.asarray((other - own) / np.maximum(np.maximum(own, other), np.finfo(float).tiny))


def permutation_p(distances: Array, contexts: int, *, seed: int, permutations: int = _PERMUTATIONS) -> float:
    """How often contexts dealt anew within each country separate at least as well: ``(1 + #) / (1 + permutations)``.

    Args:
        distances: between texts, the countries of one context after another.
        contexts: how many there are.
        seed: of the permutations.
        permutations: how many.
    """
    groups = _groups(contexts, len(distances) // contexts)
    dealt = np.broadcast_to(groups.reshape(contexts, -1), (permutations, contexts, len(distances) // contexts))
    dealt = np.random.default_rng(seed).permuted(dealt, axis=1).reshape(permutations, -1)
    seen, chance = (silhouettes(distances, some).mean(-1) for some in (groups, dealt))
    return float(1 + (chance >= seen - 1e-12).sum()) / (1 + permutations)  # a context and another swapped everywhere is a tie


def classical_mds(distances: Array) -> tuple[Array, float]:
    """The plane ``(n, 2)`` of classical scaling (Torgerson 1952), and its share of the positive eigenvalues.

    These are of ``−½ J D² J`` with J the centring. Of distances that no Euclidean space has, some are negative, and left out.
    """
    squares = distances**2
    centred = squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean()
    values, directions = np.linalg.eigh(-centred / 2)
    kept = values[:-3:-1].clip(0)
    plane = directions[:, :-3:-1] * np.sqrt(kept)
    signs = np.sign(plane[np.abs(plane).argmax(0), [0, 1]])  # eigenvectors have no sign of their own
    return plane * np.where(signs == 0, 1, signs), float(kept.sum() / max(values.clip(0).sum(), np.finfo(float).tiny))


def score(distances: Array, contexts: int, seed: int) -> dict[str, Any]:
    """The mean silhouette, its p, and the mean over the texts of each country."""
    samples = silhouettes(distances, _groups(contexts, len(distances) // contexts))
    by_country = rounded(samples.reshape(contexts, -1).mean(0))
    p = permutation_p(distances, contexts, seed=seed)
    return {"silhouette": float(samples.mean()), "p": p, "by_country": by_country}


def larger_than(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[bool | None, float]:
    """Whether one silhouette is larger than another over the same countries, and Wilcoxon's p; ``None`` where p ≥ 0.05."""
    from scipy.stats import wilcoxon

    difference = np.subtract(first["by_country"], second["by_country"])
    p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    return (bool(difference.mean() > 0) if p < _ALPHA else None), p


def beyond_controls(separation: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Whether contexts lie apart, and further than in both controls: all three, and king and queen alone.

    For each of these two the silhouette has to be above zero with p < 0.05 by permutation, and larger than that of each
    control, paired by country (:func:`larger_than`). The claim holds where all that is so; it fails where a silhouette is not
    above zero, or a control's is larger; all else is undecided.
    """
    ways: set[bool | None] = set()
    parts, by_tokens = [], False
    for which, called in (("all", "silhouette"), ("king_queen", "of king and queen alone")):
        found = separation["model"][which]
        ways.add(False if found["silhouette"] <= 0 else found["p"] < _ALPHA or None)
        controls = []
        for source in ("shuffled", "untrained"):
            control = separation[source][which]
            larger, p = larger_than(found, control)
            ways.add(larger)
            sign = {True: ">", None: "≈", False: "<"}[larger]
            controls.append(f"{sign} {source} {control['silhouette']:z.2f} (p = {p:.1g})")
            by_tokens |= source == "untrained" and larger is not True and found["silhouette"] > 0
        parts.append(f"{called} {found['silhouette']:z.2f} (p = {found['p']:.2g}) {' and '.join(controls)}")
    remark = "; random weights do as well: that much is of tokens, not of what was learned" if by_tokens else ""
    return False if False in ways else True if ways == {True} else None, "; ".join(parts) + remark


def _groups(contexts: int, countries: int) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(contexts), countries)


def rounded(values: npt.ArrayLike) -> list[Any]:
    """Six digits, as lists: what a picture or a reader can tell apart."""
    array = np.asarray(values, dtype=float)
    rounded: list[Any] = np.array([float(f"{value:.6g}") for value in array.flat]).reshape(array.shape).tolist()
    return rounded
