"""The page of a training: what changed, the loss above a map of all layers, and the curves that trackers get."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from geomprobe.integrations import flat
from geomprobe.metrics.descriptions import describe
from geomprobe.reading import Reading
from geomprobe.report import figures
from geomprobe.report.figure_page import FigureGroup, figure_page
from geomprobe.report.finding import Finding
from geomprobe.report.lead import leading_text
from geomprobe.report.theme import shorten
from geomprobe.report.training_file import Training, as_run
from geomprobe.sweeps.records import Record, Run

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["training_page"]

_MOST = 300
"""Largest number of readings of a mode that are drawn."""
_MARKED = 60
_NOTES = 8
_ALARMS = 20
"""Largest number of alarms that are listed and marked."""
_MARK = "#d9642b"
"""The colour of marks, which stands out from light and from dark paper."""
_FEW = 3
_WHERE = {"train": "", "eval": " in evaluation", "no_grad": " without gradients", "fixed": " on fixed texts"}
_MAPS = ("effective_rank", "entropy", "anisotropy", "gain_per_token", "alpha_req")
"""The metrics that have a map, in the order of the switch."""

_ABOUT = (
    "The colour of lines goes from faint (shallow layers) to strong (deep layers). Each reading is one step of the training, "
    "one evaluation, or one run of the fixed texts."
)


def training_page(training: Training) -> str:
    """Return the page of a training as one self-contained HTML document, which works from a file."""
    drawn = {mode: as_run(mode, _some(run.checkpoints)) for mode, run in training.runs.items()}
    log = _is_log_spaced(sorted({record.step or 0 for run in drawn.values() for record in run.checkpoints}))
    overviews = {mode: as_run(mode, [_overview(record) for record in run.checkpoints]) for mode, run in drawn.items()}
    maps = FigureGroup(
        "The loss, and every layer over the training",
        "The loss that the trainer logged, and a map of one metric. The colours of the map show the value at every layer, with "
        "one column for each reading. Look for steps at which several layers change, and see whether the loss changes there, "
        "too.",
        "If a metric and the loss change at the same step, one need not cause the other. Ranks and entropies grow with the "
        "number of tokens.",
        _views(
            drawn,
            lambda run: {
                name: [_marked(_loss(training, log), training), _marked(figures.heatmap(run, name), training, run)]
                for name in _mapped(run)
            },
        ),
        1,
    )
    curves = FigureGroup(
        "The numbers that trackers get",
        "The numbers that trackers get by default, at the first, middle and last measured layer and at final_norm.",
        "The texts of a training differ from step to step, so its readings also differ by chance.",
        _views(
            overviews,
            lambda run: {"": [_marked(_lines([run], name, log), training) for name in _measured(run)]},
        ),
    )
    return figure_page(
        shorten(training.name, most=80),
        [(group.title, [group]) for group in (maps, curves) if group.views],
        lead=_lead(training),
        facts=_facts(training),
        notes=[*_alarms(training), *_notes(training)],
        about=_ABOUT,
    )


# -- figures ----------------------------------------------------------------------------------------------------------------


def _views(
    runs: Mapping[str, Run], draw: Callable[[Run], Mapping[str, Sequence["Figure | None"]]]
) -> dict[tuple[str, ...], Sequence["Figure"]]:
    """The figures of each mode and choice."""
    return {
        (mode, describe(choice).title if choice else ""): found
        for mode, run in runs.items()
        for choice, drawn in draw(run).items()
        if (found := [figure for figure in drawn if figure is not None])
    }


def _loss(training: Training, log: bool) -> "Figure | None":
    """The loss of all modes over the steps."""
    known = {mode: training.losses[mode] for mode in training.runs if mode in training.losses}
    runs = [
        as_run(
            mode, _some([Record(name=str(step), step=step, loss=loss, reading=Reading(mode, ())) for step, loss in by.items()])
        )
        for mode, by in known.items()
    ]
    figure = _lines(runs, "loss", log, most=1) if runs else None
    if figure is not None:
        figure.update_layout(yaxis_title_text="as the trainer logged it")  # which need not be nats per token
    return figure


def _lines(runs: Sequence[Run], metric: str, log: bool, *, most: int = 4) -> "Figure | None":
    """A figure over the steps, with marks where they are few enough to tell one from another."""
    figure = figures.over_checkpoints(runs, metric, most=most, log_steps=log)
    if figure is not None and max(len(run.checkpoints) for run in runs) > _MARKED:
        figure.update_traces(mode="lines")
    return figure


def _marked(figure: "Figure | None", training: Training, run: Run | None = None) -> "Figure | None":
    """A figure with a dotted line, and its number, at the step of each alarm. In a map of ``run`` it stands at the reading that
    rang, or at the one before."""
    if figure is None:
        return None
    for step, numbers in _alarm_steps(training).items():
        x: int | str = step
        if run is not None:
            before = [
                label for label, record in zip(figure.data[0].x, run.checkpoints, strict=True) if (record.step or 0) <= step
            ]
            if not before:
                continue
            x = before[-1]
        figure.add_shape(
            type="line",
            x0=x,
            x1=x,
            yref="paper",
            y0=0,
            y1=1,
            line={"dash": "dot", "width": 1.5, "color": _MARK},
            label={"text": numbers, "textposition": "end", "textangle": 0, "font": {"color": _MARK, "size": 11}},
        )
    return figure


def _alarm_steps(training: Training) -> dict[int, str]:
    """The numbers of the alarms by the step at which they rang."""
    steps: dict[int, list[str]] = {}
    for number, alarm in enumerate(training.alarms[:_ALARMS], 1):
        steps.setdefault(alarm.step, []).append(str(number))
    return {step: ", ".join(numbers) for step, numbers in steps.items()}


def _alarms(training: Training) -> list[str]:
    """The messages of the alarms, by the numbers at their marks."""
    told = [f"Alarm {number}. {shorten(str(alarm), most=700)}" for number, alarm in enumerate(training.alarms[:_ALARMS], 1)]
    more = len(training.alarms) - _ALARMS
    return [*told, *([f"{more} more alarms are in the file."] if more > 0 else [])]


def _mapped(run: Run) -> list[str]:
    """The metrics that a map shows: those of the overview that were measured, or else the first measured ones."""
    measured = _measured(run)
    return [name for name in _MAPS if name in measured] or measured[:5] or [_MAPS[0]]


def _measured(run: Run) -> list[str]:
    readings = [record.reading for record in run.checkpoints if record.reading]
    return [name for name in dict.fromkeys(n for r in readings for n in r.metrics) if name not in ("tokens", "texts")]


def _overview(record: Record) -> Record:
    """The record with those numbers alone that trackers get by default."""
    assert record.reading is not None
    named = [name.split("/")[-2:] for name in flat(record.reading, "overview")]
    keys = [f"{metric}/{site}" for metric, site in named]
    values = {key: value for key in keys if (value := record.reading.get(key)) is not None}
    sites = [site for site in record.reading.sites if any(site == where for _, where in named)]
    return replace(record, reading=Reading(record.reading.mode, sites, values))


def _some(records: Sequence[Record]) -> list[Record]:
    """At most :data:`_MOST` records, evenly spaced, including both ends."""
    count = min(_MOST, len(records))
    return [records[round(i * (len(records) - 1) / max(count - 1, 1))] for i in range(count)]


def _is_log_spaced(steps: Sequence[int]) -> bool:
    """Whether a quarter of the steps lies in the first half of a logarithmic axis, so that it is the better one.

    >>> _is_log_spaced([2**i for i in range(10)]), _is_log_spaced(range(10, 5000, 10))
    (True, False)
    """
    after = [step for step in steps if step > 0]
    return bool(after) and 4 * sum(step**2 < after[0] * after[-1] for step in after) >= len(after)


# -- what was measured ------------------------------------------------------------------------------------------------------


def _lead(training: Training) -> Finding | None:
    """The finding of a mode whose texts are always the same, if it has enough readings, or else of the first mode."""
    enough = [mode for mode, run in training.runs.items() if len(run.checkpoints) >= _FEW]
    mode = next((mode for mode in ("fixed", "eval") if mode in enough), next(iter(training.runs)))
    found = leading_text([training.runs[mode]], training.losses.get(mode, {}))
    where = _WHERE.get(mode, f" in {shorten(mode)}")
    return None if found is None else found._replace(lead=f"{found.lead}{where}")


def _sites(run: Run) -> list[str]:
    """All sites that were measured, in order."""
    return list(dict.fromkeys(site for record in run.checkpoints if record.reading for site in record.reading.sites))


def _facts(training: Training) -> list[tuple[str, list[str]]]:
    """What was measured: names and their values."""
    facts: dict[str, list[str]] = {"Readings": [], "Tokens per reading": []}
    sites = list(dict.fromkeys(shorten(site) for run in training.runs.values() for site in _sites(run)))
    for mode, run in training.runs.items():
        records, counts = run.checkpoints, _counts(run)
        steps = " to ".join(dict.fromkeys(f"{record.step:,}" for record in (records[0], records[-1])))
        facts["Readings"].append(f"{shorten(mode)}: {len(records):,}, {'steps' if ' to ' in steps else 'step'} {steps}")
        facts["Tokens per reading"].append(f"{shorten(mode)}: " + " to ".join(dict.fromkeys(f"{n:,.0f}" for n in counts)))
    facts["Sites"] = sites if len(sites) < 6 else [f"{len(sites)}: {sites[0]} to {sites[-1]}"]
    facts["File"] = [shorten(training.path.name, most=80)]
    return [(name, values) for name, values in facts.items() if values]


def _counts(run: Run) -> tuple[float, float]:
    """The smallest and largest number of tokens of a reading."""
    counts = [r.reading.get(f"tokens/{r.reading.sites[-1]}", 0.0) for r in run.checkpoints if r.reading and r.reading.sites]
    return (min(counts, default=0), max(counts, default=0))


def _notes(training: Training) -> list[str]:
    """What a reader must know before comparing numbers. Notes that differ only in their numbers are shown once."""
    notes = [f"Measuring stopped at step {step:,}: {shorten(error, most=300)}" for step, error in training.stopped]
    for mode, run in training.runs.items():
        readings = len(run.checkpoints)
        if readings > _MOST:
            notes.append(f"{shorten(mode)}: {_MOST} of {readings:,} readings are drawn, evenly spaced.")
        if readings == 1:
            notes.append(f"{shorten(mode)}: there is only one reading, and a figure needs two.")
        least, most = _counts(run)
        if least < most:
            notes.append(
                f"{shorten(mode)}: readings have {least:,.0f} to {most:,.0f} tokens. Entropies and ranks grow with that number."
            )
    said: dict[str, str] = {}
    for mode, run in training.runs.items():
        for record in run.checkpoints:
            for note in record.reading.notes if record.reading else ():
                said.setdefault(re.sub(r"\d+", "", note), f"{shorten(mode)}, step {record.step:,}: {shorten(note, most=300)}")
    more = len(said) - _NOTES
    return [*notes, *list(said.values())[:_NOTES], *([f"{more} more kinds of notes are in the file."] if more > 0 else [])]
