"""Draws a reading with matplotlib, which is imported when it is used: a metric over the sites, and a curve of one site."""

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from geomprobe.errors import GeomprobeError
from geomprobe.metrics.base import Curve
from geomprobe.metrics.descriptions import describe
from geomprobe.reading.bounds import upper_bound
from geomprobe.reading.data import ReadingData
from geomprobe.reading.table import headline, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["INK", "axes_for", "draw_sites", "plain", "plot_reading"]

INK = {"line": "#3b6fb6", "bound": "#b3541e", "below": "#d66a28", "quiet": "#8a8f98"}
"""Colours that can be told apart on white and on dark pages, and by readers who cannot tell red from green."""

_FAR = 3.0
"""A bound that is more than this many times the largest value is not drawn, because the values could not be told apart."""

_INDEX = {
    "spectrum": "rank of the eigenvalue, the largest first",
    "by_head": "number of the head",
    "octaves": "octave of the distance in tokens: 0, 1, 2–3, 4–7, …",
    "lasso_weight": "number of tokens between the token and the earlier one",
    "attention_weight": "number of tokens between the token and the earlier one",
    "eq5_weight": "number of tokens between the token and the earlier one",
    "router_load": "number of the expert",
    "router_probability": "number of the expert",
    "representation_mean": "dimension",
}
"""What a curve runs over, by the end of its name; all others run over positions in the text."""


def plot_reading(reading: ReadingData, metric: str, *, site: str | None, ax: "Axes | None") -> "Axes":
    """Draw a metric of a reading: see :meth:`geomprobe.Reading.plot`."""
    if site is not None:
        return _plot_curve(reading, metric, site, ax)
    curves = [key for key in reading.curves if key.split("/")[0] == metric]
    if curves and metric not in reading.metrics:
        sites = [key.split("/")[1] for key in curves]
        raise GeomprobeError(
            f"{metric!r} is a curve, which is drawn for one site: reading.plot({metric!r}, site={sites[-1]!r}); it is known at "
            + _some(sites)
        )
    values: dict[str, float] = reading[metric]
    if not isinstance(values, dict):
        raise GeomprobeError(
            f"{metric!r} is one number, {values:.4g}: give the metric without the site, {metric.split('/')[0]!r}"
        )
    about = describe(metric)
    ax = axes_for(ax)
    numbers = [values.get(site, math.nan) for site in reading.sites]
    ax.plot(range(len(numbers)), _finite(numbers), color=INK["line"], marker="o", markersize=3.5)
    draw_sites(ax, reading.sites)
    ax.set_ylabel(plain(about.axis or metric))
    _draw_bound(ax, numbers, [upper_bound(reading, metric, site) for site in reading.sites], metric)
    unknown = [site for site, number in zip(reading.sites, numbers, strict=True) if not math.isfinite(number)]
    _title(ax, html.unescape(about.title), reading, f"no value at {_some(unknown)}" if unknown else "")
    if not any(map(math.isfinite, numbers)):
        _say_empty(ax)
    return ax


def axes_for(ax: "Axes | None") -> "Axes":
    """Return the axes of the user, or those of a new figure.

    Raises:
        GeomprobeError: if ``ax`` is not an axes.
    """
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.figure(figsize=(7.2, 4.0), layout="constrained").add_subplot()
        return ax
    if not hasattr(ax, "plot") or not hasattr(ax, "inset_axes"):
        raise GeomprobeError(f"plot(ax={type(ax).__name__}): expected one axes of matplotlib, such as plt.subplots()[1]")
    return ax


def draw_sites(ax: "Axes", sites: Sequence[str]) -> None:
    """Label the x axis with the names of sites, as many as can be read."""
    every = max(1, math.ceil(len(sites) / 24))
    places = [*range(0, len(sites), every)]
    if len(sites) - 1 - places[-1] > 0:  # the last site is always named
        places = [place for place in places if len(sites) - 1 - place > every / 2] + [len(sites) - 1]
    ax.set_xticks(places, [plain(shorten(sites[place], 20)) for place in places], rotation=60, ha="right", fontsize=8)
    ax.set_xlim(-0.6, len(sites) - 0.4)
    ax.set_xlabel("site, in the order of the forward pass" if len(sites) > 1 else "site")


