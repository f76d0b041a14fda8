"""The look of the figures of the paper. They are drawn once, as a PNG on white and as an SVG that follows the colour scheme of
the reader."""

import io
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from geomprobe.report.theme import BASELINES, Ink, categorical, sequence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "MUTED", "UNTRAINED", "canvas", "caption", "shades", "styled", "to_png", "to_svg"]

_INK: Ink = ("#24262d", "#e9e7e2")
_MUTED: Ink = ("#62666f", "#a3a7b0")
_LINE: Ink = ("#e2dfd7", "#353941")
_SHADES = 40
"""Number of steps of the sequence of colours, each of which has a partner for dark pages."""

COLOURS = tuple(categorical(number)[0] for number in range(6))
"""Colours of things that have no order."""
MUTED = _MUTED[0]
"""The colour of what is in the background, such as a prediction or a rule."""
UNTRAINED = BASELINES["untrained"][2][0]
"""The colour of untrained models."""

_DARK = dict(
    [_INK, _MUTED, _LINE, *(look[2] for look in BASELINES.values())]
    + [categorical(number) for number in range(6)]
    + [sequence(place / _SHADES) for place in range(_SHADES + 1)]
)
_STYLE: dict[str, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": _INK[0],
    "axes.edgecolor": _LINE[0],
    "axes.labelcolor": _MUTED[0],
    "axes.titlecolor": _INK[0],
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _LINE[0],
    "grid.linewidth": 0.6,
    "xtick.color": _LINE[0],
    "ytick.color": _LINE[0],
    "xtick.labelcolor": _MUTED[0],
    "ytick.labelcolor": _MUTED[0],
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "image.interpolation": "nearest",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "geomprobe",  # the same picture is the same file
}
_FONT = "system-ui, 'Liberation Sans', sans-serif"


def canvas(rows: int = 1, columns: int = 1, *, height: float = 3.2, width: float = 4.2) -> "tuple[Figure, list[Axes]]":
    """Return a figure of rows × columns panels, with sizes in inches for each panel, and its axes row by row. Draw it inside
    :func:`styled`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


@contextmanager
def styled() -> Iterator[None]:
    """Return a context that sets the look of the parts of a figure, in which figures are drawn."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        yield


def caption(figure: "Figure", text: str) -> None:
    """Write under a figure which model and which data it shows. Lines of the text are kept, and broken if they are too long."""
    width = int(13 * figure.get_figwidth())  # characters of this size
    lines = [line for whole in text.splitlines() for line in textwrap.wrap(whole, width)]
    figure.supxlabel("\n".join(lines), fontsize=8, color=MUTED, x=0.01, ha="left", parse_math=False)


def shades(n: int) -> list[str]:
    """Return ``n`` colours from faint to strong, for small to large models or early to late steps."""
    return [sequence(round(place * _SHADES) / _SHADES)[0] for place in (np.linspace(0.25, 1, n) if n > 1 else [1.0])]


def to_png(figure: "Figure") -> bytes:
    """Return a PNG on white, with 180 dots per inch."""
    return _written(figure, "png", dpi=180, facecolor="white")


def to_svg(figure: "Figure") -> str:
    """Return an ``<svg>`` element for a page, which is transparent, has the colours of both schemes, and contains its text as
    text."""
    drawn = _written(figure, "svg", facecolor="none").decode()
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", drawn[drawn.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r'<svg [^>]*(viewBox="[^"]*")[^>]*>', r'<svg \1 xmlns="http://www.w3.org/2000/svg">', body, count=1)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", _FONT, body)
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: _both(found[0]), body)


def _both(light: str) -> str:
    return f"light-dark({light}, {_DARK[light]})" if light in _DARK else light


def _written(figure: "Figure", form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    with styled():
        figure.savefig(file, format=form, metadata={"Date": None} if form == "svg" else {"Software": None}, **options)
    return file.getvalue()
