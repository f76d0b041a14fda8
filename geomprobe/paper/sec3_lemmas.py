"""Every statement of section 3 on random finite distributions, in the form proved in :mod:`geomprobe.theory`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from geomprobe.paper.experiment import Numbers
from geomprobe.theory import information, prompting
from geomprobe.theory.skills import SkillModel

__all__ = ["GROUPS", "holds", "run_checks"]

Floats = NDArray[np.float64]

GROUPS = {
    "information": "Defs 2.1–2.3, 3.2–3.3: entropy, divergence and code lengths",
    "skills": "Defs 3.4–3.5, Lemmas 3.6 and 3.17, Theorem 3.18: skills and the entropy of texts",
    "prompts": "Def. 3.9, Lemma 3.10, Theorem 3.11: perfect prompts lose nothing, and only they",
    "contexts": "Defs 3.12–3.13, Lemma 3.14, Theorem 3.15: contexts help, on average",
}
_DRAWS = 1000
_ROUNDING = 1e-11
"""What a number of order 1 may be off by."""


@dataclass(frozen=True)
class _Check:
    """A statement on random distributions. ``values`` draws one and gives numbers that are all as ``needs`` says, or NaN."""

    group: str
    place: str
    says: str
    needs: str
    values: Callable[[Generator], Sequence[float]]

    def run(self, draw: Generator) -> dict[str, Any]:
        """The worst over all draws: the largest size where 0 or at most 1 is due, else the smallest value."""
        drawn = np.concatenate([np.asarray(self.values(draw), np.float64) for _ in range(_DRAWS)])
        worst = np.abs(drawn).max() if self.needs in ("= 0", "≤ 1") else drawn.min()
        return {name: getattr(self, name) for name in ("group", "place", "says", "needs")} | {"draws": _DRAWS, "worst": worst}


def run_checks(draw: Generator) -> list[dict[str, Any]]:
    """The worst of every statement, on distributions that ``draw`` draws."""
    return [check.run(draw) for check in _CHECKS]


def holds(lemma: Numbers) -> bool:
    """Whether the worst of a statement is as it must be, up to rounding; what is not finite is not."""
    worst = lemma["worst"]
    if worst is None:
        return False
    verdicts = {"= 0": worst <= _ROUNDING, "≤ 1": worst <= 1, "≥ 0": worst >= -_ROUNDING, "> 0": worst > 0}
    return bool(verdicts[lemma["needs"]])


def _joint(draw: Generator, *shape: int) -> Floats:
    """A random joint distribution with small and impossible outcomes among its own."""
    weights = draw.gamma(0.5, size=shape) * (draw.random(shape) < 0.8)
    weights.flat[draw.integers(weights.size)] += 0.1
    return np.asarray(weights / weights.sum())


def _pair(draw: Generator) -> Floats:
    """p(x, y) of two to six outcomes each."""
    return _joint(draw, *draw.integers(2, 7, 2))


def _given(draw: Generator, texts: int, kinds: int) -> Floats:
    """``kinds`` distributions over texts, ``(texts, kinds)``."""
    return np.stack([_joint(draw, texts) for _ in range(kinds)], 1)


def _chain_rule(draw: Generator) -> Sequence[float]:
    p = _pair(draw)
    return [information.entropy(p) - information.entropy(p.sum(0)) - information.conditional_entropy(p, given=1)]


def _told(draw: Generator) -> Sequence[float]:
    p = _pair(draw)
    return [information.entropy(p.sum(1)) - information.conditional_entropy(p, given=1)]


def _divergence(draw: Generator) -> Sequence[float]:
    """Above Pinsker's bound, which is more than 0 unless the two are equal."""
    n = int(draw.integers(2, 9))
    p, q = _joint(draw, n), 0.9 * _joint(draw, n) + 0.1 / n
    return [information.kl_divergence(p, q) - np.abs(p - q).sum() ** 2 / 2]


def _code_lengths(draw: Generator) -> tuple[float, float, float]:
    """Bits of Huffman's code, and the two bounds."""
    p = draw.dirichlet(np.full(draw.integers(2, 13), 0.5)) * 0.999
    p += 0.001 / len(p)
    lengths = [len(word) for word in information.huffman_code(p)]
    return (information.expected_code_length(p, lengths), *information.code_length_bounds(p))


def _code_above(draw: Generator) -> Sequence[float]:
    bits, least, _ = _code_lengths(draw)
    return [bits - least]


def _code_below(draw: Generator) -> Sequence[float]:
    bits, _, below = _code_lengths(draw)
    return [below - bits]


def _skill_model(draw: Generator, most: int = 30) -> SkillModel:
    """Learned skills leave one to four texts, others up to six: B and C are logs of how many."""
    few = draw.integers(1, 5)
    return SkillModel(draw.uniform(0.1, 3), int(draw.integers(2, most)), math.log(few), math.log(draw.integers(few + 1, 7)))


