"""Faults of the files of a sweep."""

import os
from pathlib import Path

import pytest

from geomprobe.sweeps.records import Run
from tests.faults.table import fault, refused


@fault(
    "a folder that no sweep wrote",
    says="…/run is not a run of a sweep: expected a folder that contains manifest.json",
    kept="the folder as it is",
)
def no_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "run").mkdir()
    (folder / "run" / "notes.txt").write_text("mine")
    said = refused(lambda: Run.open(folder / "run"))
    assert os.listdir(folder / "run") == ["notes.txt"]
    return said
