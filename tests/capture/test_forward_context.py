"""What a probe makes of the arguments of a forward: padding, positions, embeddings, and what it must refuse."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from geomprobe import GeomprobeError, Probe, Reading
from geomprobe.capture.forward_context import padding_mask
from tests.tiny_models import HandMade, padded, tiny, token_batch


def read(model: Any, *args: Any, **kwargs: Any) -> Reading:
    with Probe(model, on_error="raise") as probe, torch.no_grad():
        model(*args, **kwargs)
    return probe.read()


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
@pytest.mark.parametrize(
    "call",
    [
        lambda model, ids: read(model, ids),
        lambda model, ids: read(model, input_ids=ids),
        lambda model, ids: read(model, ids, torch.ones_like(ids)),
        lambda model, ids: read(model, ids, return_dict=False),
        lambda model, ids: read(model, input_ids=ids, use_cache=False),
        lambda model, ids: read(model, inputs_embeds=model.get_input_embeddings()(ids)),
        lambda model, ids: read(model.base_model, ids),
        lambda model, ids: read(model.base_model, ids, return_dict=False),
        lambda model, ids: read(model, input_ids=ids, output_hidden_states=True),
    ],
    ids=["position", "keyword", "mask", "tuple", "no_cache", "embeddings", "base", "base_tuple", "hidden_states"],
)
def test_every_way_to_call_gives_the_same_numbers(family: str, call: Callable[[Any, torch.Tensor], Reading]) -> None:
    model, ids = tiny(family), token_batch()
    reading = call(model, ids)
    expected = read(model, input_ids=ids, attention_mask=torch.ones_like(ids))
    assert reading["tokens/final_norm"] == 24
    assert reading["texts/final_norm"] == 2
    assert dict(reading) == pytest.approx(dict(expected), rel=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_padding_of_any_kind_counts_for_nothing(side: str, dtype: torch.dtype) -> None:
    model, texts = tiny(), [token_batch(1, length, seed=length)[0] for length in (9, 4, 1)]
    batch = padded(texts, side)
    batch["attention_mask"] = batch["attention_mask"].to(dtype)
    reading = read(model, **batch)
    assert reading["tokens/layer_01"] == 14
    assert reading["texts/layer_01"] == 3
    assert reading.curve("gain", "layer_01").count == (3, 2, 2, 2, 1, 1, 1, 1, 1)
    alone = [read(model, text.unsqueeze(0))["information_gain/layer_01"] for text in texts]
    assert reading["information_gain/layer_01"] == pytest.approx(sum(alone) / 3, rel=1e-5)


def test_an_all_padding_row_is_not_a_text() -> None:
    model, ids = tiny(), token_batch(3)
    mask = torch.ones_like(ids)
    mask[1] = 0
    reading = read(model, input_ids=ids, attention_mask=mask)
    expected = read(model, ids[[0, 2]])
    assert reading["texts/final_norm"] == 2
    assert reading["tokens/final_norm"] == 24
    assert reading.notes == []
    assert dict(reading) == pytest.approx(dict(expected), rel=1e-5)


def test_a_batch_of_padding_alone_reads_as_no_tokens() -> None:
    ids = token_batch()
    reading = read(tiny(), input_ids=ids, attention_mask=torch.zeros_like(ids))
    assert set(reading.site("final_norm").items()) == {("tokens", 0.0), ("texts", 0.0)}
    assert "0 tokens in 0 texts" in str(reading)


def test_a_one_token_text() -> None:
    reading = read(tiny(), token_batch(1, 1))
    assert reading["tokens/final_norm"] == reading["texts/final_norm"] == 1
    # Products of numbers, each rounded by up to 2⁻²⁴, leave eigenvalues of either sign in the 31 other directions: the
    # positive ones sum to at most half of √32·2⁻²⁴, and the entropy of so small a share τ is at most τ(1 + log(31/τ)).
    share = math.sqrt(32) * 2.0**-25
    assert reading["effective_rank/final_norm"] == pytest.approx(1, abs=share * (1 + math.log(31 / share)))
    assert reading["information_gain/final_norm"] == pytest.approx(4.60522, abs=1e-4)  # ½ log(1 + 1e4): nothing came before
    assert reading["anisotropy/final_norm"] != reading["anisotropy/final_norm"]  # NaN: there is no pair of rows


def test_an_empty_text_counts_for_nothing() -> None:
    model, empty = HandMade(), torch.zeros(1, 0, dtype=torch.long)
    with Probe(model, on_error="raise") as probe:
        model(empty)
        assert probe.read()["tokens/final_norm"] == 0
        model(token_batch())
        model(empty)
    assert dict(probe.read()) == dict(read(HandMade(), token_batch()))


def test_the_error_of_a_model_that_cannot_take_an_empty_text_is_its_own() -> None:
    empty = torch.zeros(1, 0, dtype=torch.long)
    model = tiny("gpt2")
    with pytest.raises(RuntimeError) as bare:
        model(empty, position_ids=empty)
    with Probe(model) as probe, pytest.raises(type(bare.value), match=re.escape(str(bare.value))):
        model(empty, position_ids=empty)
    assert probe.fault is None
    with pytest.raises(GeomprobeError, match="nothing to read: a forward raised an exception and was left out"):
        probe.read()


def test_a_4d_mask_tells_tokens_by_the_places_that_attend_to_themselves() -> None:
    model, texts = tiny(), [token_batch(1, length, seed=length)[0] for length in (9, 4)]
    batch = padded(texts, "left")
    expected = dict(read(model, **batch))
    allowed = torch.ones(9, 9, dtype=torch.bool).tril() & batch["attention_mask"].bool()[:, None, None, :]
    added = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    for mask in (allowed, added, {"full_attention": allowed}):
        if not isinstance(mask, dict):  # GPT-NeoX takes no dict; a probe reads the one that generate() makes
            assert dict(read(model, **(batch | {"attention_mask": mask}))) == pytest.approx(expected, rel=1e-5)
        assert padding_mask(mask, 2, 9).equal(batch["attention_mask"].bool())  # type: ignore[union-attr]


def test_a_mask_that_does_not_say_which_rows_are_tokens() -> None:
    for mask in (torch.ones(2, 12, 12), torch.ones(2, 5), torch.ones(2, 1, 3, 12), "mask"):
        with pytest.raises(GeomprobeError, match=r"cannot read which rows are tokens.*expected \(batch, length\)"):
            padding_mask(mask, 2, 12)


def test_a_forward_without_texts() -> None:
    model = tiny()
    with Probe(model, on_error="raise"), pytest.raises(GeomprobeError, match="without token ids"):
        model()


def test_continuing_a_cache_is_refused_and_starting_one_is_not() -> None:
    model, ids = tiny(), token_batch()
    with Probe(model, on_error="raise") as probe, torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        with pytest.raises(GeomprobeError, match=r"KV cache that the probe has not seen.*DynamicCache"):
            model(ids[:, :1], past_key_values=cache)
    assert probe.read()["tokens/final_norm"] == 24
