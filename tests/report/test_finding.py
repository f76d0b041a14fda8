"""The first sentence of a report: what it says of flat, monotone, turning, noisy and short series, and of several runs."""

import math
import random
from dataclasses import replace

import pytest

from geomprobe.report.finding import Series, compare_runs, describe_models, describe_run

STEPS = (1, 2, 4, 8, 16, 32, 64, 128)
DIP = (18.4, 17.2, 9.1, 3.0, 2.2, 6.9, 14.2, 20.3)


def series(*values: float, site: str = "final_norm", untrained: float | None = 18.4, spread: float = 0.0) -> Series:
    """An effective rank over steps that double."""
    places = tuple(f"step {step}" for step in STEPS[: len(values)])
    return Series("effective rank", site, places, values, width=128, untrained=untrained, spread=spread)


def said(*courses: Series, loss: tuple[float, float] | None = (5.56, 1.41)) -> str:
    return str(describe_run(courses, loss))


# -- one run ----------------------------------------------------------------------------------------------------------------


def test_a_collapse_and_its_recovery() -> None:
    assert said(series(*DIP)) == (
        "Collapse, then recovery: the effective rank after the last layer (final_norm) fell from 18.4 to 2.2 at step 16, then "
        "rose to 20.3 of 128 at step 128 (untrained 18.4), while the loss went from 5.56 to 1.41."
    )


def test_a_flat_series_says_that_there_is_no_clear_change() -> None:
    assert said(series(18.4, 18.0, 19.9, 18.9, 18.2)) == (
        "No clear change: the effective rank after the last layer (final_norm) stayed between 18 and 19.9 of 128 (untrained "
        "18.4), while the loss went from 5.56 to 1.41."
    )
    assert said(series(5.0, 5.0, 5.0), loss=None).startswith(
        "No clear change: the effective rank after the last layer (final_norm) "
    )
    assert "stayed at 5 of 128" in said(series(5.0, 5.0, 5.0))


def test_a_change_within_the_spread_of_untrained_models_is_none() -> None:
    assert said(series(18.4, 12.0, 18.4)).startswith("Fall, then recovery: ")
    within = said(series(18.4, 12.0, 18.4, spread=7.0))
    assert within.startswith("No clear change: ")
    assert "two untrained models differ by 7" in within


@pytest.mark.parametrize(
    ("values", "start"),
    [
        (
            (18.4, 16.0, 14.0, 12.0, 11.0),
            "Fall: the effective rank after the last layer (final_norm) fell from 18.4 to 11 of 128 ",
        ),
        (
            (18.4, 12.0, 8.0, 4.0, 3.0),
            "Collapse: the effective rank after the last layer (final_norm) fell from 18.4 to 3 of 128 ",
        ),
        ((10.0, 14.0, 18.0, 25.0), "Rise: the effective rank after the last layer (final_norm) rose from 10 to 25 of 128 "),
    ],
)
def test_a_monotone_series_has_no_turn(values: tuple[float, ...], start: str) -> None:
    text = said(series(*values))
    assert text.startswith(start)
    assert ", without changing direction, while the loss " in text


def test_a_dip_without_recovery_is_no_turn() -> None:
    assert said(series(18.4, 12.0, 2.2, 3.1, 4.0)) == (
        "Collapse without recovery: the effective rank after the last layer (final_norm) fell from 18.4 to 2.2 at step 4, and "
        "is 4 of 128 at step 16 (untrained 18.4), while the loss went from 5.56 to 1.41."
    )


def test_a_partial_recovery_is_called_so() -> None:
    text = said(series(18.4, 10.6, 2.6, 2.2, 3.2, 5.8, 6.9))
    assert text.startswith("Collapse, then partial recovery: ")
    assert "fell from 18.4 to 2.2 at step 8, then rose to 6.9 of 128 at step 64" in text


def test_a_peak_and_three_phases() -> None:
    assert said(series(10.0, 30.0, 11.0)).startswith("Rise, then fall: ")
    three = said(series(18.4, 2.2, 25.1, 30.2, 20.3, 14.0))
    assert three.startswith("Collapse, then recovery, then fall: ")
    assert "fell from 18.4 to 2.2 at step 2, then rose to 30.2 at step 8, then fell to 14 of 128 at step 32" in three


def test_where_the_last_point_lies_within_the_last_turn_both_are_told() -> None:
    assert "then rose to 17 at step 8, and is 13.5 of 128 at step 16" in said(series(18.4, 2.2, 9.0, 17.0, 13.5))


def test_a_small_rise_before_the_fall_is_not_the_start_of_a_turn() -> None:
    assert "fell from 18.4 to 2.2 at step 4, then rose" in said(series(18.4, 19.5, 2.2, 20.0))


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_collapse(seed: int) -> None:
    draw = random.Random(seed)
    values = tuple(18.0 * math.exp(draw.gauss(0, 0.3)) for _ in range(60))
    noisy = Series("effective rank", "final_norm", tuple(f"step {i}" for i in range(60)), values, width=128)
    text = said(noisy)
    assert text.startswith("No clear trend: the effective rank after the last layer (final_norm) changed direction ")
    assert f"between {min(values):.3g} and {max(values):.3g} of 128" in text
    small = replace(noisy, values=tuple(18.0 + 0.1 * (value - 18.0) for value in values))
    assert said(small).startswith("No clear change: ")


@pytest.mark.parametrize("seed", range(5))
def test_a_collapse_is_seen_through_noise(seed: int) -> None:
    draw = random.Random(seed)
    course = [18.0 * abs(i - 25) / 25 + 2 for i in range(50)]
    values = tuple(value * math.exp(draw.gauss(0, 0.05)) for value in course)
    text = said(Series("effective rank", "final_norm", tuple(f"step {i}" for i in range(50)), values, width=128))
    assert text.startswith("Collapse, then recovery: ")


