"""The report page of one or several runs: a summary, figures with explanations and caveats, and their numbers as tables."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from geomprobe.errors import GeomprobeError
from geomprobe.metrics.descriptions import COMPACT, describe
from geomprobe.protocols import PROTOCOLS, Protocol
from geomprobe.report import figures
from geomprobe.report.render import content_hash, render
from geomprobe.report.theme import shorten, si_format, template
from geomprobe.sweeps.records import Record, Run

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Course", "FigureGroup", "figure_page", "report_page"]

_NORMALISED = {
    "of its maximum": "entropy",
    "nats": "entropy_nats",
    "H": "matrix_entropy",
    "H / log d": "matrix_entropy_log_d",
    "H / log n": "matrix_entropy_log_n",
}
_RANKS = {
    "effective rank": "effective_rank",
    "over d": "rank_ratio",
    "stable rank": "stable_rank",
    "participation ratio": "participation_ratio",
}
_GLANCE = {
    "loss": ("the loss", "nats per token"),
    "entropy": ("the entropy at the last site", "of its maximum"),
    "effective_rank": ("its effective rank", "directions"),
    "gain_per_token": ("the information gain per token", "nats"),
}
"""The metrics of the first figures of the page, with their names and units in its first sentence."""
_SCALED = (
    "entropy",
    "matrix_entropy",
    "matrix_entropy_log_d",
    "matrix_entropy_log_n",
    "effective_rank",
    "information_gain_per_dim",
)
_OTHERS = "Other views"
_LEAST = {3: 20, 4: 13, 5: 20, 6: 20}
"""Minimum width of a figure in rem, by the number of figures side by side."""


_ABOUT = (
    "Lines go from faint to strong: from early to late steps, from shallow to deep layers, from small to large models. Dashed "
    "lines are the same model with random weights, and dotted lines are Gaussian rows of the same number and width. A trend "
    "that either of them shows too is not an effect of training."
)


class Course(NamedTuple):
    """What a number does in a sentence: its name, its first value, its last value, and its unit. The first value is empty if
    there is one checkpoint only."""

    name: str
    first: str
    last: str
    unit: str


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


def report_page(runs: Sequence[Run]) -> str:
    """Return the report as one self-contained HTML document, which works from a file.

    Raises:
        GeomprobeError: if there is no run, or if a run has no checkpoint that was measured.
    """
    if not runs:
        raise GeomprobeError("a report needs a run: give the folder of a sweep")
    for run in runs:
        if not run.checkpoints:
            why = (
                f"{len(run.failed)} failed, the last one with: {run.failed[-1].error}"
                if run.failed
                else "it has no records yet"
            )
            raise GeomprobeError(f"{run.path}: this run has no measured checkpoint, so there is nothing to show: {why}")
    compared = _comparable(runs)
    return figure_page(
        shorten(" · ".join(run.name for run in runs), most=80),
        _sections(compared),
        finding=[_summary(compared)],
        facts=_facts(runs),
        failed=_failed(runs),
        notes=_notes(runs),
        about=_ABOUT,
    )


def figure_page(
    title: str,
    sections: Sequence[tuple[str, Sequence[FigureGroup]]],
    *,
    finding: Sequence[tuple[str, Sequence[Course]]],
    facts: Sequence[tuple[str, Sequence[str]]],
    notes: Sequence[str],
    about: str,
    failed: Sequence[tuple[str, str, str]] = (),
) -> str:
    """Return a page of figures as one self-contained HTML document.

    Args:
        title: the heading.
        sections: the headings of the sections, and their groups of figures. A section without groups is left out.
        finding: the sentences under the heading: the beginning of each, and what metrics do in it.
        facts: what was measured, as names and their values.
        notes: what a reader must know before comparing numbers.
        about: how to read the lines.
        failed: what failed: its name, that of its run if there are several, and its error.
    """
    from plotly.offline import get_plotlyjs

    drawn: list[dict[str, Any]] = []
    plotly: str = get_plotlyjs()
    return render(
        "geomprobe.report",
        "report.html.j2",
        title=title,
        sections=[_section(heading, groups, drawn) for heading, groups in sections if groups],
        finding=finding,
        facts=facts,
        failed=failed,
        notes=notes,
        about=about,
        plotly=plotly,
        plotly_hash=content_hash(plotly),
        data={"themes": {"light": template(), "dark": template(dark=True)}, "figures": drawn},
    )


# -- runs -------------------------------------------------------------------------------------------------------------------


def _comparable(runs: Sequence[Run]) -> list[Run]:
    """The runs in a form that can be compared: one run for each model over its training, or one run over all models."""
    parted = [part for run in runs for part in _by_size(run)]
    if len(parted) == 1 or any(len(run.checkpoints) > 1 for run in parted):
        return parted
    records = [
        replace(record, name=run.name if record.kind == "checkpoint" else f"{run.name} {record.name}", step=None)
        for run in parted
        for record in run.records
        if record.reading is not None
    ]
    return [Run(Path(parted[0].name), parted[0].manifest, records)]


def _by_size(run: Run) -> list[Run]:
    """A sweep over both steps and sizes, divided into one run for each size."""
    sizes = list(dict.fromkeys(record.parameters for record in run.checkpoints))
    if run.axis == "parameters" or len(sizes) == 1:
        return [run]
    parts = []
    for size in sizes:
        checkpoints = [record for record in run.checkpoints if record.parameters == size]
        nulls = {id(null): null for r in checkpoints for kind in ("untrained", "gaussian") if (null := run.baseline(r, kind))}
        name = checkpoints[0].model.rstrip("/").rsplit("/", 1)[-1] or si_format(size or 0)
        parts.append(Run(Path(name), run.manifest, [*checkpoints, *nulls.values()]))
    return parts


# -- figures ----------------------------------------------------------------------------------------------------------------


def _sections(runs: Sequence[Run]) -> list[tuple[str, list[FigureGroup]]]:
    glance = FigureGroup(
        f"Overview at the last site, {'over training' if runs[0].axis == 'step' else 'by model'}",
        "The loss, and three metrics of the rows from which the model predicts, on the same tokens: note the steps at which "
        "they change direction.",
        "If two of them change together, this does not show that one causes the other.",
        _one(figures.over_checkpoints(runs, metric, most=1) for metric in _GLANCE),
    )
    entropy = FigureGroup(
        "Entropy by layer",
        "How widely the rows of a layer spread over directions, by layer, by checkpoint, and as a heatmap of both. The switch "
        "selects the normalisation.",
        "It is not the entropy of tokens or predictions. A trend that appears under one normalisation only comes from its "
        "denominator: log d grows with the width, and n with the data.",
        _by_run(runs, _NORMALISED, _layers),
        1,
    )
    ranks = FigureGroup(
        "Effective number of directions",
        "Smooth counts of the directions in use: the effective rank e<sup>H</sup>, the same divided by d, and two counts in "
        "which large directions have more weight.",
        "None of them is the rank of a matrix, and all of them grow with the number of rows until it is much larger than d.",
        _by_run(runs, _RANKS, _layers),
        1,
    )
    wide = len({record.width for run in runs for record in run.checkpoints}) > 1  # then compare per dimension first
    gain = FigureGroup(
        "Information gain by position",
        "The information gain of a text up to a position (the paper’s Figure 3), and the gain of each token: a curve flattens "
        "where new rows repeat earlier directions.",
        "It is neither surprisal nor mutual information between tokens, and later positions are reached by fewer texts.",
        {
            (label,): both
            for label, per in sorted({"nats": False, "per dimension": True}.items(), reverse=wide)
            if (both := _drawn(figures.gain_curves(runs, increments=inc, per_dimension=per) for inc in (False, True)))
        },
    )
    latest = _latest(runs)
    scaled = FigureGroup(
        "By model size",
        "Each point is a model, and the line is the best fit of a power law y = c + a·x<sup>b</sup>. The text under each "
        "figure compares this fit with a logarithm and with a constant.",
        "A fit to a few models does not establish a law. If Gaussian rows of the same number and width show the same trend, it "
        "comes from n and d.",
        _one(figures.scaling(latest, metric) for metric in _SCALED) if latest else {},
    )
    agreement = FigureGroup(
        "Lasso and attention",
        "Whether the tokens from which the Lasso reproduces a row are those that the layer attends to. The dotted line is the "
        "agreement expected by chance.",
        "Agreement is not evidence that attention weights explain the model, nor that the model computes a Lasso.",
        {
            (name,): both
            for name, run in _named(runs).items()
            if (both := _drawn([figures.agreement(run), figures.agreement_over_checkpoints(run)]))
        },
    )
    published = [
        FigureGroup(
            f"Protocol {name}: {escape(protocol.title)}",
            f"The numbers of {escape(protocol.source)}: {_code(protocol.texts)}.",
            _code(protocol.differs),
            _by_run(runs, {describe(metric).title.partition(" (")[0]: metric for metric in protocol.shown}, _layers),
            1,
        )
        for name, protocol in _protocols(runs).items()
    ]
    others = [
        FigureGroup(describe(metric).title, describe(metric).read, describe(metric).caveat, views)
        for metric in COMPACT
        if (views := _compact(runs, metric))
    ]
    return [
        (title, [plate for plate in plates if plate.views])
        for title, plates in (
            ("", [glance]),
            ("Published protocol", published),
            ("Entropy", [entropy, ranks]),
            ("", [gain]),
            ("", [scaled]),
            ("", [agreement]),
            (_OTHERS, others),
        )
    ]


def _protocols(runs: Sequence[Run]) -> dict[str, Protocol]:
    """The published protocols that were measured."""
    names = dict.fromkeys(run.manifest["arguments"].get("protocol") for run in runs)
    return {name: PROTOCOLS[name] for name in names if name in PROTOCOLS}


def _code(text: str) -> str:
    """A text as HTML, in which what stands in backticks is code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _layers(run: Run, metric: str) -> list["Figure"]:
    return _drawn([figures.across_depth(run, metric), figures.heatmap(run, metric), figures.over_checkpoints([run], metric)])


