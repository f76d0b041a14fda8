"""Programs that generate text: pipelines, continuous batching, and a probe on the decoder alone."""

from typing import Any

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, pipeline

from geomprobe import GeomprobeError, Probe
from tests.hosts.harness import ALPHABET, EOS, PAD, alone, assert_same, letters, model, tokenizer
from tests.tiny_models import hooks, token_batch

NEW = 12


def ending() -> Any:
    """A model that ends some of its texts early."""
    generating = model()
    with torch.no_grad():
        generating.lm_head.weight[EOS] *= 3
    return generating


def fed(prompt: list[int], answer: list[int]) -> torch.Tensor:
    """What generation alone feeds to the decoder: the end token is never fed, nor is the last token at the length limit."""
    return torch.tensor(prompt + (answer[: answer.index(EOS)] if EOS in answer else answer[: NEW - 1]))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_pipeline(batch_size: int) -> None:
    """It pads prompts on the left, and rows of a batch end at different times."""
    generating, tokens, prompts = ending(), tokenizer(), letters(8, 2, 12)
    program = pipeline("text-generation", model=generating, tokenizer=tokens, device="cpu")
    how = {"batch_size": batch_size, "max_new_tokens": NEW, "do_sample": True, "return_tensors": True}
    torch.manual_seed(0)
    bare = program(prompts, **how)
    torch.manual_seed(0)
    with Probe(generating, on_error="raise") as probe:
        outputs = program(prompts, **how)
    assert outputs == bare
    assert not hooks(generating)
    texts = []
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = tokens(prompt)["input_ids"]
        columns = output[0]["generated_token_ids"]
        padding = next(i for i, token in enumerate(columns) if token != PAD)
        texts.append(fed(ids, columns[padding + len(ids) :]))
    assert len({len(text) for text in texts}) > 2
    assert_same(probe.read(), alone(generating, texts))
    assert probe.read().notes == []


def continuously(model: Any, prompts: list[list[int]]) -> dict[str, Any]:
    """The outputs of ``generate_batch``, with a cache of a few pages, where the default is a large part of the memory."""
    outputs: dict[str, Any] = model.generate_batch(
        inputs=prompts,
        generation_config=GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=EOS, pad_token_id=PAD),
        continuous_batching_config=ContinuousBatchingConfig(page_size=16, num_blocks=32, max_batch_tokens=64),
    )
    return outputs


def test_continuous_batching_is_left_out() -> None:
    """``generate_batch`` puts the tokens of many texts into one row, on a paged cache, in a thread of its own."""
    generating = ending()
    text = token_batch(1, 9, vocabulary=len(ALPHABET) + 2)
    prompts = [tokenizer()(prompt)["input_ids"] for prompt in letters(4, 3, 9)]

    def generate() -> list[list[int]]:
        outputs = continuously(generating, prompts)
        return [output.generated_tokens for output in outputs.values()]

    bare = generate()
    with torch.no_grad(), Probe(generating) as probe:
        generating(input_ids=text, use_cache=False)
        with pytest.warns(RuntimeWarning, match="Continuous batching"):
            assert generate() == bare
        generating(input_ids=text, use_cache=False)
    assert not hooks(generating)
    assert probe.fault is None
    reading = probe.read()
    assert_same(reading, alone(generating, [text[0], text[0]]))
    (note,) = reading.notes
    assert "Continuous batching" in note


def test_only_continuous_batching_measures_nothing_and_says_why() -> None:
    generating = ending()
    with Probe(generating) as probe, pytest.warns(RuntimeWarning, match="Continuous batching"):
        continuously(generating, [[3, 4, 5], [6, 7]])
    with pytest.raises(GeomprobeError, match="Continuous batching"):
        probe.read()


@pytest.mark.parametrize("where", ["model", "decoder"])
@pytest.mark.parametrize("end", ["config", "argument"])
def test_a_probe_on_the_decoder_of_a_model_that_generates(where: str, end: str) -> None:
    """The decoder has no generation config of its own; its rows end where those of the whole model end."""
    generating, tokens = ending(), tokenizer()
    tokens.padding_side = "left"
    batch = tokens(letters(6, 2, 12), padding=True, return_tensors="pt", return_token_type_ids=False)
    how: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": True, "pad_token_id": PAD}
    if end == "argument":
        generating.generation_config.eos_token_id = generating.config.eos_token_id = None
        how["eos_token_id"] = EOS
    torch.manual_seed(0)
    bare = generating.generate(**batch, **how)
    torch.manual_seed(0)
    with Probe(generating if where == "model" else generating.get_decoder(), on_error="raise") as probe:
        output = generating.generate(**batch, **how)
    assert torch.equal(output, bare)
    assert not hooks(generating)
    columns = batch["input_ids"].shape[1]
    texts = [
        fed(row[:columns][mask.bool()].tolist(), row[columns:].tolist())
        for row, mask in zip(output, batch["attention_mask"], strict=True)
    ]
    assert len({len(text) - int(mask.sum()) for text, mask in zip(texts, batch["attention_mask"], strict=True)}) > 2
    assert_same(probe.read(), alone(generating, texts))
    assert probe.read().notes == []
