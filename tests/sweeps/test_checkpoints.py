"""Which checkpoints there are, and reading them ahead."""

from pathlib import Path

import pytest

from geomprobe.errors import GeomprobeError
from geomprobe.sweeps.checkpoints import Checkpoint, find_checkpoints, read_ahead


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


def test_files_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    read: list[str] = []
    opened = Path.open

    def watched(path: Path, *arguments: object, **options: object) -> object:
        read.append(path.name)
        return opened(path, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", watched)
    with read_ahead([Checkpoint("a", str(tmp_path))]):
        pass
    assert read in (["model.safetensors"], [])  # not begun yet when the caller was done: then there is nothing to wait for


def test_what_goes_wrong_ahead_is_left_to_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with read_ahead([Checkpoint("a", "nobody/nothing")]):
        pass
