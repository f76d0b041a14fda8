"""Forwards that a probe does not understand: each is left out of every number, and the reading says so."""

import copy
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle
from transformers import DynamicCache

from geomprobe import AttentionProfile, Decoder, GeomprobeError, Probe
from geomprobe.accumulators.state import TokenCount
from geomprobe.reading import Reading, compute_reading
from geomprobe.recording.state_store import Bank
from tests.tiny_models import HandMade, snapshot, tiny, token_batch


@contextmanager
def one_warning(match: str) -> Iterator[None]:
    """Assert that geomprobe warns once, with ``match`` in it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    ours = [str(warning.message) for warning in caught if "geomprobe" in str(warning.message)]
    assert len(ours) == 1, ours
    assert match in ours[0]


def read(model: nn.Module, *batches: Tensor, **options: Any) -> Reading:
    with torch.no_grad(), Probe(model, on_error="raise", **options) as probe:
        for batch in batches:
            model(batch)
    return probe.read()


def left_out(model: nn.Module, spoil: Callable[[], object], match: str, **options: Any) -> None:
    """Assert that ``spoil``, run between two good forwards, is left out of every site with one note and one warning."""
    first, second = token_batch(), token_batch(3, 7, seed=1)
    before = snapshot(model)
    with torch.no_grad():
        expected = read(model, first, second, **options)
        with Probe(model, **options) as probe:
            model(first)
            with one_warning(match):
                spoil()
                spoil()
            model(second)
    reading = probe.read()
    assert probe.fault is None
    assert [match in note for note in reading.notes] == [True]
    assert dict(reading) == pytest.approx(dict(expected), rel=1e-12, nan_ok=True)
    assert snapshot(model) == before


# -- caches ------------------------------------------------------------------------------------------------------------------


class Cached(nn.Module):
    """A decoder whose cache argument can have any name, as Transformers renames its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.inner, self.name = tiny().model, name
        self.config = self.inner.config

    @property
    def decoder(self) -> Decoder:
        return Decoder(base=self, layers=list(self.inner.layers))

    def forward(self, input_ids: Tensor, **arguments: Any) -> Any:
        return self.inner(input_ids, past_key_values=arguments.get(self.name))


@pytest.mark.parametrize("name", ["past_key_values", "cache", "cache_params"])
def test_a_cache_is_understood_under_each_of_its_names(name: str) -> None:
    model, ids = Cached(name), token_batch(2, 9)
    expected = read(model, ids, decoder=model.decoder)
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), Probe(model, decoder=model.decoder, on_error="raise") as probe:
        for columns in torch.split(ids, [4, 1, 1, 3], dim=1):
            model(columns, **{name: cache})
    assert dict(probe.read()) == pytest.approx(dict(expected), rel=1e-4)
    assert probe.read()["texts/embed"] == 2


class PagedCache:
    def get_seq_length(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cache", PagedCache()),
        ("past_key_values", ((torch.zeros(1), torch.zeros(1)),)),
        ("layer_past", [torch.zeros(1)]),
        ("memory", DynamicCache()),
        ("state", [torch.zeros(1)]),
        ("mems", [torch.zeros(1)]),
    ],
    ids=["paged", "legacy", "past", "unknown name", "state", "mems"],
)
def test_what_looks_like_a_cache_and_is_not_understood_is_left_out(name: str, value: Any) -> None:
    model = Cached("unused")
    what = f"a forward with {name}={type(value).__name__} was left out"
    left_out(model, lambda: model(token_batch(), **{name: value}), what, decoder=model.decoder)


def test_a_copied_cache_is_left_out_and_the_measurement_goes_on() -> None:
    model = tiny()

    def continue_on_a_copy() -> None:
        cache = DynamicCache(config=model.config)
        paused.paused = True
        model(token_batch(), past_key_values=cache)
        paused.paused = False
        model(token_batch(2, 1), past_key_values=copy.deepcopy(cache))

    with torch.no_grad(), Probe(model) as paused:
        model(token_batch())
        with one_warning("a forward that continues from 12 tokens of a KV cache"):
            continue_on_a_copy()
            continue_on_a_copy()
        model(token_batch(1, 5))
    assert {paused.read()[f"tokens/{site}"] for site in paused.sites} == {29}
    assert "was left out" in paused.read().notes[0]


