"""The panels of figures 4 to 6: planes of texts, and maps of the distances between them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geomprobe.paper.context_texts import CONTEXTS
from geomprobe.paper.silhouette import Array
from geomprobe.paper.style import COLOURS, MUTED, shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["distance_map", "legend", "scatter"]

_MARKERS = "o^s"
_SHADES = 20
"""Number of colours of a map. It is small, so that many neighbouring cells have the same colour and are drawn as one shape."""


def scatter(axes: "Axes", points: Sequence[Sequence[float]], title: str, silhouette: float) -> None:
    """Draw a plane of texts, and write how far its contexts lie apart in all dimensions."""
    groups = np.array(points).reshape(len(CONTEXTS), -1, 2)
    for group, colour, marker in zip(groups, COLOURS, _MARKERS, strict=False):
        axes.scatter(group[:, 0], group[:, 1], s=22, color=colour, marker=marker, alpha=0.8, linewidths=0)
    axes.set_title(title, parse_math=False)
    axes.set_title(f"silhouette {silhouette:z.2f}", loc="right", fontsize=8, color=MUTED)
    axes.set_aspect("equal", "datalim")
    axes.margins(0.08)
    axes.tick_params(length=0, labelbottom=False, labelleft=False)


def distance_map(figure: "Figure", axes: "Axes", distances: Array, title: str) -> None:
    """Draw the distances between all texts, with one shape for each colour, so that dark pages can have their own colours."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.patches import PathPatch

    colours = shades(_SHADES)
    others = distances[~np.eye(len(distances), dtype=bool)]
    norm = Normalize(others.min(), others.max() if np.ptp(others) else others.min() + 1)
    levels = np.clip(np.asarray(norm(distances)) * _SHADES, 0, _SHADES - 1).astype(int)
    each = len(distances) // len(CONTEXTS)
    gaps = range(each, len(distances), each)
    levels = np.insert(np.insert(levels, gaps, -1, axis=0), gaps, -1, axis=1)  # where paper shows through
    for level, colour in enumerate(colours):
        if (levels == level).any():
            axes.add_patch(PathPatch(_cells(levels == level), facecolor=colour, edgecolor=colour, linewidth=0.7))
    axes.set(xlim=(0, len(levels)), ylim=(len(levels), 0), aspect="equal")
    axes.set_title(title, parse_math=False)
    middles = [i * (each + 1) + each / 2 for i in range(len(CONTEXTS))]
    axes.set_xticks(middles, list(CONTEXTS))
    axes.set_yticks(middles, list(CONTEXTS), rotation=90, va="center")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(ScalarMappable(norm, ListedColormap(colours)), ax=axes, fraction=0.04, pad=0.03)
    for shape in bar.ax.collections:
        shape.set(edgecolor="face", linewidth=0.7)  # no seams between colours
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)


def _cells(chosen: npt.NDArray[np.bool_]) -> Any:
    """The chosen cells ``(row, column)`` of a map as one path, which follows their runs along rows."""
    from matplotlib.path import Path

    edges = np.diff(np.pad(chosen, ((0, 0), (1, 1))).astype(int), axis=1)
    (rows, starts), (_, ends) = np.nonzero(edges == 1), np.nonzero(edges == -1)
    corners = [(starts, rows), (ends, rows), (ends, rows + 1), (starts, rows + 1), (starts, rows)]
    points = np.stack([np.stack(corner, -1) for corner in corners], 1).reshape(-1, 2)
    return Path(points, [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(rows))


def legend(figure: "Figure", axes: "Axes") -> None:
    """Draw one legend of the colours."""
    labels = [context.format("X.") if context != "{}" else "X. alone" for context in CONTEXTS.values()]
    figure.legend(axes.collections, labels, loc="outside upper left", ncols=len(labels), handletextpad=0.2)