def _degree_law(draw: Generator) -> Sequence[float]:
    model = _skill_model(draw, 1000)
    shares = model.degrees()
    k = np.arange(1, model.M + 1)
    return [shares.sum() - 1, *(shares / shares[0] - k ** -(1 + model.alpha))]


def _texts_of_skills(draw: Generator, model: SkillModel, learned: int, *, apart: bool) -> Floats:
    """p(x, y) under Assumption 3.5: as many texts as e^B or e^C, equally likely, each skill's own or from a common stock."""
    joint = np.zeros((6 * model.M if apart else 12, model.M))
    for k, (share, nats) in enumerate(zip(model.degrees(), model.text_entropies(learned), strict=True)):
        left = round(np.exp(nats))
        texts = 6 * k + np.arange(left) if apart else draw.permutation(12)[:left]
        joint[texts, k] = share / left
    return joint


def _learned(draw: Generator) -> Sequence[float]:
    model = _skill_model(draw)
    n = int(draw.integers(0, model.M + 1))
    joint = _texts_of_skills(draw, model, n, apart=False)
    return [information.conditional_entropy(joint, given=1) - float(model.conditional_entropy(n))]


def _limit(draw: Generator) -> Sequence[float]:
    """``(1+α)/n`` is for the sum against its integral, ``(n/M)^α`` for the skills there are not: twice, as Z lacks them too."""
    alpha, skills_there, n = draw.uniform(0.1, 3), 10 ** draw.uniform(8, 15), np.floor(10 ** draw.uniform(1, 5))
    model = SkillModel(alpha, int(skills_there), 0.0, 1.0)
    off = float(model.conditional_entropy(n) / model.conditional_entropy_limit(n)) - 1
    return [off / ((1 + alpha) / n + 2 * (n / model.M) ** alpha)]


def _own_texts(draw: Generator) -> Sequence[float]:
    model = _skill_model(draw)
    n = int(draw.integers(0, model.M + 1))
    joint = _texts_of_skills(draw, model, n, apart=True)
    return [
        information.entropy(joint.sum(1)) - information.conditional_entropy(joint, given=1) - information.entropy(joint.sum(0)),
        information.entropy(joint.sum(1)) - float(model.entropy(n)),
    ]


def _any_texts(draw: Generator) -> Sequence[float]:
    p = _pair(draw)
    return [
        information.entropy(p.sum(0)) - information.entropy(p.sum(1)) + information.conditional_entropy(p, given=1),
        information.entropy(p.sum(1)) - information.conditional_entropy(p, given=1),
    ]


def _constant(draw: Generator) -> Sequence[float]:
    model = _skill_model(draw, 12)
    joints = [_texts_of_skills(draw, model, n, apart=True) for n in range(0, model.M + 1, 3)]
    constants = [information.entropy(p.sum(1)) - information.conditional_entropy(p, given=1) for p in joints]
    return [constant - model.skill_entropy for constant in constants]


def _prompted(draw: Generator, *, perfect: bool) -> tuple[Floats, NDArray[np.int64]]:
    """p(x, y) of five skills with three prompts for them; of a perfect one all its skills have the same texts."""
    prompt = draw.integers(0, 3, 5)
    prompt[1] = prompt[0]  # some two skills share one
    given = _given(draw, 4, 3)[:, prompt]
    if not perfect:
        given[:, 0] += 10 ** draw.uniform(-3, 0) * (_joint(draw, 4) + 0.02)  # else it may be where all of it was
        given[:, 0] /= given[:, 0].sum()
    return given * draw.dirichlet(np.full(5, 5.0)), prompt


def _lost(p: Floats, prompt: NDArray[np.int64]) -> float:
    return prompting.prompted_entropy(p, prompt) - information.conditional_entropy(p, given=1)


def _prompts_told_apart(draw: Generator) -> Sequence[float]:
    """1 for each prompting function that is taken for the other kind."""
    perfect, other = _prompted(draw, perfect=True), _prompted(draw, perfect=False)
    return [not prompting.is_perfect_prompt(*perfect), prompting.is_perfect_prompt(*other, tolerance=1e-9)]


def _merged(draw: Generator) -> Sequence[float]:
    p, prompt = _joint(draw, 4, 5), draw.integers(0, 3, 5)
    divergence = 0.0
    for y, share in enumerate(p.sum(0)):
        if share > 0:
            like = p[:, prompt == prompt[y]].sum(1)
            divergence += share * information.kl_divergence(p[:, y] / share, like / like.sum())
    return [_lost(p, prompt) - divergence]


def _perfect(draw: Generator) -> Sequence[float]:
    p, _ = named = _prompted(draw, perfect=True)
    return [_lost(*named), _lost(p, draw.permutation(5))]  # naming the skill is perfect too


