"""Texts that arrive over several forwards: every way to generate gives the numbers of the finished texts, one by one."""

import gc
import itertools
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DynamicCache,
    LogitsProcessor,
    PreTrainedTokenizerFast,
    StaticCache,
    StoppingCriteria,
)

from geomprobe import GeomprobeError, InformationGain, Metric, Probe, Reading, RepresentationEntropy
from geomprobe.capture.generation import StopTokens, still_running
from geomprobe.core.streaming_gain import GainStream
from geomprobe.recording.live_gain import GainUpdate
from tests.test_probe_transparent import Broken
from tests.tiny_models import padded, tiny, token_batch

PAD = 0
METRICS = (RepresentationEntropy(text_spectrum=True), InformationGain())


@pytest.fixture(params=["llama", "gpt_neox"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny(request.param)


def prompts() -> dict[str, torch.Tensor]:
    """Two prompts of 4 and 6 tokens, padded on the left."""
    ids = token_batch(2, 6, seed=3).clamp_min(1)
    mask = torch.ones_like(ids)
    ids[0, :2], mask[0, :2] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


def alone(model: Any, texts: list[torch.Tensor]) -> Reading:
    """The reading of texts run one by one, in one forward each."""
    with torch.no_grad(), Probe(model, METRICS, on_error="raise") as probe:
        for text in texts:
            model(input_ids=text.unsqueeze(0), use_cache=False)
    return probe.read()


def fed(output: torch.Tensor, eos: int | None) -> list[torch.Tensor]:
    """What generation alone would have fed: without padding, and without the token that ended the text."""
    texts = []
    for row, prompt in zip(output, (4, 6), strict=True):
        tokens = row[6 - prompt :].tolist()
        answer = tokens[prompt:]
        answer = answer[: answer.index(eos)] if eos in answer else answer[:-1]
        texts.append(torch.tensor(tokens[:prompt] + answer))
    return texts


def assert_same(reading: Reading, expected: Reading) -> None:
    assert dict(reading) == pytest.approx(dict(expected), rel=2e-4, abs=1e-5, nan_ok=True)
    for site in expected.sites:
        assert reading.curve("gain", site).count == expected.curve("gain", site).count
        assert reading.curve("gain", site).mean == pytest.approx(expected.curve("gain", site).mean, abs=1e-3)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"do_sample": True, "top_k": 8},
        {"cache_implementation": "static", "disable_compile": True},
        {"prefill_chunk_size": 4},
        {"use_cache": False},
    ],
    ids=["greedy", "sample", "static", "chunked", "no_cache"],
)
@pytest.mark.parametrize("ending", [False, True], ids=["to_the_limit", "rows_end_apart"])
def test_generation_counts_each_token_once(model: Any, how: dict[str, Any], ending: bool) -> None:
    arguments = {**prompts(), "max_new_tokens": 20, "pad_token_id": PAD, "suppress_tokens": [PAD], **how}
    torch.manual_seed(1)
    free = model.generate(**arguments, eos_token_id=None)
    eos = int(free[0, 12]) if ending else None  # the first row meets it half way
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = eos, PAD
    torch.manual_seed(1)
    bare = model.generate(**arguments)
    torch.manual_seed(1)
    with Probe(model, METRICS, on_error="raise") as probe:
        output = model.generate(**arguments)
    assert torch.equal(output, bare)
    assert_same(probe.read(), alone(model, fed(output, eos)))


def test_live_gains_are_those_of_the_finished_text(model: Any) -> None:
    updates: list[GainUpdate] = []
    batch = prompts()
    with Probe(model, on_error="raise", on_gain=updates.append) as probe:
        output = model.generate(**batch, max_new_tokens=70, pad_token_id=PAD, eos_token_id=None)  # far beyond d = 32
    assert [update.start for update in updates] == [0, *range(6, 6 + 69)]
    assert torch.cat([update.ids for update in updates if update.ids is not None], 1).equal(output[:, :-1])
    row = alone(model, [output[1, :-1]])
    for site in probe.sites:
        live = torch.cat([update.nats[site] for update in updates], 1)
        assert live[0, :2].tolist() == [0, 0]  # padding
        assert live[1].tolist() == pytest.approx(row.curve("gain", site).mean, abs=1e-3)
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is GainStream]  # the factors went with the cache