def _compact(runs: Sequence[Run], metric: str) -> dict[tuple[str, ...], Sequence["Figure"]]:
    """The figure of one metric: for one run across depth, and over checkpoints if only one site has it or for several runs."""
    first = figures.across_depth(runs[0], metric) if len(runs) == 1 else None
    return _one([first or figures.over_checkpoints(runs, metric)])


def _latest(runs: Sequence[Run]) -> Run | None:
    """The models at the end of their training, as a run over sizes."""
    if len(runs) == 1:
        return runs[0] if runs[0].axis == "parameters" else None
    records: list[Record] = []
    for run in runs:
        last = run.checkpoints[-1]
        nulls = [null for kind in ("untrained", "gaussian") if (null := run.baseline(last, kind))]
        records += [replace(r, name=f"{run.name} {r.name}", step=None) for r in (last, *nulls)]
    return Run(runs[0].path, runs[0].manifest, records)


def _by_run(
    runs: Sequence[Run], metrics: Mapping[str, str], draw: Callable[[Run, str], list["Figure"]]
) -> dict[tuple[str, ...], Sequence["Figure"]]:
    return {
        (name, label): drawn
        for name, run in _named(runs).items()
        for label, metric in metrics.items()
        if (drawn := draw(run, metric))
    }


def _named(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by unique names."""
    names = [run.name for run in runs]
    return {
        name if names.count(name) == 1 else f"{name} ({i + 1})": run
        for i, (name, run) in enumerate(zip(names, runs, strict=True))
    }


def _drawn(found: Iterable["Figure | None"]) -> list["Figure"]:
    return [figure for figure in found if figure is not None]


def _one(found: Iterable["Figure | None"]) -> dict[tuple[str, ...], Sequence["Figure"]]:
    """A single view of the figures that exist."""
    return {("",): drawn} if (drawn := _drawn(found)) else {}


# -- page -------------------------------------------------------------------------------------------------------------------


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
    """A figure with its texts. ``table`` is ``None`` for figures whose numbers are in another table, and empty for a map."""

    number: int
    title: str
    heading: bool
    unit: str
    is_map: bool
    signs: list[Sign]
    spoken: str
    notes: list[str]
    table: Table | tuple[()] | None


class View(NamedTuple):
    """The figures that are visible at a time: those of the choices ``place``, which are ``called`` so."""

    place: str
    called: str
    signs: list[Sign]
    least: int
    panels: list[Panel]


def _section(title: str, groups: Sequence[FigureGroup], drawn: list[dict[str, Any]]) -> dict[str, Any]:
    """Figure groups under a heading; a single group uses its own title as heading. Small groups side by side share a legend."""
    shared: list[Sign] = []
    if title == _OTHERS:
        every = [figure for group in groups for view in group.views.values() for figure in view]
        shared = max((_legend(figure.to_plotly_json()["data"]) for figure in every), key=len)
    alone = len(groups) == 1
    plates = [_figure_group(group, drawn, shared) | {"heading": not alone} for group in groups]
    return {"title": groups[0].title if alone else title, "small": title == _OTHERS, "signs": shared, "plates": plates}


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
        notes = [said["text"] for said in figure["layout"].pop("annotations", ())]
        figure["layout"].pop("margin", None)
        panels.append(
            Panel(
                number=len(drawn),
                title=title,
                heading=len(shown) > 1 or title != group.title,
                unit="" if is_map else unit,
                is_map=is_map,
                signs=[] if set(legend) <= set(shared) else legend,
                spoken=_spoken(figure["data"]),
                notes=notes,
                table=_table(figure["data"]) if i < (group.tabled or len(shown)) else None,
            )
        )
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


def _spoken(traces: Sequence[Mapping[str, Any]]) -> str:
    """A figure described in a sentence, for screen readers. Its numbers are in the table."""
    if traces[0]["type"] == "heatmap":
        rows, known = traces[0]["z"], [value for row in traces[0]["z"] for value in row if value is not None]
        what = f"A map of {len(rows)} layers by {len(rows[0])} checkpoints"
    else:
        known = [value for trace in traces for value in trace["y"] if value is not None]
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


# -- what was measured ------------------------------------------------------------------------------------------------------


def _summary(runs: Sequence[Run]) -> tuple[str, list[Course]]:
    """The beginning of a sentence, and what each metric of the first figures does in it."""
    if len(runs) > 1:
        return f"{len(runs)} runs over training", []
    first, last = runs[0].checkpoints[0], runs[0].checkpoints[-1]
    courses = []
    for metric, (name, unit) in _GLANCE.items():
        start, end = (record.loss if metric == "loss" else _at_end(record, metric) for record in (first, last))
        if end is not None:
            began = "" if start is None or first is last else f"{start:.3g}"
            courses.append(Course(name, began, f"{end:.3g}", unit))
    if not courses:
        return f"{len(runs[0].checkpoints)} checkpoints", []
    return f"From {_called(first)} to {_called(last)}" if first is not last else f"At {_called(last)}", courses


def _at_end(record: Record, metric: str) -> float | None:
    value = record.reading.get(f"{metric}/final_norm", math.nan) if record.reading else math.nan
    return value if math.isfinite(value) else None


def _called(record: Record) -> str:
    return f"step {record.step:,}" if record.step is not None else shorten(record.name, most=40)


def _facts(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """What was measured: names and their values."""
    facts: dict[str, dict[str, None]] = {}  # the distinct values of all runs, by name

    def say(name: str, *values: str) -> None:
        facts.setdefault(name, {}).update(dict.fromkeys(value for value in values if value))

    for run in runs:
        data = run.manifest["data"]
        counts = {"texts": "texts", "tokens": "tokens", "sample_tokens": "tokens in the sample for expensive metrics"}
        nulls = [
            name
            for name, kind in (("untrained", "untrained"), ("Gaussian", "gaussian"))
            if any(r.kind == kind for r in run.records)
        ]
        for name, protocol in _protocols([run]).items():
            say("Protocol", f"{name}: {protocol.title} ({protocol.source})")
        versions = run.manifest["versions"]
        say("Data", shorten(data["name"], most=80))
        say("Tokens", ", ".join(f"{data[key]:,} {name}" for key, name in counts.items() if isinstance(data.get(key), int)))
        say("Hash", shorten(data["hash"], most=80))
        read = f"{len(run.checkpoints)} measured" + f", {len(run.failed)} failed" * bool(run.failed)
        say("Checkpoints", f"{shorten(run.name)}: {read}" if len(runs) > 1 else read)
        say("Baselines", ", ".join(nulls))
        say(
            "Versions",
            ", ".join(f"{shorten(str(name))}\u00a0{shorten(str(version))}" for name, version in versions.items()),
        )
        folders = {str(Path(r.model).parent) for r in run.checkpoints}
        together = len(folders) == 1 < len(run.checkpoints) and all(
            Path(r.model).name == r.name != r.model for r in run.checkpoints
        )
        for r in run.checkpoints:
            size = f"{si_format(r.parameters)} parameters" if r.parameters else ""
            shape = ", ".join(part for part in (size, f"d\u00a0=\u00a0{r.width}" * bool(r.width)) if part)
            where = folders.copy().pop() if together else r.model or r.name  # checkpoints of one training are in one folder
            say("Models", shorten(where, most=80) + f" ({shape})" * bool(shape))
    return [(name, list(values)) for name, values in facts.items() if values]


def _failed(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """What failed: its name, that of its run if there are several, and its error."""
    return [
        (shorten(record.name, most=80), shorten(run.name) * (len(runs) > 1), shorten(record.error or "", most=400))
        for run in runs
        for record in run.failed
    ]


def _notes(runs: Sequence[Run]) -> list[str]:
    """Remarks that a reader must know before comparing numbers."""
    read = [record for run in runs for record in run.checkpoints]
    notes = []
    if len({record.tokens for record in read}) > 1:
        notes.append("These checkpoints read different tokens: compare their numbers with care.")
    counts = {
        record.reading.get(f"tokens/{record.reading.sites[-1]}") for record in read if record.reading and record.reading.sites
    }
    if len(counts) > 1:
        notes.append("These checkpoints read different numbers of tokens, with which entropies and ranks grow.")
    said = dict.fromkeys(note for record in read if record.reading for note in record.reading.notes)
    return notes + [shorten(note, most=300) for note in list(said)[:8]]
