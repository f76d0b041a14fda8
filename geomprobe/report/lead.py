"""The finding with which a page and the demo begin, computed from the records of one or several runs."""

import math
from collections.abc import Mapping, Sequence

from geomprobe.report.finding import Finding, Series, compare_runs, describe_models, describe_run
from geomprobe.report.theme import shorten
from geomprobe.sweeps.records import Record, Run

__all__ = ["leading_metric", "leading_text"]

_NAMES = {"effective_rank": "effective rank", "entropy": "entropy", "gain_per_token": "information gain per token"}
"""The metrics that a finding can be about, in order of preference, and their names in a sentence."""
_COUNTS = ("tokens", "texts", "sample_tokens")


def leading_metric(runs: Sequence[Run]) -> str | None:
    """Return the metric that the finding is about: the effective rank, or else the first one of a short list, or of all that
    were measured. ``None`` if no record has a number."""
    readings = [record.reading for run in runs for record in run.checkpoints if record.reading]
    measured = dict.fromkeys(name for reading in readings for name in reading.metrics)
    known = [name for name in measured if any(_sites(run, name) for run in runs)]
    return next((name for name in (*_NAMES, *known) if name in known and name not in _COUNTS), None)


def leading_text(runs: Sequence[Run], losses: Mapping[int, float] | None = None) -> Finding | None:
    """Return the finding of runs: what the number did in one run, or how several runs differ. ``None`` if no record has a
    number.

    Args:
        runs: the runs, each with at least one checkpoint.
        losses: for a single run, the loss by step, if it is not in its records: the first and the last loss between its first
            and its last record are named.
    """
    metric = leading_metric(runs)
    if metric is None:
        return None
    if len(runs) > 1:
        names = [shorten(run.name) for run in runs]
        unique = [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]
        ends = [(_series(run, metric, (_sites(run, metric) or ["final_norm"])[-1]), run.checkpoints[-1].loss) for run in runs]
        return compare_runs(dict(zip(unique, ends, strict=True)))
    (run,) = runs
    if run.axis == "parameters" and len(run.checkpoints) > 1:
        return _of_models(run, metric)
    return describe_run([_series(run, metric, site) for site in _sites(run, metric)], _loss(run, losses))


def _of_models(run: Run, metric: str) -> Finding:
    """The finding of several models, each at its own last site."""
    alone = [Run(run.path, run.manifest, [r, *[n for n in [run.baseline(r, "untrained")] if n]]) for r in run.checkpoints]
    known = [(part, sites[-1]) for part in alone if (sites := _sites(part, metric))]
    sizes = {part.checkpoints[0].parameters for part, _ in known}
    return describe_models(
        [_series(part, metric, site) for part, site in known],
        [part.checkpoints[0].loss for part, _ in known],
        by_size=None not in sizes and len(sizes) == len(known),
    )


def _series(run: Run, metric: str, site: str) -> Series:
    records = run.checkpoints
    widths = {width for record in records if (width := _width(record, site)) is not None}
    nulls = {id(null): _value(null, metric, site) for record in records if (null := run.baseline(record, "untrained"))}
    untrained = next(iter(nulls.values())) if len(nulls) == 1 else None
    start = _value(records[0], metric, site) if run.axis == "step" and records[0].step == 0 else None
    spread = abs(start - untrained) if start is not None and untrained is not None else 0.0
    return Series(
        _NAMES.get(metric, shorten(metric.replace("_", " "))),
        shorten(site),
        [_called(record, run) for record in records],
        [math.nan if (value := _value(record, metric, site)) is None else value for record in records],
        width=next(iter(widths)) if metric == "effective_rank" and len(widths) == 1 else None,
        untrained=untrained,
        spread=spread if math.isfinite(spread) else 0.0,
    )


def _sites(run: Run, metric: str) -> list[str]:
    """The sites at which any checkpoint has a finite number, in the order of the layers."""
    sites = dict.fromkeys(site for record in run.checkpoints if record.reading for site in record.reading.sites)
    found = ((site, [_value(record, metric, site) for record in run.checkpoints]) for site in sites)
    return [site for site, values in found if any(value is not None and math.isfinite(value) for value in values)]


def _value(record: Record, metric: str, site: str) -> float | None:
    return record.reading.get(f"{metric}/{site}") if record.reading else None


def _width(record: Record, site: str) -> int | None:
    return record.width or (record.reading.widths.get(site) if record.reading else None)


def _called(record: Record, run: Run) -> str:
    return f"step {record.step:,}" if run.axis == "step" else shorten(record.name, most=40)


def _loss(run: Run, losses: Mapping[int, float] | None) -> tuple[float, float] | None:
    """The loss at the first and at the last checkpoint."""
    records = run.checkpoints
    if losses is not None:
        logged = [loss for step, loss in losses.items() if (records[0].step or 0) <= step <= (records[-1].step or 0)]
        return (logged[0], logged[-1]) if logged else None
    first, last = records[0].loss, records[-1].loss
    return None if first is None or last is None else (first, last)