def test_padding_in_a_later_part_of_a_prompt_gains_nothing(model: Any) -> None:
    batch, cache, updates = prompts(), DynamicCache(config=model.config), list[GainUpdate]()
    with torch.no_grad(), Probe(model, on_error="raise", on_gain=updates.append):
        for start, end in ((0, 1), (1, 6)):
            model(batch["input_ids"][:, start:end], attention_mask=batch["attention_mask"][:, :end], past_key_values=cache)
    first, second = (update.nats["embed"] for update in updates)
    assert first[0].tolist() == second[0, :1].tolist() == [0]
    expected = alone(model, [batch["input_ids"][0, 2:]]).curve("gain", "embed").mean
    assert second[0, 1:].tolist() == pytest.approx(expected, abs=1e-3)


def test_several_texts_and_a_chat_in_one_probe(model: Any) -> None:
    chat, single = token_batch(1, 30, seed=5), token_batch(1, 9, seed=6)
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), Probe(model, METRICS, on_error="raise") as probe:
        model(input_ids=chat[:, :10], past_key_values=cache)
        first = probe.read()
        model(input_ids=single, use_cache=False)
        model(input_ids=chat[:, 10:25], past_key_values=cache)
        model(input_ids=chat[:, 25:], past_key_values=cache)
        assert probe.read()["tokens/embed"] == 39
    assert_same(first, alone(model, [chat[0, :10]]))
    assert_same(probe.read(), alone(model, [chat[0], single[0]]))


def test_hidden_states_that_are_changed_in_place_later_were_read_before(model: Any) -> None:
    text, readings = token_batch(1, 9), []
    norm = next(module for name, module in model.base_model.named_children() if "norm" in name)
    handle = norm.register_forward_pre_hook(lambda module, arguments: (arguments[0].add_(1),))
    for cache in (None, DynamicCache(config=model.config)):
        with torch.no_grad(), Probe(model, METRICS, on_error="raise") as probe:
            model(text, past_key_values=cache, use_cache=cache is not None)
        readings.append(probe.read())
    handle.remove()
    assert_same(*readings)


def test_what_was_reported_and_forgotten_is_not_reported_again(model: Any) -> None:
    chat = token_batch(1, 20, seed=5)
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        model(input_ids=chat[:, :8], past_key_values=cache)
        assert probe.read(reset=True)["tokens/embed"] == 8
        model(input_ids=chat[:, 8:], past_key_values=cache)
        reading = probe.read()
    assert reading["tokens/embed"] == 12
    expected = alone(model, [chat[0]]).curve("gain", "layer_01").mean[8:]
    assert reading.curve("gain", "layer_01").count == (0,) * 8 + (1,) * 12
    assert reading.curve("gain", "layer_01").mean[8:] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}], ids=["beams", "assisted"])
def test_texts_whose_cache_is_rearranged_are_left_out(model: Any, how: dict[str, Any]) -> None:
    batch = {name: value[1:] for name, value in prompts().items()}
    single = token_batch(1, 9, seed=6)
    with Probe(model, on_error="raise") as probe:
        with torch.no_grad():
            model(input_ids=single, use_cache=False)
        model.generate(**batch, max_new_tokens=30, pad_token_id=PAD, **how)
        with pytest.warns(RuntimeWarning, match="beam search or assisted decoding were left out"):
            reading = probe.read()
    assert reading["tokens/embed"] == 9
    assert "beam search" in reading.notes[0]


def test_the_drafts_of_an_assistant_are_left_out() -> None:
    """Also if all are right, so that none is removed: its own loop of generation is a plain one."""
    model, assistant = tiny(), tiny()
    how = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    with Probe(assistant, on_error="raise") as probe:
        model.generate(token_batch(1, 6), assistant_model=assistant, **how)
        with pytest.warns(RuntimeWarning, match="assisted decoding were left out"):
            probe.close()
    with pytest.raises(GeomprobeError, match="nothing to read"):
        probe.read()


def test_rows_that_were_moved_between_the_turns_of_a_chat_are_left_out(model: Any) -> None:
    cache, ids = DynamicCache(config=model.config), token_batch(2, 9)
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        model(ids[:, :5], past_key_values=cache)
        cache.reorder_cache(torch.tensor([1, 0]))
        model(ids[:, 5:], past_key_values=cache)
        with pytest.warns(RuntimeWarning, match="move rows"), pytest.raises(GeomprobeError, match="nothing to read"):
            probe.read()


