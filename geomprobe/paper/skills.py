"""Figure 2, the graph of texts and their skills, and section 3: its laws at exact values, its lemmas on random draws."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from geomprobe.paper.drawing import MUTED, canvas, shades
from geomprobe.paper.piece import Numbers, Piece, Request, Table, Verdict
from geomprobe.theory import information, prompting, skills
from geomprobe.theory.power_law import fit_power_law
from geomprobe.theory.skills import SkillModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIG2", "THEORY"]

Floats = NDArray[np.float64]

# -- Figure 2 ---------------------------------------------------------------------------------------------------------------

_SMALL = SkillModel(alpha=0.4, M=9, B=0.0, C=1.0)
_SMALL_TEXTS = 16
"""The graph that is drawn; each of its texts draws two skills, or one of them twice."""

_MANY, _MANY_TEXTS = 1000, 200_000
"""Skills and texts of the graphs whose degrees are fitted; each text uses one skill."""

_CONFIDENCE = 0.999
"""Of intervals of α: three of them in a picture, of any seed."""


def _measure_graphs(request: Request) -> Numbers:
    large = []
    for alpha in (0.3, 0.8, 1.5):
        model = SkillModel(alpha, _MANY, B=0.0, C=1.0)
        degrees = np.bincount(model.sample_graph(_MANY_TEXTS, seed=request.seed)[:, 1], minlength=_MANY)
        law = skills.fit_degrees(degrees, confidence=_CONFIDENCE)
        large.append(
            {
                "alpha": alpha,
                "degrees": degrees,
                "expected": _MANY_TEXTS * model.degrees(),
                "fitted": law.alpha,
                "interval": law.interval,
                "p_value": law.p_value,
            }
        )
    return {"edges": _SMALL.sample_graph(_SMALL_TEXTS, 2, seed=request.seed), "large": large}


def _draw_graphs(numbers: Numbers) -> "Figure":
    figure, (graph, law) = canvas(1, 2, height=3.5, width=4.8)
    _draw_graph(graph, np.array(numbers["edges"]))
    k = np.arange(1, _MANY + 1)
    for case, colour in zip(numbers["large"], shades(len(numbers["large"])), strict=True):
        degrees = np.array(case["degrees"])
        law.plot(k[degrees > 0], degrees[degrees > 0], ".", color=colour, markersize=2, alpha=0.3, markeredgewidth=0)
        law.plot(k, case["expected"], color=colour, linewidth=1)
        label = f"α = {case['alpha']:g}, fitted {case['fitted']:.3f}"
        law.plot(*_binned(degrees), "o", color=colour, markersize=4, label=label)
    law.set(xscale="log", yscale="log", xlim=(0.8, 1.3 * _MANY), ylim=(0.003, None))
    law.set(xlabel="skill k, the most used first", ylabel="texts that use it")
    law.set_title(f"Use of {_MANY} skills by {_MANY_TEXTS // 1000} thousand texts")
    law.legend(title="lines: expected, as k$^{−(1+α)}$", alignment="left", title_fontsize=8, loc="lower left")
    return figure


def _binned(degrees: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Geometric means of ranks, and mean degrees, of eighths of a decade: those not used count, as they have no place among
    logarithms."""
    bins = np.floor(8 * np.log10(np.arange(1, len(degrees) + 1)) - 1e-9).astype(int) + 1  # a bin ends with its decade
    there = np.bincount(bins) > 0
    ranks, uses = (
        np.bincount(bins, weights=each)[there] / np.bincount(bins)[there]
        for each in (np.log(np.arange(1, len(degrees) + 1)), degrees)
    )
    return np.exp(ranks), np.where(uses > 0, uses, np.nan)


