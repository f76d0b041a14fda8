"""Tests of the definitions, assumptions, lemmas and theorems of section 3 on random finite distributions, with the numbers of
the paper."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from geomprobe.theory import dataset_size, information, prompting
from geomprobe.theory.skills import SkillModel

__all__ = ["BEYOND", "GROUPS", "Lemma", "run_checks"]

Floats = NDArray[np.float64]

BEYOND = "beyond"
GROUPS = {
    "entropy": "Defs 2.1 to 2.3: entropy, conditional entropy and KL divergence",
    "codes": "Defs 3.2 and 3.3, and the remark on capacity: an instantaneous code takes at least H(X) bits a text, and "
    "W log(1 + 1/W) increases with W",
    "skills": "Def. 3.4, Assumption 3.5, Lemma 3.6, Theorems 3.7 and 3.8: skills learned in order give these sums",
    "prompts": "Def. 3.9, Lemma 3.10, Theorem 3.11: a perfect prompt leaves the entropy of the skill",
    "contexts": "Defs 3.12 and 3.13, Lemma 3.14, Theorem 3.15: a context that is good (bad) or irrelevant to every skill, "
    "and good (bad) to one, lowers (raises) H(X | Y)",
    "invariance": "Assumption 3.16, Lemma 3.17, Theorem 3.18: H(X) is H(X | Y) plus a mean KL divergence",
    "fisher": "Section 3.1: for small Δθ both KL divergences are ½ΔθᵀFΔθ",
    BEYOND: "Beyond the paper: converses, averages and bounds",
}
"""The claim of every group of statements. Those of the last group are ours."""

_DRAWS = 1000
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Lemma:
    """A statement, and its worst value over all draws: the largest absolute value if 0 or at most 1 is needed, otherwise the
    smallest value."""

    group: str
    place: str
    says: str
    needs: str
    draws: int
    worst: float

    @property
    def holds(self) -> bool:
        """Whether the worst value is as needed, up to rounding. A value that is not finite never is."""
        worst, slack = self.worst, _ROUNDING
        verdicts = {"= 0": worst <= slack, "≤ 1": worst <= 1 + slack, "≥ 0": worst >= -slack, "> 0": worst > slack}
        return math.isfinite(worst) and verdicts[self.needs]


@dataclass(frozen=True)
class _Check:
    """A statement about random distributions. ``values`` draws one and returns numbers, each of which is as ``needs`` says, or
    NaN."""

    group: str
    place: str
    says: str
    needs: str
    values: Callable[[Generator], Sequence[float]]

    def run(self, draw: Generator) -> Lemma:
        """Return the worst value over all draws."""
        drawn = np.concatenate([np.asarray(self.values(draw), np.float64) for _ in range(_DRAWS)])
        worst = np.abs(drawn).max() if self.needs in ("= 0", "≤ 1") else drawn.min()
        return Lemma(self.group, self.place, self.says, self.needs, _DRAWS, float(worst))


def run_checks(draw: Generator) -> list[Lemma]:
    """Return the worst value of every statement on distributions that ``draw`` draws."""
    return [check.run(draw) for check in _CHECKS]


# -- random distributions ---------------------------------------------------------------------------------------------------


def _joint(draw: Generator, *shape: int) -> Floats:
    """A random joint distribution, some of whose outcomes are improbable or impossible."""
    weights = draw.gamma(0.5, size=shape) * (draw.random(shape) < 0.8)
    weights.flat[draw.integers(weights.size)] += 0.1
    return np.asarray(weights / weights.sum())


def _pair(draw: Generator) -> Floats:
    """p(x, y) of two to six outcomes each."""
    return _joint(draw, *draw.integers(2, 7, 2))


def _given(draw: Generator, texts: int, skills: int) -> Floats:
    """``skills`` distributions over texts, ``(texts, skills)``."""
    weights = draw.gamma(0.5, size=(texts, skills)) * (draw.random((texts, skills)) < 0.8)
    weights[draw.integers(texts, size=skills), range(skills)] += 0.1
    return np.asarray(weights / weights.sum(0))


def _p_skill(draw: Generator, skills: int) -> Floats:
    return np.asarray(draw.dirichlet(np.full(skills, 5.0)))


# -- section 2 and codes ----------------------------------------------------------------------------------------------------


def _chain_rule(draw: Generator) -> Sequence[float]:
    p = _pair(draw)
    return [information.entropy(p) - information.entropy(p.sum(0)) - information.conditional_entropy(p)]


def _mean_of_given(draw: Generator) -> Sequence[float]:
    p = _pair(draw)
    return [information.conditional_entropy(p) - float(np.nansum(p.sum(0) * information.entropies_given(p)))]


def _uniform(draw: Generator) -> Sequence[float]:
    """``KL(P ‖ uniform) = log n − H(P)``."""
    p = _joint(draw, int(draw.integers(2, 9)))
    return [information.kl_divergence(p, np.full(len(p), 1 / len(p))) - math.log(len(p)) + information.entropy(p)]


def _pinsker(draw: Generator) -> Sequence[float]:
    n = int(draw.integers(2, 9))
    p, q = _joint(draw, n), 0.9 * _joint(draw, n) + 0.1 / n
    return [information.kl_divergence(p, q) - np.abs(p - q).sum() ** 2 / 2]


def _letters(draw: Generator) -> Floats:
    """A distribution without impossible outcomes: these would need no codeword."""
    n = int(draw.integers(2, 9))
    return np.asarray(0.99 * draw.dirichlet(np.full(n, 0.5)) + 0.01 / n)


def _codes_told_apart(draw: Generator) -> Sequence[float]:
    """1 for each code that is taken for the other kind. A codeword that is repeated or continued makes the other kind."""
    code = information.huffman_code(_letters(draw))
    longer = code[int(draw.integers(len(code)))] + "01"[: int(draw.integers(3))]
    return [not information.is_instantaneous(code), information.is_instantaneous([longer, *code])]


def _code_length(draw: Generator) -> Sequence[float]:
    """Of the best code, and of its codewords in another order, which is also an instantaneous code."""
    p = _letters(draw)
    code = information.huffman_code(p)
    other = [code[i] for i in draw.permutation(len(code))]
    bits = information.entropy(p) / math.log(2)
    return [information.expected_code_length(p, each) - bits for each in (code, other)]


def _code_of_blocks(draw: Generator) -> Sequence[float]:
    """Two texts with one codeword: half its length is what each takes."""
    p = _letters(draw)
    blocks = np.outer(p, p).ravel()
    length = information.expected_code_length(blocks, information.huffman_code(blocks))
    return [length / 2 - information.entropy(p) / math.log(2)]


def _code_bound(draw: Generator) -> Sequence[float]:
    p = _letters(draw)
    return [information.entropy(p) / math.log(2) + 1 - information.expected_code_length(p, information.huffman_code(p))]


def _capacity(draw: Generator) -> Sequence[float]:
    low, high = 10 ** (draw.uniform(-4, 4) + np.array([0, draw.uniform(0.01, 2)]))
    return [float(information.awgn_capacity(high) - information.awgn_capacity(low))]


# -- skills -----------------------------------------------------------------------------------------------------------------


def _skill_model(draw: Generator, most: int = 30) -> SkillModel:
    """A skill that is comprehended leaves one to four texts, any other up to six: C and B are the logarithms of these."""
    few = int(draw.integers(1, 5))
    alpha, more = draw.uniform(0.1, 3), int(draw.integers(few + 1, 7))
    return SkillModel(alpha, int(draw.integers(2, most)), B=math.log(more), C=math.log(few))


def _degree_law(draw: Generator) -> Sequence[float]:
    model = _skill_model(draw, 1000)
    shares, k = model.p_skill(), np.arange(1, model.M + 1)
    return [shares.sum() - 1, *(shares / shares[0] - k ** -(1 + model.alpha)), shares[0] * model.area - 1]


def _texts_of_skills(draw: Generator, model: SkillModel, n: int) -> Floats:
    """p(x, y) where a skill's texts are equally likely: e^C of them if the skill is among the first n, else e^B."""
    few, many = round(math.exp(model.C)), round(math.exp(model.B))
    joint = np.zeros((12, int(model.M)))
    for k, share in enumerate(model.p_skill()):
        texts = draw.permutation(12)[: few if k < n else many]
        joint[texts, k] = share / len(texts)
    return joint


