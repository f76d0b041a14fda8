"""Atomic file writes, files of JSON lines that survive a crash, and the check of the shape of what is read."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args

from geomprobe.errors import GeomprobeError

__all__ = ["Format", "StepFile", "append_line", "check_shape", "check_writable", "mend_lines", "parse_json", "read_json"]
__all__ += ["read_lines", "read_text", "write_whole"]

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}
_WORDS |= {list: "a list", dict: "an object"}


class Format(int):
    """The number of a format in a shape (see :func:`check_shape`): the newest one that this version reads."""


def parse_json(text: str | bytes, what: str, *, advice: str = "") -> Any:
    """Return what a JSON text contains.

    Raises:
        GeomprobeError: if it is not JSON, contains NaN or infinities, or is nested too deeply. The message begins with
            ``what`` and ends with ``advice``.
    """
    end = f"; {advice}" if advice else ""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise GeomprobeError(f"{what}: not JSON of geomprobe (nested too deeply){end}") from error
    except ValueError as error:
        raise GeomprobeError(f"{what}: not JSON ({error}){end}") from error


def read_json(path: Path, *, advice: str = "") -> Any:
    """Return what a JSON file contains.

    Raises:
        GeomprobeError: if it cannot be read, or is not JSON.
        FileNotFoundError, NotADirectoryError: if there is no such file.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise GeomprobeError(f"cannot read {path}: {error}" + (f"; {advice}" if advice else "")) from error
    return parse_json(content, str(path), advice=advice)


def check_shape(value: Any, shape: Any, what: str, *, advice: str = "") -> None:
    """Check that ``value``, which was read from JSON, has a shape.

    Args:
        value: the value.
        shape: what is expected: a type or a union of types, where a number is finite, and a whole number also fits ``float``; a
            set of texts; ``[shape]`` for a list; ``{str: shape}`` for an object with any names; ``{"name": shape}`` for an
            object with these names, where ``"name?"`` may be missing, and others are allowed if there is a ``str`` among the
            names; :class:`Format` for the number of a format; or a tuple of alternatives, of which the last is described.
        what: the file, or what else the value is, with which the message begins.
        advice: the end of the message: what to do. For a newer format it is to update geomprobe.

    Raises:
        GeomprobeError: if it has another shape. The message names the place, and a newer format as such.
    """
    try:
        _check(value, shape, "")
    except _MismatchError as error:
        raise GeomprobeError(f"{what}: {error}" + (f"; {advice}" if advice and not error.newer else "")) from None


class _MismatchError(Exception):
    """What is wrong with a value, and whether it is that a newer version wrote it."""

    def __init__(self, said: str, *, newer: bool = False) -> None:
        super().__init__(said)
        self.newer = newer


def _check(value: Any, shape: Any, at: str) -> None:
    if isinstance(shape, tuple):
        if any(_is(value, one) for one in shape[:-1] if isinstance(one, type)):
            return
        shape = shape[-1]
    if isinstance(shape, Format):
        _check_format(value, shape)
    elif isinstance(shape, (set, frozenset)):
        if not isinstance(value, str) or value not in shape:
            raise _other(value, f"one of {', '.join(sorted(shape))}", at)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise _other(value, "a list", at)
        if _are_numbers(value, shape[0]):  # curves are long
            return
        for i, item in enumerate(value):
            _check(item, shape[0], f"{at}[{i}]")
    elif isinstance(shape, dict):
        _check_object(value, shape, at)
    else:
        kinds = get_args(shape) if isinstance(shape, UnionType) else (shape,)
        if object not in kinds and not any(_is(value, kind) for kind in kinds):
            raise _other(value, " or ".join(_WORDS[kind] for kind in kinds), at)


def _check_object(value: Any, shape: dict[Any, Any], at: str) -> None:
    if not isinstance(value, dict):
        raise _other(value, "an object", at)
    named = {name.rstrip("?"): inner for name, inner in shape.items() if name is not str}
    if "format" in named:  # first, because a newer format may have another shape
        _check_format(value.get("format"), named["format"])
    for name in shape:
        if name is not str and name not in value and not name.endswith("?"):
            raise _MismatchError(f"{_join(at, name)} is missing")
    for name, item in value.items():
        if name not in named and str not in shape:
            raise _MismatchError(f"{_join(at, name)} is not known")
        _check(item, named.get(name, shape.get(str)), _join(at, name))


