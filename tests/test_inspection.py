"""What ``geomprobe inspect`` prints of a text, whatever its tokens are."""

import math
import unicodedata

import pytest

from geomprobe.inspection import Inspection
from geomprobe.metrics.metric import Curve
from geomprobe.reading import Reading


def inspection(tokens: tuple[str, ...], gain: tuple[float, ...]) -> Inspection:
    reading = Reading(mode="eval", sites=("final_norm",))
    if any(map(math.isfinite, gain)):
        reading.add("final_norm", "gain_per_token", 1.0)
        reading.add_curve("final_norm", "gain", Curve(gain, None, (1,) * len(gain)))
    return Inspection(reading, tokens)


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def shown(of: Inspection) -> list[str]:
    """The lines under the title: words and bars in turn."""
    lines = str(of).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("information gain of each token"))
    return lines[start + 2 :]


def test_every_token_stands_over_its_bar() -> None:
    tokens = (" the", "\n", "模型", "<script>", "\t", "🙂", "", "\x00", "x" * 79) * 6
    gain = tuple(float(i % 9) for i in range(len(tokens)))
    lines = shown(inspection(tokens, gain))
    assert all(columns(line) <= 80 for line in lines)
    words, bars = lines[0::2], lines[1::2]
    for above, below in zip(words, bars, strict=True):
        assert [columns(word) for word in above.split()] == [len(bar) for bar in below.split()]
    assert " ".join(words).split()[:5] == ["the", "⏎", "模型", "<script>", "⇥"]
    assert "▁▁▁" in bars[0]  # the first gains least
    assert "█" * 79 in bars  # the last most


@pytest.mark.parametrize("gain", [(math.nan, 1.0, 2.0), (1.0, math.nan, 2.0), (1.0, 2.0)])
def test_a_token_whose_row_is_not_finite_has_no_bar(gain: tuple[float, ...]) -> None:
    bars = shown(inspection(("a", "b", "c"), gain))[1].split()
    finite = [*map(math.isfinite, gain), *[False] * (3 - len(gain))]
    assert [bar != "?" for bar in bars] == finite


def test_no_finite_row_at_all_is_said() -> None:
    assert "no token had a finite row at final_norm" in str(inspection(("a",), (math.nan,)))


def test_equal_gains_are_drawn() -> None:
    assert shown(inspection(("a", "b"), (1.0, 1.0)))[1].split() == ["▁", "▁"]