def _comprehended(draw: Generator) -> Sequence[float]:
    model = _skill_model(draw)
    n = int(draw.integers(0, int(model.M) + 1))
    given = information.entropies_given(_texts_of_skills(draw, model, n))
    return [*(given - model.skill_entropies(n)), *(model.skill_entropies(0) - model.B)]


def _easy_first(draw: Generator) -> Sequence[float]:
    """The probability of the hardest skill that is comprehended, less that of the easiest one that is not."""
    model = _skill_model(draw)
    n = int(draw.integers(1, int(model.M)))
    done = model.skill_entropies(n) == model.C
    return [model.p_skill()[done].min() - model.p_skill()[~done].max(), -abs(int(done.sum()) - n)]


def _conditional(draw: Generator) -> Sequence[float]:
    model = _skill_model(draw)
    n = int(draw.integers(0, int(model.M) + 1))
    return [information.conditional_entropy(_texts_of_skills(draw, model, n)) - float(model.conditional_entropy(n))]


def _integral(draw: Generator) -> Sequence[float]:
    """The integral less the sum lies between 0 and ``(B − C) p_n``; here from −1 to 1. M is up to 10¹²."""
    model = SkillModel(draw.uniform(0.1, 2), round(10 ** draw.uniform(1, 12)), B=5.0, C=1.0)
    n = math.floor(min(model.M, 1000) ** draw.uniform(0, 1))
    unit = (model.B - model.C) * n ** -(1 + model.alpha) / model.area
    off = float(model.conditional_entropy_integral(n) - model.conditional_entropy(n)) / unit
    return [2 * off - 1]


