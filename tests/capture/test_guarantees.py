"""What is exact, approximate or refused: one test for each row of the table in ``geomprobe/capture/README.md``, in its order.

``python -m tests.capture.test_guarantees`` writes the table.
"""

import contextlib
import copy
import sys
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import accelerate
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import DynamicCache

import geomprobe.probe
import geomprobe.reading.compute
from geomprobe import (
    AttentionProfile,
    Decoder,
    GeomprobeError,
    InformationGain,
    Probe,
    Reading,
    RepresentationEntropy,
    RouterProfile,
)
from geomprobe.accumulators import information_gain
from geomprobe.accumulators.covariance_sketch import sketched_eigenvalues
from geomprobe.capture import attention_mask, attention_tap, decoder, dynamo_ops, forward_context, generation, hooks, router_tap
from geomprobe.capture.forward_context import Call, ForwardContext, text_starts
from geomprobe.capture.generation import CachedSequence, GenerateCall
from geomprobe.capture.hooks import Capture
from geomprobe.capture.padding_check import PaddingCheck
from geomprobe.capture.router_tap import Router
from geomprobe.core import blas
from geomprobe.core.cholesky import gains, scaled_factor
from geomprobe.core.layer_rows import NOTHING
from geomprobe.core.rows import Rows
from geomprobe.integrations import ProbeCallback
from geomprobe.integrations.hf_trainer import _Gate
from geomprobe.metrics import entropy
from geomprobe.recording import all_reduce, recorder
from geomprobe.recording.recorder import Recorder
from geomprobe.recording.state_store import StateStore
from tests import reference
from tests.capture import test_attention_tap, test_generation, test_guards, test_routers
from tests.capture.guarantees import BLOCK, Guard, guarantee, run_on_ranks, table, work
from tests.capture.test_architectures import build
from tests.capture.test_generation import METRICS, alone, assert_same, fed, prompts
from tests.capture.test_guards import left_out, one_warning
from tests.integrations.training import ACCUMULATION, BATCH, LENGTH, trainer
from tests.metrics.test_routing import Own
from tests.models import test_loading
from tests.recording.test_all_reduce import RANKS
from tests.test_probe_metrics import embedding_reading
from tests.test_probe_transparent import Broken, failing
from tests.tiny_models import HandMade, padded, tiny, token_batch

TEXTS = [token_batch(1, length, seed=length).clamp_min(8)[0] for length in (9, 4, 6)]
IDS = torch.cat(TEXTS).unsqueeze(0)
POSITIONS = torch.cat([torch.arange(len(text)) for text in TEXTS]).unsqueeze(0)


def measured(model: nn.Module, *calls: Mapping[str, Any], **options: Any) -> Reading:
    """The reading of these calls of a model."""
    with torch.no_grad(), Probe(model, METRICS, on_error="raise", **options) as probe:
        for call in calls:
            model(**call)
    return probe.read()


def every_pass(self: Capture, place: int, hidden: Tensor) -> None:
    """A capture that reports every pass of a module at its first site, and does not mind how often it comes."""
    self._waiting = {}
    place = min(place, len(self._decoder.sites) - 1)
    if self._context is not None and place in self._numbers:
        self._listener.captured(self._context, self._decoder.sites[place], hidden, NOTHING)


HIDDEN, WANTS, SKETCHED = Capture.hidden, Recorder.wants, sketched_eigenvalues
ONCE = Guard(Capture, "hidden", every_pass)
PAST = Guard(Call, "past", property(lambda self: 0))
STARTS = Guard(Call, "starts", lambda self: None)
REARRANGED = Guard(CachedSequence, "rearranged", property(lambda self: False))


# -- which rows are tokens ---------------------------------------------------------------------------------------------------


@guarantee(
    "left or right padding, rows that are all padding",
    "Exact. Padding is not counted.",
    Guard(forward_context, "padding_mask", lambda *_, **__: None),
)
def test_padding() -> None:
    model, expected = tiny(), alone(tiny(), TEXTS)
    for side in ("left", "right"):
        assert_same(measured(model, padded([*TEXTS, token_batch(1, 0)[0]], side)), expected)


@guarantee(
    "padding without a mask, with `Probe(pad_token_id=…)`",
    "Exact: runs of that token at both ends of a row are not counted. If the same token also ends texts, the first "
    "token of the run at the end is counted, and a note says so. With padding on the left and no mask, the model "
    "itself attends to the padding, and the hidden states are those that it computed.",
    Guard(forward_context, "padding_runs", lambda ids, *_: torch.zeros_like(ids, dtype=torch.bool)),
)
def test_a_padding_token_that_is_named() -> None:
    model, ids = tiny(), padded(TEXTS, "right")["input_ids"] + 0
    assert_same(measured(model, {"input_ids": ids}, pad_token_id=0), alone(model, TEXTS))
    model.generation_config.eos_token_id = 7
    reading = measured(model, {"input_ids": torch.tensor([[8, 9, 7, 7, 7], [7, 7, 8, 9, 10]])}, pad_token_id=7)
    assert reading["tokens/embed"] == 3 + 3
    assert "both the padding token and an end token" in reading.notes[0]


@guarantee(
    "padding without a mask",
    "Approximate: padding is counted. A note says so if rows begin or end with padding tokens, or with 32 equal tokens.",
    Guard(PaddingCheck, "look", lambda self, call: None),
)
def test_padding_without_a_mask() -> None:
    for side in ("left", "right"):
        reading = measured(tiny(), {"input_ids": padded(TEXTS, side)["input_ids"]})
        assert reading["tokens/embed"] == 27
        assert [f"use Probe(model, pad_token_id={0})" in note for note in reading.notes] == [True]


@guarantee(
    "rows of one repeated token, as evaluation harnesses run to find a batch size",
    "Approximate: they are counted, and a note says so.",
    Guard(PaddingCheck, "look", lambda self, call: None),
)
def test_rows_of_one_token() -> None:
    reading = measured(tiny(), {"input_ids": IDS}, {"input_ids": torch.ones(4, 16, dtype=torch.long)})
    assert reading["tokens/embed"] == 19 + 64
    assert [note.startswith("rows that consist of one repeated token (id 1) were counted") for note in reading.notes] == [True]


