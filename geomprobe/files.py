"""Files that are written whole or not at all, and files of lines that outlive a crash."""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from geomprobe.errors import GeomprobeError

__all__ = ["StepFile", "append_line", "check_writable", "mend_lines", "read_lines", "write_whole"]


def check_writable(path: Path | None) -> None:
    """Whether a file can be written at ``path``: before the work, not after it.

    Raises:
        GeomprobeError: it cannot.
    """
    try:
        fits = path is None or (not path.is_dir() and path.absolute().parent.is_dir())
    except OSError as error:  # a name that is too long, a folder that must not be looked into
        raise GeomprobeError(f"cannot write {path}: {error}") from error
    if not fits:
        raise GeomprobeError(f"cannot write {path}: expected the name of a file in a folder that exists")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: whoever reads it meanwhile finds the old one.

    Raises:
        GeomprobeError: it cannot be written.
    """
    scratch = path.with_name(f".{path.name[:100]}.{os.getpid()}.part")
    data = content.encode() if isinstance(content, str) else content
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise GeomprobeError(
            f"cannot write {path}: {error}; give a file in a folder that can be written and has room"
        ) from error


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line of JSON, on the disk before this returns. NaN and infinities must be gone from ``record``.

    Raises:
        GeomprobeError: it cannot be written; the lines before it stay.
    """
    line = json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n"
    try:
        with path.open("ab") as file:
            start = file.tell()
            try:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.truncate(path, start)  # what a full disk took of the line
                raise
    except OSError as error:
        raise GeomprobeError(
            f"cannot add to {path}: {error}; what it holds already is safe: make room and run again"
        ) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines; none where there is no file. A last line that a crash cut off is left out.

    Raises:
        GeomprobeError: it cannot be read, or another line than the last is damaged.
    """
    records = []
    for number, line in enumerate(_whole_lines(path), 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise GeomprobeError(
                f"{path}, line {number}: not JSON ({error}); restore the file, or take that line out"
            ) from error
        if not isinstance(record, dict):
            raise GeomprobeError(f"{path}, line {number}: expected a JSON object; restore the file, or take that line out")
        records.append(record)
    return records


def mend_lines(path: Path) -> None:
    """Cut off a last line that a crash left without its end, so that the next one stands alone.

    Raises:
        GeomprobeError: the file cannot be written.
    """
    try:
        whole = sum(len(line) + 1 for line in _whole_lines(path))
        if path.exists() and path.stat().st_size != whole:
            os.truncate(path, whole)
    except OSError as error:
        raise GeomprobeError(f"cannot mend {path}: {error}") from error


def _whole_lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    except OSError as error:
        raise GeomprobeError(f"cannot read {path}: {error}") from error


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
