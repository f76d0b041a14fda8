"""Annotations beside the lines of a figure: names of points and lines, and the values of lines that lie outside of the axis."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from geomprobe.report.finding import spoken_number
from geomprobe.report.theme import BASELINES

__all__ = ["fitted", "name_ends", "name_points", "outside"]

_SQUASHED = 0.5
"""Gaussian rows are left out of an axis if all other lines would take less than this share of it."""
_ROOM = 0.08
"""Room above and below the lines, as a share of their range; names of points need twice as much."""

_APART = 0.06
"""Least distance between the names of two lines, as a share of the range of all lines: about the height of a name."""


def name_points(line: dict[str, Any], exact: Sequence[float]) -> None:
    """Write the first, lowest and last value of a line over checkpoints beside their points, from the ``exact`` values: those
    of the line were rounded already, and would be rounded twice."""
    known = [i for i, value in enumerate(line["y"]) if value is not None]
    if len(known) < 2:
        return
    first, last, low = known[0], known[-1], min(known, key=lambda i: line["y"][i])
    rising = line["y"][last] > line["y"][first]
    places = {first: "bottom right" if rising else "top right", last: "top left" if rising else "bottom left"}
    texts = {i: spoken_number(exact[i]) for i in places}
    if low not in places:
        places |= {low: "bottom center", last: "top left", first: "top right"}
        texts[low] = f"{spoken_number(exact[low])}, {line['customdata'][low]}"
    _write(line, texts, places)


def name_ends(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Write the names of the first, the lowest and the last checkpoint after the last point of their lines, and return what
    this changes in the x axis.

    The lowest is the one with the smallest value there. A name is left out if it would lie on another one.
    """
    ended = [line for line in lines if line["y"] and line["y"][-1] is not None]
    if len(ended) < 3:
        return {}
    ends = {line["y"][-1] for line in ended}
    known = _values(lines, log=False)
    near = _APART * (max(known) - min(known))
    used: list[float] = []
    for line in (ended[-1], ended[0], min(ended, key=lambda line: line["y"][-1])):
        last = len(line["y"]) - 1
        if len(ends) > 1 and all(abs(line["y"][-1] - other) > near for other in used):
            used.append(line["y"][-1])
            _write(line, {last: f"\u2002{line['name']}"}, {last: "middle right"})
    end = max(line["x"][-1] for line in ended)
    return {"range": [-0.03 * end, 1.25 * end]} if used else {}


def fitted(lines: Sequence[Mapping[str, Any]], yaxis: dict[str, Any], floor: float | None = None) -> dict[str, Any]:
    """Return the y axis of a figure with its annotations, and with ``meta`` if a text has to stand in place of the figure.

    Gaussian rows that would squash the other lines are left out of the axis, and named at its edge. Values below ``floor`` are
    left out too, which an annotation says.
    """
    log = yaxis.get("type") == "log"
    nulls = [line for line in lines if line["legendgroup"] == BASELINES["gaussian"][0]]
    known, far = _values((line for line in lines if line not in nulls), log), _values(nulls, log)
    if not known:
        return {"yaxis": yaxis}
    low, high = min(known), max(known)
    notes: list[dict[str, Any]] = []
    if floor is not None and low < floor:
        if high <= floor:
            return {"yaxis": yaxis, "meta": f"All values are below {_short(floor)}: from {_short(low)} to {_short(high)}."}
        notes.append({"text": f"The axis is clipped at {_short(floor)}. The lowest value is {_short(low)}."})
        low = floor
    squashed = [v for v in far if high - low < _SQUASHED * (max(high, v) - min(low, v))]
    above, below = [v for v in far if v > high], [v for v in far if v < low]
    left_out = bool(squashed) and len(far) in (len(above), len(below)) and high > low
    if left_out:
        notes.append(_edge(BASELINES["gaussian"][0], above or below, log, top=bool(above)))
    named = any("text" in line["mode"] for line in lines)
    if not (left_out or named or low == floor):
        return {"yaxis": yaxis, "annotations": notes}
    if not left_out:
        low, high = min([low, *(v for v in far if floor is None or v >= floor)]), max([high, *far])
    room = (high - low or abs(high) or 1.0) * _ROOM
    range_ = [low - room * (1 + named + (left_out and not above)), high + room * (1 + named + (left_out and bool(above)))]
    return {"yaxis": yaxis | {"range": range_}, "annotations": notes}


def outside(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation names what lies outside of its axis, and so belongs into the figure."""
    return annotation.get("name") == "edge"


def _edge(name: str, values: Sequence[float], log: bool, *, top: bool) -> dict[str, Any]:
    """The name of lines that lie above or below the axis, with their values and an arrow."""
    ends = dict.fromkeys(_short(10**value if log else value) for value in (min(values), max(values)))
    text = f"{'↑' if top else '↓'} {name}: {' to '.join(ends)}"
    place = {"x": 1, "xref": "paper", "xanchor": "right", "y": int(top), "yref": "paper", "yanchor": "top" if top else "bottom"}
    return {"name": "edge", "text": text, "showarrow": False} | place


def _values(lines: Iterable[Mapping[str, Any]], log: bool) -> list[float]:
    """The values of lines, as their logarithms for a logarithmic axis."""
    known = [value for line in lines for value in line["y"] if value is not None]
    return [math.log10(value) for value in known if value > 0] if log else known


def _write(line: dict[str, Any], texts: Mapping[int, str], places: Mapping[int, str]) -> None:
    count = range(len(line["y"]))
    line["mode"] += "+text"
    line["text"] = [texts.get(i, "") for i in count]
    line["textposition"] = [places.get(i, "top center") for i in count]
    line["textfont"] = {"size": 11}
    line["cliponaxis"] = False  # a name may stand beyond the axis


def _short(value: float) -> str:
    """A value of a line with all of its four digits."""
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}").replace("-", "−")
