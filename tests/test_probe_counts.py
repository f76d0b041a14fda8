"""What a probe counts: every token of a forward once, training and evaluation apart, and nothing it was told to leave out."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from geomprobe import EmptyReadingError, GeomprobeError, InformationGain, Metric, Probe, RepresentationEntropy, every
from geomprobe.accumulators.state import merge
from tests import reference
from tests.tiny_models import HandMade, tiny, token_batch


def tokens(probe: Probe, mode: Any = None) -> list[float]:
    reading = probe.read(mode)
    return [reading[f"tokens/{site}"] for site in probe.sites]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_activation_checkpointing_counts_each_token_once(family: str, reentrant: bool) -> None:
    plain, model = tiny(family).train(), tiny(family).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    readings = []
    for each in (plain, model):
        with Probe(each, on_error="raise") as probe:
            each(token_batch(), labels=token_batch()).loss.backward()
            assert tokens(probe) == [24] * 5
        readings.append(probe.read())
    assert dict(readings[0]) == dict(readings[1])
    gradients = zip(plain.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(expected.grad, parameter.grad) for expected, parameter in gradients)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_that_replays_hooks_counts_each_token_once(reentrant: bool) -> None:
    model = HandMade()
    model.checkpointing = reentrant
    calls: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    with Probe(model, on_error="raise") as probe:
        loss: Any = model(token_batch()).sum()
        loss.backward()
        assert len(calls) == 2, "this model is here to replay its hooks in backward"
        assert tokens(probe) == [24] * 4


def test_modes_that_were_not_asked_for_are_not_looked_at() -> None:
    model = tiny()
    with Probe(model, modes=["train"], on_error="raise") as probe:
        model.eval()(token_batch(3))
        with pytest.raises(EmptyReadingError, match=r"has not run in the modes of the probe \(train\) since it was attached"):
            probe.read()
        model.train()(token_batch(2))
        with torch.no_grad():
            model(token_batch(1))
            model.generate(token_batch(1, 5), max_new_tokens=3, num_beams=2)  # which would be told
    assert tokens(probe) == [24] * 5
    assert probe.read().notes == []
    for modes in ([], ["test"], "train"):
        with pytest.raises(GeomprobeError, match=r"Probe\(modes=.*: expected a list of some of 'train', 'eval', 'no_grad'"):
            Probe(model, modes=modes)  # type: ignore[arg-type]
    with pytest.raises(GeomprobeError, match=r"Probe\(pad_token_id='x'\): expected the id of a token"):
        Probe(model, pad_token_id="x")  # type: ignore[arg-type]


def test_training_and_evaluation_are_kept_apart() -> None:
    model = tiny()
    with Probe(model) as probe:
        model.train()(token_batch(2))
        assert tokens(probe) == [24] * 5
        with pytest.raises(GeomprobeError, match="nothing to read: the model ran in train mode only"):
            probe.read("eval")
        model.eval()(token_batch(3, seed=1))
        model.train()(token_batch(2, seed=2))
    assert tokens(probe, "train") == [48] * 5
    assert tokens(probe, "eval") == [36] * 5
    assert (probe.read("train").mode, probe.read("eval").mode) == ("train", "eval")
    with pytest.raises(GeomprobeError, match=r"in the modes train, eval: call read\('train'\) or read\('eval'\)"):
        probe.read()
    with pytest.raises(GeomprobeError, match=r"read\('test'\): expected 'train', 'eval', 'no_grad', 'fixed'"):
        probe.read("test")  # type: ignore[arg-type]
    probe.reset("train")
    assert tokens(probe) == [36] * 5


def test_two_forwards_read_as_one_of_both() -> None:
    model = tiny()
    batch = token_batch(4)
    with Probe(model, on_error="raise") as probe, torch.no_grad():
        model(batch)
        whole = probe.read(reset=True)
        model(batch[:1])
        model(batch[1:])
        model.zero_grad()
    hidden = reference.hidden_states(model, {"input_ids": batch})
    # Forwards of one, three and four texts round differently.
    reference.hold_to_run(probe.read(), whole, [{site: states[i] for site, states in hidden.items()} for i in range(4)])
    assert probe.read().curve("gain", "embed").count == whole.curve("gain", "embed").count == (4,) * 12


def test_reset_starts_anew() -> None:
    model = tiny()
    with Probe(model, on_error="raise") as probe, torch.no_grad():
        model(token_batch(seed=1))
        first = probe.read(reset=True)
        with pytest.raises(GeomprobeError, match="nothing to read"):
            probe.read()
        model(token_batch(seed=2))
        model(token_batch(seed=2))
        probe.reset()
        model(token_batch(seed=1))
    assert dict(probe.read()) == dict(first)


def test_the_schedule_measures_the_forwards_it_names() -> None:
    model = tiny()
    batches = [token_batch(1, 3 + i, seed=i) for i in range(7)]
    with Probe(model, when=every(3)) as probe, torch.no_grad():
        for batch in batches:
            model(batch)
    with Probe(model) as expected, torch.no_grad():
        for batch in batches[::3]:
            model(batch)
    assert dict(probe.read()) == dict(expected.read())


def test_paused_forwards_pass_and_do_not_count_for_the_schedule() -> None:
    model = tiny()
    asked: list[int] = []

    def when(step: int) -> bool:
        asked.append(step)
        return step != 1

    with Probe(model, when=when) as probe, torch.no_grad():
        model(token_batch(1))
        probe.paused = True
        model(token_batch(5))
        probe.paused = False
        model(token_batch(1))
        model(token_batch(2))
    assert asked == [0, 1, 2]
    assert tokens(probe) == [36] * 5


def test_off_steps_never_reach_the_accumulators(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    with Probe(model, when=lambda step: False) as probe:
        monkeypatch.setattr(probe._recorder, "captured", lambda *_: pytest.fail("an off-step was captured"))
        model(token_batch())
        model(token_batch())
    with pytest.raises(GeomprobeError, match="nothing to read: the schedule 'when' selected none of 2 forwards"):
        probe.read()


def test_reading_before_any_forward() -> None:
    model = tiny()
    probe = Probe(model)
    with pytest.raises(
        GeomprobeError, match=r"nothing to read: the probe was never attached; run the model inside 'with Probe"
    ):
        probe.read()
    model(token_batch())
    with probe:
        with pytest.raises(GeomprobeError, match="nothing to read: the model has not run since the probe was attached"):
            probe.read()
        probe.paused = True
        model(token_batch())
        with pytest.raises(GeomprobeError, match="nothing to read: the probe is paused"):
            probe.read()


# -- states out and in ------------------------------------------------------------------------------------------------------


def state_of(model: Any, batch: Tensor, metrics: list[Metric] | None = None) -> dict[str, Tensor]:
    with Probe(model, metrics, on_error="raise") as probe, torch.no_grad():
        model(batch)
    return probe.state_dict()


def test_state_goes_through_safetensors_and_on(tmp_path: Path) -> None:
    model = tiny()
    with Probe(model, on_error="raise") as unbroken, torch.no_grad():
        model(token_batch(2, 12))
        model.train()(token_batch(1, 5, seed=1))
        safetensors.torch.save_file(unbroken.state_dict(), tmp_path / "probe.safetensors")
        model(token_batch(1, 20, seed=2))

    resumed = Probe(model, on_error="raise")
    resumed.load_state_dict(safetensors.torch.load_file(tmp_path / "probe.safetensors"))
    assert tokens(resumed, "eval") == [24] * 5
    assert tokens(resumed, "no_grad") == [5] * 5
    with resumed, torch.no_grad():
        model(token_batch(1, 20, seed=2))
    for mode in ("no_grad", "eval"):
        assert resumed.read(mode).to_dict() == unbroken.read(mode).to_dict()


def test_states_add() -> None:
    model = tiny()
    one, two = state_of(model, token_batch(2, 9)), state_of(model, token_batch(3, 14, seed=1))
    with Probe(model, on_error="raise") as both, torch.no_grad():
        model(token_batch(2, 9))
        model(token_batch(3, 14, seed=1))
    added = Probe(model)
    added.load_state_dict(merge([one, two]))
    assert dict(added.read()) == pytest.approx(dict(both.read()), rel=1e-12)
    assert added.read().curve("gain", "embed").count == (5,) * 9 + (3,) * 5


def test_a_saved_state_is_a_copy() -> None:
    model = tiny()
    with Probe(model) as probe, torch.no_grad():
        model(token_batch())
        saved = probe.state_dict()
        kept = {name: value.clone() for name, value in saved.items()}
        model(token_batch())
        assert all(torch.equal(saved[name], kept[name]) for name in saved)
        probe.load_state_dict(saved)
        model(token_batch())
        read = probe.read()
        assert all(torch.equal(saved[name], kept[name]) for name in saved)
        for value in saved.values():
            value.zero_()
        assert probe.read() == read
    assert all(value.device.type == "cpu" and value.dtype == torch.float64 for value in saved.values())


def test_a_mode_that_was_loaded_can_be_forgotten() -> None:
    model = tiny()
    with Probe(model) as probe:
        model(token_batch(2))
        model.train()(token_batch(1))
    resumed = Probe(model)
    resumed.load_state_dict(probe.state_dict())
    resumed.reset("train")
    assert tokens(resumed) == [24] * 5


@pytest.mark.parametrize(
    ("saved", "loading", "message"),
    [
        (
            [InformationGain()],
            [InformationGain(sigma=0.1)],
            r"this state contains 'eval/embed/information_gain.1'",
        ),
        (
            [InformationGain()],
            [InformationGain(), RepresentationEntropy()],
            r"this state does not contain 'eval/embed/covariance.1'",
        ),
    ],
)
def test_a_state_of_another_probe_is_refused(saved: list[Metric], loading: list[Metric], message: str) -> None:
    model = tiny()
    state = state_of(model, token_batch(), saved)
    with pytest.raises(GeomprobeError, match=message):
        Probe(model, loading).load_state_dict(state)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "eval/layer_09/token_count.1/tokens",
            "this state contains .* make the probe with the arguments of the probe that saved",
        ),
        ("test/embed/token_count.1/tokens", "this state contains .* make the probe with the arguments of the probe that saved"),
        ("embed/token_count.1/tokens", "is not the name of a sum of a probe: expected mode/site/accumulator/sum"),
        ("x", "is not the name of a sum of a probe"),
    ],
)
def test_a_state_that_no_probe_wrote_is_refused(key: str, message: str) -> None:
    with pytest.raises(GeomprobeError, match=message):
        Probe(tiny()).load_state_dict({key: torch.zeros((), dtype=torch.float64)})
