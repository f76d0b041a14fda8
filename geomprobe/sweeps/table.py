"""The table of a run for the terminal."""

import math
import textwrap
from collections.abc import Mapping

from geomprobe.sweeps.records import Record, Run

__all__ = ["table"]

_COLUMNS = {
    "entropy": ("entropy", "{:.3f}"),
    "matrix_entropy": ("H nats", "{:.3f}"),
    "effective_rank": ("eff.rank", "{:.1f}"),
    "gain_per_token": ("gain/token", "{:.3f}"),
    "lasso_r2": ("Lasso R²", "{:.3f}"),
    "cka_previous": ("CKA", "{:.3f}"),
}


def table(run: Run) -> str:
    """Return a table for 80 columns, with one line per checkpoint: the loss and numbers of ``final_norm``. The null baselines,
    the number of documents that were left out, and the errors of failed checkpoints follow."""
    shown = [name for name in _COLUMNS if any(_value(record, name) is not None for record in run.records)]
    head = f"{'checkpoint':<20}  {'loss':>6}" + "".join(f"  {_COLUMNS[name][0]:>8}" for name in shown[:5])
    lines = [f"{run.name}: {len(run.checkpoints)} checkpoints, final_norm", "", head]
    lines += [_line(record.name, record, shown[:5]) for record in run.checkpoints]
    nulls = [record for record in run.records if record.kind != "checkpoint" and record.reading is not None]
    lines += ["─" * len(head)] * bool(nulls) + [_line(record.kind, record, shown[:5]) for record in nulls]
    if skipped := run.manifest.get("data", {}).get("skipped"):
        lines += ["", f"{skipped:,} documents without text (null, empty or blank) were left out"]
    for record in run.failed:
        said = record.name if record.kind == "checkpoint" else f"{record.kind} {record.name}"
        lines += ["", *textwrap.wrap(f"! {said}: {record.error}", 80, subsequent_indent="  ")]
    return "\n".join(lines)


def _line(name: str, record: Record, shown: list[str]) -> str:
    loss = "–" if record.loss is None or math.isnan(record.loss) else f"{record.loss:.3f}"
    name = name if len(name) <= 20 else f"…{name[-19:]}"
    cells = [(_value(record, metric), _COLUMNS[metric]) for metric in shown]
    text = "".join(f"  {'–' if v is None else form.format(v):>{max(8, len(title))}}" for v, (title, form) in cells)
    return f"{name:<20}  {loss if record.kind != 'gaussian' else '–':>6}{text}"


def _value(record: Record, metric: str) -> float | None:
    """The value at ``final_norm``, or at the single site of Gaussian rows."""
    values: Mapping[str, float] = record.reading or {}
    value = values.get(f"{metric}/final_norm", values.get(f"{metric}/gaussian"))
    return None if value is None or math.isnan(value) else value
