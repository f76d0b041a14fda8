"""What a probe does when something in it goes wrong, and with hidden states that hold NaN."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from geomprobe import GeomprobeError, InformationGain, Metric, Probe, Reading, RepresentationEntropy
from tests import reference
from tests.test_probe_transparent import Broken
from tests.tiny_models import snapshot, tiny, token_batch


def test_on_error_warn_warns_once_and_the_model_goes_on_with_earlier_numbers_kept() -> None:
    model = tiny()
    before = snapshot(model)
    batches = [token_batch(seed=seed) for seed in range(4)]
    plain = [model(batch).logits for batch in batches]
    with Probe(model, [Broken(good=4), InformationGain()]) as probe, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logits = [model(batch).logits for batch in batches]
        assert snapshot(model) == before, "the probe takes itself off"
    assert all(torch.equal(got, expected) for got, expected in zip(logits, plain, strict=True))
    ours = [warning for warning in caught if "geomprobe" in str(warning.message)]
    assert len(ours) == 1
    assert ours[0].category is RuntimeWarning
    message = "geomprobe stopped measuring, and the model continues: ZeroDivisionError: broken on purpose"
    assert str(ours[0].message).startswith(message)
    assert "Probe(on_error='raise')" in str(ours[0].message)
    assert isinstance(probe.fault, ZeroDivisionError)
    assert probe.fault.__traceback__ is None, "its frames hold activations"

    with Probe(model, [InformationGain()], on_error="raise") as expected:
        for batch in batches[:2]:
            model(batch)
    reading = probe.read()
    stopped = "the probe stopped in forward 3: ZeroDivisionError: broken on purpose"
    assert reading.notes == [f"{stopped} (this forward is not counted)"]
    assert reading["good_forwards/final_norm"] == 2
    for site in probe.sites:
        assert reading[f"information_gain/{site}"] == expected.read()[f"information_gain/{site}"]


def test_on_error_raise_raises_where_it_happened() -> None:
    model = tiny()
    with Probe(model, [Broken(good=2)], on_error="raise") as probe:
        model(token_batch())
        with pytest.raises(ZeroDivisionError, match="broken on purpose") as caught:
            model(token_batch())
    assert probe.fault is caught.value
    assert caught.traceback[-1].name == "contribution"
    assert probe.read()["good_forwards/embed"] == 1


def test_a_reading_of_nothing_tells_what_was_left_out() -> None:
    model = tiny()
    with Probe(model) as probe:
        cache = model(token_batch()).past_key_values
        probe.reset()
        with pytest.warns(RuntimeWarning, match="KV cache"):
            model(token_batch(), past_key_values=cache)
    message = "nothing to read: a forward that continues from 12 tokens of a KV cache that the probe has not seen was left out"
    with pytest.raises(GeomprobeError, match=message):
        probe.read()


def test_a_broken_schedule_is_a_fault_of_the_probe() -> None:
    model = tiny()
    before = snapshot(model)
    with Probe(model, when=lambda step: 1 // step > 0) as probe:
        with pytest.warns(RuntimeWarning, match="ZeroDivisionError"):
            model(token_batch())
        assert snapshot(model) == before
    assert isinstance(probe.fault, ZeroDivisionError)
    with Probe(model, when=lambda step: 1 // step > 0, on_error="raise"), pytest.raises(ZeroDivisionError):
        model(token_batch())


@pytest.mark.parametrize("on_error", ["ignore", "", None])
def test_on_error_has_two_values(on_error: Any) -> None:
    with pytest.raises(GeomprobeError, match=rf"on_error={on_error!r}\): expected 'warn' or 'raise'"):
        Probe(tiny(), on_error=on_error)


@pytest.mark.parametrize("wrong", [RepresentationEntropy, "entropy"])
def test_metrics_are_instances(wrong: Any) -> None:
    with pytest.raises(GeomprobeError, match=r"is not a Metric: give instances, such as RepresentationEntropy\(\)"):
        Probe(tiny(), [wrong])


def test_two_metrics_claiming_one_name() -> None:
    model = tiny()

    def measure(*metrics: Metric) -> Reading:
        with Probe(model, metrics) as probe:
            model(token_batch())
        return probe.read()

    with pytest.raises(GeomprobeError, match="two metrics of this probe have a number named 'entropy'"):
        measure(RepresentationEntropy(), RepresentationEntropy(epsilon=0.5))
    with pytest.raises(GeomprobeError, match="two metrics of this probe have a number named 'information_gain'"):
        measure(InformationGain(), RepresentationEntropy(), InformationGain())
    reading = measure(RepresentationEntropy(), RepresentationEntropy(center="text"))
    assert reading["entropy/embed"] != reading["centered_entropy/embed"]


# -- NaN --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_in_hidden_states_is_counted_reported_and_not_averaged_in(bad: float) -> None:
    model, ids = tiny(), token_batch(2, 12)

    def poison(module: object, args: object, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[0, 5, 3] = bad
        output[1, 0] = bad
        return output

    metrics: list[Metric] = [RepresentationEntropy(text_spectrum=True), InformationGain()]
    handle = model.model.norm.register_forward_hook(poison)
    with Probe(model, metrics, on_error="raise") as probe, torch.no_grad():
        model(ids)
    handle.remove()
    reading = probe.read()
    assert reading["nonfinite/final_norm"] == 2
    assert "nonfinite/layer_02" not in reading
    assert reading["tokens/final_norm"] == 22
    assert reading["tokens/layer_02"] == 24
    assert reading["texts/final_norm"] == 2
    assert reading.notes == ["final_norm: 2 rows contained NaN or Inf and were left out of every number"]
    assert reading.notes[0] in str(reading)

    hidden = reference.hidden_states(model, {"input_ids": ids})["final_norm"]
    rows = [reference.unit(np.delete(hidden[0], 5, axis=0)), reference.unit(np.delete(hidden[1], 0, axis=0))]
    for name, value in (reference.entropies(np.concatenate(rows)) | reference.text_entropies(rows)).items():
        assert reading[f"{name}/final_norm"] == pytest.approx(value, rel=1e-5), name
    gains = [reference.gains(each) for each in rows]
    assert reading["information_gain/final_norm"] == pytest.approx(np.mean([gain.sum() for gain in gains]), rel=1e-6)
    gain, clean = (reading.curve("gain", site) for site in ("final_norm", "layer_02"))
    assert gain.count == (1, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 2)  # rows left out keep their positions
    assert clean.count == (2,) * 12
    assert gain.mean[0] == pytest.approx(gains[0][0], rel=1e-6)
    assert gain.mean[5] == pytest.approx(gains[1][4], rel=1e-6)


def test_a_site_of_nothing_but_nan() -> None:
    model = tiny()
    handle = model.model.norm.register_forward_hook(lambda module, args, output: output * float("nan"))
    with Probe(model, on_error="raise") as probe, torch.no_grad():
        model(token_batch())
    handle.remove()
    reading = probe.read()
    assert reading.site("final_norm") == {"tokens": 0, "texts": 0, "nonfinite": 24}
    assert reading["tokens/layer_02"] == 24
    assert "final_norm: 24 rows contained NaN or Inf" in str(reading)
    assert Reading.from_json(reading.to_json()) == reading