def test_rows_that_were_repeated_on_a_cache_are_left_out_from_then_on(model: Any) -> None:
    cache, ids = DynamicCache(config=model.config), token_batch(2, 9)
    with torch.no_grad(), Probe(model) as probe:
        model(ids[:, :5], past_key_values=cache)
        cache.batch_repeat_interleave(3)
        with pytest.warns(RuntimeWarning, match="the 2 texts of a KV cache went on as 6 rows"):
            model(ids[:, 5:].repeat_interleave(3, 0), past_key_values=cache)
        model(token_batch(1, 4))
    assert probe.fault is None
    assert {probe.read()[f"tokens/{site}"] for site in probe.sites} == {14}


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
def test_beams_of_an_encoder_decoder_and_without_a_cache_are_left_out(cache: bool) -> None:
    """Its cache shows no keys by which rows that were moved could be noticed."""
    size = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    size |= {"vocab_size": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 0, "eos_token_id": 2}
    torch.manual_seed(0)
    bart = BartForConditionalGeneration(BartConfig(**size, decoder_start_token_id=2, forced_eos_token_id=None)).eval()
    for model in (bart, tiny()):
        with warnings.catch_warnings(record=True) as caught, Probe(model) as probe:
            warnings.simplefilter("always")
            model.generate(
                token_batch(2, 7), max_new_tokens=10, min_new_tokens=10, num_beams=3, use_cache=cache, do_sample=False
            )
            probe.close()
        assert len([one for one in caught if "beam search" in str(one.message)]) == 1
        with pytest.raises(GeomprobeError, match="nothing to read: texts generated by beam search"):
            probe.read()


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3}], ids=["beams", "assisted"])
def test_live_gains_refuse_a_cache_that_is_rearranged(model: Any, how: dict[str, Any]) -> None:
    batch = {name: value[1:] for name, value in prompts().items()}
    refused = pytest.raises(GeomprobeError, match="on_gain does not support beam search or assisted decoding")
    with Probe(model, on_error="raise", on_gain=lambda update: None), refused:
        model.generate(**batch, max_new_tokens=30, pad_token_id=PAD, **how)


def test_a_schedule_takes_texts_whole(model: Any) -> None:
    with Probe(model, when=lambda step: step == 1, on_error="raise") as probe:
        for length in (5, 9, 4):
            model.generate(input_ids=token_batch(1, 3, seed=length), max_new_tokens=length, pad_token_id=PAD, eos_token_id=None)
    assert probe.read()["tokens/embed"] == 3 + 9 - 1


def test_on_gain_needs_information_gain() -> None:
    with pytest.raises(GeomprobeError, match="on_gain needs the metric InformationGain"):
        Probe(tiny(), [RepresentationEntropy()], on_gain=print)


@pytest.mark.parametrize("how", ["position_ids", "mask"])
def test_packed_documents_do_not_mix(how: str) -> None:
    model = tiny("llama")
    documents = [token_batch(1, n, seed=n)[0] for n in (7, 1, 40)]
    row = torch.cat(documents).unsqueeze(0)
    index = torch.cat([torch.full((len(text),), i) for i, text in enumerate(documents)])
    positions = torch.cat([torch.arange(len(text)) for text in documents]).unsqueeze(0)
    packed: dict[str, Any] = {"position_ids": positions}
    if how == "mask":
        packed["attention_mask"] = ((index[:, None] == index) & torch.ones(48, 48).tril().bool())[None, None]
    with torch.no_grad(), Probe(model, METRICS, on_error="raise") as probe:
        model(input_ids=row, use_cache=False, **packed)
    assert_same(probe.read(), alone(model, documents))


@pytest.mark.parametrize("reset", [False, True])
def test_a_batched_chat_goes_on_without_the_first_turns_filler(model: Any, reset: bool) -> None:
    batch = prompts()
    cache = DynamicCache(config=model.config)
    free = model.generate(**batch, max_new_tokens=20, pad_token_id=PAD, eos_token_id=None, suppress_tokens=[PAD])
    eos = int(free[0, 12])
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = eos, PAD
    with torch.no_grad(), Probe(model, METRICS, on_error="raise") as probe:
        output = model.generate(**batch, max_new_tokens=20, suppress_tokens=[PAD], past_key_values=cache)
        first = fed(output, eos)
        assert probe.read(reset=reset)["tokens/embed"] == sum(map(len, first))
        turn = token_batch(2, 4, seed=8)
        told = torch.zeros(2, cache.get_seq_length() + 4, dtype=torch.long)
        for row, (text, start) in enumerate(zip(first, (2, 0), strict=True)):
            told[row, start : start + len(text)] = 1
        told[:, -4:] = 1
        model(input_ids=turn, attention_mask=told, past_key_values=cache)
        assert probe.read()["tokens/embed"] == sum(map(len, first)) * (not reset) + 8


