"""Statements of section 3 that are wrong as printed, or lack a condition, each with its number and with computed numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geomprobe.paper.experiment import Table, Verdict
from geomprobe.theory import dataset_size, information, prompting
from geomprobe.theory.power_law import fit_power_law
from geomprobe.theory.skills import SkillModel

__all__ = ["Errata", "errata_tables", "judge_errata", "measure_errata", "slope"]

Floats = NDArray[np.float64]

_ALPHA, _GAMMA = 0.5, 0.75
_B, _C = 5.0, 1.0
_SKILLS = 10**12
_RANGE = (100, 10_000)
"""Range of comprehended skills, or of ``Z_α``, in which exponents are measured."""
_SLIGHTLY_ALPHA = 1e-6
"""The value that is used for α → 0."""
_CLOSE = 0.02


def slope(x: Floats, y: Floats) -> float:
    """Return the exponent of y as a power of x: the slope of the least-squares line through the logarithms."""
    return float(np.polynomial.Polynomial.fit(np.log(x), np.log(y), 1).convert().coef[1])


@dataclass(frozen=True)
class LostConstant:
    """A law that drops C: the printed exponent of H, the exponent of H itself, and the L₀ of a fit to H."""

    place: str
    of: str
    printed: float
    entropy: float
    fitted_constant: float


@dataclass(frozen=True)
class Code:
    """The expected length of a code in bits, and the entropy in bits and nats."""

    length: float
    bits: float
    nats: float


@dataclass(frozen=True)
class Context:
    """Changes of H(X | Y) by contexts: irrelevant to all skills, good to a skill of probability 0, and good to all skills under
    either distribution of y."""

    irrelevant: float
    impossible: float
    p_skill: float
    p_given_context: float


@dataclass(frozen=True)
class Terms:
    """H(X | Y = y) of one skill, and H(X | Y)."""

    skill: float
    mean: float


@dataclass(frozen=True)
class Area:
    """Z_α of a number of skills."""

    alpha: float
    skills: int
    area: float


@dataclass(frozen=True)
class Fisher:
    """Both KL divergences and the mean squared difference of log p, as shares of ΔθᵀFΔθ."""

    forward: float
    backward: float
    squared: float


@dataclass(frozen=True)
class Errata:
    """The numbers of every erratum of section 3. ``squares`` are Σp² divided by the printed value, by α."""

    constant: list[LostConstant]
    code: Code
    context: Context
    lemma_3_14: Terms
    squares: Mapping[str, float]
    area: Area
    fisher: Fisher


def measure_errata() -> Errata:
    """Compute the numbers of the errata. Nothing is random, and no file is read."""
    alphas = (1.0, _SLIGHTLY_ALPHA)
    squares = {f"{alpha:g}": dataset_size.squared_shares(alpha) * (2 * alpha + 1) / alpha**2 for alpha in alphas}
    area = Area(0.01, _SKILLS, SkillModel(0.01, _SKILLS, B=_B, C=_C).area)
    return Errata(_constant(), _code(), _context(), _lemma_3_14(), squares, area, _fisher())


def _constant() -> list[LostConstant]:
    """Each law that drops C; L₀ is that of ``H = L₀ + λY^γ`` (section 2.2)."""
    model = SkillModel(_ALPHA, _SKILLS, B=_B, C=_C)
    n = np.unique(np.geomspace(*_RANGE, 40).astype(int)).astype(np.float64)
    data = np.geomspace(*_RANGE, 40) ** (1 / _GAMMA)
    laws = {
        "Lemma 3.6": ("n", n, model.conditional_entropy(n), -_ALPHA),
        "Theorem 3.7": ("N", 30 * n, model.conditional_entropy(model.learned_from_parameters(30 * n, r=30)), -_ALPHA),
        "Theorem 3.8": ("S", model.flops_to_learn(n), model.conditional_entropy(n), -_ALPHA / (_ALPHA + 2)),
        "Section 3.1": ("D", data, dataset_size.entropy_from_data(data, _GAMMA, C=_C), 1 - 2 * _GAMMA),
    }
    return [
        LostConstant(place, amount, printed, slope(x, h), fit_power_law(x, h, resamples=1).constant)
        for place, (amount, x, h, printed) in laws.items()
    ]


def _code() -> Code:
    """A distribution whose best code is as long as its entropy, in bits."""
    p = [0.5, 0.25, 0.125, 0.125]
    length = information.expected_code_length(p, information.huffman_code(p))
    return Code(length, information.entropy(p) / math.log(2), information.entropy(p))


def _context() -> Context:
    """Contexts of two skills, y₁ certain of its text or nearly so, and y₂ not."""
    given = np.array([[0.95, 0.25], [0.05, 0.25], [0.0, 0.25], [0.0, 0.25]])
    helped = np.array([[0.99, 0.4], [0.01, 0.2], [0.0, 0.2], [0.0, 0.2]])
    one_helped = np.stack([helped[:, 0], given[:, 1]], 1)
    p_skill, p_given_context = np.array([0.8, 0.2]), np.array([0.2, 0.8])
    before, after = (information.conditional_entropy(part) for part in (given * p_skill, helped * p_given_context))
    return Context(
        irrelevant=prompting.context_change(p_skill, given, given),
        impossible=prompting.context_change([0.0, 1.0], given, one_helped),
        p_skill=prompting.context_change(p_skill, given, helped),
        p_given_context=after - before,
    )


def _lemma_3_14() -> Terms:
    """H(X | Y = y) of one of two skills, which is ``H(X | context, Y = y)`` if it is irrelevant to a context, and H(X | Y)."""
    joint = np.array([[0.5, 0.125], [0.0, 0.125], [0.0, 0.125], [0.0, 0.125]])
    return Terms(float(information.entropies_given(joint)[1]), information.conditional_entropy(joint))


def _fisher() -> Fisher:
    """The numbers of softmax(θ) over four texts."""
    logits, move = np.array([0.0, 0.5, 1.0, 2.0]), 1e-3 * np.array([1.0, -2.0, 0.5, 1.0])
    before, after = (each - np.logaddexp.reduce(each) for each in (logits, logits + move))
    p, q = np.exp(before), np.exp(after)
    whole = float(move @ dataset_size.fisher_information(p, np.eye(4) - p) @ move)
    squared = float(p @ (after - before) ** 2)
    return Fisher(information.kl_divergence(q, p) / whole, information.kl_divergence(p, q) / whole, squared / whole)


def errata_tables(numbers: Errata) -> list[Table]:
    """Return one table, which has for every erratum what the paper prints and what was computed."""
    code, context, lemma, squares = numbers.code, numbers.context, numbers.lemma_3_14, numbers.squares
    area, fisher = numbers.area, numbers.fisher
    rows = [
        [law.place, f"exponent of H in {law.of}; C = {_C:g}", _signed(law.printed), _signed(law.entropy)]
        for law in numbers.constant
    ]
    rows += [
        ["after Def. 3.3", "least l(C) − H(X) in bits, p = ½, ¼, ⅛, ⅛", "> 0", _signed(code.length - code.bits)],
        ["Lemma 3.14", "last term in nats: H(X | Y), and H(X | Y=y)", _signed(lemma.mean), _signed(lemma.skill)],
        ["Theorem 3.15", "change in nats, all skills irrelevant", "< 0", _signed(context.irrelevant)],
        ["Theorem 3.15", "the same, good only to a skill of p = 0", "< 0", _signed(context.impossible)],
        ["Theorem 3.15", "the same, good to all, under p_skill(y)", "< 0", _signed(context.p_skill)],
        ["Theorem 3.15", "the same, under p(y | context)", "< 0", _signed(context.p_given_context)],
        ["Section 3.1", "E‖Δlog p‖² / ΔθᵀFΔθ", "0.500", _signed(fisher.squared)],
        ["Section 3.1", "Σp² / (α²/(2α+1)), α = 1", "1.000", _signed(squares["1"])],
        ["Section 3.1", "the same, α → 0", "1.000", _signed(squares[f"{_SLIGHTLY_ALPHA:g}"])],
        ["Section 3.1", f"Z_α, α = {area.alpha:g}, M = 10¹²", f"{1 / area.alpha:.1f}", f"{area.area:.1f}"],
    ]
    return [Table("Errata of section 3", ["place", "quantity", "printed", "computed"], rows, words=2)]


def judge_errata(numbers: Errata) -> list[Verdict]:
    """Return a verdict on each statement as it is printed, with its correction."""
    code, context, lemma, squares = numbers.code, numbers.context, numbers.lemma_3_14, numbers.squares
    area, fisher = numbers.area, numbers.fisher
    laws = numbers.constant
    exponents = "; ".join(f"{law.place}: {_signed(law.entropy)}, not {_signed(law.printed)}" for law in laws)
    constants = ", ".join(f"{law.fitted_constant:.3f}" for law in laws)
    one, none = squares["1"], squares[f"{_SLIGHTLY_ALPHA:g}"]
    return [
        Verdict(
            "Lemma 3.6, Theorems 3.7 and 3.8, Section 3.1: the entropy itself is O(·) of the power printed",
            all(abs(law.entropy / law.printed - 1) <= _CLOSE for law in laws),
            f"its exponents with C = {_C:g} are {exponents}. The O(·) drops the constant: the powers are of H − C, and "
            f"L₀ + λY^γ of section 2.2 fitted to H gives L₀ = {constants}",
        ),
        Verdict(
            "After Def. 3.3: an expected code length is greater than H(X)",
            code.length > code.bits + 1e-12,
            f"it is at least H(X), in bits: for p = ½, ¼, ⅛, ⅛ both are {code.length:.2f} (H is {code.nats:.3f} nats)",
        ),
        Verdict(
            "Lemma 3.14: the last term of its proof is H(X | Y)",
            abs(lemma.mean - lemma.skill) < 1e-12,
            f"it is H(X | Y = y), as the lemma states: {lemma.skill:.3f} nats for one skill, where the mean H(X | Y) is "
            f"{lemma.mean:.3f}",
        ),
        Verdict(
            "Theorem 3.15: a context irrelevant or good to every skill lowers H(X | Y) strictly",
            min(-context.irrelevant, -context.impossible) > 0,
            f"the change is {_signed(context.irrelevant)} if all are irrelevant, and {_signed(context.impossible)} if it "
            "is good only to a skill of probability 0: a strict fall needs a good skill of positive probability",
        ),
        Verdict(
            "Theorem 3.15, its proof: H(X | context, Y) = Σ p_skill(y) H(X | context, Y = y)",
            abs(context.p_given_context - context.p_skill) < 1e-12,
            "by Def. 2.2 the weights are p(y | context). The theorem needs p_skill(y): a context good to both skills changes "
            f"the entropy by {_signed(context.p_skill)} nats under p_skill(y), and by {_signed(context.p_given_context)} "
            "under p(y | context), if it makes the harder skill likelier",
        ),
        Verdict(
            "Section 3.1: E‖log p_θ+Δθ − log p_θ‖² ~ ½ΔθᵀFΔθ",
            abs(fisher.squared / 0.5 - 1) <= _CLOSE,
            f"it is {fisher.squared:.3f} ΔθᵀFΔθ, where the KL divergences are {fisher.forward:.3f} and "
            f"{fisher.backward:.3f}: it has no factor ½. The constant A takes up the difference",
        ),
        Verdict(
            "Section 3.1: Σp_skill² ~ α²/(2α+1), read as an asymptotic equality",
            max(abs(one - 1), abs(none - 1)) <= _CLOSE,
            f"it is {one:.2f} times as much at α = 1 and {none:.2f} times as α → 0, where sums are replaced by integrals; the "
            "exponent 1 − 2γ stays",
        ),
        Verdict(
            "Section 3.1: Z_α ≈ 1/α for small α, with M skills",
            abs(area.area * area.alpha - 1) <= _CLOSE,
            f"Z_α is {area.area:.1f} at α = {area.alpha:g} and M = 10¹², not {1 / area.alpha:.0f}: that takes more than "
            "e^(1/α) skills, and Z_α never exceeds about log M + 0.58",
        ),
    ]


def _signed(number: float) -> str:
    return f"{number + 0.0:.3f}".replace("-", "−")
