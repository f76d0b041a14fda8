"""Schedules."""

import pickle
import re
from typing import Any

import pytest

from geomprobe import GeomprobeError, every
from geomprobe.schedule import as_schedule


@pytest.mark.parametrize(("n", "steps"), [(1, [0, 1, 2, 3, 4, 5, 6, 7]), (3, [0, 3, 6]), (100, [0])])
def test_every_names_the_steps_n_divides(n: int, steps: list[int]) -> None:
    assert [step for step in range(8) if every(n)(step)] == steps


def test_a_schedule_can_be_pickled_as_callbacks_are_for_spawned_processes() -> None:
    assert [step for step in range(7) if pickle.loads(pickle.dumps(every(3)))(step)] == [0, 3, 6]


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "3", None, True, False])
def test_every_wants_a_whole_number_of_steps(wrong: Any) -> None:
    with pytest.raises(GeomprobeError, match=rf"every\({wrong!r}\): expected a whole number of steps, 1 or more"):
        every(wrong)


def test_a_number_means_every_so_many_steps_and_a_schedule_stays_itself() -> None:
    schedule = as_schedule(3)
    assert schedule is not None
    assert [step for step in range(8) if schedule(step)] == [0, 3, 6]
    chosen = {1, 4}.__contains__
    assert as_schedule(chosen) is chosen
    assert as_schedule(None) is None


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "3", True, False, [50], {1, 10}])
def test_what_is_no_schedule_is_refused(wrong: Any) -> None:
    with pytest.raises(GeomprobeError, match=re.escape(f"when={wrong!r}: expected a whole number of steps, 1 or more, or a")):
        as_schedule(wrong)