def test_prompts_given_as_embeddings(model: Any) -> None:
    batch = prompts()
    free = model.generate(**batch, max_new_tokens=20, pad_token_id=PAD, eos_token_id=None, suppress_tokens=[PAD])
    eos = int(free[0, 12])
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = eos, PAD
    embedded = {"inputs_embeds": model.get_input_embeddings()(batch["input_ids"]), "attention_mask": batch["attention_mask"]}
    with torch.no_grad(), Probe(model, METRICS, on_error="raise") as probe:
        answers = model.generate(**embedded, max_new_tokens=20, suppress_tokens=[PAD])
    assert_same(probe.read(), alone(model, fed(torch.cat([batch["input_ids"], answers], 1), eos)))


def test_texts_that_grow_in_plain_forwards_are_texts_of_their_own(model: Any) -> None:
    text, buffer = token_batch(1, 8, seed=5), torch.zeros(1, 8, dtype=torch.long)
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        for length in range(5, 9):
            model(text[:, :length])
        for length in range(5, 8):  # one buffer, three texts
            buffer[:] = token_batch(1, 8, seed=length)
            model(buffer[:, :length], use_cache=False)
    reading = probe.read()
    assert (reading["tokens/embed"], reading["texts/embed"]) == (5 + 6 + 7 + 8 + 5 + 6 + 7, 7)


def test_a_forward_that_broke_off_is_not_taken_out_again(model: Any) -> None:
    text = token_batch(1, 6, seed=5)
    layer = model.base_model.layers[1]
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        handle = layer.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(text[:, :5], use_cache=False)
        handle.remove()
        model(text, use_cache=False)
    assert probe.read()["tokens/final_norm"] == 6
    assert probe.read()["tokens/embed"] == 6  # its first group of sites was not full when it broke off
    assert "a forward raised an exception" in probe.read().notes[0]


def test_a_static_cache_that_is_emptied_holds_new_texts(model: Any) -> None:
    cache = StaticCache(config=model.config, max_cache_len=32)
    texts = [token_batch(1, n, seed=n) for n in (6, 7, 5)]
    with torch.no_grad(), Probe(model, METRICS, on_error="raise") as probe:
        for text in texts:
            cache.reset()
            model(text, past_key_values=cache)
    assert_same(probe.read(), alone(model, [text[0] for text in texts]))


def test_a_cache_of_a_text_that_was_not_selected_can_be_used_again(model: Any) -> None:
    cache, text = StaticCache(config=model.config, max_cache_len=32), token_batch(1, 9)
    with torch.no_grad(), Probe(model, METRICS, when=lambda step: step == 1, on_error="raise") as probe:
        model(token_batch(1, 6, seed=1), past_key_values=cache)
        cache.reset()
        for part in torch.split(text, [4, 5], dim=1):
            model(part, past_key_values=cache)
    assert_same(probe.read(), alone(model, [text[0]]))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_windows_that_fill_up(cache: str) -> None:
    model = tiny("mistral", sliding_window=8)
    with Probe(model, METRICS, on_error="raise") as probe:
        output = model.generate(
            **prompts(),
            max_new_tokens=12,
            pad_token_id=PAD,
            eos_token_id=None,
            cache_implementation=cache,
            disable_compile=True,
        )
    assert_same(probe.read(), alone(model, fed(output, None)))


def test_a_state_loaded_while_texts_arrive_counts_them_once(model: Any) -> None:
    cache = DynamicCache(config=model.config)
    text = token_batch(1, 9, seed=1)
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        model(text[:, :6], past_key_values=cache)
        probe.load_state_dict(probe.state_dict())
        assert probe.read()["tokens/embed"] == 6
        model(text[:, 6:], past_key_values=cache)
        probe.read(reset=True)
        model(text[:, :1], past_key_values=cache)
        reading = probe.read()
    assert reading["tokens/embed"] == 1
    assert reading["information_gain/embed"] != reading["information_gain/embed"]  # no text began: not a number, not infinity


