"""A page of figures: their groups, legends and tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from geomprobe.report.finding import Finding
from geomprobe.report.marks import outside
from geomprobe.report.render import content_hash, render
from geomprobe.report.theme import shorten, template

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["FigureGroup", "Section", "figure_page"]

_LEAST = {3: 20, 4: 13, 5: 20, 6: 20}
"""Minimum width of a figure in rem, by the number of figures side by side."""


@dataclass(frozen=True)
class FigureGroup:
    """Figures under one heading, with an explanation and a caveat.

    Attributes:
        title: the heading, as HTML.
        read: how to read the figures, as HTML.
        caveat: what they do not mean, as HTML.
        views: sets of figures of which one is visible at a time, by the values of the switches: ``(run, normalisation)``.
        tabled: number of figures of a view whose numbers are in a table; the other figures show the same numbers again.
    """

    title: str
    read: str
    caveat: str
    views: Mapping[tuple[str, ...], Sequence["Figure"]]
    tabled: int | None = None


class Section(NamedTuple):
    """Figure groups under a heading. A section without a title uses that of its single group. The small figures of a folded
    section stand side by side, and are hidden until it is opened."""

    title: str
    groups: Sequence[FigureGroup]
    folded: bool = False


def figure_page(
    title: str,
    sections: Sequence[Section | tuple[str, Sequence[FigureGroup]]],
    *,
    lead: Finding | None = None,
    facts: Sequence[tuple[str, Sequence[str]]],
    notes: Sequence[str],
    about: str,
    failed: Sequence[tuple[str, str, str]] = (),
) -> str:
    """Return a page of figures as one self-contained HTML document.

    Args:
        title: the heading.
        sections: the headings of the sections, and their groups of figures. A section without groups is left out.
        lead: the finding under the heading.
        facts: what was measured, as names and their values.
        notes: what a reader must know before comparing numbers.
        about: how to read the lines.
        failed: what failed: its name, that of its run if there are several, and its error.
    """
    from plotly.offline import get_plotlyjs

    drawn: list[dict[str, Any]] = []
    plotly: str = get_plotlyjs()
    known = [section for section in (Section(*given) for given in sections) if section.groups]
    return render(
        "geomprobe.report",
        "report.html.j2",
        title=title,
        sections=[_section(section, f"s{i}", drawn) for i, section in enumerate(known)],
        lead=lead,
        facts=facts,
        failed=failed,
        notes=notes,
        about=about,
        plotly=plotly,
        plotly_hash=content_hash(plotly),
        data={"themes": {"light": template(), "dark": template(dark=True)}, "figures": drawn},
    )


# -- parts ------------------------------------------------------------------------------------------------------------------


class Sign(NamedTuple):
    """An entry of a legend.

    Attributes:
        name: the label, as HTML.
        style: the look of the sign before it.
        shape: the kind of the sign: ``"dot"``, ``"ramp"``, or a line if it is empty.
        before: another label before the sign of a sequence.
    """

    name: str
    style: str
    shape: str = ""
    before: str = ""


class Table(NamedTuple):
    """The numbers of a figure: one column per line, one row per position on the x axis."""

    columns: list[str]
    rows: list[tuple[str, list[str]]]


class Panel(NamedTuple):
    """A figure with its texts. ``words`` stand in its place if there is nothing to see in it. ``table`` is ``None`` for figures
    whose numbers are in another table, and empty for a map."""

    number: int
    title: str
    heading: bool
    unit: str
    is_map: bool
    signs: list[Sign]
    spoken: str
    notes: list[str]
    words: str
    table: Table | tuple[()] | None


class View(NamedTuple):
    """The figures that are visible at a time: those of the choices ``place``, which are ``called`` so."""

    place: str
    called: str
    signs: list[Sign]
    least: int
    panels: list[Panel]


def _section(section: Section, name: str, drawn: list[dict[str, Any]]) -> dict[str, Any]:
    """Figure groups under a heading; a single group uses its own title as heading. Small groups side by side share a legend."""
    shared: list[Sign] = []
    if section.folded:
        every = [figure for group in section.groups for view in group.views.values() for figure in view]
        shared = max((_legend(figure.to_plotly_json()["data"]) for figure in every), key=len)
    alone = len(section.groups) == 1 and not section.folded
    plates = [_figure_group(group, drawn, shared) | {"heading": not alone} for group in section.groups]
    title = section.groups[0].title if alone else section.title
    names = ", ".join(group.title for group in section.groups)
    return {"id": name, "title": title, "folded": section.folded, "names": names, "signs": shared, "plates": plates}


def _figure_group(group: FigureGroup, drawn: list[dict[str, Any]], shared: Sequence[Sign]) -> dict[str, Any]:
    choices = [list(dict.fromkeys(values)) for values in zip(*group.views, strict=True)]
    number, views = len(drawn), []
    for key, shown in group.views.items():
        chosen = [(labels.index(value), shorten(value)) for labels, value in zip(choices, key, strict=True) if len(labels) > 1]
        place, called = "-".join(str(option) for option, _ in chosen), ", ".join(value for _, value in chosen)
        views.append(_view(group, shown, place, called, drawn, shared))
    switches = [
        {"name": f"p{number}-{place}", "labels": [shorten(label) for label in labels]}
        for place, labels in enumerate(choices)
        if len(labels) > 1
    ]
    return {"title": group.title, "read": group.read, "caveat": group.caveat, "switches": switches, "views": views}


def _view(
    group: FigureGroup,
    shown: Sequence["Figure"],
    place: str,
    called: str,
    drawn: list[dict[str, Any]],
    shared: Sequence[Sign],
) -> View:
    plain = [json.loads(figure.to_json()) for figure in shown]
    legends = [_legend(figure["data"]) for figure in plain]
    longest = max(legends, key=len)
    if together := len(shown) > 1 and all(set(legend) <= set(longest) for legend in legends if legend):
        shared = longest
    panels = []
    for i, (figure, legend) in enumerate(zip(plain, legends, strict=True)):
        title, unit = figure["layout"].pop("title")["text"], figure["layout"]["yaxis"].pop("title")["text"]
        is_map = figure["data"][0]["type"] == "heatmap"
        said = figure["layout"].pop("annotations", ())
        if kept := [note for note in said if outside(note)]:
            figure["layout"]["annotations"] = kept
        figure["layout"].pop("margin", None)
        words = figure["layout"].pop("meta", "") or _constant(figure["data"])
        panels.append(
            Panel(
                number=len(drawn),
                title=title,
                heading=len(shown) > 1 or title != group.title,
                unit="" if is_map else unit,
                is_map=is_map,
                signs=[] if set(legend) <= set(shared) else legend,
                spoken=_spoken(figure["data"]),
                notes=[note["text"] for note in said if not outside(note)],
                words=words,
                table=_table(figure["data"]) if i < (group.tabled or len(shown)) else None,
            )
        )
        if not words:
            drawn.append(_packed(figure))
    return View(place, called, longest if together else [], _LEAST.get(len(shown), 27), panels)


def _legend(traces: Sequence[Mapping[str, Any]]) -> list[Sign]:
    """The legend of a figure. A long sequence is shown by its first and last name with the colours between; a single line and a
    heatmap have no legend."""
    if len(traces) < 2:
        return []
    sequence = [trace for trace in traces if trace["line"]["dash"] == "solid"]
    signs = []
    if not all(trace["showlegend"] for trace in sequence):
        colours = ",".join(f"light-dark({trace['line']['color']},{trace['meta']})" for trace in sequence)
        style = f"background:linear-gradient(90deg,{colours})"
        signs.append(Sign(sequence[-1]["name"], style, "ramp", before=sequence[0]["name"]))
        traces = [trace for trace in traces if trace["line"]["dash"] != "solid"]
    for trace in traces:
        if trace["showlegend"]:
            several = sum(other["legendgroup"] == trace["legendgroup"] for other in traces) > 1
            colour = "var(--muted)" if several else f"light-dark({trace['line']['color']},{trace['meta']})"
            border = {"solid": "solid", "dash": "dashed", "dot": "dotted"}[trace["line"]["dash"]]
            dot = trace["mode"] == "markers"
            style = f"background:{colour}" if dot else f"border-top:2px {border} {colour}"
            signs.append(Sign(trace["legendgroup"], style, "dot" if dot else ""))
    return signs


def _table(traces: Sequence[Mapping[str, Any]]) -> Table | tuple[()]:
    """The numbers of a figure, whose names and labels are HTML; nothing for a map."""
    if traces[0]["type"] == "heatmap":
        return ()
    lines = [trace for trace in traces if trace["name"] != "power law"]
    rows = {label: None for trace in sorted(lines, key=lambda t: -len(t["x"])) for label in trace["customdata"]}
    columns = [dict(zip(trace["customdata"], trace["y"], strict=True)) for trace in lines]
    if constant := [i for i, trace in enumerate(lines) if set(trace["customdata"]) == {"gaussian"}]:
        rows.pop("gaussian")
        for i in constant:
            columns[i] = dict.fromkeys(rows, lines[i]["y"][0])
    cells = [(label, [_cell(column.get(label)) for column in columns]) for label in rows]
    return Table([trace["name"] for trace in lines], cells)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}".replace("-", "−")


def _constant(traces: Sequence[Mapping[str, Any]]) -> str:
    """A sentence in place of a figure all of whose numbers are equal; empty for other figures."""
    known = _known(traces)
    return f"{_cell(known[0])} everywhere." if len(known) > 1 and len({*known}) == 1 else ""


def _known(traces: Sequence[Mapping[str, Any]]) -> list[float]:
    """The numbers of a figure."""
    rows = [row for trace in traces for row in (trace["z"] if trace["type"] == "heatmap" else [trace["y"]])]
    return [value for row in rows for value in row if value is not None]


def _spoken(traces: Sequence[Mapping[str, Any]]) -> str:
    """A figure described in a sentence, for screen readers. Its numbers are in the table."""
    known = _known(traces)
    if traces[0]["type"] == "heatmap":
        rows = traces[0]["z"]
        what = f"A map of {len(rows)} layers by {len(rows[0])} readings"
    else:
        names = list(dict.fromkeys(trace["name"] for trace in traces))
        some = ", ".join(names[:8]) + f" and {len(names) - 8} more" * (len(names) > 8)
        what = f"{len(traces)} line{'s' * (len(traces) > 1)}: {some}"
    return f"{what}; values from {_cell(min(known))} to {_cell(max(known))}." if known else f"{what}."


def _packed(plain: dict[str, Any]) -> dict[str, Any]:
    """A figure without the parts that the page stores once: the template, and labels on the x axis that all lines share."""
    plain["layout"].pop("template")
    plain["layout"]["showlegend"] = False  # the page has its own
    first, *others = plain["data"]
    for trace in others:
        if trace["customdata"] == first["customdata"]:
            del trace["customdata"]
    return plain
