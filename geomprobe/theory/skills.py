"""Why loss falls as a power of size (§3): texts exercise skills, skills are used as a power law, and a model learns the most
used first. The forms used here:

Def. 3.4: in the graph of texts and the skills they use, skill k of M has a share ``p_k ∝ k^{−(1+α)}`` of the edges.
Assumption 3.5: a text X given its skill Y costs ``H(X | Y = k) = B`` nats once skill k is learned, and C > B before.
Lemma 3.6: after the n most used skills, ``H_n(X | Y) = B + (C − B)·Σ_{k>n} p_k → B + (C − B)/(α ζ(1+α)) · n^{−α}``.

What each resource buys (Thms 3.7–3.8) is one more assumption each, as in the quantization model of Michaud et al. 2023: a
skill takes up so many parameters, so N parameters hold ``n ∝ N`` skills; it is learned from so many texts that use it, so D
texts teach the skills of ``p_n D ≥`` that, ``n ∝ D^{1/(1+α)}``; and FLOPs are parameters times texts, ``n ∝ F^{1/(2+α)}``.

Lemma 3.17: where a text tells its skill, ``H(X) = H(X | Y) + H(Y)``; where it does not, H(X) is less, by ``H(Y | X)``. Theorem
3.18: H(Y) is the same whatever is learned, so entropy falls as conditional entropy does, to ``B + H(Y)`` in place of B.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import chdtrc, ndtri, softmax, zeta

from geomprobe.errors import GeomprobeError

__all__ = ["DegreeLaw", "SkillModel", "fit_degrees", "untold_by_data", "untold_by_data_limit"]

Floats = NDArray[np.float64]

_SUMMED = 10_000
"""Terms of a sum that are added one by one; the others come from an integral, right to 1e-15."""


@dataclass(frozen=True)
class SkillModel:
    """Conditional entropy of texts as skills are learned, exactly and asymptotically. Entropies in nats.

    Args:
        alpha: α > 0, how fast use falls with rank.
        M: number of skills.
        B: nats of a text given a skill that is learned.
        C: nats of a text given one that is not; more than B.

    Raises:
        GeomprobeError: a number is out of range.

    >>> model = SkillModel(alpha=0.5, M=10**6, B=1.0, C=5.0)
    >>> [round(float(h), 3) for h in model.conditional_entropy([0, 100, 10**6])]
    [5.0, 1.303, 1.0]
    """

    alpha: float
    M: int
    B: float
    C: float

    def __post_init__(self) -> None:
        if not (self.alpha > 0 and self.M >= 1 and 0 <= self.B < self.C):
            raise GeomprobeError(f"a SkillModel has alpha > 0, M ≥ 1 and 0 ≤ B < C, got {self}")

    @property
    def exponents(self) -> dict[str, float]:
        """Of ``H(X | Y) − B`` in each resource, for 1 ≪ n ≪ M."""
        return {
            "skills": -self.alpha,
            "parameters": -self.alpha,
            "texts": -self.alpha / (self.alpha + 1),
            "flops": -self.alpha / (self.alpha + 2),
        }

    def degrees(self) -> Floats:
        """``p_k`` of k = 1 … M, ``(M,)`` (Def. 3.4)."""
        weights = np.arange(1, self.M + 1, dtype=np.float64) ** -(1 + self.alpha)
        shares: Floats = weights / weights.sum()
        return shares

    def conditional_entropy(self, learned: ArrayLike) -> Floats:
        """``H(X | Y)`` once the ``learned`` most used skills are, exactly (Lemma 3.6); more than M count as M."""
        n = np.clip(np.floor(np.asarray(learned, np.float64)), 0, self.M)
        unlearned: Floats = _power_sum(1 + self.alpha, n, self.M) / self._total
        return self.B + (self.C - self.B) * unlearned

    def text_entropies(self, learned: int) -> Floats:
        """``H(X | Y = k)`` of k = 1 … M, ``(M,)`` (Assumption 3.5): B of the ``learned`` most used skills, C of the others."""
        return np.where(np.arange(self.M) < learned, self.B, self.C)

    def conditional_entropy_limit(self, learned: ArrayLike) -> Floats:
        """Its limit for 1 ≪ n ≪ M: ``B + (C − B)/(α ζ(1+α)) · n^{−α}``."""
        scale = (self.C - self.B) / (self.alpha * float(zeta(1 + self.alpha)))
        return self.B + scale * np.asarray(learned, np.float64) ** -self.alpha

    def limit_from(self, resource: str, amount: ArrayLike, *, per_skill: float = 1.0) -> Floats:
        """The same limit in what is spent (Thms 3.7–3.8): ``n`` is ``a`` of parameters, ``(a/ζ(1+α))^{1/(1+α)}`` of texts and
        ``(a/ζ(1+α))^{1/(2+α)}`` of FLOPs, with ``a = amount/per_skill``.

        Raises:
            GeomprobeError: no such resource among :attr:`exponents`.
        """
        if resource not in self.exponents:
            raise GeomprobeError(f"limit_from({resource!r}): expected one of {', '.join(self.exponents)}")
        share = np.asarray(amount, np.float64) / per_skill
        if resource in ("texts", "flops"):
            share = share / zeta(1 + self.alpha)
        return self.conditional_entropy_limit(share ** (self.exponents[resource] / self.exponents["skills"]))

    def learned_from_parameters(self, parameters: ArrayLike, *, per_skill: float = 1.0) -> Floats:
        """Skills held by so many parameters (Theorem 3.7)."""
        return self._skills(np.asarray(parameters, np.float64) / per_skill)

    def learned_from_texts(self, texts: ArrayLike, *, per_skill: float = 1.0) -> Floats:
        """Skills that at least ``per_skill`` of so many texts are expected to use, each text using one."""
        share = np.asarray(texts, np.float64) / (per_skill * self._total)
        return self._skills(share ** (1 / (1 + self.alpha)))

    def learned_from_flops(self, flops: ArrayLike, *, per_skill: float = 1.0) -> Floats:
        """Skills for which parameters times texts is so many (Theorem 3.8); ``per_skill`` is the product of both's."""
        share = np.asarray(flops, np.float64) / (per_skill * self._total)
        return self._skills(share ** (1 / (2 + self.alpha)))

    def entropy(self, learned: ArrayLike) -> Floats:
        """``H(X)`` where a text tells its skill: ``H(X | Y) + H(Y)`` (Lemma 3.17)."""
        return self.conditional_entropy(learned) + self.skill_entropy

    def entropy_limit(self, learned: ArrayLike) -> Floats:
        """Its limit for 1 ≪ n ≪ M: ``B + H(Y) + (C − B)/(α ζ(1+α)) · n^{−α}`` (Theorem 3.18)."""
        return self.conditional_entropy_limit(learned) + self.skill_entropy

    @property
    def skill_entropy(self) -> float:
        """``H(Y) = log Z + (1+α) Σ k^{−(1+α)} log k / Z`` with ``Z = Σ k^{−(1+α)}``, in nats, whatever is learned."""
        return float(np.log(self._total) + (1 + self.alpha) * _log_sum(1 + self.alpha, self.M) / self._total)

    def sample_graph(self, texts: int, skills_per_text: int = 1, *, seed: int = 0) -> NDArray[np.int64]:
        """Edges ``(e, 2)`` of a random graph as in Figure 2: text, and skill counted from 0, sorted and each once.

        Every text draws its skills by :meth:`degrees`; one that it draws twice is one edge.
        """
        skills = np.random.default_rng(seed).choice(self.M, (texts, skills_per_text), p=self.degrees())
        edges = np.stack([np.repeat(np.arange(texts), skills_per_text), skills.ravel()], 1)
        return np.unique(edges, axis=0)

    @property
    def _total(self) -> float:
        return float(_power_sum(1 + self.alpha, np.zeros(()), self.M))

    def _skills(self, n: Floats) -> Floats:
        return np.minimum(np.floor(n), self.M)