@guarantee(
    "packed documents (position ids that restart, `cu_seq_lens`, block masks)",
    "Exact, for the hidden states that the model computed: the probe never mixes documents. (Under SDPA, "
    "Transformers itself keeps documents apart by their position ids only if there is no mask and "
    "`use_cache=False`.)",
    STARTS,
)
def test_packed_documents() -> None:
    model, expected = tiny(), alone(tiny(), TEXTS)
    index = torch.repeat_interleave(torch.arange(3), torch.tensor([9, 4, 6]))
    block = ((index[:, None] == index) & torch.ones(19, 19).tril().bool())[None, None]
    cuts = {"cu_seq_lens_q": torch.tensor([0, 9, 13, 19], dtype=torch.int32)}
    for packed in ({}, {"attention_mask": block}, cuts):
        assert_same(measured(model, {"input_ids": IDS, "position_ids": POSITIONS, "use_cache": False} | packed), expected)
    starts = Call({"input_ids": IDS, "position_ids": POSITIONS.expand(4, 1, 19)}, "eval").starts()  # as Qwen2-VL is given
    assert starts is not None
    assert starts.nonzero()[:, 1].tolist() == [0, 9, 13]


@guarantee(
    "position ids that skip ahead, with a mask",
    "Exact. The tokens before and after the gap belong to one text, as they do for the model.",
    Guard(
        forward_context,
        "text_starts",
        lambda arguments, *shape, **tokens: text_starts({**arguments, "attention_mask": None}, *shape, **tokens),
    ),
)
def test_positions_that_skip_ahead() -> None:
    test_generation.test_positions_that_skip_ahead_are_one_text_with_a_mask(tiny())


