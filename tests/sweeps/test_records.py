"""The shape of records, the order of a run, its table and its export."""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from geomprobe.errors import GeomprobeError
from geomprobe.reading import Reading
from geomprobe.sweeps.export import export
from geomprobe.sweeps.records import _RECORD, Record, Run, place
from geomprobe.sweeps.table import table


def measured(name: str, rank: float = 3.0, **options: Any) -> Record:
    return Record(name=name, reading=Reading("eval", ("final_norm",), {"effective_rank/final_norm": rank}, [], {}), **options)


def run(*records: Record) -> Run:
    return Run(Path("run"), {}, list(records))


def test_the_shape_names_every_field() -> None:
    assert set(_RECORD) == {"format", *(field.name for field in fields(Record))}


def test_the_order_is_that_of_the_arguments_then_of_steps() -> None:
    listed = [
        Record(name="checkpoint-4", model="b/checkpoint-4", step=4),
        Record(name="checkpoint-16", model="b/checkpoint-16", step=16),
        Record(name="step2", model="a", revision="step2", step=2),
        Record(name="main", model="a", revision="main"),
        Record(name="last", model="a", revision="last"),
        Record(name="gone", model="elsewhere/checkpoint-1", step=1),
    ]
    key = {record.name: place(record, ["b/", "a"], ["main", "last", "step2"]) for record in listed}
    assert sorted(key, key=lambda name: key[name]) == [record.name for record in listed]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_written_as_none(loss: float) -> None:
    told = measured("a", loss=loss).to_dict()
    assert told["loss"] is None
    assert Record.from_dict(json.loads(json.dumps(told, allow_nan=False))).loss is None


def test_the_axis_is_that_in_which_checkpoints_differ_more() -> None:
    def axis(*places: tuple[int | None, int]) -> str:
        return run(*(measured(str(i), step=step, parameters=size) for i, (step, size) in enumerate(places))).axis

    assert axis((1, 70), (2, 70), (2, 160)) == "step"
    assert axis((1, 70), (2, 160)) == "step"
    assert axis((1, 70), (1, 160)) == "parameters"
    assert axis((None, 70), (2, 70)) == "parameters"


def test_the_table_shows_a_dash_for_what_is_no_number() -> None:
    lines = table(run(measured("a", math.nan, step=1, loss=math.nan), measured("b", step=2, loss=2.0))).splitlines()
    assert [line.split() for line in lines if line] == [
        ["run:", "2", "checkpoints,", "final_norm"],
        ["checkpoint", "loss", "eff.rank"],
        ["a", "–", "–"],
        ["b", "2.000", "3.0"],
    ]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_an_export_is_written_whole_or_not_at_all(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / f"numbers.{ending}"
    path.write_text("old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(GeomprobeError, match="No space left"):
        export(run(measured("a")), path)
    assert path.read_text() == "old"
