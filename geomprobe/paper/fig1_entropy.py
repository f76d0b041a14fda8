"""Figure 1: the entropy of models of several sizes, from published data and measured here, and the effect of the width alone.

The paper simulates Eq. 1 from the matrix entropies that Wei et al. (2024) published, and says that the result follows a power
law of the model's size. That is judged by how well a power law ``L₀ + λN^γ`` fits. Our controls have verdicts of their own:
whether a logarithm of the size fits as well, and whether one rank for all sizes, so that only the width differs, falls as much.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from geomprobe.core.spectrum import equal_spectrum_entropy
from geomprobe.errors import GeomprobeError
from geomprobe.paper.experiment import Experiment, Kind, Request, Table, Verdict, cell, span
from geomprobe.paper.models import by_size, failure_tables, failures, read_from, swept
from geomprobe.paper.published import PUBLISHED
from geomprobe.paper.style import COLOURS, MUTED, UNTRAINED, canvas, caption
from geomprobe.report.theme import si_format
from geomprobe.sweeps.records import Record
from geomprobe.theory.power_law import PowerLaw, fit_power_law

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIG1"]

Floats = NDArray[np.float64]

_FITTED = 0.95
"""Share of the variance that a power law must explain, so that the entropy counts as following it."""
_CONVINCING = 0.9
"""Akaike weight of a power law at which a logarithm is ruled out."""
_ENOUGH = 6
"""Least number of sizes for a verdict: three parameters fit any four or five points well."""
_FITS = {"power": "power", "log-linear": "log", "constant": "constant"}
"""The names of fits in the table."""
_MATRIX_ENTROPY = "centered_text_matrix_entropy/final_norm"
"""The matrix entropy of Wei et al.: that of each text's rows after their mean was subtracted, as a mean over texts."""


@dataclass(frozen=True)
class Trend:
    """Eq. 1 of ``r/d`` by size, the same with one rank for all sizes, and the power law that fits best.

    ``share`` is the share of the fall of log entropy, from the first to the last size, that remains with one rank for all
    sizes; ``1 − share`` is due to the ranks. ``law`` is ``None`` if fewer than four sizes are known.
    """

    parameters: list[float]
    widths: list[float]
    ranks: list[float]
    entropy: list[float]
    same_rank: list[float]
    share: float
    law: PowerLaw | None


@dataclass(frozen=True)
class OwnTrend(Trend):
    """The trends of the models measured here, and of the same models without training."""

    names: list[str]
    text_entropy: list[float]
    loss: list[float | None]
    untrained: Trend


@dataclass(frozen=True)
class Figure1:
    """The numbers of figure 1."""

    published: Mapping[str, Trend]
    own: OwnTrend
    read: str
    failed: list[list[str]]


def _measure_entropy(request: Request) -> Figure1:
    published = {
        f"{family}, {data}": _trend(known.parameters, known.widths, np.power(known.widths, entropies))
        for family, known in PUBLISHED.items()
        for data, entropies in known.entropies.items()
    }
    run = swept(request)
    pairs = [(record, run.baseline(record, "untrained")) for record in by_size(run)]
    parameters = [record.parameters or math.nan for record, _ in pairs]
    widths = [record.width or math.nan for record, _ in pairs]
    nulls = [math.nan if null is None else _rank(null) for _, null in pairs]
    own = OwnTrend(
        **vars(_trend(parameters, widths, [_rank(record) for record, _ in pairs])),
        names=[record.name for record, _ in pairs],
        text_entropy=[_value(record, "centered_text_entropy/final_norm") for record, _ in pairs],
        loss=[record.loss for record, _ in pairs],
        untrained=_trend(parameters, widths, nulls),
    )
    return Figure1(published, own, read_from(request, run), failures(run))


def _trend(parameters: ArrayLike, widths: ArrayLike, ranks: ArrayLike) -> Trend:
    d, r = np.asarray(widths, np.float64), np.asarray(ranks, np.float64)
    entropy, same = _equation_1(r / d), _equation_1(np.exp(np.log(r).mean()) / d)
    fall = math.log(entropy[0] / entropy[-1])
    try:
        law = fit_power_law(parameters, entropy)
    except GeomprobeError:
        law = None
    share = math.log(same[0] / same[-1]) / fall if fall > 0 else math.nan
    sizes = np.asarray(parameters, np.float64)
    return Trend(sizes.tolist(), d.tolist(), r.tolist(), entropy.tolist(), same.tolist(), share, law)


