"""Metrics in a probe: shared accumulators, a metric of one's own, and sums whose precision nothing outside can lower."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from geomprobe import InformationGain, Metric, Probe, Reading, RepresentationEntropy
from geomprobe.accumulators.covariance import Covariance
from geomprobe.accumulators.state import Accumulator, State, TokenCount
from geomprobe.accumulators.text_entropy import TextEntropySum
from geomprobe.core import blas
from geomprobe.core.rows import Rows
from tests import reference
from tests.tiny_models import tiny, token_batch


@dataclass(frozen=True)
class NormSum:
    """A third party's accumulator: the sum of row norms."""

    name: ClassVar[str] = "norm"
    version: ClassVar[int] = 1

    def new_state(self, width: int, device: torch.device) -> State:
        return {"norm": torch.zeros((), dtype=torch.float64, device=device)}

    def contribution(self, rows: Rows) -> State:
        return {"norm": torch.where(rows.valid, rows.norms, 0).sum((-2, -1))}


@dataclass(frozen=True)
class MeanNorm(Metric):
    """A third party's metric."""

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        return (NormSum(), TokenCount())

    def scalars(self, states: Mapping[Accumulator, State]) -> Mapping[str, Tensor | float]:
        return {"mean_norm": states[NormSum()]["norm"] / states[TokenCount()]["tokens"]}


def test_a_metric_of_ones_own() -> None:
    model, batch = tiny(), token_batch()
    with Probe(model, [MeanNorm(), RepresentationEntropy()], on_error="raise") as probe, torch.no_grad():
        model(batch)
        model(batch)
    reading = probe.read()
    for site, hidden in reference.hidden_states(model, {"input_ids": batch}).items():
        assert reading[f"mean_norm/{site}"] == pytest.approx(np.linalg.norm(hidden, axis=-1).mean(), rel=1e-6)
    assert "mean_norm" in str(reading)
    resumed = Probe(model, [MeanNorm(), RepresentationEntropy()])
    resumed.load_state_dict(probe.state_dict())
    assert resumed.read() == reading


def test_equal_accumulators_are_shared_and_updated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    calls: list[Accumulator] = []
    for kind in (Covariance, TextEntropySum):
        contribution: Callable[..., State] = kind.contribution

        def counting(self: Accumulator, rows: Rows, contribution: Callable[..., State] = contribution) -> State:
            calls.append(self)
            return contribution(self, rows)

        monkeypatch.setattr(kind, "contribution", counting)
    metrics = [RepresentationEntropy(), InformationGain(), MeanNorm(), RepresentationEntropy(center="text")]
    with Probe(model, metrics, sites=[0], on_error="raise") as probe:
        model(token_batch())
    shared = [Covariance(), Covariance(center=True, exact=True), TextEntropySum(), TextEntropySum(center=True)]
    assert sorted(map(repr, calls)) == sorted(map(repr, shared))
    sums = {key.split("/")[2] for key in probe.state_dict()}
    assert len(sums) == 7  # TokenCount, NormSum, InformationGainSum and two each of the others


def test_text_spectrum_is_measured_only_when_asked_for() -> None:
    model = tiny()
    readings = []
    for metric in (RepresentationEntropy(), RepresentationEntropy(text_spectrum=True)):
        with Probe(model, [metric], on_error="raise") as probe, torch.no_grad():
            model(token_batch())
        readings.append(dict(probe.read()))
    assert readings[0].items() < readings[1].items()
    assert {key.split("/")[0] for key in readings[1].keys() - readings[0].keys()} == {
        "text_matrix_entropy",
        "text_matrix_entropy_log_d",
        "text_matrix_entropy_log_n",
        "text_effective_rank",
        "text_rank_ratio",
    }


# -- precision --------------------------------------------------------------------------------------------------------------

WIDE: dict[str, Any] = {"width": 256, "layers": 1}


def matmul_settings() -> list[str]:
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    return [torch.get_float32_matmul_precision(), *(backend.fp32_precision for backend in backends)]


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    settings = matmul_settings()
    yield
    assert matmul_settings() == settings, "the probe put the settings back"
    torch.set_float32_matmul_precision(before)


