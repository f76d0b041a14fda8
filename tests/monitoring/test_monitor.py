"""The monitor against a slow twin in NumPy, and what must hold whatever the numbers are."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geomprobe import Alarm, GeomprobeError, Monitor, Reading, Rule
from geomprobe.metrics.base import Curve
from geomprobe.monitoring.rules import DEFAULT_RULES

few = settings(max_examples=60, deadline=None, derandomize=True)
SITES = ("embed", "layer_00", "layer_01", "layer_02")
UP = Rule(signal="x", direction="up", ratio=2.0)


def reading(values: Iterable[float], mode: str = "train", signal: str = "x") -> Reading:
    return Reading(mode, SITES, {f"{signal}/{site}": value for site, value in zip(SITES, values, strict=False)})


def rings(monitor: Monitor, series: Iterable[float], first: int = 0) -> list[int]:
    """The steps at which a signal without sites rings."""
    return [at for at, value in enumerate(series, first) if monitor.update(at, numbers={"x": value})]


def two_modes(fixed: Mapping[int, float]) -> tuple[Monitor, Alarm]:
    """A monitor whose training texts rise at step 40 and ring at 50, with other numbers of fixed texts at some steps before."""
    monitor = Monitor([Rule(signal="x", direction="up", difference=0.5, window=4)])
    for step in range(0, 60, 10):
        if step in fixed:
            monitor.update(step, mode="fixed", numbers={"x": fixed[step]})
        alarms = monitor.update(step, numbers={"x": 1.0 + (step >= 40)})
    (alarm,) = alarms
    return monitor, alarm


def test_a_mode_that_was_read_before_the_hits_is_not_compared() -> None:
    monitor, alarm = two_modes({0: 1.0, 10: 1.0, 20: 1.0, 30: 1.0})  # step 30 comes before the rise
    assert (alarm.moved, alarm.unmoved) == (("train",), ())
    assert str(alarm).endswith("No other texts were compared.")
    for value, moved, unmoved in ((1.0, ("train",), ("fixed",)), (2.0, ("train", "fixed"), ())):
        monitor, alarm = two_modes({0: 1.0, 10: 1.0, 20: 1.0, 30: 1.0})
        monitor.update(50, mode="fixed", numbers={"x": value})
        again = monitor.compared(alarm)
        assert (again.moved, again.unmoved) == (moved, unmoved)
        assert dataclasses.replace(again, moved=alarm.moved, unmoved=alarm.unmoved) == alarm


def test_a_mode_of_an_earlier_training_is_not_compared() -> None:
    """A monitor that was given to a second training has only read its training texts there."""
    monitor = two_modes(dict.fromkeys(range(0, 60, 10), 1.0))[0]
    monitor.update(60, mode="fixed", numbers={"x": 1.0})
    found = [alarm for step in range(1, 50) for alarm in monitor.update(step, numbers={"x": 1.0 + (step >= 40)})]
    assert [(alarm.step, alarm.moved, alarm.unmoved) for alarm in found] == [(41, ("train",), ())]


def test_numbers_and_named_arguments_are_the_same() -> None:
    """None is no number, and hides none that is given by its name."""
    monitor = Monitor(
        [Rule(signal="loss", direction="up", difference=0.5), Rule(signal="gradient_norm", direction="up", ratio=2.0)]
    )
    monitor.update(0, numbers={"loss": 1.0, "gradient_norm": 1.0})
    assert monitor.without_data == ()


rules = st.builds(
    lambda direction, limit, over, hits, window: Rule(
        signal="x", direction=direction, over=over, hits=min(hits, window // 2), window=window, **limit
    ),
    st.sampled_from(["up", "down"]),
    st.sampled_from([{"ratio": 1.5}, {"ratio": 3.0}, {"difference": 0.5}, {"difference": 2.0}]),
    st.sampled_from(["mean", "median", "min", "max", "first", "last"]),
    st.integers(1, 3),
    st.integers(2, 6),
)
levels = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.125, 2.0, 4.0, math.nan])
rows = st.lists(st.lists(levels, min_size=4, max_size=4), min_size=12, max_size=40)


def twin(rule: Rule, table: Sequence[Sequence[float]]) -> list[int]:
    """The indices at which a rule rings, by the words of its docstring."""
    combine: Any = {
        "mean": np.mean,
        "median": np.median,
        "min": np.min,
        "max": np.max,
        "first": lambda v: v[0],
        "last": lambda v: v[-1],
    }
    seen = np.empty((0, len(SITES)))
    hits: list[bool | None] = []
    on, rang = False, []
    for t, row in enumerate(np.array(table)):
        if np.isnan(row).all():
            continue
        past, seen = seen[-rule.window :], np.vstack([seen, row])
        shared = ~np.isnan(np.vstack([past, row])).any(0)
        hit: bool | None = None
        if len(past) == rule.window and shared.any():
            base, value = np.median([combine[rule.over](old[shared]) for old in past]), combine[rule.over](row[shared])
            if rule.difference is not None:
                hit = bool((value - base) * (1 if rule.direction == "up" else -1) >= rule.difference)
            elif base > 0 and value >= 0:
                assert rule.ratio is not None
                with np.errstate(divide="ignore"):
                    hit = bool((value / base if rule.direction == "up" else np.float64(base) / value) >= rule.ratio)
        hits.append(hit)
        latest = hits[-rule.hits :]
        if not on and latest == [True] * rule.hits:
            on = True
            rang.append(t)
        elif on and latest == [False] * rule.hits:
            on = False
    return rang


@few
@given(rules, rows)
def test_rings_as_the_twin(rule: Rule, table: list[list[float]]) -> None:
    monitor = Monitor([rule])
    assert [t for t, row in enumerate(table) if monitor.update(t, reading(row))] == twin(rule, table)


def test_the_twin_rings_at_all() -> None:
    assert twin(UP, [[1.0] * 4] * 10 + [[3.0] * 4] * 3) == [11]


def told(alarms: Iterable[Alarm]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(alarm) for alarm in alarms]


@few
@given(rules, rows, st.integers(0, 10**6), st.integers(1, 1000))
def test_steps_are_names_only(rule: Rule, table: list[list[float]], shift: int, stride: int) -> None:
    plain, moved = Monitor([rule]), Monitor([rule])
    for t, row in enumerate(table):
        expected = told(plain.update(t, reading(row)))
        found = told(moved.update(shift + stride * t, reading(row)))
        assert [alarm | {"step": t} for alarm in found] == expected


@few
@given(rules, rows, st.integers(0, 39))
def test_a_run_that_resumes_anywhere_rings_as_one_that_never_stopped(rule: Rule, table: list[list[float]], at: int) -> None:
    whole = Monitor([rule, DEFAULT_RULES[0]])
    never = [told(whole.update(t, reading(row, mode))) for t, row in enumerate(table) for mode in ("train", "fixed")]
    stopped = Monitor([rule, DEFAULT_RULES[0]])
    again: list[list[dict[str, Any]]] = []
    for t, row in enumerate(table):
        if t == at:
            saved = json.loads(json.dumps(stopped.state_dict(), allow_nan=False))
            for later in range(3):  # steps that are lost, because no checkpoint was written after them
                stopped.update(t + later, reading([100.0] * 4))
            stopped = Monitor([rule, DEFAULT_RULES[0]])
            stopped.load_state_dict(saved)
        again += [told(stopped.update(t, reading(row, mode))) for mode in ("train", "fixed")]
    assert again == never
    assert stopped.state_dict() == whole.state_dict()
    assert stopped.active == whole.active


def test_every_point_of_one_run_resumes() -> None:
    """The same at each step of a run with alarms, which the search above may miss."""
    series = [1.0] * 12 + [3.0] * 9 + [1.0] * 14 + [math.inf] * 3 + [1.0] * 4
    expected = rings(Monitor([UP]), series)
    assert expected == [13, 36]
    for at in range(len(series)):
        first, second = Monitor([UP]), Monitor([UP])
        early = rings(first, series[:at])
        second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
        assert early + rings(second, series[at:], at) == expected


@few
@given(st.lists(st.floats(1.0, 1.99), min_size=1, max_size=60))
def test_numbers_within_the_limit_never_ring(series: list[float]) -> None:
    down = dataclasses.replace(UP, direction="down", name="")
    by = [Rule(signal="x", direction=direction, difference=1.0, name=direction) for direction in ("up", "down")]
    assert rings(Monitor([UP, down, *by]), series) == []


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_slow_drift_never_rings_and_a_fast_one_does(direction: Any) -> None:
    """A drift of a factor g a reading is g^5.5 from the median of the ten readings before."""
    rule = Rule(signal="x", direction=direction, ratio=1.5)
    for factor, expected in ((1.07, False), (1.09, True)):
        grown = factor if direction == "up" else 1 / factor
        assert bool(rings(Monitor([rule]), [5.0 * grown**t for t in range(100)])) is expected


@few
@given(rules, st.integers(0, 9), st.floats(1.0, 9.0))
def test_a_jump_rings_at_the_last_of_its_hits(rule: Rule, before: int, size: float) -> None:
    level = 40.0
    far = rule.limit * (1 + size)
    if rule.ratio is not None:
        after = level * far if rule.direction == "up" else level / far
    else:
        after = level + far if rule.direction == "up" else level - far
    calm = rule.window + before
    assert rings(Monitor([rule]), [level] * calm + [after] * rule.hits) == [calm + rule.hits - 1]
    assert rings(Monitor([rule]), [level] * calm + [after] * (rule.hits - 1) + [level] * 20) == []


def test_a_rule_is_silent_until_its_window_is_full_and_hits_are_in_a_row() -> None:
    assert rings(Monitor([UP]), [1.0] * 9 + [3.0] * 3) == [11]  # the first of the three is not judged
    assert rings(Monitor([UP]), [1.0] * 10 + [3.0, 1.0, 3.0, 1.0]) == []
    assert rings(Monitor([UP]), [1.0] * 10 + [3.0, -1.0, 3.0, 3.0]) == [13]  # a ratio of −1 means nothing, so it is no hit


def test_an_alarm_rings_once_and_ends_when_the_signal_returns() -> None:
    monitor = Monitor([UP])
    assert rings(monitor, [1.0] * 10 + [3.0, 3.0, 3.0], 0) == [11]
    assert list(monitor.active) == [("x_up", "train")]
    assert rings(monitor, [1.0, 3.0, 3.0], 13) == []  # one reading within the limit does not end it
    assert monitor.active
    assert rings(monitor, [1.0, 1.0], 16) == []
    assert not monitor.active
    assert rings(monitor, [1.0] * 10 + [3.0, 3.0], 18) == [29]


def test_an_alarm_ends_when_the_baseline_has_followed() -> None:
    monitor = Monitor([UP])
    assert rings(monitor, [1.0] * 10 + [3.0] * 6) == [11]
    assert monitor.active
    assert rings(monitor, [3.0] * 30, 16) == []
    assert not monitor.active


def test_notify_silences_a_known_change_and_nothing_after_it() -> None:
    series = [1.0] * 10 + [3.0] * 20
    assert rings(Monitor([UP]), series)
    monitor = Monitor([UP])
    assert rings(monitor, series[:10]) == []
    monitor.notify("another dataset")
    assert rings(monitor, series[10:], 10) == []
    (alarm,) = [alarm for step in (30, 31) for alarm in monitor.update(step, numbers={"x": 9.0})]
    assert alarm.event == "another dataset"
    assert "The latest known change of schedule: another dataset." in str(alarm)
    assert monitor.without_data == ()
    monitor.notify("the learning rate is divided by 10")
    assert not monitor.active  # it ends, too
    with pytest.raises(GeomprobeError, match="expected what happens in words"):
        monitor.notify("")


def test_the_event_is_saved() -> None:
    monitor, resumed = Monitor([UP]), Monitor([UP])
    monitor.notify("warm-up ends")
    resumed.load_state_dict(monitor.state_dict())
    rings(resumed, [1.0] * 11)
    resumed.update(11, numbers={"x": 5.0})
    (alarm,) = resumed.update(12, numbers={"x": 5.0})
    assert alarm.event == "warm-up ends"


# -- what is missing, or no number ----------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_a_hit_and_enters_no_baseline() -> None:
    up = Rule(signal="loss", direction="up", difference=0.5)
    down = Rule(signal="loss", direction="down", difference=0.5)
    monitor = Monitor([up, down])
    series = [2.0] * 10 + [math.inf] + [2.0] * 3 + [math.nan] * 15 + [2.0] * 3
    found = [alarm for step, loss in enumerate(series) for alarm in monitor.update(step, loss=loss)]
    assert [(alarm.name, alarm.step) for alarm in found] == [("loss_up", 15)]
    assert found[0].baseline == 2.0
    assert "loss on training texts is nan" in str(found[0])
    assert not monitor.active
    first = Monitor([up])  # a baseline is not needed to tell that a loss is no number
    assert [alarm.step for step in (1, 2) for alarm in first.update(step, loss=math.nan)] == [2]


def test_a_site_that_goes_missing_is_no_change() -> None:
    """Without comparing the same sites, the mean would fall from 34 to 1."""
    rule = Rule(signal="x", direction="down", ratio=1.5)
    monitor = Monitor([rule])
    for step in range(30):
        last = 100.0 if step < 15 else math.nan
        assert monitor.update(step, reading([math.nan, 1.0, 1.0, last])) == []
    assert monitor.changes == {"x_down": 1.0}


def test_an_absent_signal_leaves_its_rule_as_it_is() -> None:
    monitor = Monitor([UP, Rule(signal="y", direction="up", ratio=2.0)])
    for step in range(0, 20, 2):
        monitor.update(step, numbers={"x": 1.0})
        monitor.update(step + 1, loss=1.0)  # other numbers, at steps between
    assert monitor.update(20, numbers={"x": 3.0}) == []
    assert monitor.update(21, loss=1.0) == []
    assert monitor.changes == {}
    assert [alarm.step for alarm in monitor.update(22, numbers={"x": 3.0})] == [22]
    assert monitor.without_data == ("y_up",)
    assert monitor.update(23, reading([math.nan] * 4, signal="y")) == []
    assert monitor.without_data == ("y_up",)


def test_rows_with_nan_count_from_the_first() -> None:
    """A reading has their number only where there are any."""
    monitor = Monitor()
    counts = {f"tokens/{site}": 64.0 for site in SITES}
    alarms = []
    for step in range(12):
        bad = {"nonfinite/layer_01": 3.0} if step >= 10 else {}
        alarms += monitor.update(step, Reading("train", SITES, counts | bad))
    assert [(alarm.name, alarm.step, alarm.site) for alarm in alarms] == [("nonfinite_up", 11, "layer_01")]


def test_a_curve_counts_as_its_median_over_heads() -> None:
    rule = Rule(signal="by_head", direction="up", ratio=2.0, over="median")

    def heads(*values: float) -> Reading:
        curves = {f"by_head/{site}": Curve(values, None, (9,) * len(values)) for site in ("layer_00", "layer_01")}
        return Reading("train", SITES, curves=curves | {"by_head/embed": Curve((), None, ())})

    monitor = Monitor([rule])
    for step in range(10):
        assert monitor.update(step, heads(1.0, 1.0, 1.0, math.nan)) == []
    assert monitor.update(10, heads(1.0, 1.0, 99.0, math.nan)) == []
    assert monitor.changes == {"by_head_up": 1.0}
    monitor.update(11, heads(1.0, 3.0, 3.0, math.nan))
    assert monitor.changes == {"by_head_up": 3.0}


def test_the_sites_of_a_rule_and_the_one_that_moved_most() -> None:
    every, some = UP, dataclasses.replace(UP, sites=("layer_02", "layer_00", "layer_77"), over="first", name="some")
    monitor = Monitor([every, some])
    for step in range(10):
        monitor.update(step, reading([math.nan, 10.0, 1.0, 100.0]))
    found = [alarm for step in (10, 11) for alarm in monitor.update(step, reading([math.nan, 40.0, 9.0, 300.0]))]
    assert [(alarm.name, alarm.site, alarm.value, alarm.baseline) for alarm in found] == [
        ("x_up", "layer_01", 349 / 3, 37.0),
        ("some", "layer_02", 300.0, 100.0),
    ]


# -- steps that come again, and modes -------------------------------------------------------------------------------------


def test_steps_that_come_again_replace_those_before() -> None:
    """A training that begins again at a checkpoint is not held against the readings that were undone."""
    monitor = Monitor([UP])
    assert rings(monitor, [1.0] * 10 + [9.0] * 4) == [11]
    assert monitor.active
    assert rings(monitor, [1.0] * 2, 10) == []
    assert not monitor.active  # it rang in the part that was undone
    assert [old["step"] for old in monitor.state_dict()["tracks"]["x_up"]["train"]["readings"]] == list(range(4, 12))
    assert rings(monitor, [1.0] * 8 + [3.0] * 2, 12) == [21]
    assert rings(monitor, [1.0, 1.0, 1.0], 21) == []
    assert monitor.state_dict()["tracks"]["x_up"]["train"]["step"] == 23


def test_modes_have_baselines_of_their_own_and_an_alarm_compares_them() -> None:
    monitor = Monitor([UP])

    def at(step: int, train: float, fixed: float) -> list[Alarm]:
        return monitor.update(step, reading([train] * 4)) + monitor.update(step, reading([fixed] * 4, "eval"), mode="fixed")

    for step in range(12):
        assert at(step, 1.0, 50.0) == []
    at(12, 3.0, 50.0)
    (alone,) = at(13, 3.0, 50.0)
    assert (alone.mode, alone.moved, alone.unmoved) == ("train", ("train",), ("fixed",))
    assert "It has not moved on fixed texts" in str(alone)
    at(14, 3.0, 150.0)
    (both,) = at(15, 3.0, 150.0)
    assert (both.mode, both.moved, both.unmoved) == ("fixed", ("fixed", "train"), ())
    assert "It moved on training texts too" in str(both)
    assert monitor.active == (("x_up", "train"), ("x_up", "fixed"))


def test_an_alarm_tells_what_where_how_far_and_what_next() -> None:
    monitor = Monitor([dataclasses.replace(UP, meaning="It may be so.", look_at="Look there.")])
    for step in range(10):
        monitor.update(step, reading([math.nan, 1.0, 1.0, 1.0]))
    monitor.update(10, reading([math.nan, 1.0, 8.0, 1.0]))
    (alarm,) = monitor.update(11, reading([math.nan, 1.0, 8.0, 1.0]))
    assert str(alarm) == (
        "Step 11: x on training texts rose by a factor of 3.33, from a median of 1 to 3.333, most at layer_01. No other texts "
        "were compared. What it may mean: It may be so. What to look at next: Look there."
    )


# -- what is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": -1}, "expected a whole number"),
        ({"step": True}, "expected a whole number"),
        ({"step": 1.0}, "expected a whole number"),
        ({"mode": 3}, "expected a name"),
        ({"loss": torch.tensor(1.0)}, "loss = Tensor: expected a plain number; for a tensor give .item()"),
        ({"gradient_norm": "1.0"}, "gradient_norm = str: expected a plain number"),
        ({"numbers": {"repeated_batch": True}}, "repeated_batch = bool: expected a plain number"),
    ],
)
def test_an_update_that_cannot_be_meant_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(GeomprobeError, match=message):
        Monitor().update(**({"step": 1} | arguments))


def test_numpys_numbers_are_taken() -> None:
    monitor = Monitor()
    monitor.update(1, loss=np.float32(1.0), gradient_norm=np.float64(2.0))  # type: ignore[arg-type]
    json.dumps(monitor.state_dict())


def test_rules_that_are_none_or_have_one_name_are_refused() -> None:
    with pytest.raises(GeomprobeError, match=r"several rules are named x_up; give each a name of its own"):
        Monitor([UP, dataclasses.replace(UP, ratio=3.0)])
    with pytest.raises(GeomprobeError, match="expected a list of Rule"):
        Monitor(["entropy"])  # type: ignore[list-item]
    for wrong in (None, 3, Monitor):
        with pytest.raises(GeomprobeError, match="expected a list of Rule"):
            Monitor(wrong)  # type: ignore[arg-type]


def _without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: _without(state, "tracks"), "tracks"),
        (lambda state: state | {"format": 99}, "update geomprobe"),
        (lambda state: state | {"tracks": {}}, "its tracks are not those of its rules"),
        (lambda state: state | {"rules": []}, "the rules x_up are not those it was saved with"),
        (lambda state: state | {"rules": [state["rules"][0] | {"ratio": 3.0}]}, "the rules x_up are not those"),
        (lambda state: {"tracks": 3}, "not the state of these alarms"),
    ],
)
def test_a_state_that_is_not_its_own_is_refused_and_changes_nothing(damage: Any, message: str) -> None:
    monitor = Monitor([UP])
    rings(monitor, [1.0] * 10 + [3.0] * 2)
    before: Mapping[str, Any] = monitor.state_dict()
    with pytest.raises(GeomprobeError, match=message):
        monitor.load_state_dict(damage(json.loads(json.dumps(before))))
    assert monitor.state_dict() == before
    worded = Monitor([dataclasses.replace(UP, meaning="Other words.")])  # which no alarm depends on
    worded.load_state_dict(before)
    assert worded.state_dict() == before
