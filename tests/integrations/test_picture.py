"""The picture of a training."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from geomprobe import Reading
from geomprobe.integrations import ProbeCallback
from geomprobe.integrations.picture import PICTURE, draw_layers

SITES = ("embed", "layer_00", "layer_01", "final_norm")


def history(steps: int, *, mode: str = "train", sites: tuple[str, ...] = SITES) -> list[tuple[int, Reading]]:
    """Effective ranks that grow with the step and with the depth."""
    return [
        (step, Reading(mode=mode, sites=sites, values={f"effective_rank/{s}": step * (1.0 + n) for n, s in enumerate(sites)}))
        for step in range(1, steps + 1)
    ]


@pytest.mark.parametrize("steps", [2, 3000])
def test_the_rank_is_brighter_at_later_steps_and_deeper_layers(steps: int) -> None:
    picture = draw_layers(history(steps))
    assert picture is not None
    assert (picture.dtype, picture.shape) == (np.uint8, (400, 640, 3))
    light = picture.sum(axis=-1, dtype=np.int64)
    top, bottom, left, right = 70, 330, 100, 460  # inside the axes
    assert light[top, left] < light[top, right]  # viridis grows brighter
    assert light[bottom, right] < light[top, right]


def test_there_is_none_where_nothing_can_be_drawn() -> None:
    assert draw_layers([]) is None
    assert draw_layers(history(1)) is None
    assert draw_layers(history(3, sites=("embed",))) is None
    assert draw_layers(history(3, mode="eval")) is None
    assert draw_layers([(step, Reading(mode="train", sites=SITES, values={"entropy/embed": 0.5})) for step in (1, 2)]) is None


def test_a_site_that_a_reading_lacks_is_a_gap() -> None:
    readings = history(3)
    readings[1] = (2, Reading(mode="train", sites=SITES, values={"effective_rank/embed": 1.0}))
    assert draw_layers(readings) is not None


def test_the_users_figures_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert draw_layers(history(2)) is not None


def test_a_long_training_draws_less_often_and_its_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geomprobe.integrations.hf_trainer.draw_layers", lambda readings: len(readings) > 1 or None)
    callback, drawn = ProbeCallback(), []
    for step, reading in history(997):
        callback.history.append((step, reading))
        if PICTURE in callback._pictures(SimpleNamespace(global_step=step, max_steps=997)):
            drawn.append(step)
    assert drawn[:19] == list(range(2, 21))
    assert drawn[-1] == 997
    assert len(drawn) < 110
