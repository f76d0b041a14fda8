"""The picture of a training: the effective rank at every site over the steps so far."""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from geomprobe import Reading

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from numpy.typing import NDArray

__all__ = ["PICTURE", "draw_heatmap", "draw_layers"]

PICTURE = "geomprobe/effective_rank_layers"
"""Name of the picture in trackers."""

_METRIC = "effective_rank"
_MOST_COLUMNS = 400


def draw_layers(history: Sequence[tuple[int, Reading]]) -> "NDArray[np.uint8] | None":
    """Draw the effective rank at all sites over the steps of the readings of mode ``train``.

    Args:
        history: the readings with their steps, in order.

    Returns:
        The picture as an array of height, width and three colours, or ``None`` if fewer than two sites or steps were measured.
    """
    readings = [(step, reading) for step, reading in history if reading.mode == "train"]
    sites = [site for site in readings[-1][1].sites if f"{_METRIC}/{site}" in readings[-1][1]] if readings else []
    if len(readings) < 2 or len(sites) < 2:
        return None
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, whose figures and backend belong to the user

    thin = math.ceil(len(readings) / _MOST_COLUMNS)
    readings = readings[::-thin][::-1]  # the last step is always one of them
    ranks = [[_rank(reading, site) for site in sites] for _, reading in readings]
    figure = Figure(figsize=(5.12, 3.2), dpi=125, layout="constrained")  # labels stay legible where trackers show it small
    axes = figure.add_subplot()
    mesh = draw_heatmap(axes, [step for step, _ in readings], sites, ranks)
    figure.colorbar(mesh, label="effective rank")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_heatmap(ax: "Axes", steps: Sequence[int], sites: Sequence[str], values: Sequence[Sequence[float]]) -> "QuadMesh":
    """Draw the values of each step and site as colours, with the first site at the bottom. What is not finite is blank.

    Args:
        ax: the axes.
        steps: the steps, in order. The colour of a step reaches half-way to the next one.
        sites: the names of the sites.
        values: for each step the values at the sites.

    Returns:
        The map, for a colour bar.
    """
    import numpy as np

    grid = np.ma.masked_invalid(np.array(values, dtype=float)).T
    middles = [(a + b) / 2 for a, b in itertools.pairwise(steps)]
    edges = [2 * steps[0] - middles[0], *middles, 2 * steps[-1] - middles[-1]] if middles else [steps[0] - 0.5, steps[0] + 0.5]
    mesh = ax.pcolormesh(edges, [i - 0.5 for i in range(len(sites) + 1)], grid)
    every = math.ceil(len(sites) / 16)
    ax.set_yticks(range(0, len(sites), every), [site.replace("$", r"\$") for site in sites[::every]], fontsize=8)
    ax.set_xlabel("step")
    return mesh


def _rank(reading: Reading, site: str) -> float:
    name = f"{_METRIC}/{site}"
    return reading[name] if name in reading else math.nan  # noqa: SIM401  # a gap where nothing was measured