def embedding_reading(context: contextlib.AbstractContextManager[object]) -> Reading:
    """What is read at ``embed``, where no product of the model has touched the rows yet, so that only the probe's own show."""
    model = tiny("llama", **WIDE)
    with Probe(model, sites=["embed"], on_error="raise") as probe, context:
        model(token_batch(4, 64))
    return probe.read()


@pytest.mark.parametrize(
    "context",
    [
        lambda: matmul_precision("high"),
        lambda: matmul_precision("medium"),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        torch.inference_mode,
        torch.no_grad,
    ],
    ids=["high", "medium", "autocast", "inference_mode", "no_grad"],
)
@pytest.mark.parametrize("wins", [True, False])
def test_no_setting_of_the_user_changes_the_numbers(
    context: Callable[[], Any], wins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blas, "_wins", lambda: wins)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert embedding_reading(context()).to_dict() == embedding_reading(contextlib.nullcontext()).to_dict()


def test_no_setting_of_the_user_changes_the_numbers_of_texts_on_a_cache() -> None:
    """They are measured when the probe is closed, under the settings of then."""
    readings = []
    for context in (contextlib.nullcontext(), torch.autocast("cpu", dtype=torch.bfloat16)):
        model = tiny("llama", **WIDE)
        probe = Probe(model, sites=["embed"], on_error="raise").attach()
        with torch.no_grad():
            model(token_batch(4, 64), past_key_values=DynamicCache(config=model.config))
        with context:
            probe.close()
        readings.append(probe.read().to_dict())
    assert readings[0] == readings[1]


@dataclass(frozen=True)
class Surroundings(NormSum):
    """Sees under what settings accumulators compute."""

    name: ClassVar[str] = "surroundings"
    version: ClassVar[int] = 1

    def contribution(self, rows: Rows) -> State:
        assert matmul_settings()[1:] == ["ieee", "ieee"]
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert rows.hidden.dtype == torch.float32
        assert not rows.hidden.requires_grad
        return {"norm": torch.ones(rows.hidden.shape[:-3])}


@dataclass(frozen=True)
class Watch(Metric):
    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        return (Surroundings(),)

    def scalars(self, states: Mapping[Accumulator, State]) -> Mapping[str, Tensor | float]:
        return {"updates": states[Surroundings()]["norm"]}


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_accumulators_compute_in_exact_arithmetic(mode: Callable[[], Any]) -> None:
    model = tiny()
    with matmul_precision("medium"), mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        with Probe(model, [Watch()], on_error="raise") as probe:
            model(token_batch())
        assert torch.is_autocast_enabled("cpu")
    assert probe.read()["updates/final_norm"] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_any_precision_is_summed_exactly(dtype: torch.dtype) -> None:
    model, batch = tiny(dtype=dtype), token_batch()
    assert model.dtype == dtype
    with Probe(model, on_error="raise") as probe, torch.no_grad():
        model(batch)
    reading = probe.read()
    for site, hidden in reference.hidden_states(model, {"input_ids": batch}).items():
        rows = [reference.unit(text) for text in hidden]
        expected = reference.entropies(np.concatenate(rows))
        near = 1e-9 if dtype == torch.float64 else 1e-5
        assert reading[f"entropy/{site}"] == pytest.approx(expected["entropy"], rel=near)
        assert reading.curve("gain", site).mean == pytest.approx(sum(map(reference.gains, rows)) / 2, abs=near)


def test_inference_mode_and_training_in_one_probe() -> None:
    model = tiny()
    with Probe(model, on_error="raise") as probe:
        with torch.inference_mode():
            model(token_batch())
            inside = probe.read()
        model(token_batch(), labels=token_batch()).loss.backward()
        with torch.inference_mode():
            model(token_batch())
            probe.reset("train")
    assert probe.read()["tokens/embed"] == 72
    assert probe.read()["text_entropy/embed"] == pytest.approx(inside["text_entropy/embed"], rel=1e-12)
