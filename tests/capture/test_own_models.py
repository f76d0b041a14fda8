"""Classes of one's own, unlike nanoGPT: the error says a line that works, and what cannot be measured is told."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geomprobe import AttentionProfile, Decoder, GeomprobeError, Probe, RepresentationEntropy
from tests.tiny_models import VOCABULARY, tiny, token_batch

WIDTH = 16


class Layer(nn.Module):
    """Returns its hidden states with something else. Its experts are a longer list than the stack."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.mix = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.experts = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(8)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.mix(self.before(x)).cumsum(1)
        return x + y + torch.stack([expert(y).tanh() for expert in self.experts]).sum(0), y


class Model(nn.Module):
    """Embeddings, a stack, a norm and a head, in an order, in a place and under names of its own."""

    def __init__(self, *, vocabulary: int = VOCABULARY, norm_first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tok = nn.Embedding(vocabulary, WIDTH)
        if norm_first:
            self.norm_out = nn.LayerNorm(WIDTH)
        self.stack = nn.ModuleList([Layer() for _ in range(3)])
        self.norm_out = nn.LayerNorm(WIDTH)
        self.unembed = nn.Linear(WIDTH, vocabulary, bias=False)

    def hidden(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, cache = self.tok(tokens), []
        for layer in self.stack:
            x, kept = layer(x)
            cache.append(kept)
        return self.norm_out(x), cache

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        x, cache = self.hidden(tokens)
        logits = self.unembed(x)
        return logits, None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten()), cache


class NormFirst(Model):
    def __init__(self) -> None:
        super().__init__(norm_first=True)


class NormOutside(nn.Module):
    """The stack is in a module that gets embeddings, and the norm outside of it."""

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Layer() for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x, _ = layer(x)
            return x

    def __init__(self) -> None:
        super().__init__()
        self.embed_norm, self.tok, self.decoder = nn.LayerNorm(WIDTH), nn.Embedding(VOCABULARY, WIDTH), self.Stack()
        self.final_ln, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        return self.head(self.final_ln(self.decoder(self.embed_norm(self.tok(tokens)))))  # type: ignore[no-any-return]


class Task(nn.Module):
    """What LightningModules are like: the model is called by another method than ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Model()

    def training_step(self, tokens: Tensor, labels: Tensor) -> Any:
        return self.net(tokens, labels)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        (Model, "base=model, layers=model.stack, final_norm=model.norm_out"),
        (NormFirst, "base=model, layers=model.stack, final_norm=model.norm_out"),
        (NormOutside, "base=model, layers=model.decoder.layers, final_norm=model.final_ln"),
        (Task, "base=model.net, layers=model.net.stack, final_norm=model.net.norm_out"),
    ],
)
def test_the_error_says_the_line_to_write_and_the_line_works(kind: Callable[[], Any], parts: str) -> None:
    model = kind()
    with pytest.raises(GeomprobeError) as caught:
        Probe(model)
    message, _, line = str(caught.value).rpartition(": ")
    assert line == f"Probe(model, decoder=Decoder({parts}))"
    assert message.endswith("name the layers (in a callback with decoder=lambda model: Decoder(…))")
    with eval(line, {"Probe": Probe, "Decoder": Decoder, "model": model}) as probe:
        getattr(model, "training_step", model)(token_batch(), token_batch())
    reading = probe.read("train")
    assert reading.notes == []
    assert {reading[f"tokens/{site}"] for site in ("embed", "layer_00", "layer_01", "layer_02", "final_norm")} == {24}


def test_layers_that_are_in_no_list_are_named_one_by_one() -> None:
    model = nn.Module()
    model.first, model.second = Layer(), Layer()
    with pytest.raises(GeomprobeError, match=r"Probe\(model, decoder=Decoder\(base=…, layers=…\)\)$"):
        Probe(model)
    assert Decoder(base=model, layers=[model.first, model.second]).sites[-2] == "layer_01"


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"layers": Layer()}, "layers=Layer): expected a module, and a list of modules"),
        ({"layers": "stack"}, "layers=str): expected a module, and a list of modules"),
        ({"layers": []}, "layers=list): expected a module, and a list of modules"),
        ({"layers": [Layer()]}, "layers=Layer): expected a module inside base, which is a Model"),
    ],
)
def test_what_are_no_layers_is_refused(parts: Any, told: str) -> None:
    with pytest.raises(GeomprobeError) as caught:
        Decoder(base=Model(), **parts)
    assert told in str(caught.value)


class SelfAttention(nn.Linear):
    """Its weights cannot be observed."""


def test_attention_of_a_class_of_ones_own_is_refused() -> None:
    model = Model()
    model.stack[0].mix = SelfAttention(WIDTH, WIDTH)
    with pytest.raises(GeomprobeError, match=r"the attention of Model does not use .* or leave AttentionProfile and Context"):
        Probe(model, [AttentionProfile()], decoder=Decoder(base=model, layers=model.stack)).attach()


def test_logits_as_wide_as_hidden_states_are_not_taken_for_them() -> None:
    """Bytes in a model of width 256."""
    model = Model(vocabulary=WIDTH)
    tokens = token_batch(vocabulary=WIDTH)
    with (
        Probe(model, decoder=Decoder(base=model, layers=model.stack)) as probe,
        pytest.warns(RuntimeWarning, match="final_norm was not measured.*may be logits"),
    ):
        model(tokens)
    reading = probe.read("train")
    assert "entropy/final_norm" not in reading
    assert reading["tokens/layer_02"] == 24


def test_a_decoder_of_transformers_without_a_head_has_no_logits() -> None:
    """GPT-2 medium has 1024 positions and width 1024, and with ``return_dict=False`` its output has no name."""
    model = tiny("gpt2", max_position_embeddings=32).transformer
    with Probe(model, on_error="raise") as probe:
        model(token_batch(), return_dict=False)
    assert probe.read("eval")["tokens/final_norm"] == 24


class InADict(Model):
    """Takes a batch as the collator made it."""

    def forward(self, batch: dict[str, Tensor]) -> Any:  # type: ignore[override]
        return super().forward(batch["tokens"], batch["labels"])


def test_token_ids_and_mask_in_a_dict() -> None:
    model, mask, ids = InADict(), torch.ones(2, 12, dtype=torch.long), token_batch()
    mask[0, 7:] = 0
    decoder = Decoder(base=model, layers=model.stack, final_norm=model.norm_out)
    with Probe(model, decoder=decoder, pad_token_id=0, on_error="raise") as probe:
        model({"attention_mask": mask, "labels": 0 * ids, "tokens": ids})
        assert probe.read("train", reset=True)["tokens/embed"] == 7 + 12
        model({"labels": 0 * ids, "tokens": ids})
    assert probe.read("train")["tokens/embed"] == 24


def test_a_base_that_gets_embeddings() -> None:
    model = NormOutside()
    with Probe(model, decoder=Decoder(base=model.decoder, layers=model.decoder.layers), on_error="raise") as probe:
        model(token_batch(), token_batch())
    reading = probe.read("train")
    assert reading["tokens/embed"] == 24
    assert reading["entropy/final_norm"] == reading["entropy/layer_02"]


class OneText(Model):
    def forward(self, tokens: Tensor) -> Any:  # type: ignore[override]
        return super().forward(tokens[None])


def test_a_call_without_a_batch_is_told() -> None:
    model = OneText()
    with (
        Probe(model, [RepresentationEntropy()], decoder=Decoder(base=model, layers=model.stack)) as probe,
        pytest.warns(RuntimeWarning, match=r"called without token ids: expected .* of integers \(batch, length\)"),
    ):
        model(token_batch(1)[0])
    with pytest.raises(GeomprobeError, match="nothing to read"):
        probe.read("train")
