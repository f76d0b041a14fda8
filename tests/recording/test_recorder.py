"""Sites measured in groups: the numbers of sites measured one by one, and no waiting for the device."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import geomprobe.recording.recorder
import geomprobe.recording.state_store
from geomprobe import AttentionProfile, GeomprobeError, InformationGain, Metric, Probe, RepresentationEntropy
from geomprobe.accumulators.state import Accumulator, State
from geomprobe.capture.forward_context import ForwardContext
from geomprobe.capture.hooks import Capture
from geomprobe.core.attention_summary import AttentionRequest
from geomprobe.core.layer_rows import LayerRows
from geomprobe.core.rows import Rows
from geomprobe.probe import Mode, add_consumer
from geomprobe.recording.recorder import _Group
from tests.accumulators.harness import attended
from tests.tiny_models import padded, snapshot, tiny, token_batch

NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises where a number or a shape is read off a tensor, which on a GPU waits for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def waiting_forbidden(device: str) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode() if device == "cuda" else 0
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with NoWaiting():  # type: ignore[no-untyped-call]
            yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("device", DEVICES)
def test_the_hot_path_never_waits(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put, flush = _Group.put, _Group.flush

    def watched_put(self: _Group, *args: Any) -> None:
        with waiting_forbidden(device):
            put(self, *args)

    def watched_flush(self: _Group) -> None:
        with waiting_forbidden(device):
            flush(self)

    attended = Capture.attended

    def watched_attended(self: Capture, *args: Any) -> None:
        with waiting_forbidden(device):
            attended(self, *args)

    monkeypatch.setattr(_Group, "put", watched_put)
    monkeypatch.setattr(_Group, "flush", watched_flush)
    monkeypatch.setattr(Capture, "attended", watched_attended)
    model = tiny().to(device)
    batch = {name: value.to(device) for name, value in padded([token_batch(1, n)[0] for n in (40, 7)]).items()}
    with Probe(model, [RepresentationEntropy(), InformationGain(), AttentionProfile()], on_error="raise") as probe:
        model(**batch, use_cache=False)
        model(batch["input_ids"][:, :20], use_cache=False)
    assert probe.read()["tokens/final_norm"] == 47 + 40
    with pytest.raises(AssertionError, match="waits for the device"), waiting_forbidden(device):
        float(torch.zeros((), device=device))


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("entries", [1, 1 << 11, 1 << 24])
def test_groups_of_any_size_give_the_same_numbers(group: int, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    batches = [padded([token_batch(1, n, seed=n)[0] for n in lengths]) for lengths in ((12, 7), (40, 3, 9))]

    def read(layers: Any = None) -> dict[str, float]:
        with torch.no_grad(), Probe(model, sites=layers, on_error="raise") as probe:
            for batch in batches:
                model(**batch, use_cache=False)
        return dict(probe.read())

    expected, some = read(), read([0, "final_norm"])
    monkeypatch.setattr(geomprobe.recording.recorder, "GROUP", group)
    monkeypatch.setattr(geomprobe.recording.state_store, "GROUP", group)
    monkeypatch.setattr(geomprobe.recording.recorder, "_ENTRIES", entries)
    assert read() == pytest.approx(expected, rel=1e-9)
    assert read([0, "final_norm"]) == pytest.approx(some, rel=1e-9)
    assert some.items() <= expected.items()


def test_a_state_goes_on_after_it_was_loaded_on_top_of_what_is_stacked() -> None:
    model, first, second = tiny(), token_batch(seed=1), token_batch(seed=2)
    with torch.no_grad(), Probe(model, on_error="raise") as both:
        model(first, use_cache=False)
        saved = both.state_dict()
        model(second, use_cache=False)
    with torch.no_grad(), Probe(model, on_error="raise") as resumed:
        model(second, use_cache=False)  # in place of which the state is loaded
        resumed.load_state_dict(saved)
        model(second, use_cache=False)
    assert dict(resumed.read()) == pytest.approx(dict(both.read()), rel=1e-12)
    assert resumed.state_dict().keys() == both.state_dict().keys()
    resumed.reset()
    assert not resumed.state_dict()


def test_layers_may_differ_in_their_number_of_heads() -> None:
    probe, context = Probe(tiny(), [AttentionProfile()], on_error="raise"), ForwardContext("eval")
    hidden = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    few = attended(Rows(hidden))
    many = few.map(lambda name, value: torch.cat([value, value], 1) if name in ("entropy", "first", "distance") else value)
    for site, seen in zip(probe.sites, (None, few, many, few, few), strict=True):
        probe._recorder.captured(context, site, hidden, LayerRows(seen))
    probe._recorder.closed(context, completed=True)
    reading = probe.read()
    assert [len(reading.curve("attention_sink_by_head", site)) for site in probe.sites[1:]] == [2, 4, 2, 2]
    assert reading["attention_sink/layer_01"] == pytest.approx(reading["attention_sink/layer_00"])


@dataclass(frozen=True)
class Counting(Metric):
    """A metric that is its own accumulator: the number of tokens."""

    name: ClassVar[str] = "counting"
    version: ClassVar[int] = 1

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        return (self,)

    def new_state(self, width: int, device: torch.device) -> State:
        return {"n": torch.zeros((), dtype=torch.float64, device=device)}

    def contribution(self, rows: Rows) -> State:
        return {"n": rows.mask.sum().double().expand(rows.hidden.shape[0])}

    def scalars(self, states: Any) -> dict[str, Tensor | float]:
        return {"counted": states[self]["n"]}


@dataclass(frozen=True)
class Careless(Counting):
    """Sums over the sites of a group, too."""

    name: ClassVar[str] = "careless"
    version: ClassVar[int] = 1

    def contribution(self, rows: Rows) -> State:
        return {"n": rows.valid.double().sum()}


def test_an_accumulator_that_sums_over_sites_is_refused_and_nothing_of_it_kept() -> None:
    model = tiny()
    with (
        Probe(model, [RepresentationEntropy(), Careless()]) as probe,
        pytest.warns(RuntimeWarning, match="dimension of 4 sites"),
    ):
        model(token_batch())
    with pytest.raises(GeomprobeError, match="nothing to read"):
        probe.read()


def test_a_state_of_another_model_or_with_a_sum_missing_is_refused() -> None:
    narrow, wide = tiny(), tiny(width=48)
    states = []
    for model in (narrow, wide):
        with Probe(model, on_error="raise") as probe:
            model(token_batch())
        states.append(probe.state_dict())
    with Probe(wide, on_error="raise") as mixed:
        mixed.load_state_dict(states[0])
        wide(token_batch())
        with pytest.raises(GeomprobeError, match="another width"):
            mixed.read()
    del states[1]["eval/embed/covariance.1/outer_0"]
    with pytest.raises(GeomprobeError, match=r"than in this probe \('outer_0'\)"):
        Probe(wide).load_state_dict(states[1])


def test_an_interrupted_forward_is_told() -> None:
    model = tiny()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with Probe(model, on_error="raise") as probe:
        model(token_batch())
        handle = model.model.norm.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(token_batch())
        handle.remove()
        assert "not ended" in probe.read().notes[0]
        model(token_batch())
        assert "it had not ended when the next one began" in probe.read().notes[0]
        assert probe.read()["tokens/final_norm"] == 48


@dataclass(frozen=True)
class Huge(Counting):
    """A sum in float32, beside which one more is lost: 2²⁴ for a text of three tokens, and 1 for others."""

    name: ClassVar[str] = "huge"
    version: ClassVar[int] = 1

    def contribution(self, rows: Rows) -> State:
        return {"n": torch.where(rows.used == 3, 2.0**24, 1.0).float()}


def test_parts_of_a_batch_are_added_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    split = Rows.split
    monkeypatch.setattr(Rows, "split", lambda self: split(self, 1))
    model = tiny()
    with Probe(model, [Huge()], on_error="raise") as probe:
        model(**padded([token_batch(1, n)[0] for n in (3, 1, 1)]), use_cache=False)
    assert probe.read()["counted/embed"] == 2**24 + 2


class Lengths:
    """Keeps the number of entries of the rows of each site."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.kept: dict[str, Any] = {}

    def consume(self, mode: Mode, sites: Sequence[str], rows: Rows) -> Callable[[], object]:
        assert rows.hidden.shape[0] == len(sites)
        self.read += [f"{mode}/{site}" for site in sites]
        return lambda: [self.kept.setdefault(f"{mode}/{site}", []).append(rows.hidden[0].numel()) for site in sites]


