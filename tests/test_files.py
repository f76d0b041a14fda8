"""Files whole or not at all, and lines that outlive a crash."""

import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from geomprobe.errors import GeomprobeError
from geomprobe.files import StepFile, append_line, mend_lines, read_lines, write_whole


def test_lines_come_back(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    for i in range(3):
        append_line(path, {"i": i, "text": "ä\n🙂"})
    assert read_lines(path) == [{"i": i, "text": "ä\n🙂"} for i in range(3)]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_torn_last_line_is_left_out_and_mended(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"i": 0})
    whole = path.read_bytes()
    append_line(path, {"i": 1, "t": "ä"})
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_lines(path) == [{"i": 0}]
    mend_lines(path)
    assert path.read_bytes() == whole
    append_line(path, {"i": 2})
    assert read_lines(path) == [{"i": 0}, {"i": 2}]


@pytest.mark.parametrize("damaged", [b'{"i": \n', b"[1]\n", b"\n", b"\xff\n"])
def test_another_damaged_line_is_told(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"i": 0}\n' + damaged + b'{"i": 2}\n')
    with pytest.raises(GeomprobeError, match="line 2"):
        read_lines(path)


def test_a_full_disk_leaves_the_lines_before(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(GeomprobeError, match=r"No space left on device.*free some disk space and run again"):
        append_line(path, {"i": 0})


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    write_whole(path, "old")

    monkeypatch.setattr("os.fsync", _full)
    with pytest.raises(GeomprobeError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(GeomprobeError, match="cannot write"):
        write_whole(tmp_path / "no" / "folder", "x")


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """While no file may become larger than ``size`` bytes: of a longer write, as on a full disk, the first part is written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_takes_a_part_of_a_line_leaves_the_lines_before(tmp_path: Path) -> None:
    path, steps = tmp_path / "lines.jsonl", StepFile(tmp_path / "steps.jsonl")
    append_line(path, {"i": 0})
    steps.append(1, {"i": 0})
    before = path.read_bytes(), steps.path.read_bytes()
    for size in (*range(len(before[0]), 200), 20_000):
        with full_disk(size), pytest.raises(GeomprobeError, match=r"File too large.*earlier lines are safe"):
            append_line(path, {"text": "x" * 30_000})
        with full_disk(size), pytest.raises(GeomprobeError, match="earlier lines are safe"):
            steps.append(2, {"text": "x" * 30_000})
        assert (path.read_bytes(), steps.path.read_bytes()) == before
    steps.append(2, {"stopped": "no room"})  # which ProbeCallback adds after an error, when there may be room again
    assert [record["step"] for record in steps.records()] == [1, 2]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_refused_before_a_byte_is_written(tmp_path: Path, number: float) -> None:
    steps = StepFile(tmp_path / "folder" / "steps.jsonl")
    steps.append(1, {"loss": 1.0})
    before = steps.path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_line(steps.path, {"loss": number})
    with pytest.raises(ValueError, match="not JSON compliant"):
        steps.append(2, {"loss": number})
    with pytest.raises(ValueError, match="not JSON compliant"):
        steps.replace([{"step": 1, "loss": number}])
    assert {path: path.read_bytes() for path in steps.path.parent.iterdir()} == {steps.path: before}


def test_steps_are_rewound_and_their_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = StepFile(tmp_path / "steps.jsonl")
    for step in (0, 1, 2, 2, 3):
        steps.append(step, {"text": "ä\n🙂"})
    steps.path.write_bytes(steps.path.read_bytes()[:-4])
    monkeypatch.setattr("os.fsync", _full)
    before = steps.path.read_bytes()
    with pytest.raises(GeomprobeError, match="No space left"):
        steps.rewind(2)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == {steps.path: before}
    monkeypatch.undo()
    steps.rewind(2)
    assert [record["step"] for record in steps.records()] == [0, 1, 2, 2]
    steps.append(3, {})
    assert [record["step"] for record in steps.records()] == [0, 1, 2, 2, 3]
    steps.rewind(0)  # a new training
    assert not steps.records()


def test_a_training_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", _full)
    StepFile(tmp_path / "steps.jsonl").append(1, {"loss": 1.0})
    with pytest.raises(GeomprobeError, match="No space left"):
        append_line(tmp_path / "lines.jsonl", {"loss": 1.0})


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")