# -- sites -------------------------------------------------------------------------------------------------------------------


def shared_depths(shared: bool) -> HandMade:
    """Layers a, b, a: the first and the last are one module, or two with the same weights."""
    model = HandMade(layers=3, claimed=3)
    model.blocks[2] = model.blocks[0] if shared else copy.deepcopy(model.blocks[0])
    return model


@pytest.mark.parametrize("sites", [None, ["layer_00"], ["layer_02"], ["embed", "final_norm"]], ids=str)
def test_a_layer_at_two_depths_is_read_once_at_each(sites: list[str] | None) -> None:
    expected = read(shared_depths(False), token_batch(), sites=sites)
    assert dict(read(shared_depths(True), token_batch(), sites=sites)) == pytest.approx(dict(expected), rel=1e-12)


class Skipping(HandMade):
    """Leaves one layer out while ``skip`` is set, as LayerDrop does at random."""

    def __init__(self, layers: int, claimed: int) -> None:
        super().__init__(layers, claimed)
        self.skip: int | None = None

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.embedding(input_ids)
        for i, block in enumerate(self.blocks):
            if i != self.skip:
                hidden = block(hidden)[0]
        return hidden


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_forward_that_skips_a_layer_is_left_out_of_every_site(layer: int) -> None:
    model = Skipping(layers=3, claimed=3)

    def skip() -> None:
        model.skip = layer
        model(token_batch())
        model.skip = None

    left_out(model, skip, "layers were skipped, as by LayerDrop")


class Repeating(HandMade):
    """Runs one layer twice while ``again`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.again = False

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.embedding(input_ids)
        for block in self.blocks:
            hidden = block(hidden)[0]
        return self.blocks[0](hidden)[0] if self.again else hidden


def test_a_layer_that_runs_more_often_than_it_stands_in_the_model() -> None:
    model = Repeating()

    def again() -> None:
        model.again = True
        model(token_batch())
        model.again = False

    left_out(model, again, "was passed more often in one forward")


def test_layer_drop_of_transformers() -> None:
    model = tiny("opt", layerdrop=1.0)
    with Probe(model.train()) as probe, one_warning("LayerDrop"):
        model(token_batch())
    with pytest.raises(GeomprobeError, match=r"nothing to read: a forward was left out .*did not pass .*LayerDrop"):
        probe.read()


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_layer_that_was_replaced_after_attach(layer: int) -> None:
    model = tiny()
    with torch.no_grad(), Probe(model) as probe:
        model(token_batch())
        model.model.layers[layer] = copy.deepcopy(model.model.layers[layer])
        for hooks in (model.model.layers[layer]._forward_pre_hooks, model.model.layers[layer]._forward_hooks):
            hooks.clear()
        with one_warning("were replaced after the probe was attached"):
            model(token_batch())
            model(token_batch())
    assert {probe.read()[f"tokens/{site}"] for site in probe.sites} == {24}


def test_hooks_registered_later_are_seen_as_the_next_layer_sees_them() -> None:
    def add_one(module: nn.Module, arguments: Any, output: Any) -> Any:
        return output + 1

    def double_input(module: nn.Module, arguments: Any) -> Any:
        return (arguments[0] * 2, *arguments[1:])

    model = tiny()
    layers = model.model.layers

    def steer() -> list[RemovableHandle]:
        after = [module.register_forward_hook(add_one) for module in (layers[0], layers[2], model.model.norm)]
        return [*after, layers[1].register_forward_pre_hook(double_input)]

    handles = steer()
    expected = read(model, token_batch())
    for handle in handles:
        handle.remove()
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        handles = steer()
        model(token_batch())
    assert dict(probe.read()) == pytest.approx(dict(expected), rel=1e-12)
    for handle in handles:
        handle.remove()
    assert read(model, token_batch())["anisotropy/layer_00"] != pytest.approx(expected["anisotropy/layer_00"], rel=1e-3)


def test_a_hook_of_the_decoder_itself_that_comes_later() -> None:
    model = tiny().model
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        model.register_forward_hook(lambda module, arguments, output: type(output)(last_hidden_state=-output[0] + 1))
        output = model(token_batch())[0]
    twin = nn.functional.normalize(output.double().flatten(0, 1), dim=-1)
    n = len(twin)
    cosine = (twin.sum(0).square().sum() - n) / (n * (n - 1))
    assert probe.read()["anisotropy/final_norm"] == pytest.approx(float(cosine), rel=1e-5)


class WithLogits(HandMade):
    """A decoder whose own output is logits, as in nanoGPT."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.named = named
        self.head = nn.Linear(8, 64)

    def forward(self, input_ids: Tensor) -> Any:
        logits = self.head(super().forward(input_ids))
        return transformers.modeling_outputs.CausalLMOutput(logits=logits) if self.named else (logits, None)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("sites", [None, ["layer_00", "final_norm"], ["final_norm"]], ids=str)
