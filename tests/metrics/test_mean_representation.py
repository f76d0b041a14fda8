"""MeanRepresentation and the velocity between two readings, against NumPy."""

from typing import Any

import numpy as np
import pytest
import torch

from geomprobe import MeanRepresentation, Probe, Reading
from geomprobe.core.rows import Rows
from geomprobe.core.similarity import mean_velocity
from tests import reference
from tests.metrics.measure import scalars_of
from tests.tiny_models import padded, tiny, token_batch

TEXTS = [token_batch(1, length, seed=length)[0] for length in (12, 7, 3)]


def mean(model: Any, site: str) -> Any:
    rows = [reference.hidden_states(model, {"input_ids": text.unsqueeze(0)})[site][0] for text in TEXTS]
    return np.mean(reference.unit(np.concatenate(rows)), axis=0)


@torch.no_grad()
def read(model: Any) -> Reading:
    with Probe(model, [MeanRepresentation()], on_error="raise") as probe:
        model(**padded(TEXTS, "left"))
    return probe.read()


def test_two_readings_of_the_same_texts() -> None:
    model, rate = tiny(), 3e-3
    first, expected = read(model), {site: mean(model, site) for site in ("embed", "layer_01", "final_norm")}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += rate * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    second = read(model)
    for site, before in expected.items():
        after = mean(model, site)
        curves = [reading.curve("representation_mean", site) for reading in (first, second)]
        assert curves[0].mean == pytest.approx(before, abs=1e-6)
        assert set(curves[0].count) == {sum(map(len, TEXTS))}
        assert first[f"representation_mean_norm/{site}"] == pytest.approx(np.linalg.norm(before), rel=1e-6)
        velocity = mean_velocity(torch.tensor(curves[0].mean), torch.tensor(curves[1].mean), rate)
        assert float(velocity) == pytest.approx(np.linalg.norm(after - before) / rate, rel=1e-3)


def test_rows_of_one_direction_and_of_none() -> None:
    row = torch.tensor([3.0, -4.0, 0.0])
    same = Rows((torch.arange(1, 5).view(1, 4, 1) * row).double())
    assert scalars_of(MeanRepresentation(), same)["representation_mean_norm"] == pytest.approx(1)
    opposite = Rows(torch.stack([row, -2 * row, torch.zeros(3)]).unsqueeze(0).double())
    assert scalars_of(MeanRepresentation(), opposite)["representation_mean_norm"] == pytest.approx(0)
