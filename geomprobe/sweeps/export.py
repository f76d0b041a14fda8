"""Exports the records of a sweep as one long table with one number per row."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from geomprobe.errors import GeomprobeError
from geomprobe.files import write_whole
from geomprobe.sweeps.records import Run

__all__ = ["COLUMNS", "export"]

COLUMNS = ("run", "name", "kind", "step", "parameters", "loss", "site", "metric", "position", "value", "count")
"""Columns of the table. ``position`` and ``count`` belong to curves, and are empty for scalars; ``loss`` is that of the
checkpoint and is repeated in each of its rows."""

Row = tuple[str | int | float | None, ...]


def export(run: Run, path: Path) -> int:
    """Write every number of a run to a ``.csv`` or ``.parquet`` file, with one row per position of a curve. NaN is an empty
    cell.

    Returns:
        The number of rows.

    Raises:
        GeomprobeError: if the name has another ending, if pyarrow is missing for ``.parquet``, or if the file cannot be
            written.
    """
    rows = list(_rows(run))
    if path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
        write_whole(path, text.getvalue())
    elif path.suffix == ".parquet":
        try:
            import pyarrow
            from pyarrow.parquet import write_table
        except ImportError as error:
            raise GeomprobeError("writing .parquet needs pyarrow: pip install 'geomprobe[data]'") from error
        kinds = {"step": pyarrow.int64(), "parameters": pyarrow.int64(), "position": pyarrow.int64(), "count": pyarrow.int64()}
        kinds |= {"loss": pyarrow.float64(), "value": pyarrow.float64()}
        columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
        arrays = [
            pyarrow.array(column, kinds.get(name, pyarrow.string())) for name, column in zip(COLUMNS, columns, strict=True)
        ]
        buffer = pyarrow.BufferOutputStream()
        write_table(pyarrow.table(dict(zip(COLUMNS, arrays, strict=True))), buffer)
        write_whole(path, buffer.getvalue().to_pybytes())
    else:
        raise GeomprobeError(f"{path}: expected a name that ends in .csv or .parquet")
    return len(rows)


def _rows(run: Run) -> Iterator[Row]:
    for record in run.records:
        if record.reading is None:
            continue
        told = record.to_dict()["reading"]
        head = (run.name, record.name, record.kind, record.step, record.parameters, record.loss)
        for site, scalars in told["sites"].items():
            yield from ((*head, site, metric, None, value, None) for metric, value in scalars.items())
        for site, curves in told["curves"].items():
            for metric, curve in curves.items():
                places = enumerate(zip(curve["mean"], curve["count"], strict=True))
                yield from ((*head, site, metric, position, value, count) for position, (value, count) in places)