def _check_format(value: Any, newest: int) -> None:
    if value is None:
        raise _MismatchError("there is no format number, so geomprobe did not write it")
    if not _is(value, int) or value < 1:
        raise _other(value, f"a number from 1 to {newest}", "format")
    if value > newest:
        raise _MismatchError(
            f"written by a newer geomprobe: format {value}, this one reads {newest}; update geomprobe to read it", newer=True
        )


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is int:
        return isinstance(value, int) and abs(value) < 1 << 63
    if kind is float:
        return isinstance(value, int | float) and abs(value) < 1 << 1000 and math.isfinite(value)
    return isinstance(value, kind)


def _are_numbers(values: list[Any], shape: Any) -> bool:
    """Whether a list is one of numbers as ``shape`` expects them; if not, the slow way finds out what is wrong."""
    found = set(map(type, values))
    if shape == float | None and found <= {float, NoneType}:
        return all(map(math.isfinite, (value for value in values if value is not None)))
    return shape is int and found == {int} and -(1 << 63) < min(values) <= max(values) < 1 << 63


def _other(value: Any, expected: str, at: str) -> _MismatchError:
    plain = isinstance(value, list | dict | NoneType)
    found = _WORDS[type(value)] if plain else json.dumps(value, ensure_ascii=False, default=repr)
    found = found if len(found) <= 40 else f"{found[:39]}…"
    return _MismatchError(f"{at or 'it'} is {found}, expected {expected}")


def _join(at: str, name: str) -> str:
    name = name if len(name) <= 40 else f"{name[:39]}…"
    return f"{at}.{name}" if at else name


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


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
    data = _encoded(content) if isinstance(content, str) else content
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


def append_line(path: Path, record: Mapping[str, Any], *, sync: bool = True) -> None:
    """Append ``record`` as one line of JSON to a file to which no other process appends. ``record`` must not contain NaN or
    infinities, which JSON does not have. With ``sync`` the line also survives a crash of the machine, and the call waits for
    the disk.

    Raises:
        GeomprobeError: if the line cannot be written. The earlier lines are kept.
    """
    left = _line(record)
    try:
        with path.open("ab", buffering=0) as file:
            start = file.tell()
            try:
                while left:
                    left = left[file.write(left) :]  # a nearly full disk takes a part, and then fails
                if sync:
                    os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.truncate(path, start)
                raise
    except OSError as error:
        raise GeomprobeError(
            f"cannot append to {path}: {error}; its earlier lines are safe: free some disk space and run again"
        ) from error


def read_lines(path: Path, shape: Any = None, *, advice: str = "restore the file, or remove that line") -> list[dict[str, Any]]:
    """Return the records of a file of JSON lines, or an empty list if there is no file. ``shape`` is that of each, for
    :func:`check_shape`.

    A last line that a crash left incomplete is skipped.

    Raises:
        GeomprobeError: if the file cannot be read, or if any other line is damaged or of another shape. The message names the
            line, and ends with ``advice``.
    """
    records = []
    for number, line in enumerate(_whole_lines(path), 1):
        what = f"{path}, line {number}"
        records.append(parse_json(line, what, advice=advice))
        check_shape(records[-1], shape or {str: object}, what, advice=advice)
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


def _line(record: Mapping[str, Any]) -> bytes:
    return _encoded(json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n")


def _encoded(text: str) -> bytes:
    """Text as UTF-8. Bytes of a file name that are not UTF-8 are written as ``\\udcXX``, from which JSON restores them."""
    return text.encode(errors="backslashreplace")


def _whole_lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    except OSError as error:
        raise GeomprobeError(f"cannot read {path}: {error}") from error


class StepFile:
    """A file of JSON lines ``{"step": …}``, from which a training that is resumed removes the steps that it runs again.

    Raises:
        GeomprobeError: from every method, if the file cannot be read or written, or contains whole lines that are not such
            records.
    """

    FORMAT = 1

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, step: int, record: Mapping[str, Any]) -> None:
        """Append a line, as :func:`append_line` does, but without waiting for the disk, which would hold up the training."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GeomprobeError(f"cannot write {self.path}: {error}; give a file in a writable folder") from error
        append_line(self.path, {"format": self.FORMAT, "step": step, **record}, sync=False)

    def rewind(self, step: int) -> None:
        """Remove the lines after ``step`` (all lines if ``step`` is 0) and an incomplete last line."""
        kept = [record for record in self.records() if step and record["step"] <= step]
        if self.path.exists():
            self.replace(kept)

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all complete lines, or an empty list if there is no file."""
        shape = {"format": Format(self.FORMAT), "step": int, str: object}
        return read_lines(self.path, shape, advice="restore the file, or give another one")

    def replace(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Replace the content of the file with ``records``, each of which has a ``step``."""
        write_whole(self.path, b"".join(_line({"format": self.FORMAT, **record}) for record in records))
