"""The shape of records and the order of a run."""

from dataclasses import fields

from geomprobe.sweeps.records import _RECORD, Record, place


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
