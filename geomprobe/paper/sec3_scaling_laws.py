"""Section 3 as an experiment: its scaling laws at exact values, its statements (:mod:`geomprobe.paper.sec3_lemmas`) and its
errata (:mod:`geomprobe.paper.sec3_errata`)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geomprobe.paper.experiment import Experiment, Request, Table, Verdict
from geomprobe.paper.sec3_errata import Errata, errata_tables, judge_errata, measure_errata, slope
from geomprobe.paper.sec3_lemmas import BEYOND, GROUPS, Lemma, run_checks
from geomprobe.paper.style import COLOURS, MUTED, canvas, shades
from geomprobe.theory.dataset_size import entropy_from_data
from geomprobe.theory.skills import SkillModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["THEORY"]

Floats = NDArray[np.float64]

_LAWS = {
    "skills": ("Lemma 3.6", "n", "−α"),
    "parameters": ("Theorem 3.7", "N", "−α"),
    "flops": ("Theorem 3.8", "S", "−α/(α+2)"),
    "data": ("Section 3.1", "D", "1−2γ"),
}
"""For every law its place in the paper, the quantity of which H − C is a power, and the exponent."""

_EXPONENTS: dict[str, Callable[[float], float]] = {
    "skills": lambda alpha: -alpha,
    "parameters": lambda alpha: -alpha,
    "flops": lambda alpha: -alpha / (alpha + 2),
    "data": lambda gamma: 1 - 2 * gamma,
}
"""The exponents that the paper prints."""

_ALPHAS = (0.3, 0.5, 1.0, 2.0)
_GAMMAS = (0.6, 0.75, 1.0, 2.0)
_B, _C = 5.0, 1.0
_NEURONS = 30
"""r of Theorem 3.7."""
_SKILLS = 10**12
"""M of all laws except the last one, which needs infinitely many skills, because the Z_α of M skills is at most about log M +
0.58."""
_FITTED = (100, 10_000)
"""Range of comprehended skills, or for section 3.1 of Z_α, in which exponents are measured."""
_CLOSE = 0.02
"""Largest relative difference of an exponent from that of the paper."""


@dataclass(frozen=True)
class Law:
    """H − C against the resources spent: the exact sum, the power law that it approaches, and the printed and the measured
    exponent.

    ``of`` is α, or γ for ``"data"``.
    """

    law: str
    of: float
    printed: float
    measured: float
    x: list[float]
    exact: list[float]
    power: list[float]


@dataclass(frozen=True)
class Theory:
    """The numbers of section 3."""

    laws: list[Law]
    lemmas: list[Lemma]
    errata: Errata


def _measure_theory(request: Request) -> Theory:
    models = [SkillModel(alpha, _SKILLS, B=_B, C=_C) for alpha in _ALPHAS]
    laws = [_skill_law(name, model) for name in _LAWS if name != "data" for model in models]
    draw = np.random.default_rng(request.seed)
    return Theory(laws + [_data_law(gamma) for gamma in _GAMMAS], run_checks(draw), measure_errata())


def _skill_law(name: str, model: SkillModel) -> Law:
    first, low, high = _spent(name, model, np.array([1.0, *_FITTED]))
    shown, fitted = np.geomspace(first, high, 40), np.geomspace(low, high, 60)
    coefficient, exponent = model.asymptote(name, r=_NEURONS)
    measured, exact = (model.conditional_entropy(_learned(name, model, spent)) - model.C for spent in (fitted, shown))
    curves = (curve.tolist() for curve in (shown, exact, coefficient * shown**exponent))
    return Law(name, model.alpha, _EXPONENTS[name](model.alpha), slope(fitted, measured), *curves)


def _spent(name: str, model: SkillModel, n: Floats) -> Floats:
    return model.flops_to_learn(n) if name == "flops" else n * (_NEURONS if name == "parameters" else 1)


def _learned(name: str, model: SkillModel, amount: Floats) -> Floats:
    match name:
        case "parameters":
            return model.learned_from_parameters(amount, _NEURONS)
        case "flops":
            return model.learned_from_flops(amount)
    return amount


def _data_law(gamma: float) -> Law:
    """H − C against D, in units of A: the exact sum, and ``ζ(2)·D^{1−2γ}``, which it approaches as α → 0."""
    fitted, shown = (np.geomspace(low, float(_FITTED[1]), 40) ** (1 / gamma) for low in (float(_FITTED[0]), 2.0))
    curves = shown, entropy_from_data(shown, gamma), np.pi**2 / 6 * shown ** (1 - 2 * gamma)
    measured = slope(fitted, entropy_from_data(fitted, gamma))
    return Law("data", gamma, _EXPONENTS["data"](gamma), measured, *(curve.tolist() for curve in curves))


# -- the picture ------------------------------------------------------------------------------------------------------------


def _draw_theory(numbers: Theory) -> "Figure":
    figure, panels = canvas(2, 2, height=3.0, width=4.6)
    amounts = {
        "parameters": f"parameters N, {_NEURONS} a skill",
        "flops": "FLOPs S, with Δ = 1 nat",
        "data": "dataset size D, with Z$_α$ = D$^γ$",
    }
    for (name, amount), axes in zip(amounts.items(), panels[:3], strict=True):
        _draw_law(axes, name, amount, [case for case in numbers.laws if case.law == name])
    _draw_constant(panels[3], next(c for c in numbers.laws if c.law == "parameters" and c.of == 0.5))
    figure.supxlabel(
        f"Exact values for B = {_B:g} and C = {_C:g} nats; M = 10¹² skills, and infinitely many in Section 3.1",
        fontsize=8,
        color=MUTED,
        x=0.01,
        ha="left",
    )
    return figure


def _draw_law(axes: "Axes", name: str, amount: str, cases: list[Law]) -> None:
    letter = "γ" if name == "data" else "α"
    for case, colour in zip(cases, shades(len(cases)), strict=True):
        axes.plot(case.x, case.power, color=colour, linewidth=1)
        label = f"{letter} = {case.of:g}: {_signed(case.measured)} for {_signed(case.printed)}"
        axes.plot(case.x[::3], case.exact[::3], "o", color=colour, markersize=3.5, label=label)
    place, base, exponent = _LAWS[name]
    axes.set(
        xscale="log", yscale="log", xlabel=amount, ylabel="H(X) − C, in units of A" if name == "data" else "H(X | Y) − C, nats"
    )
    low = min(min(case.power) for case in cases)
    axes.set_ylim(low * (low / max(max(case.power) for case in cases)) ** 0.75, None)  # room for the legend
    axes.set_title(f"{place}: H − C falls as {base}$^{{{exponent}}}$")
    axes.legend(title="exponent measured, and printed", alignment="left", title_fontsize=8, loc="lower left", handletextpad=0.2)


def _draw_constant(axes: "Axes", case: Law) -> None:
    x, less = np.array(case.x), np.array(case.exact)
    axes.plot(x, less + _C, color=COLOURS[1], label="H(X | Y)")
    axes.plot(x, less, color=COLOURS[0], label="H(X | Y) − C")
    axes.axhline(_C, color=COLOURS[1], linewidth=0.8, linestyle=(0, (4, 3)), label=f"C = {_C:g}")
    axes.set(xscale="log", yscale="log", xlabel=f"parameters N, {_NEURONS} a skill", ylabel="nats")
    axes.set_title(f"What O(N$^{{−α}}$) drops, α = {case.of:g}")
    axes.legend(loc="lower left")


# -- the numbers ------------------------------------------------------------------------------------------------------------


def _theory_tables(numbers: Theory) -> list[Table]:
    laws = [
        [
            _LAWS[case.law][0],
            f"{_LAWS[case.law][1]}^({_LAWS[case.law][2]}), {'γ' if case.law == 'data' else 'α'} = {case.of:g}",
            _signed(case.printed),
            _signed(case.measured),
            f"{100 * _off(case):.2f}%",
        ]
        for case in numbers.laws
    ]
    title = (
        f"Exponents of H − C, with B = {_B:g} and C = {_C:g} nats: M = 10¹² skills, {_FITTED[0]} to {_FITTED[1]:,} of them "
        f"comprehended. Section 3.1: infinitely many skills, Z_α from {_FITTED[0]} to {_FITTED[1]:,}"
    )
    draws = numbers.lemmas[0].draws
    columns = ["place", "statement", "must be", "worst"]
    paper, ours = (
        [[each.place, each.says, each.needs, _worst(each.worst)] for each in numbers.lemmas if (each.group == BEYOND) is beyond]
        for beyond in (False, True)
    )
    return [
        Table(title, ["place", "power", "printed", "measured", "off by"], laws, words=2),
        Table(f"The paper's statements, each on {draws} random distributions: the worst value", columns, paper, words=2),
        *errata_tables(numbers.errata),
        Table(f"Beyond the paper, on {draws} random distributions", columns[1:], [row[1:] for row in ours]),
    ]


def _judge_theory(numbers: Theory) -> list[Verdict]:
    verdicts = []
    for name, (place, base, exponent) in _LAWS.items():
        cases = [case for case in numbers.laws if case.law == name]
        measured = ", ".join(f"{_signed(case.measured)} for {_signed(case.printed)}" for case in cases)
        worst = max(map(_off, cases))
        what = "H(X) − C" if name == "data" else "H(X | Y) − C"
        verdicts.append(
            Verdict(
                f"{place}: {what} falls as {base}^({exponent})",
                worst <= _CLOSE,
                f"measured {measured}; at most {100 * worst:.2f}% off",
            )
        )
    *statements, ours = [_judge_group(group, numbers.lemmas) for group in GROUPS]
    errata = [replace(verdict, kind="erratum") for verdict in judge_errata(numbers.errata)]
    return [*verdicts, *statements, *errata, replace(ours, kind="ours")]


def _judge_group(group: str, lemmas: list[Lemma]) -> Verdict:
    found = [lemma for lemma in lemmas if lemma.group == group]
    fails = [f"{lemma.place}: {lemma.says}, must be {lemma.needs}" for lemma in found if not lemma.holds]
    equalities = [lemma.worst for lemma in found if lemma.needs == "= 0"]
    fine = f"{len(found)} {'statement' if len(found) == 1 else 'statements'} on {found[0].draws} random distributions each"
    if equalities:
        fine += f"; equalities to {_worst(max(equalities))}"
    return Verdict(GROUPS[group], not fails, "; ".join(fails) or fine)


def _off(case: Law) -> float:
    """The relative difference of a measured exponent from that of the paper."""
    return float(abs(case.measured / case.printed - 1))


def _signed(number: float) -> str:
    return f"{number:.3f}".replace("-", "−")


def _worst(number: float) -> str:
    return "not finite" if math.isnan(number) else "0" if number == 0 else f"{number:.1e}".replace("-", "−")


THEORY = Experiment(
    name="theory",
    title="Skills, scaling laws, prompts and contexts",
    place="Section 3",
    read=(
        "The first three panels show the entropy minus the constant C against the resources spent. Dots are exact sums, and "
        f"lines are the power laws that the sums approach. B is {_B:g} nats and C is {_C:g}. There are 10¹² skills, and "
        "infinitely many in Section 3.1. The last panel shows the entropy itself, which levels out at C. The tables contain "
        "every statement of the section, tested on random finite distributions, and its errata."
    ),
    caveat="This shows what follows from the assumptions of the paper, not that language models satisfy them.",
    of="nothing",
    numbers=Theory,
    measure=_measure_theory,
    draw=_draw_theory,
    tables=_theory_tables,
    judge=_judge_theory,
)