def plain(text: str) -> str:
    """Return text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")


def _plot_curve(reading: ReadingData, metric: str, site: str, ax: "Axes | None") -> "Axes":
    if f"{metric}/{site}" not in reading.curves and f"{metric}/{site}" in reading:
        raise GeomprobeError(
            f"{metric!r} is one number at each site, {reading[f'{metric}/{site}']:.4g} at {site}: leave out 'site' to draw all"
        )
    curve = reading.curve(metric, site)
    ax = axes_for(ax)
    about = describe(metric)
    over = next((label for end, label in _INDEX.items() if metric.endswith(end)), "position in the text, in tokens")
    start = 1 if over.startswith("rank") else 0
    mean = _finite(curve.mean)
    at = range(start, start + len(mean))
    few = len(mean) <= 64
    ax.plot(at, mean, color=INK["line"], label="mean", marker="o" if few else None, markersize=3)
    if curve.std is not None and any(std > 0 for std in curve.std if math.isfinite(std)):
        spread = _finite(curve.std)
        below, above = ([m + side * std for m, std in zip(mean, spread, strict=True)] for side in (-1, 1))
        label = "± one standard deviation over the texts"
        ax.fill_between(at, below, above, color=INK["line"], alpha=0.22, lw=0, label=label)
        ax.legend(frameon=False, fontsize=8)
    ax.set_ylabel(plain(about.axis or metric))
    if metric.endswith("spectrum"):
        ax.set_yscale("log", nonpositive="mask")
    lost = sum(not math.isfinite(x) for x in mean)
    _title(ax, f"{html.unescape(about.title)} at {site}", reading, f"no value at {lost} of {len(mean)} places" if lost else "")
    if lost == len(mean):
        _say_empty(ax)
    if over.startswith("position") and len(mean):
        _draw_counts(ax, at, curve, over)
    else:
        ax.set_xlabel(over)
    return ax


def _draw_counts(ax: "Axes", at: Sequence[int], curve: Curve, over: str) -> None:
    """The number of texts that reach each position, below the curve."""
    from matplotlib.ticker import MaxNLocator

    counts = ax.inset_axes((0, -0.34, 1, 0.22), sharex=ax)
    counts.fill_between(at, curve.count, step="mid", color=INK["quiet"], alpha=0.5, lw=0)
    counts.set_ylim(0, max(curve.count, default=0) * 1.15 or 1)
    counts.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    counts.set_ylabel("texts")
    counts.set_xlabel(over)
    counts.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    ax.tick_params(labelbottom=False)
    ax.figure.canvas.figure.draw_without_rendering()  # the first layout of axes within axes is that of a larger figure


def _draw_bound(ax: "Axes", numbers: Sequence[float], bounds: Sequence[float | None], metric: str) -> None:
    known = sorted({bound for bound in bounds if bound is not None})
    largest = max((number for number in numbers if math.isfinite(number)), default=math.nan)
    if not known or math.isnan(largest):
        return
    what = {"rank_ratio": "min(n, d)/d", "matrix_entropy": "log min(n, d)"}.get(metric, "min(n, d)")
    value = f"{known[0]:.3g}" if known[0] % 1 else f"{known[0]:,.0f}"
    ax.set_ylim(bottom=0)
    if known[0] > _FAR * largest:
        label = f"{what} = {value} is above this figure"
        ax.plot([], [], " ", label=label)
    else:
        places = [math.nan if bound is None else bound for bound in bounds]
        label = f"{what} = {value}: no larger value is possible" if len(known) == 1 else f"{what}: no larger value is possible"
        ax.plot(range(len(places)), places, color=INK["bound"], ls="--", lw=1.2, label=label)
        ax.set_ylim(top=max(known) * 1.12)
    ax.legend(frameon=False, fontsize=8, loc="best")


def _title(ax: "Axes", title: str, reading: ReadingData, more: str) -> None:
    about = headline(reading).removeprefix("geomprobe · ")
    ax.set_title(plain("\n".join([title, about + f" · {more}" * bool(more)])), fontsize=10)


def _say_empty(ax: "Axes") -> None:
    ax.text(0.5, 0.5, "there is no finite value to draw", transform=ax.transAxes, ha="center", color=INK["quiet"])
    ax.set_yticks([])


def _finite(values: Sequence[float]) -> list[float]:
    """The values with NaN, which is drawn as a gap, for what is not finite."""
    return [value if math.isfinite(value) else math.nan for value in values]


def _some(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(shorten(name, 20) for name in names[:most])
    return shown + f" and {len(names) - most} more" * (len(names) > most)
