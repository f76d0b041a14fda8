"""A probe changes nothing that the model computes, and leaves nothing on it."""

import contextlib
import copy
import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from geomprobe import GeomprobeError, Metric, Probe, RepresentationEntropy
from geomprobe.accumulators.state import Accumulator, State
from geomprobe.core.rows import Rows
from tests.tiny_models import FAMILIES, HandMade, padded, snapshot, tiny, token_batch

DROPOUT: dict[str, dict[str, Any]] = {
    "gpt_neox": {"hidden_dropout": 0.1, "attention_dropout": 0.1},
    "llama": {"attention_dropout": 0.1},
}


@dataclass(frozen=True)
class Broken(Metric):
    """Counts forwards, and raises on the group of sites after ``good`` of them; five sites are two groups."""

    name: ClassVar[str] = "broken"
    version: ClassVar[int] = 1

    good: int = 0
    measured: list[torch.Size] = field(default_factory=list, repr=False, compare=False)

    def new_state(self, width: int, device: torch.device) -> State:
        return {"forwards": torch.zeros((), dtype=torch.float64, device=device)}

    def contribution(self, rows: Rows) -> State:
        if len(self.measured) == self.good:
            raise ZeroDivisionError("broken on purpose")
        self.measured.append(rows.hidden.shape)
        return {"forwards": rows.hidden.new_ones(rows.hidden.shape[:-3])}

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        return (self,)

    def scalars(self, states: Any) -> dict[str, Tensor | float]:
        return {"good_forwards": states[self]["forwards"]}


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_logits_and_gradients_are_bit_identical_with_the_probe_on_off_and_after(family: str, train: bool, mode: Any) -> None:
    model = tiny(family, **DROPOUT[family]).train(train)
    batch = padded([token_batch(1, length)[0] for length in (12, 7)])

    def run() -> list[Tensor]:
        torch.manual_seed(1)  # dropout
        model.zero_grad()
        with mode():
            logits: Any = model(**batch).logits
            if mode is not torch.enable_grad:
                return [logits]
            logits.square().sum().backward()
        return [logits, *(parameter.grad.clone() for parameter in model.parameters())]

    before = run()
    with Probe(model, on_error="raise") as probe:
        during = run()
        probe.paused = True
        paused = run()
    after = run()
    assert probe.read()["tokens/final_norm"] == 19
    if mode is torch.enable_grad:
        assert len(before) == 1 + len(list(model.parameters()))
    for outputs in (during, paused, after):
        assert len(outputs) == len(before)
        assert all(torch.equal(output, expected) for output, expected in zip(outputs, before, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_after_close(family: str) -> None:
    model = tiny(family)
    before = snapshot(model)
    with Probe(model) as probe:
        model(token_batch())
        assert snapshot(model) != before
        assert Probe.on(model) is probe
    assert snapshot(model) == before
    assert Probe.on(model) is None
    probe.close()
    assert snapshot(model) == before


def test_hooks_of_others_stay_and_keep_their_order() -> None:
    model = tiny()
    calls: list[str] = []
    layer = model.model.layers[0]
    first = layer.register_forward_hook(lambda *_: calls.append("first"))
    with Probe(model):
        second = layer.register_forward_hook(lambda *_: calls.append("second"))
        model(token_batch())
    model(token_batch())
    assert calls == ["first", "second"] * 2
    assert list(layer._forward_hooks) == [first.id, second.id]


@contextlib.contextmanager
def failing(module: nn.Module, error: BaseException) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise error

    handle = module.register_forward_pre_hook(fail)
    yield
    handle.remove()


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["model.layers.1", "model.layers.0", "model.norm", "lm_head"])
def test_nothing_is_left_after_an_exception_in_the_model(error: BaseException, place: str) -> None:
    model = tiny()
    before = snapshot(model)
    with failing(model.get_submodule(place), error), pytest.raises(type(error)) as caught, Probe(model) as probe:
        model(token_batch())
    assert caught.value is error
    assert snapshot(model) == before
    assert probe.fault is None


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_forward_that_broke_off_does_not_disturb_the_next(error: BaseException) -> None:
    model = tiny()
    with Probe(model, on_error="raise") as probe, torch.no_grad():
        with failing(model.model.layers[1], error), pytest.raises(type(error)):
            model(token_batch())
        model(token_batch())
    reading = probe.read()
    assert {reading[f"tokens/{site}"] for site in probe.sites} == {24}
    why = "a forward raised an exception" if isinstance(error, Exception) else "it was interrupted"
    assert why in reading.notes[0]


def test_a_forward_that_broke_off_is_over() -> None:
    """What runs after it, outside a forward or in one that is not to be measured, is not taken for a part of it."""
    model = HandMade()
    with Probe(model, on_error="raise") as probe:
        model(token_batch())
        with failing(model.blocks[1], RuntimeError()), pytest.raises(RuntimeError):
            model(token_batch())
        model.blocks[0](torch.zeros(2, 12, 8))
        assert probe.read()["tokens/layer_00"] == 24
        with failing(model.blocks[1], KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
            model(token_batch())
        probe.paused = True
        model(token_batch())
        probe.paused = False
        model(token_batch())
        assert probe.read()["tokens/layer_00"] == 48


@pytest.mark.parametrize("on_error", ["warn", "raise"])
@pytest.mark.parametrize("layers", [None, [1], ["final_norm"]], ids=["all", "layer", "final_norm"])
@pytest.mark.filterwarnings("ignore:geomprobe stopped measuring")
def test_nothing_is_left_after_an_exception_in_the_probe(on_error: Any, layers: list[int | str] | None) -> None:
    model = tiny()
    before = snapshot(model)
    expectation = pytest.raises(ZeroDivisionError) if on_error == "raise" else contextlib.nullcontext()
    probe = Probe(model, [RepresentationEntropy(), Broken()], sites=layers, on_error=on_error).attach()
    with expectation:
        model(token_batch())
    model(token_batch())  # takes off a probe whose error went through the model
    assert snapshot(model) == before
    assert Probe.on(model) is None
    with pytest.raises(GeomprobeError, match=r"this probe stopped at ZeroDivisionError: .* make a new Probe\(model\)"):
        probe.attach()


def test_a_model_dropped_with_its_probe_on_is_freed() -> None:
    model = tiny()
    Probe(model).attach()
    gone = weakref.ref(model.model)
    del model
    gc.collect()
    assert gone() is None


def test_attaching_twice() -> None:
    model = tiny()
    with Probe(model) as probe:
        with pytest.raises(GeomprobeError, match=r"this probe is already attached to this LlamaModel.*Probe.on\(model\).close"):
            probe.attach()
        with pytest.raises(GeomprobeError, match="another probe is already attached to this LlamaModel"):
            Probe(model.model).attach()
        assert Probe.on(model) is Probe.on(model.model) is probe
        other = tiny("gpt_neox")
        assert Probe.on(other) is None
        with Probe(other):
            model(token_batch())
    assert probe.read()["tokens/embed"] == 24


def test_a_lost_probe_can_be_found_and_closed() -> None:
    model = tiny()
    before = snapshot(model)
    Probe(model).attach()
    gc.collect()
    lost = Probe.on(model)
    assert lost is not None
    lost.close()
    assert snapshot(model) == before
    with Probe(model) as probe:
        assert Probe.on(model) is probe


def test_a_closed_probe_reads_and_may_be_attached_again() -> None:
    model = tiny()
    before = snapshot(model)
    with torch.no_grad(), Probe(model) as twice:
        model(token_batch(seed=1))
        model(token_batch(seed=2))
    with torch.no_grad(), Probe(model) as probe:
        model(token_batch(seed=1))
    model(token_batch(seed=3))
    assert probe.read()["tokens/embed"] == 24
    with torch.no_grad(), probe:
        model(token_batch(seed=2))
        assert Probe.on(model) is probe
    assert dict(probe.read()) == pytest.approx(dict(twice.read()), rel=1e-12)
    assert snapshot(model) == before


def test_a_cache_that_was_filled_while_a_probe_was_off_is_refused() -> None:
    model, ids = tiny(), token_batch()
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        model(ids[:, :4], past_key_values=cache)
    with torch.no_grad():
        model(ids[:, 4:8], past_key_values=cache)
        with probe, pytest.raises(GeomprobeError, match="a KV cache that the probe has not seen"):
            model(ids[:, 8:], past_key_values=cache)
    assert probe.read()["tokens/embed"] == 8


def test_copies_of_a_watched_model_are_not_watched(tmp_path: Path) -> None:
    model, ids = tiny(), token_batch()
    with Probe(model, on_error="raise") as probe, torch.no_grad():
        expected = model(ids).logits
        copied = copy.deepcopy(model)
        torch.save(model, tmp_path / "model.pt")
        loaded = torch.load(tmp_path / "model.pt", weights_only=False)
        assert torch.equal(copied(ids).logits, expected)
        assert torch.equal(loaded(ids).logits, expected)
        assert Probe.on(copied) is None
    assert probe.read()["tokens/final_norm"] == ids.numel()


def test_a_probe_shows_nothing_but_its_own() -> None:
    probe = Probe(tiny())
    actions = {"attach", "close", "fixed", "on", "read", "reset", "state_dict", "load_state_dict", "timed"}
    facts = {"cost", "fault", "metrics", "modes", "paused", "sites"}
    assert {name for name in dir(probe) if not name.startswith("_")} == actions | facts


def test_repr_of_a_probe_is_one_short_line() -> None:
    class ADecoderOfOnesOwn(HandMade):
        pass

    ADecoderOfOnesOwn.__name__ *= 99
    for model in (tiny(), ADecoderOfOnesOwn()):
        probe = Probe(model)
        assert "new" in repr(probe)
        with probe:
            assert "attached, 2 metrics at" in repr(probe)
        assert "closed" in repr(probe)
        assert len(repr(probe)) < 200
        assert repr(probe).isprintable()
        assert "0x" not in repr(probe)
