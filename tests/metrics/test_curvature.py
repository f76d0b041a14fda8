"""Curvature against NumPy, turn by turn, and on paths whose turns are known."""

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from geomprobe import Curvature, Probe
from geomprobe.core.rows import Rows
from tests import reference
from tests.accumulators.harness import WIDTH, packed, padded, texts
from tests.metrics.measure import curves_of, scalars_of
from tests.tiny_models import padded as padded_ids
from tests.tiny_models import tiny, token_batch


def turns(text: NDArray[np.float64]) -> list[float]:
    """Angles from the arc cosine of every pair of successive steps; NaN where one has no length."""
    angles = []
    for before, here, after in zip(text, text[1:], text[2:], strict=False):
        first, second = here - before, after - here
        lengths = np.linalg.norm(first) * np.linalg.norm(second)
        angles.append(math.acos(np.clip(first @ second / lengths, -1, 1)) if lengths else math.nan)
    return angles


def by_position(each: list[list[float]]) -> list[list[float]]:
    """Angles by the position where the path turns: none at 0."""
    columns = itertools.zip_longest(*each, fillvalue=math.nan)
    return [[], *([angle for angle in column if not math.isnan(angle)] for column in columns)]


@pytest.mark.parametrize("layout", ["left", "right", "mixed", "packed"])
def test_every_number_is_numpys(layout: str) -> None:
    stream = texts()
    stream[4][3] = stream[4][2]  # two turns without an angle
    rows = packed(stream) if layout == "packed" else padded(stream, layout)
    each = [turns(text.numpy()) for text in stream]
    flat = [angle for angles in each for angle in angles]
    numbers = scalars_of(Curvature(), rows)
    assert numbers == pytest.approx({"curvature": np.nanmean(flat), "curvature_still": 2 / len(flat)}, rel=1e-12)
    curve, expected = curves_of(Curvature(), rows)["curvature"], by_position(each)
    assert curve.count == tuple(map(len, expected))
    assert curve.mean[1:] == pytest.approx([np.mean(column) for column in expected[1:]], rel=1e-12)
    assert curve.std is not None
    assert curve.std[1:] == pytest.approx([np.std(column) for column in expected[1:]], abs=1e-7)
    assert math.isnan(curve.mean[0])


def test_rows_that_are_not_finite_make_their_neighbours_consecutive() -> None:
    text = texts()[2]
    holed = text.clone()
    holed[4], holed[5, 1] = math.nan, math.inf
    left = torch.cat([text[:4], text[6:]])
    assert scalars_of(Curvature(), Rows(holed.unsqueeze(0))) == scalars_of(Curvature(), Rows(left.unsqueeze(0)))
    assert curves_of(Curvature(), Rows(holed.unsqueeze(0)))["curvature"].count == (0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_known_paths(dtype: torch.dtype) -> None:
    there = torch.arange(1, 9, dtype=dtype).unsqueeze(1) * torch.ones(WIDTH, dtype=dtype)
    corners = 2 * math.pi / 12 * torch.arange(30, dtype=torch.float64)
    circle = torch.nn.functional.pad(torch.stack([corners.cos(), corners.sin()], 1), (0, WIDTH - 2)).to(dtype) + 5
    walk = torch.randn(400, 4096, generator=torch.Generator().manual_seed(0)).to(dtype)
    for path, angle, near in (
        (there, 0, 0),
        (there[[0, 1] * 4], math.pi, 0),
        (circle, 2 * math.pi / 12, 1e-5),
        (walk, 2 * math.pi / 3, 2e-3),  # rows drawn independently
        (walk.cumsum(0), math.pi / 2, 2e-3),  # steps drawn independently
    ):
        assert scalars_of(Curvature(), Rows(path.unsqueeze(0)))["curvature"] == pytest.approx(angle, abs=near)


def test_steps_that_are_rounding_errors_have_no_angle() -> None:
    """Two equal tokens at the start of a text give rows that differ in their last bits only."""
    text = texts()[2].float()
    text[1] = text[0] * (1 + 2e-7)
    moved = (text[1] - text[0]).norm() / text[0].norm()
    assert 0 < moved < 8 * torch.finfo(torch.float32).eps
    numbers = scalars_of(Curvature(), Rows(text.unsqueeze(0)))
    each = turns(text.double().numpy())
    assert numbers["curvature_still"] == pytest.approx(1 / len(each))
    assert numbers["curvature"] == pytest.approx(np.mean(each[1:]), rel=1e-5)


@pytest.mark.parametrize("length", [0, 1, 2])
def test_fewer_than_three_rows_do_not_turn(length: int) -> None:
    rows = Rows(texts()[2][:length].unsqueeze(0))
    assert all(math.isnan(value) for value in scalars_of(Curvature(), rows).values())
    assert len(curves_of(Curvature(), rows)["curvature"]) == 0


def test_shift_and_scale_of_all_rows_change_nothing() -> None:
    stream = texts()
    moved = [3 * text + torch.arange(WIDTH) for text in stream]
    same = scalars_of(Curvature(), padded(stream, "left"))
    assert scalars_of(Curvature(), padded(moved, "left")) == pytest.approx(same, rel=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_in_a_probe_on_a_padded_batch(side: str) -> None:
    model = tiny()
    ids = [token_batch(1, length, seed=length)[0] for length in (12, 7, 3, 2)]
    with torch.no_grad(), Probe(model, [Curvature()], on_error="raise") as probe:
        model(**padded_ids(ids, side))
    reading = probe.read()
    alone = [reference.hidden_states(model, {"input_ids": text.unsqueeze(0)}) for text in ids]
    for site in reading.sites:
        each = [turns(hidden[site][0]) for hidden in alone]
        expected = by_position(each)
        assert reading[f"curvature/{site}"] == pytest.approx(np.mean(list(itertools.chain(*each))), rel=1e-5)
        curve = reading.curve("curvature", site)
        assert curve.count == tuple(map(len, expected))
        assert curve.mean[1:] == pytest.approx([np.mean(column) for column in expected[1:]], rel=1e-5)