def _draw_graph(axes: "Axes", edges: NDArray[np.int64]) -> None:
    degrees = np.bincount(edges[:, 1], minlength=_SMALL.M)
    middle = np.bincount(edges[:, 0], weights=edges[:, 1]) / np.bincount(edges[:, 0])
    texts = np.empty(_SMALL_TEXTS)
    texts[np.argsort(middle, kind="stable")] = np.linspace(0, 1, _SMALL_TEXTS)  # beside those with like skills: fewer crossings
    places = np.linspace(0.02, 0.98, _SMALL.M)
    scale = shades(int(degrees.max()) + 1)
    for text, skill in edges:
        axes.plot([texts[text], places[skill]], [1, 0], color=scale[degrees[skill]], linewidth=0.9, alpha=0.6, zorder=1)
    axes.scatter(texts, np.ones(_SMALL_TEXTS), s=34, marker="s", color=MUTED, zorder=2)
    colours = [scale[degree] for degree in degrees]
    axes.scatter(places, np.zeros(_SMALL.M), s=25 + 45 * degrees, color=colours, zorder=2)
    for k, (place, degree) in enumerate(zip(places, degrees, strict=True), start=1):
        axes.text(place, -0.2, f"{k}", ha="center", va="center", fontsize=8)
        axes.text(place, -0.31, f"{degree}×", ha="center", va="center", fontsize=7, color=MUTED)
    for label, height in (("texts", 1.0), ("skills", 0.0), ("rank", -0.2), ("used", -0.31)):
        axes.text(-0.09, height, label, ha="right", va="center", fontsize=8, color=MUTED)
    axes.set(xlim=(-0.2, 1.05), ylim=(-0.38, 1.12))
    axes.set_title(f"{_SMALL_TEXTS} texts, and which of {_SMALL.M} skills they use")
    axes.axis("off")


def _graph_tables(numbers: Numbers) -> list[Table]:
    rows = [
        [f"{case['alpha']:g}", f"{case['fitted']:.4f}", "{:.4f} to {:.4f}".format(*case["interval"]), f"{case['p_value']:.2f}"]
        for case in numbers["large"]
    ]
    title = f"α by maximum likelihood, from {_MANY_TEXTS} texts that use one of {_MANY} skills each"
    return [Table(title, ["α", "fitted", f"{_CONFIDENCE:.1%} interval", "p of χ²"], rows)]


def _judge_graphs(numbers: Numbers) -> list[Verdict]:
    cases = numbers["large"]
    holds = all(c["interval"][0] <= c["alpha"] <= c["interval"][1] and (c["p_value"] or 0) > 1e-3 for c in cases)
    fits = "; ".join(f"{_signed(-1 - c['fitted'])} ± {np.ptp(c['interval']) / 2:.3f} for {-1 - c['alpha']:g}" for c in cases)
    return [
        Verdict(
            "Def. 3.4, in graphs sampled by it: skill k has a share k^−(1+α) of the edges",
            holds,
            f"exponents fitted by maximum likelihood: {fits.replace('-', '−')}",
        )
    ]


# -- Section 3: its laws ----------------------------------------------------------------------------------------------------

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
    return {"laws": laws + [_data_law(gamma) for gamma in _GAMMAS], "lemmas": [check.run(draw) for check in _CHECKS]}


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
    for group, claim in _GROUPS.items():
        lemmas = [lemma for lemma in numbers["lemmas"] if lemma["group"] == group]
        fails = [f"{lemma['place']}: {lemma['says']}, must be {lemma['needs']}" for lemma in lemmas if not _holds(lemma)]
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


# -- Section 3: its lemmas --------------------------------------------------------------------------------------------------

_GROUPS = {
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


def _holds(lemma: Numbers) -> bool:
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


FIG2 = Piece(
    name="fig2",
    title="Texts, and the skills they use",
    place="Figure 2",
    read=(
        "Left a small graph: every text draws two skills by Def. 3.4, and a skill is as large as it is used. Right the degrees "
        "of graphs too large to draw, as specks, their means over ranks as dots, and as lines what the law expects."
    ),
    isnt="The graphs are drawn from the definition, so they show what it says, not that texts use skills so.",
    of="nothing",
    measure=_measure_graphs,
    draw=_draw_graphs,
    tables=_graph_tables,
    judge=_judge_graphs,
)

THEORY = Piece(
    name="theory",
    title="Laws of scaling, and the lemmas behind them",
    place="Section 3",
    read=(
        "What is left to learn against what is spent: exact values for 10¹² skills as dots, the limits that the theorems state "
        "as lines; B = 1 nat, C = 5. Exponents are fitted between 100 and 100 000 skills, or data. Statements are in the form "
        "proved in geomprobe.theory, which may differ from the paper's wording."
    ),
    isnt="It shows that the theorems follow from their assumptions, not that language models meet these.",
    of="nothing",
    measure=_measure_theory,
    draw=_draw_theory,
    tables=_theory_tables,
    judge=_judge_theory,
)
