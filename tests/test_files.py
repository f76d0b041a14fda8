"""Files whole or not at all, and lines that outlive a crash."""

from pathlib import Path

import pytest

from geomprobe.errors import GeomprobeError
from geomprobe.files import append_line, mend_lines, read_lines, write_whole


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

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(GeomprobeError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(GeomprobeError, match="cannot write"):
        write_whole(tmp_path / "no" / "folder", "x")
