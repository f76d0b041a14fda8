"""The report page of one or several runs: a summary, figures with explanations and caveats, and their numbers as tables."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from geomprobe.errors import GeomprobeError
from geomprobe.metrics.descriptions import VIEWS, describe
from geomprobe.report import figures
from geomprobe.report.facts import facts, failures, protocols, remarks
from geomprobe.report.figure_page import FigureGroup, Section, figure_page
from geomprobe.report.finding import Finding
from geomprobe.report.lead import leading_metric, leading_text
from geomprobe.report.theme import escape_label, shorten, si_format
from geomprobe.sweeps.records import Record, Run

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["report_page"]

_NORMALISED = {
    "share of its maximum": "entropy",
    "nats": "entropy_nats",
    "H": "matrix_entropy",
    "H / log d": "matrix_entropy_log_d",
    "H / log n": "matrix_entropy_log_n",
}
_RANKS = {
    "effective rank": "effective_rank",
    "effective rank / d": "rank_ratio",
    "stable rank": "stable_rank",
    "participation ratio": "participation_ratio",
}
_SCALED = (
    "entropy",
    "matrix_entropy",
    "matrix_entropy_log_d",
    "matrix_entropy_log_n",
    "effective_rank",
    "information_gain_per_dim",
)
_ABOUT = (
    "The colour of lines goes from faint to strong: from early to late steps, from shallow to deep layers, or from small to "
    "large models. Dashed lines are the same model with random weights, and dotted lines are Gaussian rows of the same number "
    "and width. A trend that one of these baselines shows too is not an effect of training."
)


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
    lead = leading_text(compared)
    return figure_page(
        shorten(" · ".join(run.name for run in runs), most=80),
        _sections(compared, lead),
        lead=lead,
        facts=facts(runs),
        failed=failures(runs),
        notes=remarks(runs),
        about=_ABOUT,
    )


# -- runs -------------------------------------------------------------------------------------------------------------------


def _comparable(runs: Sequence[Run]) -> list[Run]:
    """Return the runs in a form that can be compared: one run for each model over its training, or one run over all models."""
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


def _sections(runs: Sequence[Run], lead: Finding | None) -> list[Section]:
    over = "over training" if runs[0].axis == "step" else "by model"
    metric = leading_metric(runs)
    glance = FigureGroup(
        f"What changed {over}",
        "The metric that the summary above describes, at the layer named there and at every layer, next to the loss on the "
        "same tokens.",
        "If both change together, this does not show that one causes the other.",
        _one(_glance(runs, metric, lead)),
    )
    beside = FigureGroup(
        f"Entropy and gain {over}",
        "Two other metrics of the last layer, from whose rows the model predicts: how widely these rows spread, and how much a "
        "row adds to the earlier rows of its text.",
        "They depend on the number of tokens, and do not measure how good a model is.",
        _one(figures.over_checkpoints(runs, other, most=1) for other in ("entropy", "gain_per_token") if other != metric),
    )
    entropy = FigureGroup(
        "Entropy by layer",
        "How widely the rows of a layer spread over directions, by layer, by checkpoint, and as a heatmap of both. The switch "
        "selects the normalisation.",
        "It is not the entropy of tokens or predictions. If a trend appears under only one normalisation, it comes from the "
        "denominator: log d grows with the width, and log n with the number of rows.",
        _by_run(runs, _NORMALISED, _layers),
        1,
    )
    ranks = FigureGroup(
        "Effective number of directions",
        "Smooth counts of the directions in use: the effective rank e<sup>H</sup>, the same divided by d, and two counts "
        "that give more weight to directions of large variance.",
        "None of them is the rank of a matrix, and all of them grow with the number of rows until there are many more rows "
        "than d.",
        _by_run(runs, _RANKS, _layers),
        1,
    )
    wide = len({record.width for run in runs for record in run.checkpoints}) > 1  # then compare per dimension first
    gain = FigureGroup(
        "Information gain by position",
        "The information gain of a text up to a position (the paper’s Figure 3), and the gain of each token: a curve flattens "
        "where new rows repeat earlier directions.",
        "It is neither surprisal nor mutual information between tokens. Fewer texts reach the later positions.",
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
        "A fit to a few models does not establish a law. If Gaussian rows of the same number and width show the same "
        "trend, it comes from the number of rows and their width.",
        _one(figures.scaling(latest, metric) for metric in _SCALED) if latest else {},
    )
    agreement = FigureGroup(
        "Lasso and attention",
        "Are the tokens from which the Lasso reproduces a row those that the layer attends to? The dotted line is the "
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
            f"The numbers of {escape(protocol.source)}. What was measured: {_code(protocol.texts)}.",
            _code(protocol.differs),
            _by_run(runs, {describe(metric).title.partition(" (")[0]: metric for metric in protocol.shown}, _layers),
            1,
        )
        for name, protocol in protocols(runs).items()
    ]
    small = [
        Section(
            title,
            [
                FigureGroup(describe(metric).title, describe(metric).read, describe(metric).caveat, views)
                for metric in metrics
                if (views := _compact(runs, metric))
            ],
            folded=True,
        )
        for title, metrics in VIEWS.items()
    ]
    plain = ([glance], [beside], *([group] for group in published), [entropy, ranks], [gain], [scaled], [agreement])
    shown = [[group for group in groups if group.views] for groups in plain]
    return [*(Section("Entropy and ranks", groups) for groups in shown), *small]


def _glance(runs: Sequence[Run], metric: str | None, lead: Finding | None) -> list["Figure | None"]:
    """The figures of the finding: of one run its site and the map of all layers, and the loss."""
    if metric is None:
        return [figures.over_checkpoints(runs, "loss", most=1)]
    site = lead.site if lead is not None and len(runs) == 1 and runs[0].axis == "step" else None
    course = figures.over_checkpoints(runs, metric, most=1, site=site)
    if course is not None:
        course.update_layout(title_text=f"{describe(metric).title} at {escape_label(site or 'the last measured layer')}")
    layers = figures.heatmap(runs[0], metric) if len(runs) == 1 else None
    return [course, layers, figures.over_checkpoints(runs, "loss", most=1)]


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
