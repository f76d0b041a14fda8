"""A file of records by step: one JSON object a line."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["StepFile"]


class StepFile:
    """Records ``{"step": …}`` appended to a file that outlives crashes and resumed trainings.

    Each is written as one line at once, so that a crash leaves the lines before it whole.

    Raises:
        OSError: the file cannot be written; from every method.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, step: int, record: dict[str, Any]) -> None:
        """Add a line. NaN and infinities must be gone from ``record``: they are not JSON."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **record}, allow_nan=False) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the lines after ``step``, all of them for 0, and one that a crash cut off."""
        if self.path.exists():
            self._replace([line for line in self._lines() if step and 0 <= _step(line) <= step])

    def records(self) -> list[dict[str, Any]]:
        """Every whole line; none where there is no file."""
        return [json.loads(line) for line in self._lines() if _step(line) >= 0] if self.path.exists() else []

    def replace(self, records: Iterable[dict[str, Any]]) -> None:
        """These records, each with its ``step``, in place of what is there."""
        self._replace([json.dumps(record, allow_nan=False) for record in records])

    def _lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").splitlines()

    def _replace(self, lines: Iterable[str]) -> None:
        replacement = self.path.with_name(self.path.name + ".new")
        replacement.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        replacement.replace(self.path)


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1