def test_a_consumer_gets_the_rows_of_the_forwards_that_count() -> None:
    model, consumer = tiny(), Lengths()

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with add_consumer(Probe(model, [], on_error="raise", when=lambda forward: forward != 1), consumer) as probe:
        model(token_batch(3, 7), use_cache=False)
        model(token_batch(3, 50), use_cache=False)  # not selected
        handle = model.model.norm.register_forward_pre_hook(fail)
        before = len(consumer.read)
        with pytest.raises(ZeroDivisionError):
            model(token_batch(3, 60), use_cache=False)
        handle.remove()
        assert len(consumer.read) > before  # they were read, and are not kept
        model(token_batch(2, 9), use_cache=False)
    assert list(consumer.kept) == [f"eval/{site}" for site in probe.sites]
    assert all(kept == [3 * 7 * 32, 2 * 9 * 32] for kept in consumer.kept.values())
    assert probe.read()["tokens/embed"] == 3 * 7 + 2 * 9


def test_a_consumer_that_fails_stops_the_probe_and_not_the_model() -> None:
    class Failing(Lengths):
        def consume(self, mode: Mode, sites: Sequence[str], rows: Rows) -> Callable[[], object]:
            raise ZeroDivisionError("consumed")

    model = tiny()
    expected = snapshot(model)
    with (
        add_consumer(Probe(model), Failing()) as probe,
        pytest.warns(RuntimeWarning, match="stopped measuring, and the model continues: ZeroDivisionError: consumed"),
    ):
        model(token_batch())
    assert isinstance(probe.fault, ZeroDivisionError)
    assert snapshot(model) == expected


