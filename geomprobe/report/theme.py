"""The appearance of figures in light and dark colour schemes, and the escaping of text from a run."""

import html
from functools import cache
from typing import Any

from geomprobe.report.token_page import printable
from geomprobe.sweeps.records import Kind

__all__ = ["BASELINES", "Ink", "categorical", "escape_label", "sequence", "shorten", "si_format", "template"]

Ink = tuple[str, str]
"""A colour for the light scheme and one for the dark scheme."""

_SCALE = "dense"
"""The scale of what has an order: cmocean's, whose lightness is even."""
_FAINT_TO_STRONG = ((0.2, 1.0), (0.66, 0.0))
"""The parts of the scale that stand out from light and from dark paper."""
_SETS = (
    ("#0b62a8", "#74b6f5"),
    ("#c24a14", "#f2905f"),
    ("#0b7a62", "#4cc9a6"),
    ("#7a4fa3", "#bb9df2"),
    ("#8a6d00", "#d9b84a"),
    ("#b0306a", "#f08bb4"),
)
BASELINES: dict[Kind, tuple[str, str, Ink]] = {
    "untrained": ("untrained", "dash", ("#a8540f", "#f0a268")),
    "gaussian": ("Gaussian rows", "dot", ("#3d7a5c", "#7cc7a2")),
}
"""For each null baseline its label in legends, its dash and its colour."""

_PAPER = (
    {"ink": "#24262d", "muted": "#62666f", "line": "#e2dfd7", "card": "#ffffff"},
    {"ink": "#e9e7e2", "muted": "#a3a7b0", "line": "#353941", "card": "#1d2025"},
)
_FONT = 'system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif'


def sequence(place: float) -> Ink:
    """Return the colour at a position from 0 (faint: early, shallow or small) to 1 (strong)."""
    light, dark = (_at(faint + place * (strong - faint)) for faint, strong in _FAINT_TO_STRONG)
    return light, dark


def categorical(number: int) -> Ink:
    """Return one of six colours for categories without an order. They repeat after six."""
    return _SETS[number % len(_SETS)]


def template(*, dark: bool = False) -> dict[str, Any]:
    """Return the Plotly template of figures in the light or dark scheme. It does not include the colours of lines."""
    paper = _PAPER[dark]
    axis = {
        "gridcolor": paper["line"],
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "automargin": True,
        "tickfont": {"size": 11},
        "title": {"font": {"size": 11}, "standoff": 6},
        "ticklabeloverflow": "allow",
    }
    scale = [[i / 10, sequence(i / 10)[dark]] for i in range(11)]
    bar = {"thickness": 8, "outlinewidth": 0, "tickfont": {"size": 11}, "nticks": 5, "ticks": "", "xpad": 6}
    return {
        "data": {"heatmap": [{"type": "heatmap", "colorscale": scale, "colorbar": bar}]},
        "layout": {
            "font": {"family": _FONT, "size": 12, "color": paper["muted"]},
            "title": {"font": {"size": 15, "color": paper["ink"]}, "x": 0, "xref": "paper"},
            "paper_bgcolor": "rgba(0,0,0,0)" if dark else paper["card"],
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis | {"showgrid": False},
            "yaxis": axis,
            "legend": {
                "orientation": "h",
                "x": 0,
                "y": 1.02,
                "yanchor": "bottom",
                "font": {"size": 11},
                "itemwidth": 30,
                "bgcolor": "rgba(0,0,0,0)",
            },
            "hoverlabel": {
                "bgcolor": paper["card"],
                "bordercolor": paper["line"],
                "font": {"color": paper["ink"], "family": _FONT, "size": 12},
            },
            "hovermode": "closest",
            "margin": {"l": 8, "r": 16, "t": 64, "b": 8},
            "annotationdefaults": {"font": {"size": 11, "color": paper["muted"]}, "showarrow": False},
        },
    }


def shorten(text: str, *, most: int = 26) -> str:
    """Return text from a run for a page: invisible characters are shown, and text longer than ``most`` characters is shortened
    in the middle.

    >>> shorten("EleutherAI/pythia-160m-deduped", most=20)
    'Eleuth…-160m-deduped'
    """
    shown = printable(text)
    return shown if len(shown) <= most else f"{shown[: most // 3]}…{shown[-(most - most // 3 - 1) :]}"


def escape_label(text: str, *, most: int = 26) -> str:
    """Return text from a run, shortened, for a figure, in which Plotly reads labels as HTML.

    >>> escape_label("<b>a model</b>")
    '&lt;b&gt;a model&lt;/b&gt;'
    """
    return html.escape(shorten(text, most=most))


def si_format(number: float) -> str:
    """Return a number in a short form for tick labels.

    >>> [si_format(n) for n in (512, 1000, 143000, 162_322_944, 6.9e9)]
    ['512', '1k', '143k', '162M', '6.9B']
    """
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.4g}"


@cache
def _at(place: float) -> str:
    from plotly.colors import sample_colorscale

    (colour,) = sample_colorscale(_SCALE, place, colortype="tuple")
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)
