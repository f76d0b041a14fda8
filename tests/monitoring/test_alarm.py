"""An alarm as JSON."""

import json

import pytest

from geomprobe import Alarm, GeomprobeError, Monitor, Rule


@pytest.mark.parametrize("value", [3.0, float("nan"), float("inf"), float("-inf")])
def test_an_alarm_returns_from_json(value: float) -> None:
    monitor = Monitor([Rule(signal="loss", direction="up", difference=0.5, hits=1)])
    for step in range(11):
        alarms = monitor.update(step, loss=2.0 if step < 10 else value)
    (alarm,) = alarms
    text = json.dumps(alarm.to_dict(), allow_nan=False)
    again = Alarm.from_dict(json.loads(text))
    assert str(again) == str(alarm)
    assert repr(again) == repr(alarm)  # NaN is not equal to itself


def _like(monitor: Monitor) -> dict[str, object]:
    (alarm,) = monitor.update(11, loss=9.0)
    return alarm.to_dict()


@pytest.mark.parametrize("wrong", [{"value": "large"}, {"moved": "train"}, {"direction": "sideways"}, {"name": None}])
def test_anything_else_is_refused(wrong: dict[str, object]) -> None:
    monitor = Monitor([Rule(signal="loss", direction="up", difference=0.5, hits=1)])
    for step in range(11):
        monitor.update(step, loss=2.0)
    with pytest.raises(GeomprobeError, match=rf"this is not an alarm: {next(iter(wrong))} is .*Alarm.to_dict\(\)"):
        Alarm.from_dict(_like(monitor) | wrong)
