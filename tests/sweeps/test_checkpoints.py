"""Which checkpoints there are, and reading them ahead."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from select import select
from threading import Event, Timer

import pytest

from geomprobe.errors import GeomprobeError
from geomprobe.sweeps import checkpoints
from geomprobe.sweeps.checkpoints import Checkpoint, find_checkpoints, read_ahead, weights_hash


def test_a_folder_of_checkpoints_is_read_by_step(training: Path) -> None:
    found = find_checkpoints([str(training)])
    assert [(c.name, c.step, c.revision) for c in found] == [(f"checkpoint-{n}", n, None) for n in (1, 4, 16)]
    assert all(Path(c.model).parent == training for c in found)


def test_revisions_are_read_as_steps() -> None:
    found = find_checkpoints(["EleutherAI/pythia-70m"], ["main", "step512", "step1", "step143000"])
    assert [(c.name, c.step) for c in found] == [("step1", 1), ("step512", 512), ("step143000", 143000), ("main", None)]
    assert {(c.model, c.revision == c.name) for c in found} == {("EleutherAI/pythia-70m", True)}


def test_sizes_stay_in_their_order() -> None:
    names = [f"EleutherAI/pythia-{size}" for size in ("410m", "14m", "70m")]
    assert find_checkpoints(names) == [Checkpoint(name, name) for name in names]


@pytest.mark.parametrize(
    ("models", "revisions", "message"),
    [
        ([], [], "no model"),
        (["a/b", "c/d"], ["step1"], "revisions belong to one model"),
        (["a/b", "a/b"], [], "a/b: there are several checkpoints of this name"),
        (["a/b"], ["step1", "step1"], "step1: there are several checkpoints of this name"),
    ],
)
def test_what_is_not_clear_is_refused(models: list[str], revisions: list[str], message: str) -> None:
    with pytest.raises(GeomprobeError, match=message):
        find_checkpoints(models, revisions)


@pytest.fixture
def unread(tmp_path: Path) -> Iterator[tuple[int, Callable[[], None], Event]]:
    """Weights without an end, until they are closed: a pipe of which the test holds the other end. They are closed after ten
    seconds, so that a reader that is waited for too early does not wait for ever."""
    os.mkfifo(tmp_path / "model.safetensors")
    end, closed = os.open(tmp_path / "model.safetensors", os.O_RDWR), Event()

    def close() -> None:
        if not closed.is_set():
            closed.set()
            os.close(end)

    at_last = Timer(10, close)
    at_last.start()
    yield end, close, closed
    at_last.cancel()
    close()


def test_files_are_read_while_the_caller_works_and_to_their_end(
    unread: tuple[int, Callable[[], None], Event], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    end, close, closed = unread
    os.write(end, b"x")
    with read_ahead([Checkpoint("cannot be read", "nobody/nothing"), Checkpoint("a", str(tmp_path))]):
        while not closed.is_set() and select([end], [], [], 0)[0]:  # nobody has read it yet
            time.sleep(0.001)
        assert not closed.is_set()
        Timer(0.1, close).start()
    assert closed.is_set()


def test_an_interrupt_does_not_wait_for_the_files(unread: tuple[int, Callable[[], None], Event], tmp_path: Path) -> None:
    closed = unread[2]
    with pytest.raises(KeyboardInterrupt), read_ahead([Checkpoint("a", str(tmp_path))]):
        raise KeyboardInterrupt
    assert not closed.is_set()


def test_weights_are_told_apart_by_their_names_sizes_and_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_END", 4)
    path = tmp_path / "model.safetensors"
    contents = (b"abcd--------wxyz", b"Xbcd--------wxyz", b"abcd--------wxyX", b"abcd-------wxyz", b"")
    hashes = [(path.write_bytes(content), weights_hash(str(tmp_path)))[1] for content in contents]
    path.write_bytes(b"abcd........wxyz")  # the middle is not read
    assert weights_hash(str(tmp_path)) == hashes[0]
    path.rename(tmp_path / "other.safetensors")
    hashes += [weights_hash(str(tmp_path)), weights_hash(str(tmp_path / "gone"))]
    assert len(set(hashes)) == len(hashes) == 7
    assert [told is None for told in hashes] == [False] * 6 + [True]