@guarantee(
    "texts longer than d",
    "Exact. Their numbers are computed from d×d matrices, in memory that does not grow with the text.",
    Guard(information_gain, "_text_gains", lambda rows, sigma: (gains(scaled_factor(rows.gram(), sigma)[0]), rows.valid)),
)
def test_texts_longer_than_d(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny(), token_batch(1, 100)
    monkeypatch.setattr(Rows, "gram", lambda self: pytest.fail("a Gram matrix was made"))
    with torch.no_grad(), Probe(model, [InformationGain()], on_error="raise") as probe:
        model(ids)
    for site, hidden in reference.hidden_states(model, {"input_ids": ids}).items():
        expected = reference.gains(reference.unit(hidden[0])).sum()
        assert probe.read()[f"information_gain/{site}"] == pytest.approx(expected, rel=1e-6)


@guarantee(
    "rows with NaN or Inf",
    "Left out with a note: these rows are left out of every number, and counted as `nonfinite`.",
    Guard(Rows, "valid", property(lambda self: self.mask.expand(self.norms.shape))),
)
def test_rows_that_are_not_finite() -> None:
    model = tiny()
    expected = measured(model, {"input_ids": IDS[:, :-1]})
    poison = nn.functional.pad(torch.zeros(1, IDS.shape[1] - 1, 1), (0, 0, 0, 1), value=torch.nan)
    handle = model.model.norm.register_forward_hook(lambda module, inputs, output: output + poison)
    reading = measured(model, {"input_ids": IDS})
    handle.remove()
    assert reading.site("final_norm") == pytest.approx(expected.site("final_norm") | {"nonfinite": 1}, rel=1e-6)
    assert reading.notes == ["final_norm: 1 rows contained NaN or Inf and were left out of every number"]


# -- training and evaluation -------------------------------------------------------------------------------------------------


@guarantee(
    "training, evaluation, and forwards in training mode without gradients (reference models, rollouts, old log-probabilities)",
    "Exact, as the modes `train`, `eval` and `no_grad`, which are never mixed. Texts that run inside `Probe.fixed()` are the "
    "mode `fixed`.",
    Guard(hooks, "mode_of", lambda training, grad: "train" if training else "eval"),
)
def test_modes() -> None:
    test_generation.test_forwards_without_gradients_in_training_mode_are_a_mode_of_their_own(tiny())


@pytest.mark.slow
@guarantee(
    "gradient accumulation, and evaluation during training",
    "Exact. A step includes all its micro-batches, and evaluation has names of its own.",
    Guard(_Gate, "__call__", lambda self, forward: self.in_step and forward % ACCUMULATION == 0),
    Guard(hooks, "mode_of", lambda training, grad: "train"),
)
def test_gradient_accumulation(tmp_path: Path) -> None:
    callback = ProbeCallback(when=1, on_error="raise")
    trainer(tmp_path, callback, max_steps=2, eval_strategy="steps", eval_steps=2).train()
    counts = [(step, reading.mode, reading["tokens/embed"]) for step, reading in callback.history]
    step = BATCH * ACCUMULATION * LENGTH
    assert counts == [(1, "train", step), (2, "train", step), (2, "eval", 4 * LENGTH)]


@pytest.mark.slow
@guarantee(
    "Trainer, resumed from a checkpoint",
    "Exact. The series continues, because readings are saved in each checkpoint.",
    Guard(ProbeCallback, "on_save", lambda self, *_, **__: None),
)
def test_a_resumed_trainer(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    whole, resumed = ProbeCallback(when=1, on_error="raise"), ProbeCallback(when=1, on_error="raise")
    trainer(tmp_path, whole, **options).train()
    trainer(tmp_path, resumed, **options).train(resume_from_checkpoint=str(tmp_path / "trained" / "checkpoint-1"))
    assert [step for step, _ in whole.history] == [1, 2]
    assert [(step, dict(reading)) for step, reading in resumed.history] == [
        (step, dict(reading)) for step, reading in whole.history
    ]


def stays_open(self: Capture, completed: bool = True) -> None:
    """A capture whose forward does not end when the decoder returns."""
    self._listener.closed(self._context, completed)


@guarantee(
    "activation checkpointing",
    "Exact. Layers, or a whole decoder, that run again during backward are not counted again.",
    Guard(Capture, "end", stays_open),
    Guard(hooks, "_in_backward", lambda: False),
    Guard(hooks, "_is_checkpointed", lambda: False),
)
def test_activation_checkpointing() -> None:
    for reentrant in (True, False):
        hand_made, model = HandMade(), tiny().train()  # the hooks of one run again in backward, those of the other do not
        with Probe(hand_made, METRICS, on_error="raise") as plain:
            hand_made(IDS)
        hand_made.checkpointing = reentrant
        with Probe(hand_made, METRICS, on_error="raise") as probe:
            hand_made(IDS).sum().backward()
        assert probe.read() == plain.read()
        with Probe(model, METRICS, on_error="raise") as plain:
            model(IDS, use_cache=False)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        with Probe(model, METRICS, on_error="raise") as probe:
            model(IDS, labels=IDS, use_cache=False).loss.backward()
        assert probe.read() == plain.read()
        test_guards.test_a_decoder_that_is_checkpointed_as_a_whole_counts_once_in_training(reentrant)


@guarantee(
    "a copy of the model (`copy.deepcopy`), such as a reference model or averaged weights",
    "Exact. Forwards of the copy are not measured.",
    Guard(Capture, "__reduce__", lambda self: (lambda: self, ())),
)
def test_a_copy_of_the_model() -> None:
    model = tiny()
    with torch.no_grad(), Probe(model, METRICS, on_error="raise") as probe:
        twin = copy.deepcopy(model)
        for each in (twin, model, twin):
            each(IDS)
    assert probe.read() == measured(model, {"input_ids": IDS})


# -- generation --------------------------------------------------------------------------------------------------------------


@guarantee(
    "`generate` with a KV cache: greedy, sampling, static cache, sliding windows, chunked prefill",
    "Exact. A text gives the same numbers as in one forward, alone. Its hidden states are stored until it ends.",
    Guard(forward_context, "cache_of", lambda arguments: None),
)
def test_generate_on_a_cache() -> None:
    ways: list[dict[str, Any]] = [{}, {"do_sample": True, "top_k": 8}, {"prefill_chunk_size": 4}]
    ways += [{"cache_implementation": "static", "disable_compile": True}]
    for model in (tiny(), tiny("mistral", sliding_window=8)):
        for how in ways:
            with Probe(model, METRICS, on_error="raise") as probe:
                output = model.generate(**prompts(), max_new_tokens=7, pad_token_id=0, eos_token_id=None, **how)
            assert_same(probe.read(), alone(model, fed(output, None)))


@guarantee(
    "rows of a batch that end at different times, by end tokens, stop strings or criteria of your own",
    "Exact. `generate` itself tells which rows have ended, also when the probe is on the decoder alone, or the model is fed "
    "with embeddings.",
    Guard(GenerateCall, "current", classmethod(lambda cls: None)),
)
def test_rows_that_end_apart() -> None:
    for way in ("eos of the call", "criterion", "stop string"):
        test_generation.test_rows_end_as_generate_says(way, pad_is_eos=False, cache=True)
    test_generation.test_the_decoder_alone_is_told_how_rows_end()


@guarantee(
    "rows that end at different times in a decoding loop of your own, on a KV cache",
    "Exact, by the end and padding tokens of the model's generation config.",
    Guard(generation, "still_running", lambda ids, mask, *_: mask),
)
def test_rows_that_end_apart_in_a_loop() -> None:
    model, prompt, cached = tiny(), token_batch(2, 5), DynamicCache()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    answers = torch.tensor([[9, 8, 1, 0, 0], [9, 8, 7, 6, 5]])
    steps = [prompt, *torch.split(answers, 1, dim=1)]
    reading = measured(model, *[{"input_ids": step, "past_key_values": cached} for step in steps])
    assert_same(reading, alone(model, [torch.cat([prompt[0], answers[0, :2]]), torch.cat([prompt[1], answers[1]])]))


@guarantee(
    '`generate` without a cache, and `RepresentationEntropy` with `center="text"`, `rows="last"` or `rows="mean"`',
    "Approximate: `rankme` and `alpha_req` contain rounding errors, because the model computes earlier tokens again "
    "for each new one, and a note says so. Other numbers agree to float32.",
    Guard(Recorder, "_is_recomputed", lambda self, context: False),
)
def test_rows_that_are_computed_again() -> None:
    model, batch = tiny(), prompts()
    how = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None, "do_sample": False}
    metrics = [RepresentationEntropy(), RepresentationEntropy(rows="last"), RepresentationEntropy(center="text", texts=False)]
    for cached in (True, False):
        with Probe(model, metrics, on_error="raise") as probe:
            output = model.generate(**batch, **how, use_cache=cached)
        reading = probe.read()
        assert ["without a cache" in note for note in reading.notes] == [True] * (not cached)
        with torch.no_grad(), Probe(model, metrics, on_error="raise") as probe:
            for row in fed(output, None):
                model(row.unsqueeze(0), use_cache=False)
        expected = probe.read()
        for name in ("last_effective_rank", "centered_effective_rank", "last_stable_rank", "rankme"):
            assert reading[f"{name}/layer_01"] == pytest.approx(expected[f"{name}/layer_01"], rel=1e-4), name
    for metric in (*metrics, RepresentationEntropy(rows="mean")):
        with Probe(model, [metric], on_error="raise") as probe:
            model.generate(**batch, **how, use_cache=False)
        # Of all rows, every one that is subtracted was added in the same forward.
        assert bool(probe.read().notes) == (metric != metrics[0])


@guarantee(
    "`generate` without a cache (`use_cache=False`), from token ids or embeddings (vision-language models)",
    "Exact, except for the row above. Each position is counted once.",
    Guard(ForwardContext, "refed_rows", lambda *_: None),
)
def test_generate_without_a_cache() -> None:
    model, batch = tiny(), prompts()
    how = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None, "do_sample": False, "use_cache": False}
    embedded = {"inputs_embeds": model.get_input_embeddings()(batch["input_ids"]), "attention_mask": batch["attention_mask"]}
    expected = alone(model, fed(model.generate(**batch, **how), None))
    for given in (batch, embedded):
        with Probe(model, METRICS, on_error="raise") as probe:
            model.generate(**given, **how)
        assert_same(probe.read(), expected)


def one_call(cls: type[GenerateCall]) -> GenerateCall:
    """As if all forwards ran inside one call of ``generate``."""
    frame: Any = sys._getframe()
    while "call" not in frame.f_locals:
        frame = frame.f_back
    return cls("one call", frame.f_locals["call"].ids, None, moves=False)


@guarantee(
    "growing prefixes of a text, each in a separate call",
    "Exact. Each call counts as a text of its own.",
    Guard(GenerateCall, "current", classmethod(lambda cls: cls("one call", IDS, None, moves=False))),
)
def test_growing_prefixes() -> None:
    test_generation.test_growing_prefixes_in_calls_of_their_own_are_texts_of_their_own(tiny())


