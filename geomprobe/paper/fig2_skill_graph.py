"""Figure 2: the bipartite graph of texts and skills, and the degrees of the skills."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geomprobe.paper.experiment import Experiment, Request, Table, Verdict
from geomprobe.paper.style import MUTED, canvas, shades
from geomprobe.theory.degrees import fit_degrees
from geomprobe.theory.skills import SkillModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIG2"]

Floats = NDArray[np.float64]

_FEW, _FEW_TEXTS, _FEW_ALPHA = 9, 16, 0.4
"""Skills, texts and α of the graph that is drawn. Each text draws two skills, possibly the same one twice."""

_MANY, _MANY_TEXTS = 1000, 200_000
"""Skills and texts of the graphs whose degrees are fitted. Each text uses one skill."""

_CONFIDENCE = 0.999
"""Confidence level of the intervals of α. It is high, so that all three intervals contain α for nearly every seed."""


@dataclass(frozen=True)
class Degrees:
    """The degrees of the skills of a graph, those expected for its α, and the α that fits them."""

    alpha: float
    degrees: list[int]
    expected: list[float]
    fitted: float
    interval: tuple[float, float]
    p_value: float


@dataclass(frozen=True)
class Figure2:
    """The numbers of figure 2: ``(text, skill)`` of the small graph, and the large ones."""

    edges: list[list[int]]
    large: list[Degrees]


def _measure_graphs(request: Request) -> Figure2:
    large = []
    for alpha in (0.3, 0.8, 1.5):
        model = SkillModel(alpha, _MANY, B=5.0, C=1.0)
        degrees = np.bincount(model.sample_graph(_MANY_TEXTS, seed=request.seed)[:, 1], minlength=_MANY)
        law = fit_degrees(degrees, confidence=_CONFIDENCE)
        expected = (_MANY_TEXTS * model.p_skill()).tolist()
        large.append(Degrees(alpha, degrees.tolist(), expected, law.alpha, law.interval, law.p_value))
    few = SkillModel(_FEW_ALPHA, _FEW, B=5.0, C=1.0)
    return Figure2(few.sample_graph(_FEW_TEXTS, 2, seed=request.seed).tolist(), large)


def _draw_graphs(numbers: Figure2) -> "Figure":
    figure, (graph, law) = canvas(1, 2, height=3.5, width=4.8)
    _draw_graph(graph, np.array(numbers.edges))
    k = np.arange(1, _MANY + 1)
    for case, colour in zip(numbers.large, shades(len(numbers.large)), strict=True):
        degrees = np.array(case.degrees)
        law.plot(k[degrees > 0], degrees[degrees > 0], ".", color=colour, markersize=2, alpha=0.3, markeredgewidth=0)
        law.plot(k, case.expected, color=colour, linewidth=1)
        label = f"α = {case.alpha:g}, fitted {case.fitted:.3f}"
        law.plot(*_binned(degrees), "o", color=colour, markersize=4, label=label)
    law.set(xscale="log", yscale="log", xlim=(0.8, 1.3 * _MANY), ylim=(0.003, None))
    law.set(xlabel="rank k of the skill", ylabel="degree: texts that use it")
    law.set_title(f"Degrees of {_MANY:,} skills, {_MANY_TEXTS:,} texts")
    law.legend(title="lines: the law, k$^{−(α+1)}$", alignment="left", title_fontsize=8, loc="lower left")
    return figure


def _binned(degrees: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Geometric means of ranks and means of degrees over eighths of a decade. Skills that are not used are part of the means,
    because a logarithmic axis cannot show them one by one."""
    bins = np.floor(8 * np.log10(np.arange(1, len(degrees) + 1)) - 1e-9).astype(int) + 1  # a bin ends with its decade
    there = np.bincount(bins) > 0
    ranks, uses = (
        np.bincount(bins, weights=each)[there] / np.bincount(bins)[there]
        for each in (np.log(np.arange(1, len(degrees) + 1)), degrees)
    )
    return np.exp(ranks), np.where(uses > 0, uses, np.nan)