def test_dict_masks_and_holes_in_masks() -> None:
    model = tiny("llama")
    row = token_batch(1, 7, seed=2)
    mask = torch.tensor([[1, 1, 1, 0, 1, 1, 1]])
    readings = []
    for options in ({}, {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)}):
        with torch.no_grad(), Probe(model, on_error="raise") as probe:
            model(row, attention_mask=mask, use_cache=False, **options)
        readings.append(probe.read())
    assert [reading["texts/embed"] for reading in readings] == [1, 1]
    assert readings[0]["information_gain/embed"] == pytest.approx(readings[1]["information_gain/embed"])


def test_packed_documents_on_a_cache_are_refused(model: Any) -> None:
    ids, positions = token_batch(1, 9), torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    with torch.no_grad(), Probe(model, on_error="raise"), pytest.raises(GeomprobeError, match="packed documents"):
        model(ids, position_ids=positions, past_key_values=DynamicCache(config=model.config))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_hole_in_a_mask_is_no_second_document(cache: str) -> None:
    """A static cache gets a block mask, in which the place after a hole attends past it."""
    model, ids = tiny(), token_batch(1, 9)
    mask = torch.ones_like(ids)
    mask[0, 4] = 0
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "cache_implementation": cache}
    with Probe(model, on_error="raise") as probe:
        model.generate(ids, attention_mask=mask, **options)
    assert (probe.read()["tokens/embed"], probe.read()["texts/embed"]) == (8 + 4, 1)


def test_texts_fed_again_in_the_other_mode_are_texts_of_their_own() -> None:
    model, text = tiny(), token_batch(2, 7)
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        model.train()(text[:, :6], use_cache=False)
        model.eval()(text, use_cache=False)
    assert (probe.read("no_grad")["tokens/embed"], probe.read("eval")["tokens/embed"]) == (12, 14)
    assert probe.read("eval")["texts/embed"] == 2


def test_a_column_of_padding_that_is_removed_again_is_no_draft(model: Any) -> None:
    ids, cache = token_batch(2, 9), DynamicCache(config=model.config)
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[:, 5] = 0
    with torch.no_grad(), Probe(model, METRICS, on_error="raise") as probe:
        model(ids[:, :5], past_key_values=cache)
        model(ids[:, :1], attention_mask=mask, past_key_values=cache)
        cache.crop(-1)
        model(ids[:, 5:], past_key_values=cache)
    assert_same(probe.read(), alone(model, list(ids)))


# -- how rows end ------------------------------------------------------------------------------------------------------------


def test_tokens_of_a_prompt_do_not_end_it() -> None:
    ids, stop = torch.tensor([[5, 6, 7, 0], [5, 6, 7, 1], [5, 6, 7, 8]]), StopTokens((1,), 0)
    mask = torch.ones_like(ids).bool()
    assert still_running(ids, mask, 4, stop).equal(mask)
    assert still_running(ids, mask, 3, stop).sum(1).tolist() == [3, 3, 4]