def test_a_consumer_gets_the_batch_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums of a large batch are computed in parts, which a Gram matrix must not be."""
    split = Rows.split
    monkeypatch.setattr(Rows, "split", lambda self: split(self, 1))
    model, consumer = tiny(), Lengths()
    with add_consumer(Probe(model, on_error="raise"), consumer):
        model(token_batch(3, 7), use_cache=False)
    assert set(map(tuple, consumer.kept.values())) == {(3 * 7 * 32,)}


def test_a_consumer_can_ask_for_attention() -> None:
    class Maps(Lengths):
        attention = AttentionRequest(maps=True)

        def consume(self, mode: Mode, sites: Sequence[str], rows: Rows) -> Callable[[], object]:
            return lambda: self.kept.update(dict(zip(sites, rows.maps.isfinite().all((-3, -2, -1)).tolist(), strict=True)))

    model, consumer = tiny(), Maps()
    with add_consumer(Probe(model, [AttentionProfile()], on_error="raise"), consumer) as probe:
        model(token_batch(), use_cache=False)
    assert consumer.kept == {site: site != "embed" for site in probe.sites}
    assert probe.read()["attention_sink/final_norm"] > 0


@dataclass(frozen=True)
class Slashed(Counting):
    """An option that contains what separates the parts of a key."""

    name: ClassVar[str] = "slashed"
    version: ClassVar[int] = 3

    option: str = ""


def test_sums_are_saved_under_the_names_that_earlier_files_have() -> None:
    model, metrics = tiny(), [Slashed("a/b/c")]
    with Probe(model, metrics, sites=["embed", "final_norm"], on_error="raise") as probe:
        model(token_batch(2, 5), use_cache=False)
    state = probe.state_dict()
    counts = [f"token_count.1/{name}" for name in ("tokens", "texts", "generated", "nonfinite")]
    names = [*counts, 'slashed.3(option="a/b/c")/n']
    assert list(state) == [f"eval/{site}/{name}" for site in probe.sites for name in names]
    assert float(state['eval/embed/slashed.3(option="a/b/c")/n']) == 10
    again = Probe(model, metrics, sites=["embed", "final_norm"])
    again.load_state_dict(state)
    assert dict(again.read()) == dict(probe.read())
    assert list(again.state_dict()) == list(state)
    with pytest.raises(
        GeomprobeError, match=r"contains 'eval/embed/slashed\.3\(option=\"a/b/c\"\)', which this probe does not"
    ):
        Probe(model, [Slashed("a/b")], sites=["embed", "final_norm"]).load_state_dict(state)
    with pytest.raises(GeomprobeError, match=r"does not contain 'eval/embed/slashed\.3', which this probe needs"):
        Probe(model, [Slashed(), *metrics], sites=["embed", "final_norm"]).load_state_dict(state)