def test_logits_are_not_taken_for_hidden_states(sites: list[str] | None, named: bool) -> None:
    model = WithLogits(named)
    decoder = Decoder(base=model, layers=list(model.blocks))
    with torch.no_grad(), Probe(model, sites=sites, decoder=decoder) as probe, one_warning("it may be logits"):
        model(token_batch())
        model(token_batch())
    if sites == ["final_norm"]:
        with pytest.raises(GeomprobeError, match="nothing to read: final_norm was not measured"):
            probe.read()
        return
    reading = probe.read()
    assert not [name for name in reading if name.endswith("/final_norm")]
    assert reading["tokens/layer_00"] == 48
    assert ["final_norm was not measured" in note for note in reading.notes] == [True]


def test_a_forward_that_raises_counts_at_no_site() -> None:
    model = tiny()
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        model(token_batch())
        handle = model.model.layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(token_batch())
        handle.remove()
        model(token_batch())
    assert {probe.read()[f"tokens/{site}"] for site in probe.sites} == {48}
    assert probe.read().notes == ["a forward raised an exception and was left out"]


def test_sites_that_saw_other_tokens_are_told() -> None:
    counts = {"texts": 2, "generated": 0, "nonfinite": 0}
    bank: Bank = {
        site: {TokenCount(): {name: torch.tensor(n) for name, n in (counts | {"tokens": tokens}).items()}}
        for site, tokens in {"embed": 24, "layer_00": 12}.items()
    }
    reading = compute_reading("eval", ("embed", "layer_00"), [], bank)
    assert reading.notes == ["the sites were not measured on the same tokens: 24, but layer_00 (12)"]


def test_hidden_states_of_more_dimensions_are_left_out() -> None:
    class Streams(HandMade):
        def forward(self, input_ids: Tensor) -> Tensor:
            hidden: Tensor = self.embedding(input_ids).unsqueeze(2).expand(-1, -1, 2, -1)
            for block in self.blocks:
                hidden = block(hidden)[0]
            return hidden.mean(2)

    with Probe(model := Streams()) as probe, one_warning(r"a probe needs (batch, length, width)"):
        model(token_batch())
    assert probe.fault is None


def test_a_forward_inside_another_one_is_told() -> None:
    model = tiny()

    def run_inside(*_: Any) -> None:
        handle.remove()
        model(token_batch(1, 5))

    handle = model.model.layers[1].register_forward_hook(run_inside)
    with torch.no_grad(), Probe(model) as probe:
        with one_warning("a hook ran the model inside it"):
            model(token_batch())
        model(token_batch(1, 4))
    assert {probe.read()[f"tokens/{site}"] for site in probe.sites} == {9}
    assert len(probe.read().notes) == 1


def test_adapters_on_and_off_in_one_mode_are_told() -> None:
    """As in the evaluation of DPO with LoRA, where the reference model is the policy without its adapter."""
    model = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj"])).eval()
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        model(token_batch())
        assert probe.read().notes == []
        with model.disable_adapter():
            model(token_batch())
        assert "with and without them" in probe.read().notes[0]
        probe.reset()
        with model.disable_adapter():
            model(token_batch())
        assert probe.read().notes == []


# -- which module, which thread ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "vit", "roberta"])
def test_an_encoder_is_refused_at_attach(family: str) -> None:
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    size |= {"image_size": 16, "patch_size": 8} if family == "vit" else {"vocab_size": 64}
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(family, **size))
    with pytest.raises(GeomprobeError, match="is an encoder, whose tokens attend to later ones too"):
        Probe(model)


