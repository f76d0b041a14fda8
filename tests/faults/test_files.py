"""Faults of the files that geomprobe writes: those of a sweep, of Trainer, of a state, and of single readings."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from geomprobe import InformationGain, Probe, Reading, RepresentationEntropy, sweep
from geomprobe.files import StepFile
from geomprobe.paper.experiment import Request
from geomprobe.paper.fig2_skill_graph import FIG2
from geomprobe.paper.run import run_experiment
from geomprobe.sweeps.records import MANIFEST, READINGS, Run
from tests.faults.table import fault, refused, warned
from tests.sweeps.conftest import save_checkpoint
from tests.tiny_models import prose, tiny, token_batch

STEPS = (1, 4)
OPTIONS: dict[str, Any] = {"tokens": 120, "sample": 60, "length": 30, "baselines": False}
DEEP = "[" * 200_000 + "]" * 200_000
LINES = "the file as it is; a line that is removed is measured again"
REFUSED = "the folder as it is"


@cache
def _swept() -> Path:
    """A folder with a training, its texts and a finished run. Not to be written to."""
    folder = Path(tempfile.mkdtemp(prefix="geomprobe-faults-"))
    for step in STEPS:
        save_checkpoint(folder / "training" / f"checkpoint-{step}", step)
    (folder / "texts.txt").write_text(prose(4000), "utf-8")
    _begin(folder)
    return folder


def _begin(folder: Path, **options: Any) -> Run:
    here = os.getcwd()
    os.chdir(folder)  # the arguments of a run name its models
    try:
        return sweep("training", data="texts.txt", out=folder / "run", **{**OPTIONS, **options})
    finally:
        os.chdir(here)


def _copied(folder: Path) -> Path:
    """The run in a folder of its own; returns the folder of the run."""
    shutil.copytree(_swept(), folder, dirs_exist_ok=True)
    return folder / "run"


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file() and path.name != ".lock"}


def _records(run: Run) -> list[dict[str, Any]]:
    told = [record.to_dict() for record in run.records]
    return [{name: value for name, value in record.items() if name not in ("seconds", "finished")} for record in told]


def _as_undisturbed(folder: Path, **options: Any) -> None:
    assert _records(_begin(folder, **options)) == _records(Run.open(_swept() / "run"))


def _refused_and_kept(folder: Path) -> str:
    before = _bytes(folder / "run")
    said = refused(lambda: _begin(folder))
    assert _bytes(folder / "run") == before
    return said


# -- the manifest -------------------------------------------------------------------------------------------------------------


@fault(
    "a folder that no sweep wrote is reported",
    says="…/run is not a run of a sweep: expected a folder that contains manifest.json",
    kept=REFUSED,
)
def no_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "run").mkdir()
    (folder / "run" / "notes.txt").write_text("mine")
    said = refused(lambda: Run.open(folder / "run"))
    assert os.listdir(folder / "run") == ["notes.txt"]
    return said


@fault(
    "`manifest.json` is deleted",
    says="…/run contains readings.jsonl but no manifest.json, which names the arguments and the data of these records: restore "
    "it, or give another folder to start a new run",
    kept=REFUSED,
)
def manifest_deleted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    run = _copied(folder)
    (run / READINGS).write_bytes((run / READINGS).read_bytes()[:-40])  # nothing may be glued to a torn line either
    (run / MANIFEST).unlink()
    return _refused_and_kept(folder)


def _manifest(name: str, case: str, says: str, damage: Callable[[str], str | bytes]) -> None:
    def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        path = _copied(folder) / MANIFEST
        changed = damage(path.read_text("utf-8"))
        path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
        return _refused_and_kept(folder)

    run.__name__ = name
    fault(case, says=f"…/run/manifest.json: {says}", kept=REFUSED)(run)


def _changed(*keys: str, to: Any) -> Callable[[str], str]:
    """A change of JSON text: the value at ``keys``, or the removal of it for ``...``."""

    def change(text: str) -> str:
        content = json.loads(text)
        at = content
        for key in keys[:-1]:
            at = at[key]
        if to is ...:
            del at[keys[-1]]
        else:
            at[keys[-1]] = to
        return json.dumps(content)

    return change


OUT = "restore the file, or give another folder to start a new run"
_manifest("manifest_cut", "`manifest.json` is cut off", f"not JSON (…); {OUT}", lambda text: text[:100])
_manifest("manifest_empty", "`manifest.json` is empty", f"not JSON (…); {OUT}", lambda text: "")
_manifest("manifest_binary", "`manifest.json` contains other bytes", f"not JSON (…); {OUT}", lambda text: b"\xff\xfe\x00\x80")
_manifest("manifest_list", "`manifest.json` is `[]`", f"it is a list, expected an object; {OUT}", lambda text: "[]")
_manifest(
    "manifest_deep",
    "`manifest.json` is a list with 200,000 nested levels",
    f"not JSON of geomprobe (nested too deeply); {OUT}",
    lambda text: DEEP,
)
_manifest(
    "manifest_unnumbered",
    "a `manifest.json` of another program",
    f"there is no format number, so geomprobe did not write it; {OUT}",
    lambda text: '{"manifest_version": 3, "name": "extension"}',
)
_manifest(
    "manifest_newer",
    "a run that a newer geomprobe wrote",
    "written by a newer geomprobe: format 2, this one reads 1; update geomprobe to read it",
    _changed("format", to=2),
)
_manifest(
    "manifest_models",
    "an argument in `manifest.json` is of another type",
    f"arguments.models is 3, expected a list; {OUT}",
    _changed("arguments", "models", to=3),
)


@fault(
    "a run that another version of geomprobe wrote, in the same format",
    says="…/run was written by geomprobe 0.0.1, and this is …, whose numbers may differ: finish it with that version (pip "
    "install geomprobe==0.0.1), or give another folder to start a new run",
    kept=REFUSED,
)
def other_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = _copied(folder) / MANIFEST
    path.write_text(_changed("versions", "geomprobe", to="0.0.1")(path.read_text("utf-8")), "utf-8")
    return _refused_and_kept(folder)


@fault(
    "`manifest.json` cannot be read",
    says=f"cannot read …/run/manifest.json: [Errno 21] Is a directory: …; {OUT}",
    kept=REFUSED,
)
def manifest_unreadable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    run = _copied(folder)
    (run / MANIFEST).unlink()
    (run / MANIFEST).mkdir()
    return _refused_and_kept(folder)


@fault(
    "the same folder with other arguments",
    says="…/run contains a run with other arguments (seed: 0 before, 1 now). Give the same arguments to resume it, or another "
    "folder to start a new run",
    kept=REFUSED,
)
def other_arguments(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    _copied(folder)
    return refused(lambda: _begin(folder, seed=1))


# -- the records --------------------------------------------------------------------------------------------------------------


@fault(
    "the last line of `readings.jsonl` is cut off",
    says="",
    kept="the other lines; that checkpoint is measured again",
    slow=True,
)
def torn_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = _copied(folder) / READINGS
    path.write_bytes(path.read_bytes()[:-40])
    _as_undisturbed(folder)
    return ""


@fault("`readings.jsonl` is empty or gone", says="", kept="the manifest; all checkpoints are measured again", slow=True)
def no_records(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (_copied(folder) / READINGS).write_bytes(b"")
    _as_undisturbed(folder)
    return ""


def _record(name: str, case: str, says: str, damage: Callable[[str], str | bytes], *, line: bool = True) -> None:
    """A fault of the first of two lines."""

    def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        path = _copied(folder) / READINGS
        first, rest = path.read_text("utf-8").split("\n", 1)
        changed = damage(first)
        path.write_bytes((changed if isinstance(changed, bytes) else changed.encode()) + b"\n" + rest.encode())
        said = _refused_and_kept(folder)
        path.write_text(rest, "utf-8")  # the way out: without that line
        assert len(Run.open(folder / "run").records) == 1
        return said

    run.__name__ = name
    fault(case, says=f"…/run/readings.jsonl, line 1{says}", kept=LINES)(run)


LINE = "restore the file, or remove that line, which is then measured again"
_record("line_cut", "a line in the middle is cut off", f": not JSON (…); {LINE}", lambda line: line[:50])
_record("line_blank", "a blank line", f": not JSON (…); {LINE}", lambda line: "")
_record("line_binary", "a line of other bytes", f": not JSON (…); {LINE}", lambda line: b"\xff\x00")
_record(
    "line_nan", "a line with NaN, which is not JSON", f": not JSON (NaN is not JSON); {LINE}", _changed("loss", to=float("nan"))
)
_record("line_list", "a line `[]`", f": it is a list, expected an object; {LINE}", lambda line: "[]")
_record(
    "line_deep", "a line with 200,000 nested levels", f": not JSON of geomprobe (nested too deeply); {LINE}", lambda line: DEEP
)
_record(
    "line_foreign",
    "a line of another program",
    f": there is no format number, so geomprobe did not write it; {LINE}",
    lambda line: "{}",
)
_record(
    "line_newer",
    "a line that a newer geomprobe wrote",
    ": written by a newer geomprobe: format 7, this one reads 1; update geomprobe to read it",
    _changed("format", to=7),
)
_record("line_step", '`"step": "abc"`', f': step is "abc", expected a whole number or null; {LINE}', _changed("step", to="abc"))
_record("line_name", '`"name": ["a"]`', f": name is a list, expected text; {LINE}", _changed("name", to=["a"]))
_record(
    "line_kind",
    "an unknown `kind`",
    f': kind is "teacher", expected one of checkpoint, gaussian, untrained; {LINE}',
    _changed("kind", to="teacher"),
)
_record("line_missing", "a field is missing", f": weights is missing; {LINE}", _changed("weights", to=...))
_record("line_unknown", "an unknown field", f": mood is not known; {LINE}", _changed("mood", to="good"))
_record(
    "line_huge",
    "a step of 400 digits",
    f": step is 1000…, expected a whole number or null; {LINE}",
    _changed("step", to=10**400),
)
_record(
    "line_neither",
    "neither a reading nor an error",
    f": expected either a reading or an error; {LINE}",
    _changed("reading", to=None),
)
_record(
    "line_reading",
    "the reading in a line is of a newer format",
    ", reading: written by a newer geomprobe: format 2, this one reads 1; update geomprobe to read it",
    _changed("reading", "format", to=2),
)
_record(
    "line_value",
    "a number in a reading is text",
    f', reading: sites.embed.entropy is "high", expected a number or null; {LINE}',
    _changed("reading", "sites", "embed", "entropy", to="high"),
)
_record(
    "line_curve",
    "a curve whose lists have different lengths",
    f", reading: the lists of curves.embed.gain have different lengths; {LINE}",
    _changed("reading", "curves", "embed", "gain", "count", to=[1]),
)


@fault(
    "`readings.jsonl` cannot be read",
    says="cannot read …/run/readings.jsonl: [Errno 21] Is a directory: …",
    kept=REFUSED,
)
def records_unreadable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    run = _copied(folder)
    (run / READINGS).unlink()
    (run / READINGS).mkdir()
    return _refused_and_kept(folder)


# -- the disk and the folder --------------------------------------------------------------------------------------------------


def _full_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The disk is full when a file with ``name`` in its own is written."""
    sync = os.fsync

    def full(file: int) -> None:
        if name in os.path.basename(os.readlink(f"/proc/self/fd/{file}")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", full)


def _full_disk(name: str, file: str, says: str) -> None:
    def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        shutil.rmtree(_copied(folder))
        with monkeypatch.context() as patch:
            _full_at(patch, file)
            said = refused(lambda: _begin(folder))
        left = _bytes(folder / "run")
        assert not any(name.endswith(".part") for name in left)
        assert not left.get(READINGS)
        _as_undisturbed(folder)
        return said

    run.__name__ = name
    fault(
        f"the disk is full when `{file}` is written",
        says=says,
        kept="the earlier records; no checkpoint is recorded as failed",
        slow=True,
    )(run)


FULL = "cannot write …: [Errno 28] No space left on device; give a file in a writable folder with enough free space"
_full_disk("full_at_manifest", "manifest.json", FULL)
_full_disk("full_at_anchor", "anchor-", FULL)
_full_disk(
    "full_at_record",
    "readings.jsonl",
    "cannot append to …/run/readings.jsonl: [Errno 28] No space left on device; its earlier lines are safe: free some disk "
    "space and run again",
)


@fault(
    "the output folder is a file",
    says="cannot write …/run: …; give a writable folder with enough free space",
    kept="the file",
)
def folder_is_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    shutil.rmtree(_copied(folder))
    (folder / "run").write_text("mine")
    said = refused(lambda: _begin(folder))
    assert (folder / "run").read_text() == "mine"
    return said


@fault(
    "two sweeps into one folder at the same time",
    says="…/run is being written by another sweep: wait for it, or give another folder",
    kept="the run of the first",
)
def two_sweeps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    run = _copied(folder)
    with FileLock(run / ".lock"):
        return _refused_and_kept(folder)


@fault("a sweep is killed while it writes a file", says="", kept="all records; the part of the file is removed", slow=True)
def killed_in_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    run = _copied(folder)
    (run / ".anchor-0123.safetensors.77.part").write_bytes(b"half")
    _as_undisturbed(folder)
    assert not list(run.glob(".*.part"))
    return ""


# -- checkpoints that are compared --------------------------------------------------------------------------------------------


@fault(
    "a checkpoint fails once",
    says="cannot load 'training/checkpoint-1': …",
    kept="its error and the other checkpoints; the next run measures it and mends the comparisons",
    slow=True,
)
def fails_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    shutil.rmtree(_copied(folder))
    weights = folder / "training" / "checkpoint-1" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    (failed,) = _begin(folder).failed
    weights.write_bytes(whole)
    _as_undisturbed(folder)
    return str(failed.error)


@fault(
    "the weights of a measured checkpoint have changed since",
    says="checkpoint-4: the weights have changed since …/run was written: give another folder to measure the new ones",
    kept=REFUSED,
)
def other_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    _copied(folder)
    save_checkpoint(folder / "training" / "checkpoint-4", 5)
    return _refused_and_kept(folder)


def _lose_anchor(run: Path, content: bytes) -> None:
    """Leave the record of the first checkpoint, and damage its Gram matrices."""
    first, _ = (run / READINGS).read_text("utf-8").splitlines(keepends=True)
    (run / READINGS).write_text(first, "utf-8")
    for path in run.glob("anchor-*"):
        path.write_bytes(content)


@fault(
    "the Gram matrices of a checkpoint (`anchor-….safetensors`) are damaged",
    says="",
    kept="all numbers; they are measured again",
    slow=True,
)
def anchor_damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    _lose_anchor(_copied(folder), b"\xff" * 50)
    _as_undisturbed(folder)
    return ""


@fault(
    "the Gram matrices of a checkpoint are damaged, and the checkpoint is gone",
    says="cka_first was not measured: the file anchor-….safetensors is missing or damaged, and checkpoint-1 cannot be measured "
    "again (…)",
    kept="all other numbers; the note is in the reading",
    slow=True,
)
def anchor_and_weights_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    _lose_anchor(_copied(folder), b"")
    shutil.rmtree(folder / "training" / "checkpoint-1")
    reading = _begin(folder).checkpoints[-1].reading
    assert reading is not None
    assert not any(name.startswith("cka") for name in reading.metrics)
    return next(note for note in reading.notes if note.startswith("cka_first"))


# -- states, readings, Trainer's file, the paper's numbers --------------------------------------------------------------------


def _probe(*metrics: Any) -> Probe:
    model = tiny()
    with torch.no_grad(), Probe(model, metrics or [RepresentationEntropy()], on_error="raise") as probe:
        model(token_batch())
    return probe


def _state(name: str, case: str, says: str, damage: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        probe = _probe()
        before = probe.read().to_dict()
        state = damage(probe.state_dict())
        said = refused(lambda: probe.load_state_dict(state))
        assert probe.read().to_dict() == before
        return said

    run.__name__ = name
    fault(f"a saved state of a probe: {case}", says=says, kept="the sums of the probe")(run)


ARGUMENTS = "make the probe with the arguments of the probe that saved the state"
_state(
    "state_other",
    "of other metrics",
    f"this state contains 'eval/embed/information_gain.1', which this probe does not have: {ARGUMENTS}",
    lambda state: _probe(InformationGain()).state_dict(),
)
_state(
    "state_newer",
    "of a newer geomprobe",
    "this state was written by a newer geomprobe: covariance has version 2, this one reads 1; use that version of geomprobe",
    lambda state: {name.replace("covariance.1", "covariance.2"): value for name, value in state.items()},
)
_state(
    "state_foreign",
    "the weights of a model",
    "'model.layers.0.weight' is not the name of a sum of a probe: expected mode/site/accumulator/sum",
    lambda state: {"model.layers.0.weight": torch.zeros(2)},
)
_state(
    "state_half",
    "in half precision",
    "'eval/…' of this state is a tensor of torch.bfloat16: expected a tensor of float64",
    lambda state: {name: value.bfloat16() for name, value in state.items()},
)


def _reading(name: str, case: str, says: str, text: Callable[[str], str]) -> None:
    def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        whole = _probe().read().to_json()
        return refused(lambda: Reading.from_json(text(whole)))

    run.__name__ = name
    fault(f"`Reading.from_json`: {case}", says=f"this is not a reading: {says}", kept="–")(run)


GIVE = "give what Reading.to_dict() or to_json() returned"
_reading("reading_list", "`[]`", f"it is a list, expected an object; {GIVE}", lambda text: "[]")
_reading("reading_deep", "200,000 nested levels", f"not JSON of geomprobe (nested too deeply); {GIVE}", lambda text: DEEP)
_reading(
    "reading_newer",
    "a newer format",
    "written by a newer geomprobe: format 9, this one reads 1; update geomprobe to read it",
    _changed("format", to=9),
)


@fault(
    "`ProbeCallback(jsonl=…)` names a file of the user's own",
    says="…/notes.txt, line 1: not JSON (…); restore the file, or give another one",
    kept="the file as it is; training does not begin",
)
def jsonl_of_the_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "notes.txt").write_text("my notes\n")
    said = refused(lambda: StepFile(folder / "notes.txt").rewind(0))
    assert (folder / "notes.txt").read_text() == "my notes\n"
    return said


@fault(
    "Trainer's `geomprobe.jsonl` ends in a line that is cut off", says="", kept="the other lines; that step is measured again"
)
def jsonl_torn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    file = StepFile(folder / "geomprobe.jsonl")
    for step in (1, 2):
        file.append(step, {"entropy": 0.5})
    file.path.write_bytes(file.path.read_bytes()[:-5])
    file.rewind(2)
    file.append(2, {"entropy": 0.5})
    assert [record["step"] for record in file.records()] == [1, 2]
    return ""


@fault(
    "numbers of the paper (`fig2.json`) that a newer geomprobe wrote",
    says="…/fig2.json: written by a newer geomprobe: format 2, this one reads 1; update geomprobe to read it",
    kept="the file as it is",
)
def paper_newer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "fig2.json").write_text('{"format": 2}')
    said = refused(lambda: run_experiment(FIG2, Request(out=folder)))
    assert (folder / "fig2.json").read_text() == '{"format": 2}'
    return said


@fault(
    "`wandb.json` is damaged",
    says="W&B could not start a run: GeomprobeError: …/wandb.json: not JSON (…). The sweep continues without W&B, and its "
    "numbers are in …. Run the same command again when W&B works, to log the missing records to the same W&B run; delete "
    "…/wandb.json first to log them to a new run",
    kept="all records; the sweep goes on without W&B",
)
def wandb_state_damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    from geomprobe.tracking.sweep_run import SweepTracker

    (folder / "wandb.json").write_text("{")

    def track() -> None:
        with SweepTracker(folder, "project", {}):
            pass

    return warned(track)


@fault(
    "`sweep --wandb`: the page of a text at the end cannot be made",
    says="W&B could not get the figures and the page of a text: RuntimeError: no memory. The sweep continues without W&B, and "
    "its numbers are in …",
    kept="all records, here and in W&B; the command succeeds",
)
def closing_page_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    from geomprobe.tracking.sweep_run import SweepTracker

    monkeypatch.setenv("WANDB_MODE", "disabled")

    def fails() -> dict[str, str]:
        raise RuntimeError("no memory")

    def track() -> None:
        with SweepTracker(folder, "project", {}) as tracker:
            tracker.finish(dict, fails)

    return warned(track)
