"""Schedules."""

from typing import Any

import pytest

from geomprobe import GeomprobeError, every


@pytest.mark.parametrize(("n", "steps"), [(1, [0, 1, 2, 3, 4, 5, 6, 7]), (3, [0, 3, 6]), (100, [0])])
def test_every_names_the_steps_n_divides(n: int, steps: list[int]) -> None:
    assert [step for step in range(8) if every(n)(step)] == steps


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "3", None, True, False])
def test_every_wants_a_whole_number_of_steps(wrong: Any) -> None:
    with pytest.raises(GeomprobeError, match=rf"every\({wrong!r}\): expected a whole number of steps, 1 or more"):
        every(wrong)