@dataclass(frozen=True)
class DegreeLaw:
    """Def. 3.4 fitted to degrees by :func:`fit_degrees`.

    Attributes:
        alpha: α of ``k^{−(1+α)}``.
        interval: of α.
        p_value: how often degrees drawn from the fitted law lie as far from it as these, by a χ² test; NaN where too few skills
            are used often enough to tell.
    """

    alpha: float
    interval: tuple[float, float]
    p_value: float


def fit_degrees(degrees: ArrayLike, *, confidence: float = 0.95) -> DegreeLaw:
    """The α of Def. 3.4 under which ``degrees`` are most likely, where every edge draws its skill anew.

    It makes the mean of log k that of the law. A line through logs of degrees would not do: where degrees are small their logs
    are biased, and 0 has none. The interval is Wald's, from the Fisher information ``N·Var(log k)``.

    Args:
        degrees: of skills k = 1 … M, ``(M,)``, in the order of the law. Sorted by the degrees themselves they would look
            steeper than they are.
        confidence: of the interval.

    Raises:
        GeomprobeError: fewer than two skills, a degree is negative or not finite, or all edges are of the first or the last.
    """
    counts = np.asarray(degrees, np.float64)
    if counts.ndim != 1 or not np.isfinite(counts).all() or (counts < 0).any() or not (counts[1:].any() and counts[:-1].any()):
        raise GeomprobeError("fit_degrees takes how often each skill is used, at least two of them, in the order of the law")
    if not 0 < confidence < 1:
        raise GeomprobeError(f"confidence lies between 0 and 1, got {confidence}")
    logs, total = np.log(np.arange(1, len(counts) + 1)), float(counts.sum())
    mean = float(counts @ logs) / total
    exponent = float(brentq(lambda s: float(softmax(-s * logs) @ logs) - mean, -100, 100, xtol=1e-12))
    shares = softmax(-exponent * logs)
    error = 1 / np.sqrt(total * float(shares @ np.square(logs - mean)))
    reach = float(ndtri((1 + confidence) / 2) * error)
    return DegreeLaw(exponent - 1, (exponent - 1 - reach, exponent - 1 + reach), _goodness(counts, total * shares))


