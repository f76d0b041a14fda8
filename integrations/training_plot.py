"""Draws a training from its file of readings: one metric at every site over the steps, below the loss."""

import math
from typing import TYPE_CHECKING, Any

from geomprobe import GeomprobeError
from geomprobe.files import StepFile
from geomprobe.integrations.picture import draw_heatmap
from geomprobe.integrations.records import reading_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_training"]


def plot_training(file: StepFile | None, metric: str, *, mode: str, ax: "Axes | None") -> "Axes":
    """Draw a metric as a map of sites × steps, with the loss above it on the same steps.

    Args:
        file: the file of readings; ``None`` if no training has begun.
        metric: the name of a number.
        mode: the mode of the readings and of the loss, such as ``"train"`` or ``"eval"``.
        ax: the matplotlib axes to draw on. Default: those of a new figure of ``matplotlib.pyplot``.

    Returns:
        The axes of the map.

    Raises:
        GeomprobeError: if there is no reading of this mode, no such metric, or ``ax`` is not an axes.
    """
    if file is None:
        raise GeomprobeError("nothing to plot: this callback has not measured a training yet; train first")
    if ax is not None and not hasattr(ax, "pcolormesh"):
        raise GeomprobeError(f"plot(ax={type(ax).__name__}): expected one axes of matplotlib, such as plt.subplots()[1]")
    records = file.records()
    readings = {line["step"]: reading_of(line) for line in records if "sites" in line and line.get("mode") == mode}
    if not readings:
        there = sorted({line["mode"] for line in records if "sites" in line})
        expected = f"the file has readings of mode {' and '.join(there)}" if there else "no step was measured yet"
        raise GeomprobeError(
            f"nothing to plot: there is no reading of mode {mode!r} in {file.path}: {expected}; with several processes "
            "only the main one writes it"
        )
    latest = readings[max(readings)]
    if not isinstance(latest[metric], dict):  # a missing metric raises an error that names the nearest
        raise GeomprobeError(f"{metric!r} is one number: give the metric without the site, {metric.split('/')[0]!r}")
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.figure(figsize=(7.2, 5.0), layout="constrained").add_subplot()
    sites = [site for site in latest.sites if any(f"{metric}/{site}" in reading for reading in readings.values())]
    steps = sorted(readings)
    values = [[readings[step].get(f"{metric}/{site}", math.nan) for site in sites] for step in steps]
    ax.figure.colorbar(draw_heatmap(ax, steps, sites, values), ax=ax, label=metric.replace("_", " ").replace("$", r"\$"))
    gaps = sum(not math.isfinite(value) for row in values for value in row)
    _draw_loss(ax, {line["step"]: line["loss"] for line in records if _has_loss(line, mode)}, mode, gaps)
    return ax


def _has_loss(line: dict[str, Any], mode: str) -> bool:
    return isinstance(line.get("loss"), int | float) and line.get("mode", "train") == mode


def _draw_loss(ax: "Axes", losses: dict[int, float], mode: str, gaps: int) -> None:
    """The loss above the map, and the title above both."""
    blank = f"\nblank: not known, {gaps} value{'s' * (gaps > 1)}" * bool(gaps)
    title = f"The loss, and a metric at every site, in mode {mode}{blank}".replace("$", r"\$")
    if not losses:
        ax.set_title(f"{title}\nno loss was logged for these steps", fontsize=10)
        return
    above = ax.inset_axes((0, 1.05, 1, 0.36), sharex=ax)
    steps = sorted(losses)
    above.plot(steps, [losses[step] for step in steps], color="#3b6fb6", marker="o" if len(steps) < 40 else None, markersize=3)
    above.set_ylabel("loss")
    above.tick_params(labelbottom=False)
    above.set_title(title, fontsize=10)
    ax.figure.canvas.figure.draw_without_rendering()  # the first layout of axes within axes is that of a larger figure