def _draw_graph(axes: "Axes", edges: NDArray[np.int64]) -> None:
    degrees = np.bincount(edges[:, 1], minlength=_FEW)
    middle = np.bincount(edges[:, 0], weights=edges[:, 1]) / np.bincount(edges[:, 0])
    texts = np.empty(_FEW_TEXTS)
    texts[np.argsort(middle, kind="stable")] = np.linspace(
        0, 1, _FEW_TEXTS
    )  # near texts with similar skills, so that fewer edges cross
    places = np.linspace(0.02, 0.98, _FEW)
    scale = shades(int(degrees.max()) + 1)
    for text, skill in edges:
        axes.plot([texts[text], places[skill]], [1, 0], color=scale[degrees[skill]], linewidth=0.9, alpha=0.6, zorder=1)
    axes.scatter(texts, np.ones(_FEW_TEXTS), s=34, marker="s", color=MUTED, zorder=2)
    colours = [scale[degree] for degree in degrees]
    axes.scatter(places, np.zeros(_FEW), s=25 + 45 * degrees, color=colours, zorder=2)
    for k, (place, degree) in enumerate(zip(places, degrees, strict=True), start=1):
        axes.text(place, -0.2, f"{k}", ha="center", va="center", fontsize=8)
        axes.text(place, -0.31, f"{degree}", ha="center", va="center", fontsize=7, color=MUTED)
    for label, height in (("texts", 1.0), ("skills", 0.0), ("rank", -0.2), ("degree", -0.31)):
        axes.text(-0.09, height, label, ha="right", va="center", fontsize=8, color=MUTED)
    axes.set(xlim=(-0.2, 1.05), ylim=(-0.38, 1.12))
    axes.set_title(f"A skill graph: {_FEW_TEXTS} texts and {_FEW} skills, α = {_FEW_ALPHA:g}")
    axes.axis("off")


def _graph_tables(numbers: Figure2) -> list[Table]:
    rows = [
        [f"{case.alpha:g}", f"{case.fitted:.4f}", "{:.4f} to {:.4f}".format(*case.interval), f"{case.p_value:.2f}"]
        for case in numbers.large
    ]
    title = f"α by maximum likelihood, from {_MANY_TEXTS:,} texts that use one of {_MANY:,} skills each"
    return [Table(title, ["α", "fitted", f"{_CONFIDENCE:.1%} interval", "p of χ²"], rows)]


def _judge_graphs(numbers: Figure2) -> list[Verdict]:
    cases = numbers.large
    holds = all(c.interval[0] <= c.alpha <= c.interval[1] and c.p_value > 1e-3 for c in cases)
    fits = "; ".join(f"{-1 - c.fitted:.3f} ± {np.ptp(c.interval) / 2:.3f} for {-1 - c.alpha:g}" for c in cases)
    return [
        Verdict(
            "Section 3, the skill graph: graphs sampled from p_skill have degrees proportional to k^−(α+1)",
            holds,
            f"exponents fitted by maximum likelihood: {fits.replace('-', '−')}",
        )
    ]


FIG2 = Experiment(
    name="fig2",
    title="The skill graph: texts and the skills they use",
    place="Figure 2",
    read=(
        "On the left is a small graph: every text draws two skills from p_skill, and a larger circle has a higher degree. On "
        "the right are the degrees of three larger graphs: a small dot for each skill, large dots for means over ranks, and a "
        "line for the law. The paper's figure is schematic, and its degree law has no equation number."
    ),
    caveat="The graphs are sampled from the law, so they show what the law says, and not that real texts follow it.",
    of="nothing",
    numbers=Figure2,
    measure=_measure_graphs,
    draw=_draw_graphs,
    tables=_graph_tables,
    judge=_judge_graphs,
)
