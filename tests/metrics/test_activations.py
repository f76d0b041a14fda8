"""MassiveActivations against NumPy, text by text."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from geomprobe import MassiveActivations, Probe
from geomprobe.core.rows import Rows
from tests import reference
from tests.accumulators.harness import WIDTH, packed, padded, texts
from tests.metrics.measure import scalars_of
from tests.tiny_models import padded as padded_ids
from tests.tiny_models import tiny, token_batch


def twin(stream: list[Any]) -> dict[str, float]:
    """Means over texts, from the sorted magnitudes of each."""
    largest, middle, massive = [], [], []
    for text in stream:
        size = np.sort(np.abs(text).ravel())
        median = np.quantile(size, 0.5, method="lower")
        largest.append(size[-1])
        middle.append(median)
        massive.append(sum(1 for value in size if value > 100 and value >= 1000 * median))
    ratios = [high / low for high, low in zip(largest, middle, strict=True) if low > 0]
    return {
        "activation_max": np.mean(largest),
        "activation_median": np.mean(middle),
        "activation_ratio": np.mean(ratios) if ratios else math.nan,
        "massive_activations": np.mean(massive),
    }


@pytest.mark.parametrize("layout", ["left", "mixed", "packed"])
def test_every_number_is_numpys(layout: str) -> None:
    stream = texts()
    stream[0][0, 3] = -20_000  # more than 1000 medians, of the first text only
    stream[2][5, :3] = torch.tensor([8_000.0, 9_000.0, 50.0])
    stream[4] *= 0.01
    stream[4][1, 1] = 99  # more than 1000 medians, but not 100
    stream[5] *= 100
    stream[5][0, 0] = 9_000  # more than 100, but not 1000 medians
    rows = packed(stream) if layout == "packed" else padded(stream, layout)
    expected = twin([text.numpy() for text in stream])
    assert expected["massive_activations"] == pytest.approx(3 / len(stream))
    assert scalars_of(MassiveActivations(), rows) == pytest.approx(expected, rel=1e-14)


def test_both_thresholds_are_as_printed() -> None:
    """Above 100; at least 1000 times the median."""
    text = torch.full((1, 3, WIDTH), 0.5)
    for value, massive in ((499.0, 0), (500.0, 1), (-500.0, 1)):
        text[0, 0, 0] = value
        assert scalars_of(MassiveActivations(), Rows(text))["massive_activations"] == massive
    text[:] = 0.01
    for value, massive in ((100.0, 0), (100.5, 1)):
        text[0, 0, 0] = value
        assert scalars_of(MassiveActivations(), Rows(text))["massive_activations"] == massive


def test_rows_of_zeros_have_no_ratio() -> None:
    numbers = scalars_of(MassiveActivations(), Rows(torch.zeros(1, 3, WIDTH)))
    assert math.isnan(numbers.pop("activation_ratio"))
    assert set(numbers.values()) == {0}
    both = scalars_of(MassiveActivations(), Rows(torch.stack([torch.zeros(3, WIDTH), torch.ones(3, WIDTH)])))
    assert both["activation_ratio"] == 1
    assert both["activation_max"] == 0.5


@pytest.mark.parametrize("side", ["left", "right"])
def test_in_a_probe_on_a_padded_batch(side: str) -> None:
    model = tiny()
    with torch.no_grad():  # a massive activation, made by one token
        model.model.embed_tokens.weight[7, 5] = 3000
    ids = [token_batch(1, length, seed=length)[0] for length in (12, 7, 3, 1)]
    ids[1][0] = 7
    with torch.no_grad(), Probe(model, [MassiveActivations()], on_error="raise") as probe:
        model(**padded_ids(ids, side))
    reading = probe.read()
    alone = [reference.hidden_states(model, {"input_ids": text.unsqueeze(0)}) for text in ids]
    assert reading["massive_activations/embed"] > 0
    for site in reading.sites:
        for name, value in twin([hidden[site][0] for hidden in alone]).items():
            assert reading[f"{name}/{site}"] == pytest.approx(value, rel=1e-5), (name, site)