def nearest_loop(cls: type[GenerateCall]) -> GenerateCall | None:
    """The call of ``generate`` around a forward, whoever calls the model inside it."""
    frame: Any = sys._getframe()
    while frame is not None and frame.f_code.co_name != "_sample":
        frame = frame.f_back
    found = {} if frame is None else frame.f_locals
    return None if not found else cls(found["stopping_criteria"], found["input_ids"], None, moves=False)


@guarantee(
    "calls of the model inside `generate`, by a stopping criterion, a logits processor or a streamer",
    "Exact. Each call counts as a text of its own.",
    Guard(GenerateCall, "current", classmethod(nearest_loop)),
)
def test_calls_inside_generate() -> None:
    test_generation.test_calls_of_the_model_by_a_criterion_of_generate_are_texts_of_their_own(tiny(), cache=False)


@guarantee(
    "generation under a schedule (`when=`)",
    "Exact. A text on a KV cache is measured to its end, or not at all.",
    Guard(Recorder, "wants", lambda self, continues: WANTS(self, False)),
)
def test_generation_under_a_schedule() -> None:
    test_generation.test_a_schedule_takes_texts_whole(tiny())


@guarantee(
    "generated texts and whole ones in one mode",
    "Exact, and a note says that the reading contains generation.",
    Guard(CachedSequence, "generated", property(lambda self: False)),
)
def test_generated_and_whole_texts() -> None:
    model = tiny()
    with torch.no_grad(), Probe(model, METRICS, on_error="raise") as probe:
        output = model.generate(**prompts(), max_new_tokens=4, pad_token_id=0, eos_token_id=None)
        assert probe.read().notes == []
        model(IDS)
    assert_same(probe.read(), alone(model, [*fed(output, None), IDS[0]]))
    assert [note.startswith("contains generation: 2 of the 3 texts") for note in probe.read().notes] == [True]


@guarantee(
    "a chat that continues on its cache",
    "Exact, if the probe observed the cache from the start.",
    Guard(CachedSequence, "cache", property(lambda self: None)),
)
def test_a_chat() -> None:
    model, cached = tiny(), DynamicCache()
    turns = [{"input_ids": part, "past_key_values": cached} for part in torch.split(IDS, [4, 1, 9, 5], dim=1)]
    assert_same(measured(model, *turns), alone(model, [IDS[0]]))


@guarantee(
    "a cache that was filled while the probe did not observe it, or that was copied",
    "Left out with a note. The measurement goes on with the next text.",
    PAST,
)
def test_a_copied_cache() -> None:
    test_guards.test_a_copied_cache_is_left_out_and_the_measurement_goes_on()


@guarantee(
    "a cache passed as `past_key_values`, `cache` (Transformers 5.24) or `cache_params`",
    "Exact.",
    Guard(forward_context, "_CACHES", ("past_key_values",)),
)
def test_the_names_of_caches() -> None:
    for name in ("past_key_values", "cache", "cache_params"):
        test_guards.test_a_cache_is_understood_under_each_of_its_names(name)


@guarantee(
    "continuous batching, and any other argument that looks like a cache and is not understood",
    "Left out with a note.",
    Guard(forward_context, "_looks_like_cache", lambda name, value: isinstance(value, DynamicCache)),
)
def test_caches_that_are_not_understood() -> None:
    for name, value in {"cache": test_guards.PagedCache(), "past_key_values": ((torch.zeros(1),),), "mems": [IDS]}.items():
        test_guards.test_what_looks_like_a_cache_and_is_not_understood_is_left_out(name, value)


@guarantee(
    "generation with recurrent states (Mamba)",
    "Exact.",
    PAST,
)
def test_recurrent_states() -> None:
    model = build("Mamba")
    with Probe(model, METRICS, on_error="raise") as probe:
        output = model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=5, do_sample=False)
    assert_same(probe.read(), alone(model, [output[0, :-1]]))


@guarantee(
    "beam search, assisted decoding",
    "Left out with a note, because rows move and drafts are removed. `on_gain` raises an error.",
    REARRANGED,
    Guard(GenerateCall, "current", classmethod(lambda cls: None)),
)
def test_beam_search_and_assisted_decoding() -> None:
    for how in ({"num_beams": 3}, {"prompt_lookup_num_tokens": 3}):
        test_generation.test_texts_whose_cache_is_rearranged_are_left_out(tiny(), how)
        test_generation.test_live_gains_refuse_a_cache_that_is_rearranged(tiny(), how)
    for cached in (True, False):
        test_generation.test_beams_of_an_encoder_decoder_and_without_a_cache_are_left_out(cached)


@guarantee(
    "rows of a cache that are moved or repeated between forwards (`reorder_cache`, `batch_repeat_interleave`)",
    "Left out with a note. Repeated rows are counted up to that point.",
    REARRANGED,
    Guard(CachedSequence, "batch", property(lambda self: ANY)),
)
def test_rows_moved_on_a_cache() -> None:
    test_generation.test_rows_that_were_moved_between_the_turns_of_a_chat_are_left_out(tiny())
    test_generation.test_rows_that_were_repeated_on_a_cache_are_left_out_from_then_on(tiny())


@guarantee(
    "packed documents on a KV cache",
    "Left out with a note: the next token would belong to the last document only.",
    STARTS,
)
def test_packed_documents_on_a_cache() -> None:
    model = tiny()
    packed = {"input_ids": IDS, "position_ids": POSITIONS}
    left_out(model, lambda: model(**packed, past_key_values=DynamicCache()), "packed documents were run on a KV cache")


# -- which rows a site sees --------------------------------------------------------------------------------------------------


@guarantee(
    "a layer module that is used at two depths",
    "Exact. Each depth is a site of its own.",
    ONCE,
)
def test_a_layer_at_two_depths() -> None:
    for sites in (None, ["layer_02"]):
        test_guards.test_a_layer_at_two_depths_is_read_once_at_each(sites)


@guarantee(
    "LayerDrop, layers replaced after the probe was attached, layers that run more often than they occur in the model",
    "Left out with a note. A forward is counted at every site or at none.",
    ONCE,
)
def test_sites_that_are_not_passed_once() -> None:
    for layer in range(3):
        test_guards.test_a_forward_that_skips_a_layer_is_left_out_of_every_site(layer)
    test_guards.test_a_layer_that_runs_more_often_than_it_stands_in_the_model()
    test_guards.test_a_layer_that_was_replaced_after_attach(1)


