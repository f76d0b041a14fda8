"""How far groups of texts lie apart, as a number with a p-value, and the plane that shows their distances best."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Score", "Separation", "as_well", "better", "classical_mds", "permutation_p", "rounded", "score"]
__all__ += ["separates", "silhouettes"]

Array = npt.NDArray[np.float64]

_PERMUTATIONS = 999
_ALPHA = 0.05
"""The level below which p must be, so that a difference counts."""
_WAYS = {"all": "silhouettes of the three contexts", "king_queen": "of king and queen alone"}
"""What is separated, and its name in a verdict."""


@dataclass(frozen=True)
class Score:
    """The mean silhouette of texts in contexts, its p-value, and the mean over the texts of each country."""

    silhouette: float
    p: float
    by_country: list[float]


@dataclass(frozen=True)
class Separation:
    """The score of all contexts, and of king and queen alone."""

    all: Score
    king_queen: Score


def silhouettes(distances: Array, groups: npt.NDArray[np.int64]) -> Array:
    """Return silhouettes ``(…, n)`` of n things in ``groups`` ``(…, n)``, numbered 0, 1 …, of at least two things each.

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
    """Return how often contexts separate at least as well after they were permuted within each country:
    ``(1 + #) / (1 + permutations)``.

    Args:
        distances: the distances between texts, which are sorted by context and then by country.
        contexts: the number of contexts.
        seed: the seed of the permutations.
        permutations: the number of permutations.
    """
    groups = _groups(contexts, len(distances) // contexts)
    dealt = np.broadcast_to(groups.reshape(contexts, -1), (permutations, contexts, len(distances) // contexts))
    dealt = np.random.default_rng(seed).permuted(dealt, axis=1).reshape(permutations, -1)
    seen, chance = (silhouettes(distances, some).mean(-1) for some in (groups, dealt))
    return float(1 + (chance >= seen - 1e-12).sum()) / (1 + permutations)  # a context and another swapped everywhere is a tie


def classical_mds(distances: Array) -> tuple[Array, float]:
    """Return the plane ``(n, 2)`` of classical scaling (Torgerson 1952) of the distances, and its share of the positive
    eigenvalues.

    They are the eigenvalues of ``−½ J D² J``, where J is the centring matrix. If no Euclidean space has these distances, some
    eigenvalues are negative. They are left out.
    """
    squares = distances**2
    centred = squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean()
    values, directions = np.linalg.eigh(-centred / 2)
    kept = values[:-3:-1].clip(0)
    plane = directions[:, :-3:-1] * np.sqrt(kept)
    signs = np.sign(plane[np.abs(plane).argmax(0), [0, 1]])  # eigenvectors have no sign of their own
    return plane * np.where(signs == 0, 1, signs), float(kept.sum() / max(values.clip(0).sum(), np.finfo(float).tiny))


def score(distances: Array, contexts: int, seed: int) -> Score:
    """Return the score of ``contexts`` × countries texts."""
    samples = silhouettes(distances, _groups(contexts, len(distances) // contexts))
    by_country = rounded(samples.reshape(contexts, -1).mean(0))
    return Score(float(samples.mean()), permutation_p(distances, contexts, seed=seed), by_country)


def separates(found: Mapping[str, Separation]) -> tuple[bool | None, str]:
    """Whether contexts lie apart under every distance or embedding in ``found``, and the numbers that say so.

    Each has two silhouettes: of all contexts, and of king and queen alone. The claim holds if each of them is above zero with p
    < 0.05 by permutation, fails if one is not above zero, and is undecided otherwise.
    """
    ways: set[bool | None] = set()
    parts = []
    for which, called in _WAYS.items():
        scores = {name: _score(ways_of, which) for name, ways_of in found.items()}
        ways |= {False if one.silhouette <= 0 else one.p < _ALPHA or None for one in scores.values()}
        numbers = ", ".join(f"{name} {one.silhouette:z.2f}" for name, one in scores.items())
        parts.append(f"{called} {numbers} (p ≤ {max(one.p for one in scores.values()):.2g})")
    return _all_of(ways), "; ".join(parts)


def better(first: Separation, second: Separation) -> tuple[bool | None, str]:
    """Whether the first separates contexts better than the second, both all contexts and king from queen alone.

    Silhouettes are paired by country, and compared by Wilcoxon's test. The claim is undecided if one of the two comparisons is
    undecided (p ≥ 0.05) and the other one does not refute it.
    """
    ways: set[bool | None] = set()
    parts = []
    for which, called in _WAYS.items():
        one, other = _score(first, which), _score(second, which)
        larger, p = _larger(one, other)
        ways.add(larger)
        parts.append(f"{called} {one.silhouette:z.2f} against {other.silhouette:z.2f} (p = {p:.1g})")
    return _all_of(ways), "; ".join(parts)


def as_well(control: Mapping[str, Separation], model: Mapping[str, Separation]) -> tuple[bool | None, str]:
    """Whether a control separates contexts as well as the model does, under every distance or embedding in both.

    It holds if no silhouette of the model is larger than that of the control (paired by country, p < 0.05). It fails if all are
    larger, or if a silhouette of the control is not above zero. It is undecided otherwise.
    """
    pairs = [(_score(control[name], which), _score(found, which)) for which in _WAYS for name, found in model.items()]
    less = [_larger(second, first)[0] is True for first, second in pairs]
    apart = all(first.silhouette > 0 for first, _ in pairs)
    parts = []
    for which, called in _WAYS.items():
        numbers = (
            f"{name} {_score(control[name], which).silhouette:z.2f} (model {_score(found, which).silhouette:z.2f})"
            for name, found in model.items()
        )
        parts.append(f"{called} {', '.join(numbers)}")
    parts.append(f"the model's is larger in {sum(less)} of {len(less)} (paired by country, p < {_ALPHA})")
    return (False if all(less) or not apart else None if any(less) else True), "; ".join(parts)


def _score(found: Separation, which: str) -> Score:
    return found.all if which == "all" else found.king_queen


def _larger(first: Score, second: Score) -> tuple[bool | None, float]:
    """Whether one silhouette is larger than another over the same countries, and the p-value of Wilcoxon's test; ``None`` if p
    ≥ 0.05."""
    from scipy.stats import wilcoxon

    difference = np.subtract(first.by_country, second.by_country)
    p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    return (bool(difference.mean() > 0) if p < _ALPHA else None), p


def _all_of(ways: set[bool | None]) -> bool | None:
    return False if False in ways else True if ways == {True} else None


def _groups(contexts: int, countries: int) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(contexts), countries)


def rounded(values: npt.ArrayLike) -> list[Any]:
    """Return numbers as lists with six digits, which is more than a picture or a reader can distinguish."""
    array = np.asarray(values, dtype=float)
    rounded: list[Any] = np.array([float(f"{value:.6g}") for value in array.flat]).reshape(array.shape).tolist()
    return rounded