def _equation_1(ratio: ArrayLike) -> Floats:
    return np.asarray(equal_spectrum_entropy(torch.as_tensor(ratio)).numpy())


def _value(record: Record, name: str) -> float:
    assert record.reading is not None  # it is one of those that were read
    value: float = record.reading[name]
    return value


def _rank(record: Record) -> float:
    return math.exp(_value(record, _MATRIX_ENTROPY))


def _draw_entropy(numbers: Figure1) -> "Figure":
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, (entropy, rank, own) = canvas(1, 3, width=3.7, height=3.6)
    for colour, family in zip(COLOURS, PUBLISHED, strict=False):
        sets = [trend for name, trend in numbers.published.items() if name.startswith(f"{family},")]
        for number, trend in enumerate(sets):
            label = family if number == 0 else None
            for axes, shown in ((entropy, trend.entropy), (rank, trend.ranks)):
                axes.plot(trend.parameters, shown, color=colour, marker="o", markersize=3, label=label, linewidth=1.1)
        same = np.exp(np.log([trend.same_rank for trend in sets]).mean(0))
        entropy.plot(sets[0].parameters, same, color=MUTED, linestyle=":", zorder=3)
    entropy.plot([], [], color=MUTED, linestyle=":", label="same rank at every size")
    trained, null = numbers.own, numbers.own.untrained
    own.plot(trained.parameters, trained.entropy, color=COLOURS[0], marker="o", label="trained")
    if not np.isnan(null.entropy).any():
        own.plot(null.parameters, null.entropy, color=UNTRAINED, linestyle="--", marker="o", label="untrained")
    own.plot(trained.parameters, trained.same_rank, color=MUTED, linestyle=":", label="same rank at every size")
    entropy.set_title("Eq. 1 of published data")
    rank.set_title("Effective rank $e^H$ behind it")
    own.set_title("Eq. 1, models at hand")
    for axes, unit in ((entropy, "share of its maximum"), (rank, "directions"), (own, "share of its maximum")):
        _size_axis(axes, own_sizes=trained.parameters if axes is own else None)
        axes.set_ylabel(unit)
        axes.legend(loc="lower left" if axes is not rank else "upper left")
    for axes in (entropy, own):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        low, high = axes.get_ylim()
        axes.set_ylim(low * (low / high) ** 0.45, high)  # room for the legend under the lines
    rank.set_ylim(bottom=0, top=1.35 * rank.get_ylim()[1])
    sets_of_data = list(dict.fromkeys(data for family in PUBLISHED.values() for data in family.entropies))
    caption(
        figure,
        f"Left and middle: {' and '.join(PUBLISHED)} on {', '.join(sets_of_data)} (Wei et al. 2024); ε = 0.1\n"
        f"Right: {numbers.read}",
    )
    return figure


