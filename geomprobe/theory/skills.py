"""Skills and the scaling laws that follow from them (section 3: Def. 3.4, Assumption 3.5, Lemma 3.6, Theorems 3.7 and 3.8).

Texts are linked to the skills that they use, as in figure 2. Skill k of M is used with probability
``p_skill(y_k) = k^{−(α+1)} / Z_α``, where ``Z_α = Σ_{k≤M} k^{−(α+1)}``.

- Def. 3.4: ``H(X | y) = B`` for every skill before training. A model comprehends the skill if ``H(X | y) = C``, with C < B.
- Assumption 3.5: skills are learned one after another, from the easiest (the most probable) to the hardest.
- Lemma 3.6: with n skills comprehended, ``H(X | Y) = C + (B − C) Σ_{i>n} p_skill(y_i)``.
- Theorem 3.7: every r neurons comprehend a skill, so that ``n = N/r``.
- Theorem 3.8: skill i takes ``(B − C) / (p_skill(y_i) Δ)`` FLOPs, and S FLOPs pay for the first n skills if S is their sum.

For 1 ≪ n ≪ M it is ``H(X | Y) − C`` that falls as the power of n, N or S that the paper prints.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import zeta

from geomprobe.errors import GeomprobeError

__all__ = ["SkillModel", "power_sum"]

Floats = NDArray[np.float64]

_ADDED = 100_000
"""The FLOPs of this number of skills are added one by one. Those of later skills are computed by the Euler–Maclaurin
formula."""
_LISTED = 10**8
"""Largest M whose probabilities are listed: 0.8 GB."""
_ROUNDING = 1e-12
"""FLOPs that are too few by at most this share count as enough, because the rounding of a sum depends on the order of its
terms."""


@dataclass(frozen=True)
class SkillModel:
    """Conditional entropy of texts given their skill, as skills are learned. Entropies are in nats.

    Args:
        alpha: α > 0 of the degree law.
        M: number of skills, or ``math.inf``.
        B: ``H(X | y)`` of a skill that is not yet comprehended.
        C: ``H(X | y)`` of a skill that is comprehended; less than B.

    Raises:
        GeomprobeError: if a number is out of range.

    >>> model = SkillModel(alpha=0.5, M=10**6, B=5.0, C=1.0)
    >>> [round(float(h), 3) for h in model.conditional_entropy([0, 100, 10**6])]
    [5.0, 1.303, 1.0]
    """

    alpha: float
    M: float
    B: float
    C: float

    def __post_init__(self) -> None:
        if not (0 < self.alpha < math.inf and self.M >= 1 and (math.isinf(self.M) or float(self.M).is_integer())):
            raise GeomprobeError(f"SkillModel takes alpha > 0 and a whole number of skills M ≥ 1, or math.inf, got {self}")
        if not -math.inf < self.C < self.B < math.inf:
            raise GeomprobeError(
                f"SkillModel takes B > C: H(X | y) is B before skill y is comprehended and C after (Def. 3.4), got {self}"
            )

    @property
    def area(self) -> float:
        """``Z_α = Σ_{k≤M} k^{−(α+1)}``, which normalises the degrees."""
        return float(power_sum(1 + self.alpha, 0, self.M))

    def p_skill(self) -> Floats:
        """``p_skill(y_k)`` of k = 1 … M, ``(M,)``.

        Raises:
            GeomprobeError: if there are too many skills to list.
        """
        weights = self._ranks() ** -(1 + self.alpha)
        shares: Floats = weights / weights.sum()
        return shares

    def skill_entropies(self, n: int) -> Floats:
        """``H(X | y_k)`` of k = 1 … M once n skills are comprehended, ``(M,)``: C of the n easiest and B of the others
        (Def. 3.4, Assumption 3.5).
        """
        return np.where(self._ranks() <= n, self.C, self.B)

    def conditional_entropy(self, n: ArrayLike) -> Floats:
        """``H(X | Y) = C + (B − C) Σ_{i>n} p_skill(y_i)`` once n skills are comprehended (Lemma 3.6), exactly.

        A number of skills between two integers counts as the lower one, and a number above M counts as M.
        """
        learned = np.minimum(np.floor(_amount("n", n)), self.M)
        return self.C + (self.B - self.C) * power_sum(1 + self.alpha, learned, self.M) / self.area

    def conditional_entropy_integral(self, n: ArrayLike) -> Floats:
        """``C + (B − C) ∫_n^M y^{−α−1} / Z_α dy``, with the integral that replaces the sum in the proof of Lemma 3.6, for
        0 < n ≤ M.

        It exceeds the sum by at most ``(B − C) p_skill(y_n)``.
        """
        tail = (_amount("n", n) ** -self.alpha - self.M**-self.alpha) / self.alpha
        return np.asarray(self.C + (self.B - self.C) * tail / self.area)

    def learned_from_parameters(self, N: ArrayLike, r: float = 1.0) -> Floats:
        """Return the number of skills that N parameters comprehend if every ``r`` of them comprehend one (Theorem 3.7):
        ``N/r``, at most M."""
        return np.minimum(np.floor(_amount("N", N) / _positive("r", r)), self.M)

    def flops_to_learn(self, n: ArrayLike, delta: float = 1.0) -> Floats:
        """``S = Σ_{i≤n} (B − C) / (p_skill(y_i) Δ)``: the FLOPs that it takes to comprehend n skills (proof of Theorem 3.8).

        Args:
            n: number of skills, at most M.
            delta: Δ, the amount by which each FLOP lowers the conditional entropy of the skill that it contributes to.
        """
        learned = np.floor(_amount("n", n))
        if (learned > self.M).any():
            raise GeomprobeError(f"flops_to_learn: there are {self.M:g} skills, got n = {learned.max():g}")
        return (self.B - self.C) * self.area / _positive("delta", delta) * _rising_sum(1 + self.alpha, learned)

    def learned_from_flops(self, S: ArrayLike, delta: float = 1.0) -> Floats:
        """Return the number of skills that S FLOPs comprehend: the largest number whose :meth:`flops_to_learn` is at most S
        (Theorem 3.8)."""
        power = 2 + self.alpha
        paid = _amount("S", S) * _positive("delta", delta) / ((self.B - self.C) * self.area) * (1 + _ROUNDING)
        # n^p / p ≤ Σ_{i≤n} i^(p−1) ≤ (n+1)^p / p: it is the upper end, or the number below it
        n = np.minimum(np.floor((power * paid) ** (1 / power)), self.M)
        return np.where(_rising_sum(power - 1, n) > paid, n - 1, n)

    def asymptote(self, resource: str, *, r: float = 1.0, delta: float = 1.0) -> tuple[float, float]:
        """Return the coefficient and the exponent of the power law that ``H(X | Y) − C`` approaches for 1 ≪ n ≪ M.

        Args:
            resource: the variable of the power law: ``"skills"`` (n, Lemma 3.6), ``"parameters"`` (N, Theorem 3.7) or
                ``"flops"`` (S, Theorem 3.8).
            r: number of parameters that comprehend one skill.
            delta: Δ of Theorem 3.8.

        Raises:
            GeomprobeError: if there is no such resource.

        >>> SkillModel(alpha=0.5, M=10**12, B=5.0, C=1.0).asymptote("flops")[1]  # −α/(α+2)
        -0.2
        """
        scale, power = (self.B - self.C) / (self.alpha * self.area), 2 + self.alpha
        match resource:
            case "skills":
                return scale, -self.alpha
            case "parameters":
                return scale * _positive("r", r) ** self.alpha, -self.alpha
            case "flops":
                unit = (self.B - self.C) * self.area / (power * _positive("delta", delta))
                return scale * unit ** (self.alpha / power), -self.alpha / power
        raise GeomprobeError(f"asymptote({resource!r}): expected skills, parameters or flops")

    def sample_graph(self, texts: int, skills_per_text: int = 1, *, seed: int = 0) -> NDArray[np.int64]:
        """Return the edges ``(e, 2)`` of a random skill graph as in figure 2. An edge is a text and a skill, both counted from
        0, and edges are sorted.

        Every text draws its skills from :meth:`p_skill`. If it draws a skill twice, there is one edge.
        """
        skills = np.random.default_rng(seed).choice(int(self.M), (texts, skills_per_text), p=self.p_skill())
        edges = np.stack([np.repeat(np.arange(texts), skills_per_text), skills.ravel()], 1)
        return np.unique(edges, axis=0)

    def _ranks(self) -> Floats:
        if self.M > _LISTED:
            raise GeomprobeError(f"at most {_LISTED:,} skills can be listed one by one, got M = {self.M:g}: use a smaller M")
        return np.arange(1, int(self.M) + 1, dtype=np.float64)


def power_sum(exponent: float, after: ArrayLike, last: float) -> Floats:
    """``Σ k^{−exponent}`` over ``after < k ≤ last``, a difference of Hurwitz zeta functions, for exponents above 1."""
    rest = 0.0 if last == math.inf else zeta(exponent, last + 1)
    return np.asarray(zeta(exponent, np.asarray(after, np.float64) + 1) - rest)


def _rising_sum(exponent: float, last: Floats) -> Floats:
    """``Σ k^exponent`` over ``1 ≤ k ≤ last``, for a positive exponent."""
    added = min(_ADDED, int(last.max(initial=0)))
    sums = np.concatenate([[0.0], np.cumsum(np.arange(1, added + 1, dtype=np.float64) ** exponent)])
    ends = np.stack([np.full_like(last, added), np.maximum(last, added)])
    powers = ends**exponent
    with np.errstate(divide="ignore", invalid="ignore"):  # where nothing is added, 0/0
        terms = powers * (ends / (exponent + 1) + 0.5 + exponent / (12 * ends))
    beyond = np.where(last > added, np.diff(terms, axis=0)[0], 0.0)
    sums_to: Floats = sums[np.minimum(last, added).astype(np.int64)] + beyond
    return sums_to


def _amount(name: str, value: ArrayLike) -> Floats:
    amounts = np.asarray(value, np.float64)
    wrong = ~(np.isfinite(amounts) & (amounts >= 0))
    if wrong.any():
        raise GeomprobeError(f"{name} must be finite and at least 0, got {amounts[wrong][0]:g}")
    return amounts


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise GeomprobeError(f"{name} must be positive and finite, got {value}")
    return value
