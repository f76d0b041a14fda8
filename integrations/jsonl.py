"""A file of records by step: one JSON object a line."""

import json
import os
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
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if step and 0 <= _step(line) <= step]
        replacement = self.path.with_name(self.path.name + ".new")
        replacement.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        replacement.replace(self.path)


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1