def _size_axis(axes: "Axes", own_sizes: Sequence[float] | None) -> None:
    """Set a logarithmic axis of parameters. If there are few sizes, they are its ticks."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.set_xlabel("parameters")
    if own_sizes is not None and len(own_sizes) <= 5:
        axes.set_xticks(own_sizes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: si_format(size)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _tables_of_entropy(numbers: Figure1) -> list[Table]:
    columns = ("models", "e^H", "Eq. 1", "γ", "R²", "best fit", "width")
    rows = [_trend_row(name, trend) for name, trend in numbers.published.items()]
    own, null = numbers.own, numbers.own.untrained
    rows += [_trend_row("models at hand", own)]
    rows += [_trend_row("… untrained", null)] if not np.isnan(null.ranks).any() else []
    each = [
        [
            si_format(size),
            f"{width:.0f}",
            *(cell(value, form) for value, form in ((rank, ".1f"), (entropy, ".3f"), (direct, ".3f"), (loss, ".2f"))),
            cell(untrained, ".1f"),
        ]
        for size, width, rank, entropy, direct, loss, untrained in zip(
            *(own.parameters, own.widths, own.ranks, own.entropy, own.text_entropy, own.loss, null.ranks), strict=True
        )
    ]
    return [
        Table("smallest to largest, L = L₀ + λN^γ; width: share of the fall with one rank", columns, rows),
        Table(
            "models at hand",
            ("parameters", "d", "e^H", "Eq. 1", "Def. 3.1", "loss", "e^H untrained"),
            each,
        ),
        *failure_tables(numbers.failed),
    ]


def _trend_row(name: str, trend: Trend) -> list[str]:
    ranks, entropies = f"{trend.ranks[0]:.0f}→{trend.ranks[-1]:.0f}", f"{trend.entropy[0]:.2f}→{trend.entropy[-1]:.2f}"
    law, share = trend.law, cell(trend.share, ".0%")
    if law is None:
        return [name, ranks, entropies, "–", "–", "–", share]
    best = f"{_FITS[law.best]} {law.weights[law.best]:.0%}"
    return [name, ranks, entropies, f"{law.exponent:.2f}", f"{law.r2:.3f}", best, share]


def _judge_entropy(numbers: Figure1) -> list[Verdict]:
    published, own = list(numbers.published.values()), [numbers.own]
    return [
        _judge_law("The entropy of published data, by Eq. 1, follows a power law of size", published),
        _judge_logarithm("A logarithm of size fits the published data as well", published),
        _judge_width(
            "The width alone, with one rank for all sizes, makes the entropy of published data fall as much", published
        ),
        _judge_law("The entropy of the models measured here, by Eq. 1, follows a power law of size", own),
        _judge_law("With random weights it also follows a power law of size", [numbers.own.untrained], "ours"),
        _judge_width("The width alone makes the entropy of the models measured here fall as much", own),
    ]


def _judge_law(claim: str, trends: Sequence[Trend], kind: Kind = "paper") -> Verdict:
    """Holds if in every data set a power law explains 95% of the variance, and does not hold if it does in none."""
    laws = [trend.law for trend in trends if trend.law is not None]
    if len(laws) < len(trends):
        return Verdict(claim, None, "needs models of at least four sizes", kind)
    fitted = sum(law.r2 >= _FITTED for law in laws)
    enough = all(len(trend.parameters) >= _ENOUGH for trend in trends)
    return Verdict(
        claim,
        {0: False, len(laws): True}.get(fitted) if enough else None,
        f"L₀ + λN^γ explains {span([law.r2 for law in laws], '.1%')} of the variance, with γ = "
        f"{span([law.exponent for law in laws], '.2f')}"
        + ("" if enough else f"; with fewer than {_ENOUGH} sizes such a fit says little"),
        kind,
    )


def _judge_logarithm(claim: str, trends: Sequence[Trend]) -> Verdict:
    """Does not hold if in every data set nine tenths of the weight are on a power law, and holds if in none."""
    laws = [trend.law for trend in trends if trend.law is not None]
    won = sum(law.weights["power"] >= _CONVINCING for law in laws)
    better = sum(law.best != "power" for law in laws)
    return Verdict(
        claim,
        {0: True, len(trends): False}.get(won),
        f"against a logarithm and a constant, a power law has {_CONVINCING:.0%} of the Akaike weight or more in {won} of "
        f"{len(trends)} data sets; another fits better in {better}",
        "ours",
    )


def _judge_width(claim: str, trends: Sequence[Trend]) -> Verdict:
    """Holds if the same rank at every size gives 90% of the fall everywhere; does not hold if it gives at most half."""
    shares = [trend.share for trend in trends]
    ranks, widths = (
        span([sizes[-1] / sizes[0] for sizes in each], ".1f")
        for each in ([trend.ranks for trend in trends], [trend.widths for trend in trends])
    )
    if any(trend.widths[0] == trend.widths[-1] for trend in trends):
        return Verdict(claim, None, "needs models of at least two widths", "ours")
    if np.isnan(shares).any():
        return Verdict(claim, None, "it does not fall from the smallest to the largest", "ours")
    return Verdict(
        claim,
        True if min(shares) >= 0.9 else False if max(shares) <= 0.5 else None,
        f"with one rank for all sizes, the fall is {span(shares, '.0%')} of the fall with the real ranks. From the smallest to "
        f"the largest model the rank changes by a factor of {ranks}, and d by a factor of {widths}",
        "ours",
    )


FIG1 = Experiment(
    name="fig1",
    title="Entropy against model size",
    place="Figure 1",
    read=(
        "Eq. 1 turns the effective rank r = e^H of a model's rows into a normalised entropy, which depends on r/d. The dotted "
        "line is the same with one rank for all sizes, so that only the width d differs."
    ),
    caveat=(
        "Where the dotted line is as steep as the other one, the width of the models explains the fall. The ranks, which the "
        "middle panel shows, change far less than d."
    ),
    of="sizes",
    numbers=Figure1,
    measure=_measure_entropy,
    draw=_draw_entropy,
    tables=_tables_of_entropy,
    judge=_judge_entropy,
)
