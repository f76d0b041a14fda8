"""Section 3: its laws of scaling at exact values, and beside them its lemmas (:mod:`geomprobe.paper.sec3_lemmas`)."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geomprobe.paper.experiment import Experiment, Numbers, Request, Table, Verdict
from geomprobe.paper.sec3_lemmas import GROUPS, holds, run_checks
from geomprobe.paper.style import canvas, shades
from geomprobe.theory import skills
from geomprobe.theory.power_law import fit_power_law
from geomprobe.theory.skills import SkillModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["THEORY"]

Floats = NDArray[np.float64]

_LAWS = {
    "skills": ("Lemma 3.6", "skills", "n^−α"),
    "parameters": ("Theorem 3.7", "parameters", "N^−α"),
    "texts": ("Section 3", "texts", "D^(−α/(α+1))"),
    "flops": ("Theorem 3.8", "FLOPs", "F^(−α/(α+2))"),
    "data": ("Section 3.1", "data", "n^(1−2γ)"),
}
"""Of every law where it stands, what is spent, and what what is left falls as."""

_PANELS = {
    "parameters": "parameters, in those of one skill",
    "texts": "texts, in those that teach one skill",
    "flops": "parameters × texts, in those units",
    "data": "data n",
}
_ALPHAS = (0.3, 0.5, 1.0, 2.0)
_GAMMAS = (0.6, 0.75, 1.0, 2.0)
_SKILLS = 10**12
"""M of the exact values: what the limits take to be without end."""
_FITTED = (100, 100_000)
"""Skills, or data, between which laws are fitted."""
_CLOSE = 0.02
"""How far from its prediction a fitted exponent may lie, as a share of it."""


def _measure_theory(request: Request) -> Numbers:
    laws = [_skill_law(name, SkillModel(alpha, _SKILLS, B=1.0, C=5.0)) for name in _LAWS if name != "data" for alpha in _ALPHAS]
    draw = np.random.default_rng(request.seed)
    return {"laws": laws + [_data_law(gamma) for gamma in _GAMMAS], "lemmas": run_checks(draw)}


def _skill_law(name: str, model: SkillModel) -> Numbers:
    """Exact conditional entropy against what is spent, its limit, and the exponent fitted between them."""

    def learned(amounts: Floats) -> Floats:
        return np.floor(amounts) if name == "skills" else np.asarray(getattr(model, f"learned_from_{name}")(amounts))

    every = np.geomspace(1, 1e25, 8001)  # of any resource: which of it teaches how much is what is to be found out
    n = learned(every)
    fitted = every[(n >= _FITTED[0]) & (n <= _FITTED[1])]
    fitted = fitted[:: max(1, len(fitted) // 40)]
    law = fit_power_law(fitted, model.conditional_entropy(learned(fitted)), resamples=1)
    x = np.unique(every[(n >= 1) & (n <= _FITTED[1])][::60])
    exact, limit = model.conditional_entropy(learned(x)) - model.B, model.limit_from(name, x) - model.B
    return {
        "law": name,
        "of": model.alpha,
        "predicted": model.exponents[name],
        "fitted": law.exponent,
        "left": law.constant - model.B,
        "best": law.best,
        "x": x,
        "exact": exact,
        "limit": limit,
    }


def _data_law(gamma: float) -> Numbers:
    fitted = np.unique(np.geomspace(*_FITTED, 40).astype(int))
    x = np.unique(np.geomspace(1, _FITTED[1], 60).astype(int))
    law = fit_power_law(fitted, skills.untold_by_data(fitted, gamma), resamples=1)
    return {
        "law": "data",
        "of": gamma,
        "predicted": 1 - 2 * gamma,
        "fitted": law.exponent,
        "left": law.constant,
        "best": law.best,
        "x": x,
        "exact": skills.untold_by_data(x, gamma),
        "limit": skills.untold_by_data_limit(x, gamma),
    }


def _draw_theory(numbers: Numbers) -> "Figure":
    figure, panels = canvas(2, 2, height=2.9, width=4.6)
    for (name, amount), axes in zip(_PANELS.items(), panels, strict=True):
        cases = [case for case in numbers["laws"] if case["law"] == name]
        letter = "γ" if name == "data" else "α"
        for case, colour in zip(cases, shades(len(cases)), strict=True):
            axes.plot(case["x"], case["limit"], color=colour, linewidth=1)
            label = f"{letter} = {case['of']:g}: {_signed(case['fitted'])}"
            shown = slice(None, None, max(1, len(case["x"]) // 16))
            axes.plot(case["x"][shown], case["exact"][shown], "o", color=colour, markersize=3.5, label=label)
        place, _, falls = _LAWS[name]
        base, exponent = falls.split("^")
        axes.set(xscale="log", yscale="log", xlabel=amount, ylabel="left to tell" if name == "data" else "H(X | Y) − B, nats")
        axes.set_title(f"{place}: {base}$^{{{exponent.removeprefix('(').removesuffix(')')}}}$")
        axes.legend(title="exponent fitted", alignment="left", title_fontsize=8, loc="lower left", handletextpad=0.2)
    return figure


def _theory_tables(numbers: Numbers) -> list[Table]:
    laws = [
        [
            f"{_LAWS[case['law']][0]}, {_LAWS[case['law']][1]}, {'γ' if case['law'] == 'data' else 'α'} = {case['of']:g}",
            _signed(case["predicted"]),
            _signed(case["fitted"]),
            f"{100 * _off(case):.2f}%",
            f"{case['left']:.0e}".replace("-", "−"),
        ]
        for case in numbers["laws"]
    ]
    title = "Exponents: least squares of y = L₀ + λx^γ to 40 exact values, L₀ not given"
    lemmas = [
        [f"{lemma['place'] + ':':<14} {lemma['says']}", lemma["needs"], _worst(lemma["worst"])] for lemma in numbers["lemmas"]
    ]
    draws = numbers["lemmas"][0]["draws"]
    return [
        Table(title, ["law", "predicted", "fitted", "off by", "L₀ off by"], laws),
        Table(f"Every statement on {draws} random distributions: the worst of them", ["statement", "must be", "worst"], lemmas),
    ]


def _judge_theory(numbers: Numbers) -> list[Verdict]:
    verdicts = []
    for name, (place, amount, falls) in _LAWS.items():
        cases = [case for case in numbers["laws"] if case["law"] == name]
        fits = ", ".join(f"{_signed(case['fitted'])} for {_signed(case['predicted'])}" for case in cases)
        worst = max(_off(case) for case in cases)
        what = "what n data leave untold" if name == "data" else f"H(X | Y) − B in {amount}"
        verdicts.append(
            Verdict(f"{place}: {what} falls as {falls}", worst <= _CLOSE, f"fitted {fits}; at most {100 * worst:.2f}% off")
        )
    for group, claim in GROUPS.items():
        lemmas = [lemma for lemma in numbers["lemmas"] if lemma["group"] == group]
        fails = [f"{lemma['place']}: {lemma['says']}, must be {lemma['needs']}" for lemma in lemmas if not holds(lemma)]
        exact = max(lemma["worst"] or 0.0 for lemma in lemmas if lemma["needs"] == "= 0")
        fine = f"{len(lemmas)} statements on {lemmas[0]['draws']} random distributions each; equalities to {_worst(exact)}"
        verdicts.append(Verdict(claim, not fails, "; ".join(fails) or fine))
    return verdicts


def _off(case: Numbers) -> float:
    """How far a fitted exponent is from its prediction, as a share of it; infinite where a power law is not what fits best."""
    return abs(case["fitted"] / case["predicted"] - 1) if case["best"] == "power" else float("inf")


def _signed(number: float) -> str:
    return f"{number:.3f}".replace("-", "−")


def _worst(number: float | None) -> str:
    return "not finite" if number is None else "0" if number == 0 else f"{number:.1e}".replace("-", "−")


THEORY = Experiment(
    name="theory",
    title="Laws of scaling, and the lemmas behind them",
    place="Section 3",
    read=(
        "What is left to learn against what is spent: exact values for 10¹² skills as dots, the limits that the theorems state "
        "as lines; B = 1 nat, C = 5. Exponents are fitted between 100 and 100 000 skills, or data. Statements are in the form "
        "proved in geomprobe.theory, which may differ from the paper's wording."
    ),
    caveat="It shows that the theorems follow from their assumptions, not that language models meet these.",
    of="nothing",
    measure=_measure_theory,
    draw=_draw_theory,
    tables=_theory_tables,
    judge=_judge_theory,
)
