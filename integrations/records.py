"""The lines of ``geomprobe.jsonl``: readings, with what they cost."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from geomprobe import Cost, Reading
from geomprobe.files import check_shape

__all__ = ["interval_of", "loss_record", "reading_of", "record_of"]

_COST = {"seconds": float, "share": float, "interval": int | None}


def record_of(reading: Reading) -> dict[str, Any]:
    """Return the record of a reading, which is written as a line."""
    return reading.to_dict() | ({} if reading.cost is None else {"cost": asdict(reading.cost)})


def loss_record(loss: object) -> dict[str, float]:
    """Return the record of a loss, which is empty if the loss is not a finite number: a custom trainer may log ``None``, a text
    or several numbers."""
    try:
        number = float(loss)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        return {}
    return {"loss": number} if math.isfinite(number) else {}


def reading_of(record: dict[str, Any]) -> Reading:
    """Return the reading of a record.

    Raises:
        GeomprobeError: if ``record`` is not one.
    """
    reading = Reading.from_dict(record)
    if "cost" in record:
        reading.cost = _cost_of(record)
    return reading


def interval_of(records: Sequence[dict[str, Any]]) -> int | None:
    """Return the interval of the budget at the latest reading of a training step, or ``None`` if there was no budget.

    Raises:
        GeomprobeError: if the cost in the record of this reading is malformed.
    """
    measured = [record for record in records if record.get("mode") == "train" and "cost" in record]
    return _cost_of(measured[-1]).interval if measured else None


def _cost_of(record: dict[str, Any]) -> Cost:
    check_shape(record["cost"], _COST, "this is not the cost of a reading")
    return Cost(**record["cost"])
