"""Atomic file writes, and files of JSON lines that survive a crash."""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from geomprobe.errors import GeomprobeError

__all__ = ["StepFile", "append_line", "check_writable", "mend_lines", "read_lines", "read_text", "write_whole"]


def check_writable(path: Path | None) -> None:
    """Check that a file can be written at ``path``, so that a long computation does not fail at its end.

    Raises:
        GeomprobeError: if no file can be written there.
    """
    try:
        fits = path is None or (not path.is_dir() and path.absolute().parent.is_dir())
    except OSError as error:  # a name that is too long, a folder that must not be looked into
        raise GeomprobeError(f"cannot write {path}: {error}") from error
    if not fits:
        raise GeomprobeError(f"cannot write {path}: expected the name of a file in a folder that exists")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically: a reader finds either the old content or all of the new content.

    Raises:
        GeomprobeError: if the file cannot be written.
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
            f"cannot write {path}: {error}; give a file in a writable folder with enough free space"
        ) from error


def read_text(path: Path, *, most: int) -> str:
    """Return the first ``most`` characters of a text file in UTF-8, without its byte order mark.

    Raises:
        GeomprobeError: if the file cannot be read or is not in UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            text = file.read(most)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise GeomprobeError(f"cannot read {path}: {error}; expected a text file in UTF-8") from error
    try:
        text.encode()
    except UnicodeEncodeError as error:  # Bytes that are not UTF-8 were read as surrogates, so that their line can be named.
        line = text.count("\n", 0, error.start) + 1
        raise GeomprobeError(f"cannot read {path}: line {line} is not UTF-8; expected a text file in UTF-8") from error
    return text


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append ``record`` as one line of JSON and flushes it to the disk. ``record`` must not contain NaN or infinities.

    Raises:
        GeomprobeError: if the line cannot be written. The earlier lines are kept.
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
                    os.truncate(path, start)  # a full disk may have taken a part of the line
                raise
    except OSError as error:
        raise GeomprobeError(
            f"cannot append to {path}: {error}; its earlier lines are safe: free some disk space and run again"
        ) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file of JSON lines, or an empty list if there is no file.

    A last line that a crash left incomplete is skipped.

    Raises:
        GeomprobeError: if the file cannot be read, or if any other line is damaged.
    """
    records = []
    for number, line in enumerate(_whole_lines(path), 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise GeomprobeError(f"{path}, line {number}: not JSON ({error}); restore the file, or remove that line") from error
        if not isinstance(record, dict):
            raise GeomprobeError(f"{path}, line {number}: expected a JSON object; restore the file, or remove that line")
        records.append(record)
    return records


def mend_lines(path: Path) -> None:
    """Remove a last line that a crash left incomplete, so that the next line is not appended to it.

    Raises:
        GeomprobeError: if the file cannot be written.
    """
    try:
        whole = sum(len(line) + 1 for line in _whole_lines(path))
        if path.exists() and path.stat().st_size != whole:
            os.truncate(path, whole)
    except OSError as error:
        raise GeomprobeError(f"cannot remove the incomplete last line of {path}: {error}") from error


def _whole_lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    except OSError as error:
        raise GeomprobeError(f"cannot read {path}: {error}") from error


class StepFile:
    """A file of records ``{"step": …}`` that stays readable after a crash and after training is resumed.

    Each record is written as one line in a single call, so that a crash leaves the earlier lines intact.

    Raises:
        OSError: from every method, if the file cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, step: int, record: dict[str, Any]) -> None:
        """Append a line. ``record`` must not contain NaN or infinities, which JSON does not have."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **record}, allow_nan=False) + "\n")

    def rewind(self, step: int) -> None:
        """Remove the lines after ``step`` (all lines if ``step`` is 0) and an incomplete last line."""
        if self.path.exists():
            self._replace([line for line in self._lines() if step and 0 <= _step(line) <= step])

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all complete lines, or an empty list if there is no file."""
        return [json.loads(line) for line in self._lines() if _step(line) >= 0] if self.path.exists() else []

    def replace(self, records: Iterable[dict[str, Any]]) -> None:
        """Replace the content of the file with ``records``, each of which has a ``step``."""
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
