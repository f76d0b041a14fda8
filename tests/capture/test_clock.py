"""The clock of a probe, and what a probe costs in steps that are not measured."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from geomprobe import Probe, budget, every
from geomprobe.capture.clock import Clock
from geomprobe.recording.recorder import Recorder
from tests.tiny_models import tiny, token_batch


class Event:
    """A CUDA event of a device whose time is told."""

    now = 0.0
    reached = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: Any) -> None:
        self.at = Event.now

    def query(self) -> bool:
        return self.at <= Event.reached

    def elapsed_time(self, other: "Event") -> float:
        return 1000 * (other.at - self.at)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(Event, "now", 0.0)
    monkeypatch.setattr(Event, "reached", 0.0)
    return torch.device("cuda", 0)


class Host:
    """A host whose time passes as it is told, because a machine that is shared takes its own."""

    now = 1.0

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr("geomprobe.capture.clock.perf_counter", lambda: host.now)
    return host


def test_spans_add_and_do_not_nest(host: Host) -> None:
    clock = Clock()
    with clock.span():
        host.wait(0.25)
        with clock.span():
            host.wait(0.5)
    assert clock.seconds == 0.75
    with clock.span():  # a forward of fixed texts, whose own hooks mark their time
        mark = clock.mark()
        host.wait(2)
        clock.add_since(mark)
    assert clock.seconds == 2.75
    host.wait(8)
    mark = clock.mark()
    with clock.span():
        host.wait(1)
    host.wait(1)
    clock.add_since(mark)
    assert clock.seconds == 4.75
    with pytest.raises(ZeroDivisionError), clock.span():
        raise ZeroDivisionError
    with clock.span():
        host.wait(1)
    assert clock.seconds == 5.75


def test_elapsed_stops_while_the_clock_is_halted(host: Host) -> None:
    clock = Clock()
    assert clock.elapsed == 0
    clock.run()
    host.wait(0.5)
    clock.run()
    clock.halt()
    clock.halt()
    assert clock.elapsed == 0.5
    host.wait(1)
    assert clock.elapsed == 0.5


def test_device_time_is_read_when_the_device_has_come_that_far(cuda: torch.device, host: Host) -> None:
    clock = Clock()
    for seconds in (2.0, 3.0):
        with clock.span(cuda):
            Event.now += seconds
        Event.now += 10  # the work of the model
    assert clock.seconds == 0
    Event.reached = 2.0
    assert clock.seconds == 2
    Event.reached = 100.0
    assert clock.seconds == clock.seconds == 5


def test_no_event_is_recorded_in_a_graph_that_is_captured(
    cuda: torch.device, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    clock = Clock()
    with clock.span(cuda):
        Event.now += 5
    Event.reached = 100.0
    assert clock.seconds == 0


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that are dispatched."""

    names: list[str]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_step_that_is_not_measured_dispatches_no_operation(family: str, mode: str) -> None:
    model, ids = tiny(family).train(mode == "train"), token_batch()

    def step() -> list[str]:
        model.zero_grad()
        with Operations() as counter:
            model(ids, labels=ids).loss.backward()
        return list(counter.names)

    bare = step()
    for when in (every(2), budget(0.01, interval=4), lambda step: step == 0):
        with Probe(model, when=when) as probe:
            measured, off = step(), step()
        assert off == bare
        assert len(measured) > len(bare)
        assert probe.read()["tokens/embed"] == ids.numel()


def test_a_reading_tells_its_cost() -> None:
    model, ids = tiny("llama"), token_batch()
    probe = Probe(model, when=budget(0.5))
    assert (probe.cost.seconds, probe.cost.share, probe.cost.interval) == (0, 0, 1)
    with probe:
        for _ in range(20):
            model(ids)
        hooks = probe.cost
        reading = probe.read()
    assert reading.cost is not None
    assert 0 < hooks.seconds < reading.cost.seconds  # reading takes time, too
    assert 0 < reading.cost.share <= 1
    assert reading.cost.interval is not None
    assert reading.cost.interval > 1
    with Probe(model) as fixed:
        model(ids)
    assert fixed.read().cost.interval is None  # type: ignore[union-attr]


def test_time_that_the_caller_spends_on_the_probe_can_be_added(host: Host) -> None:
    probe = Probe(tiny("llama"))
    with probe.timed():
        host.wait(0.5)
    assert probe.cost.seconds == 0.5


@pytest.mark.parametrize("reused", [False, True], ids=["a new cache", "a cache that is emptied"])
def test_the_end_of_generated_texts_is_counted_once(reused: bool, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny("llama").eval(), token_batch()
    plain, ends = Recorder.ended, []

    def slow(recorder: Recorder, sequence: Any) -> None:
        ends.append(sequence)
        host.wait(0.25)
        plain(recorder, sequence)

    monkeypatch.setattr(Recorder, "ended", slow)
    cache = DynamicCache()
    with Probe(model, when=lambda forward: reused or forward == 0) as probe:
        for _ in range(2):
            model(ids, past_key_values=cache)
            cache = cache if reused else DynamicCache()
            cache.layers.clear()
        before = len(ends)
        assert probe.cost.seconds == 0.25
    assert before == 1
    assert probe.cost.seconds == 0.25 * len(ends)


def test_what_the_model_does_between_hooks_is_not_counted(host: Host) -> None:
    model, ids = tiny("llama"), token_batch()
    model.model.layers[1].mlp.register_forward_pre_hook(lambda module, args: host.wait(1))
    with Probe(model) as probe:
        for _ in range(3):
            model(ids)
    assert probe.cost.seconds == 0
    assert probe.cost.share == 0
