"""The annotations beside the lines of a figure."""

from typing import Any

import pytest

from geomprobe.report.marks import name_ends


@pytest.mark.parametrize(
    ("ends", "named"),
    [((10.0, 1.0, 5.0), ["a", "b", "c"]), ((10.0, 9.9, 10.1), ["c"]), ((10.0, 10.0, 10.0), []), ((10.0, 9.9, None), [])],
)
def test_a_name_at_the_end_of_a_line_does_not_lie_on_another(ends: tuple[float | None, ...], named: list[str]) -> None:
    lines: list[dict[str, Any]] = [
        {"name": name, "mode": "lines", "x": [0, 1], "y": [1.0 + i, end]}
        for i, (name, end) in enumerate(zip("abc", ends, strict=True))
    ]
    room = name_ends(lines)
    assert [line["name"] for line in lines if "text" in line] == named
    assert bool(room) == bool(named)