def _neurons(draw: Generator) -> Sequence[float]:
    model = _skill_model(draw)
    n, r = int(draw.integers(0, int(model.M) + 1)), int(draw.integers(1, 1000))
    return [float(model.learned_from_parameters(n * r + r - 1, r)) - n] if n < model.M else []


def _flops(draw: Generator) -> Sequence[float]:
    """Skills that the paper's sum pays for, and with a little less, one skill fewer."""
    model = _skill_model(draw, 1000)
    n, delta = int(draw.integers(1, int(model.M) + 1)), draw.uniform(0.01, 2)
    total = sum((model.B - model.C) / (share * delta) for share in model.p_skill()[:n])
    paid = model.learned_from_flops([total, total * (1 - 1e-9)], delta)
    return [*(paid - [n, n - 1]), float(model.flops_to_learn(n, delta)) / total - 1]


# -- prompts ----------------------------------------------------------------------------------------------------------------


def _prompted(draw: Generator, *, perfect: bool) -> tuple[Floats, NDArray[np.int64]]:
    """p(x, y) of five skills and up to three prompts for them. Skills with the same perfect prompt have the same texts."""
    prompt = draw.integers(0, 3, 5)
    prompt[1] = prompt[0]  # two skills at least share one
    given = _given(draw, 4, 3)[:, prompt]
    if not perfect:
        given[:, 0] += 10 ** draw.uniform(-3, 0) * (_joint(draw, 4) + 0.02)  # + 0.02: not where all of it was before
        given[:, 0] /= given[:, 0].sum()
    return given * _p_skill(draw, 5), prompt


