"""CKA and Diff-eRank compare the same checkpoints, whatever failed, was removed or was killed on the way."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from geomprobe import GeomprobeError, sweep
from geomprobe.reading import Reading
from geomprobe.sweeps import comparisons
from geomprobe.sweeps import sweep as module
from geomprobe.sweeps.comparisons import Comparisons
from geomprobe.sweeps.records import READINGS, Record, Run, place
from tests.sweeps.conftest import save_checkpoint

pytestmark = pytest.mark.slow  # it sweeps checkpoints

STEPS = (1, 4, 16, 64)
NAMES = [f"checkpoint-{step}" for step in STEPS]
OPTIONS: dict[str, Any] = {"field": "prose", "tokens": 300, "sample": 200, "length": 50, "batch_tokens": 200}


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    for step in STEPS:
        save_checkpoint(folder / f"checkpoint-{step}", step)
    return folder


def without_times(run: Run) -> list[dict[str, Any]]:
    """The records of a run as they are written, in their order, without the times."""
    told = [record.to_dict() for record in run.records]
    return [{name: value for name, value in record.items() if name not in ("seconds", "finished")} for record in told]


@pytest.fixture
def training(four: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(four, tmp_path / "training"))


@pytest.fixture
def begin(training: Path, texts: Path, tmp_path: Path) -> Callable[..., Run]:
    def start(**options: Any) -> Run:
        return sweep(str(training), **{"data": str(texts), "out": tmp_path / "run", **OPTIONS, **options})

    return start


@pytest.fixture(scope="module")
def undisturbed(four: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[dict[str, Any]]]:
    """The records of a run in which nothing failed, as if the training stood elsewhere."""
    records = without_times(sweep(str(four), data=str(texts), out=tmp_path_factory.mktemp("runs") / "run", **OPTIONS))
    text = json.dumps(records)
    return lambda folder: json.loads(text.replace(str(four), str(folder)))


def test_partners_are_named(undisturbed: Callable[[Path], list[dict[str, Any]]], training: Path) -> None:
    untrained, gaussian, *checkpoints = undisturbed(training)
    assert untrained["partners"] == gaussian["partners"] == {}
    assert checkpoints[0]["partners"] == {"diff_erank": untrained["name"]}
    assert checkpoints[2]["partners"] == {
        "diff_erank": untrained["name"],
        "cka_first": "checkpoint-1",
        "cka_previous": "checkpoint-4",
    }


@pytest.mark.parametrize("place", range(4))
def test_one_that_fails_once_leaves_no_trace(
    place: int, training: Path, begin: Callable[..., Run], undisturbed: Callable[[Path], list[dict[str, Any]]]
) -> None:
    weights = training / NAMES[place] / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    first = begin()
    assert [record.name for record in first.failed] == [NAMES[place]]
    weights.write_bytes(whole)
    assert without_times(begin()) == undisturbed(training)


def test_one_that_is_mended_when_the_others_are_gone(
    training: Path, begin: Callable[..., Run], undisturbed: Callable[[Path], list[dict[str, Any]]]
) -> None:
    """The Gram matrices of its neighbours are kept for it, and those of all until the comparisons are mended."""
    weights = training / NAMES[1] / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"")
    begin()
    weights.write_bytes(whole)
    for name in (NAMES[0], *NAMES[2:]):
        shutil.rmtree(training / name)
    assert without_times(begin()) == undisturbed(training)


def test_two_that_fail_and_are_mended_one_after_the_other(
    training: Path, begin: Callable[..., Run], undisturbed: Callable[[Path], list[dict[str, Any]]]
) -> None:
    weights = [training / name / "model.safetensors" for name in NAMES[:2]]
    whole = [path.read_bytes() for path in weights]
    for path in weights:
        path.write_bytes(b"")
    begin()
    for path, content in zip(weights, whole, strict=True):
        path.write_bytes(content)
        run = begin()
    assert without_times(run) == undisturbed(training)


def test_baselines_that_failed_are_tried_again(
    training: Path,
    begin: Callable[..., Run],
    undisturbed: Callable[[Path], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise GeomprobeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(module, "untrained", fails)
        patch.setattr(module, "gaussian", fails)
        assert [record.kind for record in begin().failed] == ["untrained", "gaussian"]
    assert without_times(begin()) == undisturbed(training)


@pytest.mark.parametrize("anchors", ["kept", "gone", "damaged"])
def test_a_checkpoint_that_was_rotated_away_stays_the_partner(
    anchors: str, training: Path, begin: Callable[..., Run], undisturbed: Callable[[Path], list[dict[str, Any]]], tmp_path: Path
) -> None:
    """With its Gram matrices the numbers are the same; without them and without weights, there is a note and no number."""
    later = tmp_path / NAMES[3]
    shutil.move(training / NAMES[3], later)
    begin()
    shutil.move(later, training / NAMES[3])
    for name in NAMES[:3]:
        shutil.rmtree(training / name)
    for path in (tmp_path / "run").glob("anchor-*"):
        if anchors == "gone":
            path.unlink()
        elif anchors == "damaged":
            path.write_bytes(path.read_bytes()[:100])
    told, expected = without_times(begin()), undisturbed(training)
    written = (tmp_path / "run" / READINGS).read_bytes()
    begin()
    assert (tmp_path / "run" / READINGS).read_bytes() == written  # there is nothing new to say
    assert told[:-1] == expected[:-1]
    if anchors == "kept":
        assert told == expected
        return
    last = told[-1]
    assert list(last["partners"]) == ["diff_erank"]
    assert not any(name.startswith("cka") for site in last["reading"]["sites"].values() for name in site)
    notes = [note for note in last["reading"]["notes"] if "cka" in note]
    assert [note.split(":")[0] for note in notes] == ["cka_first was not measured", "cka_previous was not measured"]
    assert all("cannot be measured again" in note for note in notes)


def test_lost_gram_matrices_are_measured_again(
    training: Path, begin: Callable[..., Run], undisturbed: Callable[[Path], list[dict[str, Any]]], tmp_path: Path
) -> None:
    later = tmp_path / NAMES[3]
    shutil.move(training / NAMES[3], later)
    begin()
    shutil.move(later, training / NAMES[3])
    for path in (tmp_path / "run").glob("anchor-*"):
        path.write_bytes(b"")
    assert without_times(begin()) == undisturbed(training)


def test_a_full_disk_ends_the_sweep_and_records_no_failure(
    begin: Callable[..., Run],
    undisturbed: Callable[[Path], list[dict[str, Any]]],
    training: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise GeomprobeError(f"cannot write {path}: No space left on device")

    seen: list[Record] = []
    with monkeypatch.context() as patch:
        patch.setattr(comparisons, "write_whole", full)
        with pytest.raises(GeomprobeError, match=r"anchor-.*No space left"):
            begin(on_record=seen.append)
    assert [record.kind for record in seen] == ["untrained", "gaussian"]  # the checkpoint is neither recorded nor failed
    assert (tmp_path / "run" / READINGS).read_bytes().count(b"\n") == 2
    assert without_times(begin()) == undisturbed(training)


def test_finished_runs_keep_two_anchors(begin: Callable[..., Run], tmp_path: Path) -> None:
    begin()
    assert len(list((tmp_path / "run").glob("anchor-*"))) == 2


def record(name: str, step: int, **options: Any) -> Record:
    reading = None if "error" in options else Reading("eval", ("embed",), {}, [], {})
    made: dict[str, Any] = {"config": "c", "tokens": "t", "weights": "w", "reading": reading}
    return Record(name=name, step=step, **made | options)


def compared(folder: Path, *records: Record) -> Comparisons:
    def lost(record: Record) -> dict[str, torch.Tensor]:
        raise GeomprobeError("it is gone")

    by_name = {(each.kind, each.name): each for each in records}
    return Comparisons(folder, by_name, partial(place, models=[], revisions=[]), lost)


def test_gram_matrices_of_other_weights_or_tokens_are_not_taken(tmp_path: Path) -> None:
    kept, grams = record("a", 1), {"embed": torch.eye(5)}
    compared(tmp_path, kept).keep(kept, grams)
    for other in ({"weights": "v"}, {"tokens": "u"}, {"config": "d"}, {}):
        first, second = record("a", 1, **other), record("b", 2, **other)
        notes = compared(tmp_path, first, second).compared(second, grams).reading.notes  # type: ignore[union-attr]
        assert [note.split(":")[0] for note in notes] == ["cka_first was not measured", "cka_previous was not measured"] * bool(
            other
        )


def test_what_read_other_tokens_is_no_partner(tmp_path: Path) -> None:
    first, second = record("a", 1, tokens="u"), record("b", 2)
    alone = compared(tmp_path, first, second).compared(second, {})
    assert alone.partners == {}
    assert alone.reading is not None
    assert alone.reading.notes == []  # nothing was looked for in vain


def test_gram_matrices_are_kept_for_what_failed(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d", "e", "f"]
    made = compared(
        tmp_path, *(record(name, i, **({"error": "failed"} if name == "d" else {})) for i, name in enumerate(names))
    )
    files = {name: made._anchor(name) for name in names}
    for path in files.values():
        path.touch()
    made.remove_anchors(keep=[files["b"]])
    assert made.anchors() == {files[name] for name in ("a", "b", "c", "e", "f")}
    made.remove_anchors()
    assert made.anchors() == {files[name] for name in ("a", "c", "e", "f")}