def _imperfect(draw: Generator) -> Sequence[float]:
    return [_lost(*_prompted(draw, perfect=False))]


def _irrelevant(draw: Generator) -> Floats:
    """p(x, y, c) where contexts may follow from the skill, but tell no more of the text."""
    p = _given(draw, 4, 3)[:, :, None] * draw.dirichlet(np.ones(12)).reshape(3, 4)
    return np.asarray(p / p.sum())


def _contexts_told_apart(draw: Generator) -> Sequence[float]:
    """1 for a context that is taken for irrelevant, or for not. One context of random ones is made so."""
    p = _joint(draw, 4, 3, 4) + 0.1 / 48
    p[:, :, 0] = p[:, :, 1:].sum(2) * draw.uniform(0.1, 1, 3)
    found = prompting.irrelevant_contexts(p / p.sum(), tolerance=1e-9)
    return [float((~found[:, 0]).sum()), float(found[:, 1:].sum())]


def _unchanged(draw: Generator) -> Sequence[float]:
    p = _irrelevant(draw)
    change = prompting.context_change(p)[p.sum(0) > 0]
    return [*change, prompting.context_information(p)]


def _on_average(draw: Generator) -> Sequence[float]:
    p = _joint(draw, 4, 3, 4)
    weighed = float(np.nansum(p.sum(0) * prompting.context_change(p)))
    lost = information.conditional_entropy(p.sum(2), given=1) - information.conditional_entropy(p, given=(1, 2))
    return [weighed + lost, prompting.context_information(p) - lost]


def _helps(draw: Generator) -> Sequence[float]:
    p = _joint(draw, 4, 3, 4)
    return [information.conditional_entropy(p.sum(2), given=1) - information.conditional_entropy(p, given=(1, 2))]


def _beside_bad(draw: Generator) -> Sequence[float]:
    changes = prompting.context_change(_joint(draw, 4, 3, 4) * 0.99 + 0.01 / 48)
    return [-of_skill.min() for of_skill in changes if of_skill.max() > 1e-9]


_CHECKS = (
    _Check("information", "Defs 2.1–2.2", "H(X, Y) − H(Y) − H(X | Y)", "= 0", _chain_rule),
    _Check("information", "Def. 2.2", "H(X) − H(X | Y)", "≥ 0", _told),
    _Check("information", "Def. 2.3", "KL(p ‖ q) − ½(Σ|p − q|)²", "≥ 0", _divergence),
    _Check("information", "Defs 3.2–3.3", "bits of Huffman's code − H", "≥ 0", _code_above),
    _Check("information", "Defs 3.2–3.3", "H + 1 − bits of Huffman's code", "> 0", _code_below),
    _Check("skills", "Def. 3.4", "p_k / p_1 − k^−(1+α), and Σp − 1", "= 0", _degree_law),
    _Check("skills", "Lemma 3.6", "its sum − H(X | Y) by Assumption 3.5", "= 0", _learned),
    _Check("skills", "Lemma 3.6", "limit's error / ((1+α)/n + 2(n/M)^α)", "≤ 1", _limit),
    _Check("skills", "Lemma 3.17", "texts tell skills: H(X) − H(X|Y) − H(Y)", "= 0", _own_texts),
    _Check("skills", "Lemma 3.17", "else 0 ≤ H(X) − H(X | Y) ≤ H(Y): slack", "≥ 0", _any_texts),
    _Check("skills", "Theorem 3.18", "H_n(X) − H_n(X|Y), less its constant", "= 0", _constant),
    _Check("prompts", "Def. 3.9", "prompts taken for the other kind", "= 0", _prompts_told_apart),
    _Check("prompts", "Lemma 3.10", "H(X | f(Y)) − H(X | Y) − Σ p(y) KL", "= 0", _merged),
    _Check("prompts", "Theorem 3.11", "f perfect: H(X | f(Y)) − H(X | Y)", "= 0", _perfect),
    _Check("prompts", "Theorem 3.11", "f not perfect: H(X | f(Y)) − H(X | Y)", "> 0", _imperfect),
    _Check("contexts", "Def. 3.12", "contexts taken for the other kind", "= 0", _contexts_told_apart),
    _Check("contexts", "Lemma 3.14", "irrelevant c: H(X | y, c) − H(X | y)", "= 0", _unchanged),
    _Check("contexts", "Theorem 3.15", "mean of all changes, + I(X; C | Y)", "= 0", _on_average),
    _Check("contexts", "Theorem 3.15", "H(X | Y) − H(X | Y, C)", "≥ 0", _helps),
    _Check("contexts", "Def. 3.13", "beside a bad c: gain by the best one", "> 0", _beside_bad),
)