def _lost(p: Floats, prompt: NDArray[np.int64]) -> float:
    return prompting.prompted_entropy(p, prompt) - information.conditional_entropy(p)


def _prompts_told_apart(draw: Generator) -> Sequence[float]:
    """1 for each prompting function that is taken for the other kind."""
    perfect, other = _prompted(draw, perfect=True), _prompted(draw, perfect=False)
    return [not prompting.is_perfect_prompt(*perfect), prompting.is_perfect_prompt(*other, tolerance=1e-9)]


def _activated(draw: Generator) -> Sequence[float]:
    p, prompt = _prompted(draw, perfect=True)
    return [*(information.entropies_given(p) - prompting.prompted_entropies(p, prompt))]


def _perfect(draw: Generator) -> Sequence[float]:
    p, _ = named = _prompted(draw, perfect=True)
    return [_lost(*named), _lost(p, draw.permutation(5))]  # a prompt of its own for each skill is perfect too


def _imperfect(draw: Generator) -> Sequence[float]:
    """What a prompt loses is the divergence of its skills from their mixture, which is above 0 unless it is perfect."""
    return [_lost(*_prompted(draw, perfect=False))]


# -- contexts ---------------------------------------------------------------------------------------------------------------


def _skill(draw: Generator, kind: str) -> tuple[Floats, Floats]:
    """p(x | y) and p(x | context, y) of a skill to which the context is of a kind."""
    low, high = sorted(_given(draw, 4, 2).T, key=information.entropy)
    if information.entropy(high) - information.entropy(low) < 1e-3:  # both may settle which text it is
        low, high = np.array([0.7, 0.1, 0.1, 0.1]), np.full(4, 0.25)
    if kind == "neither":  # another text is likely now
        return np.array([0.7, 0.1, 0.1, 0.1]), np.array([0.1, 0.7, 0.1, 0.1])
    same = low * draw.uniform(0.5, 1)
    return {"good": (high, low), "bad": (low, high), "irrelevant": (low, same / same.sum())}[kind]


def _context(draw: Generator, kinds: Sequence[str]) -> tuple[Floats, Floats, Floats]:
    """p_skill(y), p(x | y) and p(x | context, y) of a context that is of ``kinds`` to its skills."""
    before, after = zip(*(_skill(draw, kind) for kind in kinds), strict=True)
    return _p_skill(draw, len(kinds)), np.stack(before, 1), np.stack(after, 1)


def _kinds(draw: Generator, kind: str) -> list[str]:
    """Of two to five skills: ``kind`` to one of them at least, irrelevant or ``kind`` to the others."""
    kinds = [str(each) for each in draw.choice([kind, "irrelevant"], draw.integers(2, 6))]
    kinds[int(draw.integers(len(kinds)))] = kind
    return kinds


def _skill_kinds_told_apart(draw: Generator) -> Sequence[float]:
    """1 for each skill that is taken for another kind."""
    kinds = [str(kind) for kind in draw.choice(["irrelevant", "good", "bad", "neither"], 4)]
    _, before, after = _context(draw, kinds)
    return [float(found != kind) for found, kind in zip(prompting.context_kinds(before, after), kinds, strict=True)]


def _unchanged(draw: Generator) -> Sequence[float]:
    """The change of a skill that is irrelevant, among others, from the joint distributions with and without the context, which
    may also change how probable the skills are."""
    p_skill, before, after = _context(draw, ["irrelevant", "good", "bad"])
    return [(information.entropies_given(after * _p_skill(draw, 3)) - information.entropies_given(before * p_skill))[0]]


def _fall(draw: Generator, kind: str) -> Sequence[float]:
    """By how much H(X | Y) falls, in two ways that must agree."""
    p_skill, before, after = context = _context(draw, _kinds(draw, kind))
    entropies = [information.conditional_entropy(given * p_skill) for given in (before, after)]
    change = prompting.context_change(*context)
    agree = abs(change - entropies[1] + entropies[0]) <= _ROUNDING and prompting.context_kind(*context) == kind
    return [-change if agree else math.nan]