def test_a_decoder_whose_forward_is_called_directly() -> None:
    model = tiny().model
    with torch.no_grad(), Probe(model) as probe:
        model.forward(token_batch())
        with pytest.raises(GeomprobeError, match=r"nothing to read: the decoder's forward\(\) was called directly"):
            probe.read()
        model(token_batch())
    assert probe.read()["tokens/embed"] == 24
    assert "was called directly" in probe.read().notes[0]


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_run_again_in_backward_were_not_called_directly(reentrant: bool) -> None:
    model = tiny().train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    with Probe(model, on_error="raise") as probe:
        model(inputs_embeds=model.model.embed_tokens(token_batch()), labels=token_batch()).loss.backward()
    assert probe.read().notes == []


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_decoder_that_is_checkpointed_as_a_whole_counts_once_in_training(reentrant: bool) -> None:
    model = tiny().train()
    with Probe(model, on_error="raise") as expected:
        model(token_batch())
    embeds = model.get_input_embeddings()(token_batch())
    with Probe(model, on_error="raise") as probe:
        hidden = checkpoint(lambda rows: model.model(inputs_embeds=rows)[0], embeds, use_reentrant=reentrant)
        hidden.sum().backward()
    assert dict(probe.read()) == pytest.approx(dict(expected.read()), rel=1e-12)
    assert (probe.read().mode, probe.read().notes) == ("train", [])


def test_a_second_thread_is_left_out() -> None:
    model = tiny()
    first, second = token_batch(), torch.randint(4, 64, (5, 9))
    expected = read(model, first)

    def run_another(*_: Any) -> None:
        handle.remove()
        thread = threading.Thread(target=lambda: model(second))
        thread.start()
        thread.join()

    with torch.no_grad(), Probe(model) as probe:
        handle = model.model.layers[1].register_forward_hook(run_another)
        with one_warning("two threads ran the model at the same time"):
            model(first)
    assert dict(probe.read()) == pytest.approx(dict(expected), rel=1e-12)
    assert "two threads" in probe.read().notes[0]


def test_attention_of_a_second_thread_is_left_out() -> None:
    """It runs between two layers of the first, on a batch of the same shape."""
    model = tiny()
    first, second = token_batch(), token_batch(seed=1)
    expected = read(model, first, metrics=[AttentionProfile()])

    def run_another(*_: Any) -> None:
        handle.remove()
        thread = threading.Thread(target=lambda: model(second))
        thread.start()
        thread.join()

    with torch.no_grad(), Probe(model, [AttentionProfile()]) as probe:
        handle = model.model.layers[0].register_forward_pre_hook(run_another)
        with one_warning("two threads ran the model at the same time"):
            model(first)
    assert dict(probe.read()) == pytest.approx(dict(expected), rel=1e-12, nan_ok=True)


def test_attention_of_an_interrupted_forward_is_forgotten() -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    model = tiny()
    expected = read(model, token_batch(), metrics=[AttentionProfile()])
    with torch.no_grad(), Probe(model, [AttentionProfile()]) as probe:
        handle = model.model.norm.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(token_batch(seed=1))
        handle.remove()
        with one_warning("it was interrupted"):
            model(token_batch())
    assert dict(probe.read()) == pytest.approx(dict(expected), rel=1e-12, nan_ok=True)


def test_a_thread_that_ended_in_a_forward_does_not_keep_others_out() -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    def run() -> None:
        with suppress(KeyboardInterrupt):
            model(token_batch(seed=1))

    model = tiny()
    with torch.no_grad(), Probe(model) as probe:
        handle = model.model.norm.register_forward_pre_hook(interrupt)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        handle.remove()
        with one_warning("it was interrupted"):
            model(token_batch())
    assert dict(probe.read()) == pytest.approx(dict(read(model, token_batch())), rel=1e-12)


def test_forwards_of_several_threads_in_turn_are_all_counted() -> None:
    model = tiny()
    with Probe(model, on_error="raise") as probe:
        for seed in range(3):
            thread = threading.Thread(target=lambda seed=seed: model(token_batch(seed=seed)))
            thread.start()
            thread.join()
    assert probe.read()["tokens/embed"] == 72
    assert probe.read().notes == []