class EndsOn(StoppingCriteria):  # type: ignore[misc]
    """A criterion of the user's own: a row ends at a token."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return input_ids[:, -1] == self.token


def stop_string_tokenizer() -> Any:
    """Every id is one character of its own."""
    tokenizer = Tokenizer(WordLevel({chr(48 + i): i for i in range(64)}, unk_token=chr(48)))
    tokenizer.pre_tokenizer, tokenizer.decoder = Split(Regex("."), "isolated"), Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=chr(48), eos_token=chr(49))


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("way", ["eos of the call", "criterion", "stop string"])
@pytest.mark.parametrize("pad_is_eos", [False, True], ids=["pad", "pad is eos"])
def test_rows_end_as_generate_says(way: str, pad_is_eos: bool, cache: bool) -> None:
    model, end = tiny(), 1
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = end, end if pad_is_eos else PAD
    pad = end if pad_is_eos else PAD
    batch = prompts() | {"max_new_tokens": 12, "use_cache": cache, "suppress_tokens": [PAD, end]}
    free = model.generate(**batch)
    stop = int(free[0, 10])  # the first row meets it half way
    if way == "eos of the call":
        batch |= {"eos_token_id": stop}
    elif way == "criterion":
        batch |= {"stopping_criteria": [EndsOn(stop)]}
    else:
        batch |= {"stop_strings": [chr(48 + stop)], "tokenizer": stop_string_tokenizer()}
    with Probe(model, METRICS, on_error="raise") as probe:
        output = model.generate(**batch)
    texts = []
    for row, prompt in zip(output, (4, 6), strict=True):
        answer = row[6:].tolist()
        answer = answer[: answer.index(stop)] if stop in answer else answer[:-1]
        texts.append(torch.cat([row[6 - prompt : 6], torch.tensor(answer, dtype=torch.long)]))
    assert abs(len(texts[0]) + 2 - len(texts[1])) > 2, "the rows end apart"
    assert bool((output[:, -2:] == pad).all(1).any())
    assert_same(probe.read(), alone(model, texts))


def test_the_decoder_alone_is_told_how_rows_end() -> None:
    """A decoder has no generation config, and generation from embeddings gives it no token ids."""
    model = tiny()
    free = model.generate(**prompts(), max_new_tokens=12, pad_token_id=PAD, eos_token_id=None)
    stop = int(free[0, 10])
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = stop, PAD
    batch = prompts()
    embeds = {"inputs_embeds": model.get_input_embeddings()(batch["input_ids"]), "attention_mask": batch["attention_mask"]}
    for arguments, cache in itertools.product((batch, embeds), (True, False)):
        with Probe(model.get_decoder(), METRICS, on_error="raise") as probe:
            output = model.generate(**arguments, max_new_tokens=12, use_cache=cache)
        output = output if arguments is batch else torch.cat([batch["input_ids"], output], 1)
        assert_same(probe.read(), alone(model, fed(output, stop)))


class Judging(StoppingCriteria):  # type: ignore[misc]
    """Runs the model on the text so far, for a purpose of its own."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.model(input_ids, use_cache=False)
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
def test_calls_of_the_model_by_a_criterion_of_generate_are_texts_of_their_own(model: Any, cache: bool) -> None:
    with Probe(model, on_error="raise") as probe:
        model.generate(
            token_batch(1, 6), max_new_tokens=5, eos_token_id=None, stopping_criteria=[Judging(model)], use_cache=cache
        )
    assert (probe.read()["tokens/embed"], probe.read()["texts/embed"]) == (10 + 7 + 8 + 9 + 10 + 11, 6)


def test_positions_that_skip_ahead_are_one_text_with_a_mask(model: Any) -> None:
    ids, positions = token_batch(1, 9), torch.tensor([[0, 1, 2, 3, 100, 101, 102, 103, 104]])
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        model(ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False)
    assert (probe.read()["tokens/embed"], probe.read()["texts/embed"]) == (9, 1)


def test_growing_prefixes_in_calls_of_their_own_are_texts_of_their_own(model: Any) -> None:
    text = token_batch(1, 8)
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        for length in (5, 6, 7, 8):
            model(text[:, :length], use_cache=False)
        assert (probe.read()["tokens/embed"], probe.read()["texts/embed"]) == (26, 4)
        for length in (5, 6):
            model.generate(text[:, :length], max_new_tokens=1, use_cache=False, eos_token_id=None)
    assert (probe.read()["tokens/embed"], probe.read()["texts/embed"]) == (37, 6)