def _mixed_told_apart(draw: Generator) -> Sequence[float]:
    """1 for a context that is good to one skill, bad to another, and is taken for a case of the theorem."""
    mixed = draw.permutation(["good", "bad", *draw.choice(["irrelevant", "good", "bad", "neither"], 2)])
    return [float(prompting.context_kind(*_context(draw, [str(kind) for kind in mixed])) != "mixed")]


def _on_average(draw: Generator) -> Sequence[float]:
    p = _joint(draw, 4, 3, 4)
    return [information.conditional_entropy(p.sum(2)) - information.conditional_entropy(p, given=(1, 2))]


# -- entropy of texts, and section 3.1 ----------------------------------------------------------------------------------------


def _told(p: Floats) -> float:
    return information.entropy(p.sum(1)) - information.conditional_entropy(p)


def _mean_divergence(draw: Generator) -> Sequence[float]:
    p = _pair(draw)
    return [_told(p) - float(np.nansum(p.sum(0) * information.divergences(p)))]


def _in_training(draw: Generator) -> tuple[Floats, Floats]:
    """p_θ(x, y) for two θ under Assumption 3.16: a text is what its skill determines, and a style that θ determines of it."""
    p = _joint(draw, 3, 4)
    before, after = ((p[:, None] * _given(draw, 3, 3).T[:, :, None]).reshape(9, 4) for _ in range(2))
    return before, after


def _invariant(draw: Generator) -> Sequence[float]:
    before, after = (information.divergences(p) for p in _in_training(draw))
    return [*(before - after)[np.isfinite(before)]]


def _constant(draw: Generator) -> Sequence[float]:
    before, after = _in_training(draw)
    return [_told(before) - _told(after)]


def _family(draw: Generator) -> tuple[Floats, Floats, float]:
    """p_θ, log p_{θ+Δθ} − log p_θ and ½ΔθᵀFΔθ, of a random exponential family."""
    features = draw.normal(size=(6, 3))
    weights = features @ draw.normal(size=3)
    move = draw.normal(size=3) * 10 ** draw.uniform(-3, -1)
    before, after = (logits - np.logaddexp.reduce(logits) for logits in (weights, weights + features @ move))
    p = np.exp(before)
    scores = features - p @ features
    return p, after - before, float(move @ dataset_size.fisher_information(p, scores) @ move) / 2


def _fisher(draw: Generator) -> Sequence[float]:
    """``log(KL / ½ΔθᵀFΔθ)`` of both divergences, in units of the range of Δθ's effect on log p, which bounds it: along the
    way the variance whose mean is the divergence changes by no larger factor."""
    p, moved, half = _family(draw)
    other = p * np.exp(moved)
    both = information.kl_divergence(other / other.sum(), p), information.kl_divergence(p, other / other.sum())
    return [math.log(kl / half) / np.ptp(moved) for kl in both]


def _squared(draw: Generator) -> Sequence[float]:
    p, moved, half = _family(draw)
    other = p * np.exp(moved)
    return [float(p @ moved**2) - 2 * half - information.kl_divergence(p, other / other.sum()) ** 2]