@guarantee(
    "hooks that change hidden states (steering), also if registered after the probe",
    "Exact. A site shows what the next layer gets.",
    Guard(Capture, "_keep", lambda self, table, handle: self._handles.append(handle)),
)
def test_hooks_registered_later() -> None:
    test_guards.test_hooks_registered_later_are_seen_as_the_next_layer_sees_them()


@guarantee(
    "a decoder whose own output is logits",
    "Left out with a note: `final_norm` is not measured. The other sites are exact.",
    Guard(Capture, "hidden", lambda self, place, hidden: HIDDEN(self, min(place, len(self._decoder.sites) - 1), hidden)),
)
def test_a_decoder_that_returns_logits() -> None:
    test_guards.test_logits_are_not_taken_for_hidden_states(None, named=False)


@guarantee(
    "a forward that raises, or that is interrupted (Ctrl-C)",
    "Left out with a note. It counts at no site.",
    Guard(recorder._Group, "drop", lambda self: None),
)
def test_a_forward_that_raises() -> None:
    model = tiny()
    told = {RuntimeError: "a forward raised an exception", KeyboardInterrupt: "it had not ended when the next one began"}
    for error, why in told.items():
        with torch.no_grad(), Probe(model, METRICS) as probe:
            with failing(model.model.norm, error()), pytest.raises(error):
                model(IDS)
            model(IDS)
        assert dict(probe.read()) == pytest.approx(dict(measured(model, {"input_ids": IDS})), rel=1e-12)
        assert [why in note for note in probe.read().notes] == [True]


def test_a_forward_on_a_cache_that_raises() -> None:
    """Its text ends with the forward before it."""
    model = tiny()
    with torch.no_grad(), Probe(model, METRICS) as probe:
        cache = DynamicCache(config=model.config)
        model(IDS, past_key_values=cache)
        with failing(model.model.norm, RuntimeError()), pytest.raises(RuntimeError):
            model(IDS[:, :1], past_key_values=cache)
    assert dict(probe.read()) == pytest.approx(dict(measured(model, {"input_ids": IDS})), rel=1e-12)
    assert probe.read().notes == ["a forward raised an exception and was left out"]


@guarantee(
    "a forward that runs the model again (a hook that calls it)",
    "Left out with a note. The inner forward is counted.",
    Guard(Capture, "_abandon", lambda self, context: None),
)
def test_a_forward_inside_another() -> None:
    test_guards.test_a_forward_inside_another_one_is_told()


@guarantee(
    "sites of one reading that were measured on different tokens, for whatever reason",
    "Approximate: the sites cannot be compared, and a note names those with fewer tokens.",
    Guard(geomprobe.reading.compute, "_uneven_sites", lambda counts: []),
)
def test_uneven_sites() -> None:
    model = tiny()
    with torch.no_grad(), Probe(model, [], sites=[0, 1]) as probe:
        model(IDS)
        state = probe.state_dict()
        state["eval/layer_01/token_count.1/tokens"] -= 4
        probe.load_state_dict(state)
    assert probe.read().notes == ["the sites were not measured on the same tokens: 19, but layer_01 (15)"]


# -- which module is measured ------------------------------------------------------------------------------------------------


@guarantee(
    "an encoder (BERT, ViT)",
    "Refused when the probe is made, because its tokens attend to later ones.",
    Guard(decoder, "_is_encoder", lambda layers: False),
)
def test_an_encoder() -> None:
    for family in ("bert", "vit"):
        test_guards.test_an_encoder_is_refused_at_attach(family)


@guarantee(
    "a model without decoder layers",
    "Refused when the probe is made.",
    Guard(geomprobe.probe, "find_decoder", lambda model: Decoder(model, list(model.children()))),
)
def test_a_model_without_layers() -> None:
    with pytest.raises(
        GeomprobeError, match=r"found no decoder layers in Sequential.*name the layers .*Probe\(model, decoder="
    ):
        Probe(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


@guarantee(
    "a site that the model does not have",
    "Refused when the probe is made.",
    Guard(Decoder, "select", lambda self, sites: self.sites),
)
def test_an_unknown_site() -> None:
    with pytest.raises(GeomprobeError, match="unknown site 7: this LlamaModel has layers 0 to 2"):
        Probe(tiny(), sites=[7])


@guarantee(
    "a second probe on one model",
    "Refused when it is attached.",
    Guard(geomprobe.probe, "_on", lambda base: None),
)
def test_a_second_probe() -> None:
    model = tiny()
    with Probe(model), pytest.raises(GeomprobeError, match=r"another probe is already attached.*Probe\.on\(model\)\.close"):
        Probe(model.model).attach()


@guarantee(
    "`decoder.forward()` called directly (SentenceTransformer)",
    "Left out with a note, because PyTorch runs no hooks of the decoder then.",
    Guard(Capture, "hidden", lambda self, *given: None if self._context is None else HIDDEN(self, *given)),
)
def test_forward_called_directly() -> None:
    test_guards.test_a_decoder_whose_forward_is_called_directly()


def claims(self: Capture) -> bool:
    """A capture that any thread may enter."""
    self._thread = threading.get_ident()
    return True


@guarantee(
    "two threads that run the model at the same time",
    "Left out with a note: the forward that began later is not counted.",
    Guard(Capture, "_claim", claims),
)
def test_two_threads() -> None:
    test_guards.test_a_second_thread_is_left_out()


def raising(self: Recorder, error: Exception) -> None:
    raise AssertionError("the model stopped") from error


@guarantee(
    "an error inside the probe",
    "Left out with a note: one warning, the hooks are removed, the model continues, and the numbers measured before are kept. "
    'With `on_error="raise"` the error is raised.',
    Guard(Recorder, "failed", raising),
)
def test_an_error_inside_the_probe() -> None:
    model = tiny()
    with torch.no_grad(), Probe(model, [Broken(good=2), InformationGain()]) as probe:
        with one_warning("geomprobe stopped measuring, and the model continues: ZeroDivisionError"):
            for ids in (IDS, IDS, IDS):
                model(ids)
        assert Probe.on(model) is None
    assert {probe.read()[f"tokens/{site}"] for site in probe.sites} == {19}
    assert "the probe stopped in forward 2: ZeroDivisionError" in probe.read().notes[0]


# -- precision, quantised and adapted models ---------------------------------------------------------------------------------


@guarantee(
    "bf16, fp16, autocast, TF32",
    "Exact for the hidden states that the model computed. Products over one forward are computed in float32 (relative error "
    "about 1e-6), and sums in float64, whatever the settings. Gram matrices and Cholesky factors have the accuracy of float64. "
    'GPUs with TF32 use it for covariances (relative error up to 4e-5), unless the probe has `precision="float64"`.',
    Guard(recorder, "full_precision", lambda device: contextlib.nullcontext()),
)
def test_precision() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blas, "_wins", lambda: False)  # SciPy's products know nothing of autocast
        assert embedding_reading(torch.autocast("cpu", torch.bfloat16)) == embedding_reading(contextlib.nullcontext())