def test_two_checkpoints_cannot_turn() -> None:
    assert said(series(18.4, 2.2)) == (
        "Only two readings: the effective rank after the last layer (final_norm) went from 18.4 to 2.2 of "
        "128 at step 2 (untrained 18.4), while the loss went from 5.56 to 1.41."
    )


def test_one_checkpoint_is_compared_with_the_untrained_model() -> None:
    assert said(series(18.9), loss=(1.41, 1.41)) == (
        "One reading: the effective rank after the last layer (final_norm) is 18.9 of 128 at step 1 (untrained 18.4), and "
        "the loss is 1.41."
    )


def test_numbers_that_are_not_finite_are_left_out_and_told() -> None:
    text = said(series(18.4, math.nan, 2.2, math.inf, 20.0))
    assert "fell from 18.4 to 2.2 at step 4, then rose to 20" in text
    assert text.endswith("2 of 5 readings have no finite number there.")
    nothing = said(series(math.nan, math.nan))
    assert nothing == "No number: the effective rank after the last layer (final_norm) is not finite in any reading."


def test_a_loss_that_is_not_finite_is_told() -> None:
    assert "while the loss went from 5.56 to NaN" in said(series(*DIP), loss=(5.56, math.nan))


# -- several sites ----------------------------------------------------------------------------------------------------------


def test_the_last_site_leads_and_the_others_are_counted() -> None:
    text = said(series(20.0, 20.1, 20.0, site="embed"), series(20, 19, 9, 1.5, 9, site="layer_00"), series(*DIP[:6]))
    assert "after the last layer (final_norm) fell" in text
    assert text.endswith("It changed direction at 2 of 3 sites, and most at layer_00 (20 to 1.5).")


def test_another_site_leads_if_the_last_one_does_not_turn() -> None:
    text = said(series(20, 19, 9, 1.5, 9, site="layer_00"), series(18.4, 18.3, 18.4))
    assert text.startswith("Collapse, then partial recovery: the effective rank at layer_00 fell from 20 to 1.5")
    assert text.endswith("It changed direction at 1 of 2 sites.")


def test_other_numbers_have_neither_a_bound_nor_a_fixed_sign() -> None:
    made = Series("mine", "x", ("step 1", "step 2", "step 3"), (-1.0, 1.0, -1.5))
    assert said(made, loss=None) == "Rise, then fall: the mine at x rose from −1 to 1 at step 2, then fell to −1.5 at step 3."
    zero = Series("mine", "x", ("step 1", "step 2", "step 3"), (0.0, 0.0, 0.0))
    assert "stayed at 0" in said(zero)


# -- several runs -----------------------------------------------------------------------------------------------------------


def test_two_runs_are_told_apart_where_they_differ_most() -> None:
    other = replace(series(*DIP), values=(18.4, 17.0, 12.0, 9.0, 9.5, 12.0, 16.0, 21.0))
    text = str(compare_runs({"a": (series(*DIP), 1.41), "b": (other, 1.39)}))
    assert text == (
        "They differ most at step 16: the effective rank after the last layer (final_norm) is 2.2 in a and 9.5 of 128 in b "
        "(untrained 18.4). At step 128 it is 20.3 in a and 21 of 128 in b, with losses of 1.41 and 1.39."
    )


def test_runs_that_do_not_differ() -> None:
    other = replace(series(*DIP), values=tuple(value * 1.02 for value in DIP))
    text = str(compare_runs({"a": (series(*DIP), 1.41), "b": (other, None)}))
    assert text.startswith("No difference: the effective rank after the last layer (final_norm) differs by at most ")
    assert "in a and " in text


def test_of_more_runs_the_highest_and_the_lowest_are_named() -> None:
    runs = {name: (replace(series(*DIP), values=tuple(v * f for v in DIP)), 1.0) for name, f in (("a", 1), ("b", 2), ("c", 3))}
    text = str(compare_runs(runs))
    assert "At step 128 it ranges from 20.3 of 128 in a to 60.9 of 128 in c, with losses of 1, 1 and 1." in text


def test_runs_without_a_common_step_are_compared_at_their_ends() -> None:
    late = replace(series(*DIP), places=tuple(f"step {step + 1000}" for step in STEPS), width=256)
    text = str(compare_runs({"a": (series(*DIP), 1.41), "b": (late, 1.5)}))
    assert text.startswith("No checkpoint in common: ")
    assert "20.3 of 128 in a at step 128" in text
    assert "20.3 of 256 in b at step 1128" in text


def test_models_are_told_with_their_own_widths_and_baselines() -> None:
    shapes = (("70m", 310.0, 512, 355.0), ("410m", 200.0, 1024, None), ("6.9b", 1510.4, 4096, None))
    models = [
        Series("effective rank", "final_norm", (name,), (rank,), width=width, untrained=null)
        for name, rank, width, null in shapes
    ]
    assert str(describe_models(models, [3.1, 2.7, 2.2], by_size=True)) == (
        "The smallest and the largest of 3 models: the effective rank after the last layer (final_norm) is 310 of 512 in 70m "
        "(untrained 355) and 1,510 of 4,096 in 6.9b, with losses of 3.1 and 2.2."
    )
    assert str(describe_models(models, [3.1, None, 2.2], by_size=False)) == (
        "The lowest and the highest of 3 models: the effective rank after the last layer (final_norm) is 200 of 1,024 in 410m "
        "and 1,510 of 4,096 in 6.9b."
    )
