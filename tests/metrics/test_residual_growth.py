"""ResidualGrowth against NumPy, row by row."""

from collections.abc import Iterable
from functools import partialmethod
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from geomprobe import AttentionProfile, GeomprobeError, MeanRepresentation, Probe, ResidualGrowth
from geomprobe.core.rows import Rows
from tests import reference
from tests.metrics.measure import scalars_of
from tests.tiny_models import padded, tiny, token_batch

TEXTS = [token_batch(1, length, seed=length)[0] for length in (12, 7, 3, 1)]


def growth(before: Iterable[Any], after: Iterable[Any]) -> float:
    """The mean over the rows of texts ``(length, d)``, each by itself."""
    pairs = [(x, y) for text, out in zip(before, after, strict=True) for x, y in zip(text, out, strict=True)]
    return float(np.mean([0.5 * np.log(y @ y) - 0.5 * np.log(x @ x) for x, y in pairs if x.any() and y.any()]))


def alone(model: Any, site: str) -> list[Any]:
    return [reference.hidden_states(model, {"input_ids": text.unsqueeze(0)})[site][0] for text in TEXTS]


@pytest.mark.parametrize("side", ["left", "right"])
def test_in_a_probe_on_padded_batches(side: str) -> None:
    """Six layers, so that layers and their inputs are in different groups of sites."""
    model = tiny(layers=6)
    with torch.no_grad(), Probe(model, [ResidualGrowth()], on_error="raise") as probe:
        model(**padded(TEXTS[:3], side))
        model(input_ids=TEXTS[3].unsqueeze(0), use_cache=False)
    reading, names = probe.read(), [f"layer_{i:02d}" for i in range(6)]
    assert set(probe.sites) == {"embed", *names, "final_norm"}
    for before, site in zip(["embed", *names], names, strict=False):
        assert reading[f"residual_growth/{site}"] == pytest.approx(growth(alone(model, before), alone(model, site)), rel=1e-5)
        assert reading[f"residual_growth_left_out/{site}"] == 0
    for site in ("embed", "final_norm"):
        assert np.isnan(reading[f"residual_growth/{site}"])


@torch.no_grad()
def test_a_generated_text_has_the_growth_of_the_finished_text() -> None:
    model = tiny()
    how = {"do_sample": False, "max_new_tokens": 5, "attention_mask": torch.ones(1, 7).long()}
    growths = []
    for use_cache in (True, False):
        with Probe(model, [ResidualGrowth()], on_error="raise") as probe:
            output = model.generate(TEXTS[1].unsqueeze(0), use_cache=use_cache, **how)
        growths.append(probe.read()["residual_growth"])
    hidden = reference.hidden_states(model, {"input_ids": output[:, :-1]})
    for by_site in growths:
        assert by_site["layer_00"] == pytest.approx(growth(hidden["embed"], hidden["layer_00"]), rel=1e-5)
        assert by_site["layer_01"] == pytest.approx(growth(hidden["layer_00"], hidden["layer_01"]), rel=1e-5)


@torch.no_grad()
def test_zero_rows_are_left_out_and_counted() -> None:
    model = tiny("llama")
    ids = token_batch(1, 8)
    model.model.embed_tokens.weight[ids[0, 2]] = 0
    zero = int((ids == ids[0, 2]).sum())
    with Probe(model, [ResidualGrowth()], on_error="raise") as probe:
        model(input_ids=ids, use_cache=False)
    reading, hidden = probe.read(), reference.hidden_states(model, {"input_ids": ids})
    assert reading["residual_growth_left_out/layer_00"] == zero / 8
    assert reading["residual_growth/layer_00"] == pytest.approx(growth(hidden["embed"], hidden["layer_00"]), rel=1e-5)
    assert reading["residual_growth_left_out/layer_01"] == 0


def test_rows_that_are_zero_or_not_finite_before_or_after() -> None:
    hidden = torch.ones(1, 5, 4, dtype=torch.float64)
    hidden[0, 1], hidden[0, 2, 0] = 0, torch.nan
    rows = Rows(hidden * 3)
    rows.input_norms = torch.tensor([[2.0, 2.0, 2.0, 0.0, torch.inf]]).double()
    assert scalars_of(ResidualGrowth(), rows) == {
        "residual_growth": pytest.approx(np.log(6 / 2)),
        "residual_growth_left_out": pytest.approx(2 / 3),
    }


@torch.no_grad()
def test_only_sites_whose_input_is_measured_have_a_number() -> None:
    model = tiny()
    with Probe(model, [ResidualGrowth()], sites=["embed", 0, 2], on_error="raise") as probe:
        model(input_ids=token_batch(), use_cache=False)
    reading = probe.read()
    assert np.isfinite(reading["residual_growth/layer_00"])
    assert np.isnan(reading["residual_growth/layer_02"])
    for sites in (["embed"], ["layer_00", "layer_02", "final_norm"]):
        with pytest.raises(GeomprobeError, match=f"the sites are {', '.join(sites)}: choose two that follow each other"):
            Probe(model, [ResidualGrowth()], sites=sites)


@torch.no_grad()
def test_a_batch_that_is_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny(layers=6), padded(TEXTS, "left")
    with Probe(model, [ResidualGrowth()], on_error="raise") as whole:
        model(**batch)
    monkeypatch.setattr(Rows, "split", partialmethod(Rows.split, entries=1))
    with Probe(model, [ResidualGrowth()], on_error="raise") as parts:
        model(**batch)
    assert dict(parts.read()) == pytest.approx(dict(whole.read()), rel=1e-12, nan_ok=True)


@torch.no_grad()
def test_a_reading_while_a_text_is_generated_and_a_resumed_one() -> None:
    model, ids = tiny(), token_batch(1, 12)
    metrics = [ResidualGrowth(), MeanRepresentation(), AttentionProfile(logits=True)]
    with Probe(model, metrics, on_error="raise") as whole:
        model(ids[:, :7], use_cache=False)
    with Probe(model, metrics, on_error="raise") as probe:
        cache = DynamicCache(config=model.config)
        model(ids[:, :7], past_key_values=cache)
        assert dict(probe.read()) == pytest.approx(dict(whole.read()), rel=1e-5, nan_ok=True)
        model(ids[:, 7:], past_key_values=cache)
    with Probe(model, metrics, on_error="raise") as resumed:
        resumed.load_state_dict(probe.state_dict())
    assert dict(resumed.read()) == pytest.approx(dict(probe.read()), rel=1e-14, nan_ok=True)
    hidden = reference.hidden_states(model, {"input_ids": ids})
    growths = probe.read()["residual_growth"]
    assert growths["layer_00"] == pytest.approx(growth(hidden["embed"], hidden["layer_00"]), rel=1e-5)