@guarantee(
    "models too wide for d×d sums at every layer",
    "Approximate with `RepresentationEntropy(sketch=512)`, which reports its error as `sketch_residual`. Entropies "
    "of single texts and information gains stay exact.",
    Guard(entropy, "sketched_eigenvalues", lambda state, sketch, **options: (SKETCHED(state, sketch)[0], torch.zeros(()))),
)
def test_a_sketch() -> None:
    model = tiny()
    whole = [RepresentationEntropy(text_spectrum=True), InformationGain()]
    sketched = [RepresentationEntropy(text_spectrum=True, sketch=8), InformationGain()]
    readings = []
    for metrics in (whole, sketched):
        with torch.no_grad(), Probe(model, metrics, on_error="raise") as probe:
            model(token_batch(4, 30))
        readings.append(probe.read())
    exact, approximate = readings
    for site in exact.sites:
        missing = exact[f"effective_rank/{site}"] / approximate[f"effective_rank/{site}"] - 1
        assert approximate[f"sketch_residual/{site}"] > abs(missing) / 10
        for name in ("text_effective_rank", "information_gain", "anisotropy"):
            assert approximate[f"{name}/{site}"] == pytest.approx(exact[f"{name}/{site}"], rel=1e-6)


def outermost(model: Any) -> Decoder:
    """A decoder that is not looked for inside a wrapper."""
    found = decoder.find_decoder(model)
    return Decoder(model, found.layers) if hasattr(model, "peft_config") else found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@guarantee(
    "LoRA and other adapters, merged or not; torchao, quanto, GGUF",
    "Exact for the hidden states of that model. Virtual tokens of prompt tuning are counted.",
    Guard(geomprobe.probe, "find_decoder", outermost),
)
def test_adapters_and_quantised_weights(tmp_path: Path) -> None:
    import peft

    adapted = test_loading.lora(tiny())
    models = [adapted, test_loading.torchao(tiny(), tmp_path / "torchao"), test_loading.quanto(tiny(), tmp_path / "quanto")]
    models.append(test_loading.lora(tiny()).merge_and_unload())
    for model in models:
        test_loading.check(test_loading.read(model), model, test_loading.HIDDEN)
    test_loading.test_a_gguf_file_reads_as_the_same_weights_do_in_an_ordinary_model("Q8_0", tmp_path)
    prompted = peft.get_peft_model(tiny(), peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")).eval()
    assert measured(prompted, {"input_ids": IDS})["tokens/embed"] == 3 + 19


@guarantee(
    "forwards with different adapters, or with and without them, in one mode (the policy and the reference when DPO evaluates)",
    "Approximate: both are in the numbers, and a note says so.",
    Guard(Capture, "notes", lambda self, mode: []),
)
def test_adapters_on_and_off() -> None:
    import peft

    model = peft.get_peft_model(tiny(), peft.LoraConfig(target_modules=["q_proj"])).eval()
    with torch.no_grad(), Probe(model, METRICS, on_error="raise") as probe:
        model(IDS)
        assert probe.read().notes == []
        with model.disable_adapter():
            model(IDS)
    assert probe.read()["tokens/embed"] == 2 * 19
    assert ["with and without them" in note for note in probe.read().notes] == [True]


@pytest.mark.slow
@guarantee(
    "prefix tuning",
    "Left out with a note, because the prefix is a KV cache whose hidden states do not exist.",
    PAST,
)
def test_prefix_tuning() -> None:
    import peft

    prefixed = peft.get_peft_model(tiny(), peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")).eval()
    with torch.no_grad(), Probe(prefixed) as probe, one_warning("continues from 3 tokens of a KV cache"):
        prefixed(IDS)
    with pytest.raises(GeomprobeError, match="nothing to read"):
        probe.read()


# -- compiled graphs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def dynamo() -> Iterator[None]:
    """Dynamo without graphs."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@guarantee(
    "`torch.compile`, also with `fullgraph=True`",
    "Exact. There is no graph break, and no recompilation between measured and other steps. With a KV cache there is one graph "
    "break per call.",
    Guard(dynamo_ops, "register", lambda capture: -1),
    Guard(hooks, "carries_cache", lambda arguments: False),
)
def test_compiled_models(dynamo: None) -> None:
    model = tiny()
    with torch.no_grad(), Probe(model, METRICS, on_error="raise", when=2) as probe:
        compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
        for _ in range(3):
            compiled(input_ids=IDS, use_cache=False)
        assert counters["stats"]["unique_graphs"] == 1
    assert_same(probe.read(), alone(model, [IDS[0], IDS[0]]))
    torch.compiler.reset()
    with torch.no_grad(), Probe(model, METRICS, on_error="raise") as probe:
        compiled, cached = torch.compile(model, backend="eager"), DynamicCache()
        for part in torch.split(IDS, [9, 5, 5], dim=1):
            compiled(input_ids=part, past_key_values=cached)
        assert len(counters["graph_break"]) == 1
    assert_same(probe.read(), alone(model, [IDS[0]]))


@pytest.mark.slow
@guarantee(
    "a probe attached to a compiled model after its first call",
    "Exact. Graphs that were traced without hooks are discarded, and the next call traces again. A compiled function that "
    "calls the model cannot be found: attach the probe before its first call.",
    Guard(dynamo_ops, "forget_graphs", lambda *_: None),
)
def test_a_probe_on_a_compiled_model(dynamo: None) -> None:
    model = tiny()
    compiled: Any = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(input_ids=IDS, use_cache=False)
        with Probe(model, METRICS, on_error="raise") as probe:
            compiled(input_ids=IDS, use_cache=False)
    assert_same(probe.read(), alone(model, [IDS[0]]))


# -- attention ---------------------------------------------------------------------------------------------------------------


def attended(implementation: str, site: str = "final_norm") -> dict[str, float]:
    """What is read of attention at a site, of a padded batch."""
    model = tiny(attn_implementation="sdpa" if implementation == "flash" else implementation)
    context = test_attention_tap.emulated_flash(model) if implementation == "flash" else contextlib.nullcontext()
    with torch.no_grad(), context, Probe(model, [AttentionProfile()], on_error="raise") as probe:
        model(**padded(TEXTS, "left"), use_cache=False)
    return probe.read().site(site)


CAUSAL = Guard(
    attention_tap,
    "attention_mask_of",
    lambda name, mask, length, columns, *_: attention_mask._ByPosition(columns, True, 0, None, None, None),
)


@guarantee(
    "attention under SDPA and flash attention",
    "Exact. Weights are computed from the queries, keys, mask, scale, soft cap and sinks of the call, in chunks of "
    "rows, before dropout. Under eager attention, the model's own weights are read.",
    CAUSAL,
)
def test_attention() -> None:
    assert attended("sdpa") == pytest.approx(attended("eager"), rel=1e-4, abs=1e-5)
    # The stand-in for flash attention computes nothing: only the first layer has the queries and keys of the real one.
    assert attended("flash", "layer_00") == pytest.approx(attended("eager", "layer_00"), rel=1e-4, abs=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="PyTorch compiles flex attention for AVX2 on")
@guarantee(
    "attention under flex attention",
    "Exact, from its block mask. Inside a compiled graph it is left out with a note.",
    CAUSAL,
)
def test_flex_attention(dynamo: None) -> None:
    assert attended("flex_attention") == pytest.approx(attended("eager"), rel=1e-4, abs=1e-5)
    torch.compiler.reset()
    model = tiny(attn_implementation="flex_attention")
    with torch.no_grad(), Probe(model, [AttentionProfile()]) as probe, one_warning("run the model without torch.compile"):
        compiled: Any = torch.compile(model, backend="eager")
        compiled(input_ids=IDS, use_cache=False)
    assert probe.fault is None


@guarantee(
    "attention of models that do not use the attention functions of Transformers (Falcon), or that have no attention (Mamba)",
    "Refused when the probe is attached. Exception: under eager attention, Falcon's weights are read.",
    Guard(attention_tap, "custom_attention", lambda base, layers: []),
)
def test_attention_of_other_models() -> None:
    for name, why in {"Falcon": "load the model with attn_implementation='eager'", "Mamba": "has no attention"}.items():
        with pytest.raises(GeomprobeError, match=why):
            Probe(build(name), [AttentionProfile()]).attach()
    eager = build("Falcon", attn_implementation="eager")
    with torch.no_grad(), test_attention_tap.Maps(eager) as probe:
        weights = eager(IDS, output_attentions=True, use_cache=False).attentions[0]
    test_attention_tap.assert_rows(probe.seen["layer_00"][0], weights, torch.ones_like(IDS).bool())


# -- mixtures of experts -----------------------------------------------------------------------------------------------------


def largest(logits: Tensor) -> tuple[Tensor, None]:
    """A choice by logits alone."""
    return logits.topk(test_routers.K, -1).indices, None


@guarantee(
    "routers of mixtures of experts",
    "Exact. The chosen experts are those that the model used, after biases and groups: they are read where the "
    "experts are called, or from what the router returns. `router_entropy` is NaN where no known rule explains the "
    "weights of the experts.",
    Guard(router_tap, "_choice", lambda values: largest(values[0]) if len(values) > 1 else None),
)
def test_routers_of_mixtures() -> None:
    mixture = test_routers.MIXTURES["DeepSeek-V3"]
    model, found = test_routers.build(mixture)
    ids = token_batch()
    with torch.no_grad():
        logits, _ = test_routers.outputs(model, found, ids)
        with Probe(model, [RouterProfile()], on_error="raise") as probe:
            model(ids)
    for layer, theirs in logits.items():
        load, _, _ = test_routers.by_rule(mixture, theirs, found.layers[layer])
        assert probe.read().curve("router_load", f"layer_{layer:02d}").mean == pytest.approx(load / load.sum())


@guarantee(
    "a router that does not show which experts it chose",
    "Left out with a note. `Decoder(routers=…)` names a router that does.",
    Guard(Router, "_largest", lambda self, logits: largest(logits)),
)
def test_a_router_that_does_not_tell() -> None:
    model = Own(telling=False)
    with (
        torch.no_grad(),
        Probe(model, [RouterProfile()], decoder=model.decoder()) as probe,
        one_warning("nor its experts tell"),
    ):
        model(IDS)
    assert probe.fault is None


@guarantee(
    "`RouterProfile` of a model in which no router is found, or with several routers in one layer, or with only some "
    "of the experts on a rank",
    "Refused when the probe is attached.",
    Guard(hooks, "find_routers", lambda decoder, wanted: {}),
)
def test_routers_that_are_not_found() -> None:
    parallel, several = tiny("mixtral"), Own()
    parallel.model.layers[0].mlp.experts._is_expert_parallel = True
    two = several.decoder([several.layers[0].route, several.layers[0].experts[0]])
    for model, named, why in (
        (tiny(), None, "found no router"),
        (several, two, "layer 0 of Own has 2 routers"),
        (parallel, None, "only some of the experts"),
    ):
        with pytest.raises(GeomprobeError, match=why):
            Probe(model, [RouterProfile()], decoder=named).attach()


# -- several processes and devices -------------------------------------------------------------------------------------------


@guarantee(
    "`device_map` with CPU or disk offload",
    "Exact.",
    Guard(Capture, "_before_layer", lambda self, place, layer, args, kwargs: None),
)
def test_offload(tmp_path: Path) -> None:
    on_cpu, on_disk = tiny(), tiny()
    accelerate.cpu_offload(on_cpu, execution_device=torch.device("cpu"))
    accelerate.disk_offload(on_disk, str(tmp_path), execution_device=torch.device("cpu"))
    for model in (on_cpu, on_disk):
        assert measured(model, {"input_ids": IDS}) == measured(tiny(), {"input_ids": IDS})


@cache
def of_one_process() -> Reading:
    """The reading of all texts in one process. The worker takes it before it joins the other."""
    return alone(tiny(), [*TEXTS, TEXTS[0]])


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """How the tests of several processes failed, all of them run in one go."""
    run_on_ranks("tests.capture.test_guarantees", path := tmp_path_factory.mktemp("ranks"))
    return path


@pytest.mark.slow
@guarantee(
    "DDP, FSDP2, several ranks, also with uneven or empty batches",
    "Exact. `read()` sums over ranks, and is a collective operation: call it on all of them.",
    Guard(StateStore, "over_ranks", lambda self, replicas: self),
    ranks=True,
)
def test_several_ranks() -> None:
    from torch.distributed.fsdp import fully_shard

    texts = [*TEXTS, TEXTS[0]]
    for mine in (texts[dist.get_rank() :: RANKS], [texts[1:], texts[:1]][dist.get_rank()], [texts, []][dist.get_rank()]):
        model = nn.parallel.DistributedDataParallel(tiny()).module
        assert_same(measured(model, *[{"input_ids": text[None], "use_cache": False} for text in mine]), of_one_process())
    sharded = fully_shard(tiny())
    calls = [{"input_ids": text[None], "use_cache": False} for text in texts[dist.get_rank() :: RANKS]]
    assert_same(measured(sharded, *calls), of_one_process())


def tensor_parallel(model: Any) -> Any:
    """A model whose heads and columns are spread over the ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    columns = dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ColwiseParallel())
    for layer in model.model.layers:
        parallelize_module(layer, init_device_mesh("cpu", (RANKS,)), {**columns, "self_attn.o_proj": RowwiseParallel()})
    return model


@pytest.mark.slow
@guarantee(
    "tensor parallelism",
    "Exact. Replicated rows are counted once.",
    Guard(geomprobe.probe, "replicas", lambda model: 1),
    ranks=True,
)
def test_tensor_parallelism() -> None:
    model = tensor_parallel(tiny())
    calls = [{"input_ids": text[None], "use_cache": False} for text in (*TEXTS, TEXTS[0])]
    assert_same(measured(model, *calls), of_one_process())


@pytest.mark.slow
@guarantee(
    "attention under tensor parallelism",
    "Left out with a note, because a rank has only some of the heads.",
    Guard(attention_tap, "_why_unread", lambda *_: ""),
    ranks=True,
)
def test_attention_under_tensor_parallelism() -> None:
    model = tensor_parallel(tiny())
    with torch.no_grad(), Probe(model, [AttentionProfile()]) as probe, one_warning("this rank holds 2 of 4 attention heads"):
        model(IDS)
    assert probe.fault is None


class Halved(HandMade):
    """A model whose layers get half of each text, as with sequence parallelism on two ranks, while ``halve`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.halve = False

    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids[:, : input_ids.shape[1] // 2] if self.halve else input_ids)


def trusting(self: Capture, place: int, hidden: Tensor) -> None:
    """A capture that takes whatever shape comes for the whole."""
    self._shape = (hidden.shape[0], hidden.shape[1])
    HIDDEN(self, place, hidden)


@guarantee(
    "sequence parallelism, and other hidden states that are not `(batch, length, width)`",
    "Left out with a note, because a probe needs whole texts.",
    Guard(Capture, "hidden", trusting),
)
def test_sequence_parallelism() -> None:
    model = Halved()

    def halved() -> None:
        model.halve = True
        model(token_batch())
        model.halve = False

    left_out(model, halved, "run without sequence parallelism")
    test_guards.test_hidden_states_of_more_dimensions_are_left_out()


@guarantee(
    "pipeline parallelism",
    "Refused when the probe is made, because a rank has only some of the layers.",
    Guard(geomprobe.probe, "find_decoder", lambda model: Decoder(model.model, model.model.layers)),
)
def test_pipeline_parallelism() -> None:
    model = tiny()
    model.model.layers[0] = type("PipelineIdentityLayer", (nn.Identity,), {})()  # the name of the stand-ins of Transformers
    with pytest.raises(GeomprobeError, match=r"only a part of the layers of LlamaModel .* without pp_size"):
        Probe(model)


@pytest.mark.slow
@guarantee(
    "a rank that dies",
    "Refused: `read()` raises a `GeomprobeError`, at the latest at the timeout of the backend. `state_dict()` returns the sums "
    "of this rank.",
    Guard(all_reduce, "_reaching_all", lambda group: contextlib.nullcontext()),
    ranks=True,
)
def test_a_rank_that_dies() -> None:
    with torch.no_grad(), Probe(tiny(), on_error="raise") as probe:
        probe._model(IDS)
    if dist.get_rank() == 1:
        return  # and its process group ends
    with pytest.raises(Exception, match="rank") as caught:
        probe.read()
    assert isinstance(caught.value, GeomprobeError)
    assert float(probe.state_dict()["eval/embed/token_count.1/tokens"]) == 19


# -- the table ---------------------------------------------------------------------------------------------------------------


def test_the_readme_has_the_table() -> None:
    assert BLOCK.told() == table(), "the README differs: python -m tests.capture.test_guarantees writes the table"


def test_a_test_that_does_not_need_its_guard_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.capture.guarantees.ROWS", [])
    fails: list[bool] = []

    def reads() -> None:
        measured(tiny(), {"input_ids": IDS})
        assert not fails

    unneeded = Guard(forward_context, "padding_mask", lambda *_, **__: None)
    unreached = Guard(forward_context, "padding_runs", lambda *_: None)
    broken = Guard(forward_context, "padding_mask", lambda: None)
    test: Any = guarantee("a case", "Exact.", unneeded, unreached, broken)(reads)
    test(without=None)
    for guard in (unneeded, unreached):
        with pytest.raises(pytest.fail.Exception, match=f"{guard.name} can be taken out, and nobody notices: a case"):
            test(without=guard)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        test(without=broken)
    fails.append(True)
    test(without=unneeded)
    with pytest.raises(RuntimeError, match=r"fails without .*padding_runs, which it never reaches"):
        test(without=unreached)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        of_one_process()
        work(*sys.argv[1:])
    else:
        BLOCK.write(table())