_CHECKS = (
    _Check("entropy", "Defs 2.1, 2.2", "H(X, Y) − H(Y) − H(X | Y)", "= 0", _chain_rule),
    _Check("entropy", "Def. 2.2", "H(X | Y) − Σ p(y) H(X | Y=y)", "= 0", _mean_of_given),
    _Check("entropy", "Def. 2.3", "KL(P ‖ uniform) − log n + H(P)", "= 0", _uniform),
    _Check("entropy", "Def. 2.3", "KL(P ‖ Q) − ½(Σ|P − Q|)²", "≥ 0", _pinsker),
    _Check("codes", "Def. 3.2", "codes taken for the other kind", "= 0", _codes_told_apart),
    _Check("codes", "Def. 3.3", "l(C) − H(X), in bits", "≥ 0", _code_length),
    _Check("codes", "Def. 3.3", "the same, of two texts at once", "≥ 0", _code_of_blocks),
    _Check("codes", "after Def. 3.4", "W log(1 + 1/W), larger W minus smaller", "> 0", _capacity),
    _Check("skills", "no number", "p_k / p_1 − k^−(α+1), Σp − 1, p_1 Z − 1", "= 0", _degree_law),
    _Check("skills", "Def. 3.4", "H(X | y) minus B before, minus C after", "= 0", _comprehended),
    _Check("skills", "Assumption 3.5", "hardest learned p − easiest not learned", "≥ 0", _easy_first),
    _Check("skills", "Lemma 3.6", "C + (B − C)Σp_i − H(X | Y)", "= 0", _conditional),
    _Check("skills", "Lemma 3.6", "2(integral − sum) / (B − C)p_n − 1", "≤ 1", _integral),
    _Check("skills", "Theorem 3.7", "skills of N = nr neurons, minus n", "= 0", _neurons),
    _Check("skills", "Theorem 3.8", "skills of S = Σ(B − C)/(p_i Δ), minus n", "= 0", _flops),
    _Check("prompts", "Def. 3.9", "prompts taken for the other kind", "= 0", _prompts_told_apart),
    _Check("prompts", "Lemma 3.10", "perfect: H(X | Y=y) − H(X | Ȳ=f(y))", "= 0", _activated),
    _Check("prompts", "Theorem 3.11", "perfect: H(X | Y) − H(X | Ȳ)", "= 0", _perfect),
    _Check("contexts", "Defs 3.12, 3.13", "skills taken for another kind", "= 0", _skill_kinds_told_apart),
    _Check("contexts", "Lemma 3.14", "irrelevant: H(X | c, Y=y) − H(X | Y=y)", "= 0", _unchanged),
    _Check("contexts", "Theorem 3.15", "good, irrelevant: H(X | Y) − H(X | c, Y)", "> 0", lambda draw: _fall(draw, "good")),
    _Check("contexts", "Theorem 3.15", "bad, irrelevant: H(X | c, Y) − H(X | Y)", "> 0", lambda draw: [-_fall(draw, "bad")[0]]),
    _Check("contexts", "Theorem 3.15", "all irrelevant: H(X | c, Y) − H(X | Y)", "= 0", lambda draw: _fall(draw, "irrelevant")),
    _Check("contexts", "Theorem 3.15", "mixed contexts taken for one of these", "= 0", _mixed_told_apart),
    _Check("invariance", "Assumption 3.16", "KL(p(· | y) ‖ p) at θ minus that at θ′", "= 0", _invariant),
    _Check("invariance", "Lemma 3.17", "H(X) − H(X | Y) − Σ p(y) KL(p(· | y) ‖ p)", "= 0", _mean_divergence),
    _Check("invariance", "Theorem 3.18", "H(X) − H(X | Y) at θ minus that at θ′", "= 0", _constant),
    _Check("fisher", "Section 3.1", "log(KL / ½ΔθᵀFΔθ) / range of Δlog p", "≤ 1", _fisher),
    _Check(BEYOND, "ours", "H(X) + 1 − l(Huffman's code), in bits", "> 0", _code_bound),
    _Check(BEYOND, "ours", "f not perfect: H(X | Ȳ) − H(X | Y)", "> 0", _imperfect),
    _Check(BEYOND, "ours", "contexts vary: H(X | Y) − H(X | Y, C)", "≥ 0", _on_average),
    _Check(BEYOND, "ours", "E‖Δlog p‖² − ΔθᵀFΔθ − KL(p ‖ p′)²", "= 0", _squared),
)
