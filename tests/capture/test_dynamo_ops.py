"""Under ``torch.compile`` with the probe attached first: one graph, the same numbers; attached later: traced again."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from geomprobe import AttentionProfile, ContextLasso, GeomprobeError, InformationGain, Probe, every
from geomprobe.capture import dynamo_ops
from tests.reference import like
from tests.tiny_models import hooks, padded, tiny, token_batch

pytestmark = pytest.mark.slow  # it compiles graphs

WAYS: dict[str, Callable[[Any], Any]] = {
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "module.compile": lambda model: model.compile(backend="eager") or model,
    "decoder.compile": lambda model: model.model.compile(backend="eager") or model,
    "forward": lambda model: model.__dict__.update(forward=torch.compile(model.forward, backend="eager")) or model,
}


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    gc.unfreeze()
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def run(model: Any, batches: list[dict[str, Tensor]]) -> None:
    with torch.no_grad():
        for batch in batches:
            model(**batch, use_cache=False)


def assert_same(probe: Probe, eager: Probe, tolerance: float) -> None:
    """The graph rounds the model's own hidden states in its own way; with the same kernels, not even that."""
    actual, expected = probe.read(), eager.read()
    assert dict(actual) == like(expected, tolerance)
    for site in expected.sites:
        assert actual.curve("gain", site).mean == pytest.approx(expected.curve("gain", site).mean, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize(("backend", "tolerance"), [("eager", 0), ("aot_eager", 0), ("inductor", 1e-4)])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_full_graph_has_no_break_and_the_numbers_of_eager(family: str, backend: str, tolerance: float) -> None:
    model = tiny(family)
    batches = [padded([token_batch(1, n, seed=n + i)[0] for n in (12, 7)]) for i in range(3)]
    with Probe(model, on_error="raise") as eager:
        run(model, batches)
    with Probe(model, on_error="raise") as probe:
        run(torch.compile(model, fullgraph=True, backend=backend), batches)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert_same(probe, eager, tolerance)


@pytest.mark.parametrize(("backend", "tolerance"), [("aot_eager", 0), ("inductor", 1e-4)])
@pytest.mark.parametrize(("family", "implementation"), [("llama", "sdpa"), ("llama", "eager"), ("gpt_neox", "sdpa")])
def test_attention_in_a_full_graph(family: str, implementation: str, backend: str, tolerance: float) -> None:
    model = tiny(family, attn_implementation=implementation)
    batches = [padded([token_batch(1, n, seed=n + i)[0] for n in (12, 7)]) for i in range(3)]
    metrics = [AttentionProfile(), ContextLasso(penalty=0.01, attention=True)]
    with Probe(model, metrics, when=every(2), on_error="raise") as eager:
        run(model, batches)
    with Probe(model, metrics, when=every(2), on_error="raise") as probe:
        run(torch.compile(model, fullgraph=True, backend=backend), batches)
    assert counters["stats"]["unique_graphs"] == 1
    actual, expected = probe.read(), eager.read()
    assert expected["tokens/layer_00"] == 2 * 19
    assert dict(actual) == like(expected, tolerance, tolerance)


def test_a_mask_that_no_operator_takes_is_refused() -> None:
    model, batch = tiny(attn_implementation="flex_attention"), {"input_ids": token_batch()}
    with Probe(model, [AttentionProfile()], on_error="raise"), pytest.raises(GeomprobeError, match=r"without torch\.compile"):
        run(torch.compile(model, backend="eager"), [batch])


def test_off_steps_recompile_nothing_and_count_nothing() -> None:
    model, batch = tiny(), {"input_ids": token_batch()}
    with Probe(model, when=every(3), on_error="raise") as probe:
        run(torch.compile(model, fullgraph=True, backend="aot_eager"), [batch] * 7)
    assert counters["stats"]["unique_graphs"] == 1
    assert probe.read()["tokens/embed"] == 3 * 24


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_steps_in_a_full_graph(checkpointing: bool) -> None:
    ids, losses, probes = token_batch(), [], []
    for compile_it in (False, True):
        model = tiny().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with Probe(model, on_error="raise") as probe:
            step = torch.compile(model, fullgraph=True, backend="aot_eager") if compile_it else model
            for _ in range(2):
                loss = step(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
        losses.append(float(loss.detach()))
        probes.append(probe)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert probes[1].read("train")["tokens/embed"] == 2 * ids.numel()
    assert_same(probes[1], probes[0], 1e-5)


def test_a_model_compiled_layer_by_layer() -> None:
    """More layers than Dynamo makes graphs of one code: they must be able to share."""
    model, batch = tiny(layers=12), {"input_ids": token_batch()}
    metrics = [InformationGain(), AttentionProfile()]
    with Probe(model, metrics, on_error="raise") as eager:
        run(model, [batch])
    with Probe(model, metrics, on_error="raise") as probe:
        for layer in model.model.layers:
            layer.compile(backend="aot_eager", fullgraph=True)
        run(model, [batch])
    assert_same(probe, eager, 0)


def test_a_fault_inside_a_graph_warns_once_and_the_model_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny(), {"input_ids": token_batch()}
    with Probe(model) as probe:
        monkeypatch.setattr(probe._recorder._group, "put", lambda *args: 1 / 0)
        step = torch.compile(model, fullgraph=True, backend="aot_eager")
        with pytest.warns(RuntimeWarning, match="stopped measuring, and the model continues: ZeroDivisionError") as caught:
            run(step, [batch, batch])
        assert len([warning for warning in caught if "geomprobe" in str(warning.message)]) == 1
        assert not hooks(model)


def test_after_close_the_graph_hears_nothing() -> None:
    model, batch = tiny(), {"input_ids": token_batch()}
    step: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    with Probe(model, on_error="raise") as probe:
        run(step, [batch])
    run(step, [batch])
    assert probe.read()["tokens/embed"] == 24


def test_a_graph_that_outlives_its_probe_calls_nothing() -> None:
    ended: list[str] = []

    class Ending:
        def end(self) -> None:
            ended.append("end")

    capture: Any = Ending()
    number = dynamo_ops.register(capture)
    for _ in range(2):
        dynamo_ops.end(torch.zeros(0), number)
        dynamo_ops.forget(number)
    assert ended == ["end"]


@pytest.mark.parametrize("way", WAYS)
def test_attached_after_tracing_the_next_call_traces_again(way: str) -> None:
    """A graph that was traced without hooks would never call any, and Dynamo does not look for new ones."""
    model, batch = tiny(), {"input_ids": token_batch()}
    step = WAYS[way](model)
    run(step, [batch, batch])
    with Probe(model, on_error="raise") as first:
        run(step, [batch])
    with Probe(model, sites=[1], on_error="raise") as second:
        run(step, [batch, batch])
    with Probe(model.model, on_error="raise") as third:
        run(step, [batch])
    assert [probe.read()["tokens/layer_01"] for probe in (first, second, third)] == [24, 48, 24]
    assert second.read().sites == ("layer_01",)


class Owner(nn.Module):
    """A module that contains a model, and is compiled in its place."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Any) -> Any:
        return self.model(**batch)


@pytest.mark.parametrize("frozen", [False, True])
def test_graphs_of_a_module_that_contains_the_model_are_found(frozen: bool) -> None:
    owner, batch = Owner(tiny()), {"input_ids": token_batch()}
    owner.compile(backend="eager")
    run(owner, [batch, batch])
    if frozen:  # as trainings do that turn the collector off
        gc.freeze()
    try:
        with Probe(owner.model, on_error="raise") as probe:
            run(owner, [batch, batch])
    finally:
        gc.unfreeze()
    assert probe.read()["tokens/layer_01"] == 48


def test_a_model_wrapped_again_and_one_that_another_models_graph_fits() -> None:
    watched, other, batch = tiny(), tiny(), {"input_ids": token_batch()}
    run(torch.compile(other, backend="eager"), [batch])
    run(torch.compile(watched, backend="eager"), [batch])  # and the wrapper is gone
    with Probe(watched, on_error="raise") as probe:
        run(torch.compile(watched, backend="eager"), [batch, batch])
        run(torch.compile(other, backend="eager"), [batch])
    assert probe.read()["tokens/embed"] == 48


def test_many_watched_models_one_after_another_stay_in_full_graphs() -> None:
    batch = {"input_ids": token_batch()}
    for _ in range(12):
        model = tiny(layers=1)
        with Probe(model, on_error="raise") as probe:
            run(torch.compile(model, fullgraph=True, backend="eager"), [batch])
        assert probe.read()["tokens/embed"] == 24


def test_another_model_that_is_compiled_does_not_matter() -> None:
    compiled, model, batch = tiny(), tiny(), {"input_ids": token_batch()}
    run(torch.compile(compiled, backend="eager"), [batch])
    with Probe(model, on_error="raise") as probe:
        run(model, [batch])
    assert probe.read()["tokens/embed"] == 24


def test_generation_on_a_cache_breaks_the_graph_and_stays_exact() -> None:
    model, ids = tiny(), token_batch(1, 6)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    with Probe(model, on_error="raise") as eager:
        model.generate(ids, **options)
    with Probe(model, on_error="raise") as probe:
        compiled: nn.Module = torch.compile(model, backend="eager")  # type: ignore[assignment]
        compiled.generate(ids, **options)  # type: ignore[operator]
    assert_same(probe, eager, 1e-6)