class Edits(LogitsProcessor):  # type: ignore[misc]
    """Changes a token of the text so far."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        input_ids[:, 0] = 63 - input_ids[:, 0]
        return scores


def test_a_text_that_is_edited_while_it_is_generated_without_a_cache_is_refused(model: Any) -> None:
    refused = pytest.raises(GeomprobeError, match="on other tokens than those before and one more")
    with Probe(model, on_error="raise"), refused:
        model.generate(token_batch(1, 6), max_new_tokens=2, use_cache=False, eos_token_id=None, logits_processor=[Edits()])


# -- what is left out --------------------------------------------------------------------------------------------------------


def test_nothing_but_beam_search_is_told_when_read(model: Any) -> None:
    probe = Probe(model, on_error="raise").attach()
    model.generate(**prompts(), max_new_tokens=8, pad_token_id=PAD, num_beams=3)
    with pytest.warns(RuntimeWarning, match="beam search"):
        probe.close()
    with pytest.raises(GeomprobeError, match="nothing to read: texts generated by beam search"):
        probe.read()


class BrokenLater(Metric):
    """Fails at the second forward that is measured at once."""

    @property
    def accumulators(self) -> tuple[Any, ...]:
        return (BreaksAtNine(),)

    def scalars(self, states: Any) -> dict[str, float]:
        return {}


@dataclass(frozen=True)
class BreaksAtNine:
    """Sums nothing, and fails on a batch of nine rows."""

    name: ClassVar[str] = "breaks_at_nine"
    version: ClassVar[int] = 1

    def new_state(self, width: int, device: torch.device) -> dict[str, torch.Tensor]:
        return {"n": torch.zeros((), dtype=torch.float64, device=device)}

    def contribution(self, rows: Any) -> dict[str, torch.Tensor]:
        if rows.mask.shape[0] == 9:
            raise ZeroDivisionError("nine")
        return {"n": rows.used}


def test_a_fault_keeps_the_texts_that_are_still_open(model: Any) -> None:
    cache, ids = DynamicCache(config=model.config), token_batch(2, 9)
    with torch.no_grad(), Probe(model, [InformationGain(), BrokenLater()]) as probe:
        model(ids[:, :5], past_key_values=cache)
        model(ids[:, 5:], past_key_values=cache)
        with pytest.warns(RuntimeWarning, match="ZeroDivisionError: nine"):
            model(token_batch(9, 3))
    assert {probe.read()[f"tokens/{site}"] for site in probe.sites} == {18}
    with torch.no_grad(), Probe(model, [InformationGain()], on_error="raise") as whole:
        model(ids)
    assert probe.read()["information_gain/final_norm"] == pytest.approx(whole.read()["information_gain/final_norm"], rel=1e-4)


def test_a_text_on_a_cache_that_fails_at_one_site_counts_at_none(model: Any) -> None:
    with torch.no_grad(), Probe(model, [Broken(good=2)]) as probe:
        model(token_batch(), past_key_values=DynamicCache(config=model.config))
        with pytest.warns(RuntimeWarning, match="ZeroDivisionError: broken on purpose"):
            probe.close()
    with pytest.raises(GeomprobeError, match="nothing to read"):
        probe.read()


def test_a_forward_that_raises_on_a_cache_counts_at_no_site(model: Any) -> None:
    cache, ids = DynamicCache(config=model.config), token_batch(2, 9)
    layer = list(model.get_decoder().layers)[2]
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        model(ids[:, :5], past_key_values=cache)
        handle = layer.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(ids[:, 5:], past_key_values=cache)
        handle.remove()
    assert {probe.read()[f"tokens/{site}"] for site in probe.sites} == {10}


# -- modes -------------------------------------------------------------------------------------------------------------------


def test_forwards_without_gradients_in_training_mode_are_a_mode_of_their_own(model: Any) -> None:
    """As in the trainers for reinforcement learning: rollouts and the reference model run between the forwards of the loss."""
    loss, other, asked = token_batch(2, 7), token_batch(3, 9, seed=1), token_batch(1, 5, seed=2)
    model.train()
    with Probe(model, on_error="raise") as probe:
        with torch.no_grad():
            model(other)
            model.generate(asked, max_new_tokens=4, eos_token_id=None, do_sample=False)
        model(loss).logits.sum().backward()
        with torch.no_grad():
            model.eval()(other)
    with Probe(model.train(), on_error="raise") as alone_:
        model(loss)
    assert dict(probe.read("train")) == pytest.approx(dict(alone_.read()), rel=1e-12)
    assert (probe.read("no_grad")["tokens/embed"], probe.read("no_grad")["texts/embed"]) == (27 + 8, 4)
    assert probe.read("eval")["tokens/embed"] == 27
    assert probe.read("no_grad").notes == [
        "contains generation: 1 of the 4 texts were generated by the model, token by token; the others were given to it whole"
    ]
    assert probe.read("train").notes == []
    with pytest.raises(GeomprobeError, match="in the modes train, eval, no_grad"):
        probe.read()
    probe.reset("no_grad")
    assert probe.read("train")["tokens/embed"] == 14


@pytest.mark.parametrize("cache", [True, False], ids=["cache", "no cache"])
def test_generation_beside_whole_texts_is_told(cache: bool) -> None:
    model = tiny()
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        model.generate(token_batch(2, 5), max_new_tokens=4, eos_token_id=None, use_cache=cache)
        assert probe.read().notes == []
        model(token_batch(3, 7))
    (note,) = probe.read().notes
    assert note.startswith("contains generation: 2 of the 5 texts")


# -- padding without a mask --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [0, 7])
def test_a_padding_token_that_is_named(side: str, pad: int) -> None:
    model, texts = tiny(), [token_batch(1, length, seed=length).clamp_min(8)[0] for length in (9, 4, 6)]
    batch = padded(texts, side)
    ids = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, pad)
    with torch.no_grad(), Probe(model, METRICS, pad_token_id=pad, on_error="raise") as probe:
        model(ids)
    assert probe.read().notes == []
    with torch.no_grad(), Probe(model, METRICS, on_error="raise") as masked:
        model(ids)  # what the model computed is the same: only which rows are tokens differs
        assert masked.read()["tokens/embed"] == 27
    assert probe.read()["tokens/embed"] == 19
    if side == "right":
        assert_same(probe.read(), alone(model, texts))


def test_a_padding_token_that_also_ends_texts_counts_once_at_the_end() -> None:
    model = tiny()
    model.generation_config.eos_token_id = 7
    ids = torch.tensor([[8, 9, 7, 7, 7], [7, 7, 8, 9, 10], [8, 7, 9, 10, 7]])
    with torch.no_grad(), Probe(model, METRICS, pad_token_id=7, on_error="raise") as probe:
        model(ids[1:2])
        assert probe.read().notes == []
        model(ids)
    assert probe.read()["tokens/embed"] == 3 + 3 + 3 + 5
    assert "the first of them was counted as the end of the text" in probe.read().notes[0]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ([8, 9, 10, 0, 0], 0),
        ([0, 0, 8, 9, 10], 0),
        ([8, 5, 5, 5], None),
        ([9, *[6] * 32], 6),
        ([9, *[6] * 20], None),
        ([8, 9, 3, 3], 3),
        ([8, 9, 0], None),
    ],
    ids=["zeros", "leading zeros", "a word thrice", "32 equal", "20 equal", "the end token", "one zero, and no other row"],
)
def test_rows_that_look_padded_and_have_no_mask_are_told(row: list[int], told: int | None) -> None:
    model = tiny()
    model.generation_config.eos_token_id = 3
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        model(token_batch(2, 7))
        model(torch.tensor([row]))
        model(token_batch(2, 7))
        notes = probe.read().notes
        if told is None:
            assert notes == []
        else:
            assert [f"tokens of id {told} as padded rows do" in note for note in notes] == [True]
            assert f"pad_token_id={told}" in notes[0]
    with torch.no_grad(), Probe(model, on_error="raise") as masked:
        model(torch.tensor([row]), attention_mask=torch.ones(1, len(row)))
    assert masked.read().notes == []


@pytest.mark.parametrize(
    ("batch", "told"),
    [([[8, 9, 0], [8, 9, 10]], True), ([[8, 9, 3], [8, 10, 3]], False), ([[8, 9, 0], [8, 9, 3]], False)],
    ids=["one row is shorter by one", "all texts end alike", "both may be ends"],
)
def test_one_padding_token_is_noticed_beside_longer_rows(batch: list[list[int]], told: bool) -> None:
    model = tiny()
    model.generation_config.eos_token_id = 3
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        model(torch.tensor(batch))
    assert ["as padded rows do" in note for note in probe.read().notes] == [True] * told


def test_what_follows_on_a_cache_does_not_look_padded() -> None:
    """The next turn of a chat may begin as it likes."""
    model, cache = tiny(), DynamicCache()
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        for turn in ([8, 9, 10], [0, 0, 11]):
            model(torch.tensor([turn]), past_key_values=cache)
    assert probe.read().notes == []


@pytest.mark.parametrize("pad", [None, 0])
def test_rows_of_one_token_are_told(pad: int | None) -> None:
    """Harnesses run them to find a batch size."""
    with torch.no_grad(), Probe(model := tiny(), pad_token_id=pad, on_error="raise") as probe:
        model(token_batch(2, 9))
        assert probe.read().notes == []
        model(torch.ones(4, 16, dtype=torch.long))
    (note,) = probe.read().notes
    assert note.startswith("rows that consist of one repeated token (id 1) were counted")
