"""The table of trainings that differ in their seed only."""

from geomprobe import Reading
from tests.seeds import METRICS, table


def test_the_table_has_means_and_relative_deviations() -> None:
    runs = [{step: reading(value + step) for step in (0, 20)} for value in (9.0, 11.0)]
    head, untrained, trained = table(runs).splitlines()
    assert head.split() == ["step", *METRICS]
    assert untrained.split() == ["0", *["10", "±", "14.1%"] * 4]  # the deviation of 9 and 11 is √2
    assert trained.split() == ["20", *["30", "±", "4.7%"] * 4]


def reading(value: float) -> Reading:
    return Reading("eval", ["final_norm"], {f"{metric}/final_norm": value for metric in METRICS})
