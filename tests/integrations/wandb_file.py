"""Read back what a W&B run wrote: the records of its ``.wandb`` file (LevelDB's log format, W&B's header, protobuf inside)."""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made when it is imported

__all__ = ["RunFile", "read_run", "run_files"]

_BLOCK, _HEADER = 32768, 7
_FULL, _FIRST, _LAST = 1, 2, 4


@dataclass(frozen=True)
class RunFile:
    """What a W&B server would be told.

    Attributes:
        history: the rows in order, without W&B's own ``_runtime`` and ``_timestamp``.
        axes: the step metric of each metric defined by its exact name; ``None`` for one without.
        globs: the step metric of each glob.
        id: what the run is called on the server.
        summary: the last value under every name.
    """

    history: list[dict[str, Any]]
    axes: dict[str, str | None]
    globs: dict[str, str]
    id: str
    summary: dict[str, Any]

    def series(self, name: str, axis: str = "train/global_step") -> dict[int, Any]:
        """Values of one metric by step.

        Raises:
            AssertionError: a row holds it without the axis, or two rows disagree.
        """
        found: dict[int, Any] = {}
        for row in self.history:
            if name in row:
                assert axis in row, f"{name} was logged without {axis}: {sorted(row)}"
                assert found.setdefault(row[axis], row[name]) == row[name], f"two values of {name} at {axis} {row[axis]}"
        return found

    def names(self, prefix: str) -> set[str]:
        """Metrics of the history under ``prefix``."""
        return {name for row in self.history for name in row if name.startswith(prefix)}


def run_files(directory: Path) -> list[Path]:
    """The run files under ``directory``, oldest first."""
    return sorted(
        (path for path in directory.rglob("*.wandb") if not path.parent.is_symlink()), key=lambda p: p.stat().st_mtime
    )


def read_run(directory: Path, *, patience: float = 20) -> RunFile:
    """The one finished run under ``directory``. ``wandb.finish()`` returns before the file is whole, so wait for its end.

    Raises:
        AssertionError: there is not one run, or it is not finished.
    """
    (path,) = run_files(directory)
    deadline = time.monotonic() + patience
    while True:
        records = [Record.FromString(data) for data in _records(path.read_bytes())]
        if any(record.HasField("exit") for record in records):  # statistics of the system can follow it
            break
        assert time.monotonic() < deadline, f"{path} has no end: {records[-1:]}"
        time.sleep(0.05)
    (run_id,) = {record.run.run_id for record in records if record.HasField("run")}
    run = RunFile([], {}, {}, run_id, {})
    for record in records:
        if record.HasField("history"):
            items = _values(record.history.item)
            run.history.append({key: value for key, value in items.items() if key not in ("_runtime", "_timestamp")})
        elif record.HasField("summary"):
            run.summary.update(_values(record.summary.update))
        elif record.HasField("metric") and record.metric.glob_name:
            run.globs[record.metric.glob_name] = record.metric.step_metric
        elif record.HasField("metric"):
            run.axes[record.metric.name] = record.metric.step_metric or None
    return run


def _values(items: Any) -> dict[str, Any]:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    assert data[:4] in (b":W&B", b""), "not a .wandb file"
    position, pending = _HEADER, b""
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:  # too little for a header: padding
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += _HEADER
        chunk = data[position : position + length]
        if len(chunk) < length:  # still being written
            return
        position += length
        pending = chunk if kind in (_FULL, _FIRST) else pending + chunk
        if kind in (_FULL, _LAST):
            yield pending