def _goodness(counts: Floats, expected: Floats) -> float:
    """χ² of cells in which at least 5 are expected, the others in one; one number was fitted."""
    often = expected >= 5
    cells = np.array([*zip(counts[often], expected[often], strict=True), (counts[~often].sum(), expected[~often].sum())])
    cells = cells[cells[:, 1] >= 5]
    if len(cells) < 3:
        return float("nan")
    return float(chdtrc(len(cells) - 2, (np.square(cells[:, 0] - cells[:, 1]) / cells[:, 1]).sum()))


def untold_by_data(n: ArrayLike, gamma: float) -> Floats:
    """``Σ_{k>n} k^{−2γ}``: what is untold after n data where the k-th tells ``k^{−2γ}``, up to a factor (γ > ½).

    The sum whose exponent is §3.1's in data, 1 − 2γ: so falls what is left of context when what two tokens k apart tell of each
    other is the square of a correlation ``k^{−γ}``, and what is left of a signal of amplitudes ``k^{−γ}``.

    Raises:
        GeomprobeError: γ ≤ ½, where the sum is infinite.
    """
    if gamma <= 0.5:
        raise GeomprobeError(f"untold_by_data takes gamma > 1/2, got {gamma:g}: at or below, the sum is infinite")
    return np.asarray(zeta(2 * gamma, np.asarray(n, np.float64) + 1))


def untold_by_data_limit(n: ArrayLike, gamma: float) -> Floats:
    """Its limit for n ≫ 1: ``n^{1−2γ} / (2γ − 1)``."""
    return np.asarray(n, np.float64) ** (1 - 2 * gamma) / (2 * gamma - 1)


def _power_sum(exponent: float, after: Floats, last: float) -> Floats:
    """``Σ k^{−exponent}`` over ``after < k ≤ last``, as a difference of Hurwitz zeta functions."""
    return np.asarray(zeta(exponent, after + 1) - zeta(exponent, last + 1))


def _log_sum(exponent: float, last: float) -> float:
    """``Σ k^{−exponent} log k`` over ``1 ≤ k ≤ last``: by Euler and Maclaurin's formula beyond the first few."""
    first = min(last, _SUMMED)
    k = np.arange(1, first + 1, dtype=np.float64)
    ends = np.array([first, last], np.float64)
    logs, powers, rate = np.log(ends), ends**-exponent, exponent - 1
    integral = -(ends**-rate) * (logs / rate + 1 / rate**2)
    slope = powers / ends * (1 - exponent * logs)
    tail = np.diff(integral + powers * logs / 2 + slope / 12)
    return float((k**-exponent * np.log(k)).sum() + tail[0])
