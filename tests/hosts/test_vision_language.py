"""Vision-language models: the decoder is fed embeddings, in which images and tokens are mixed, and never sees token ids."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import Trainer, TrainingArguments

from geomprobe import Probe, Reading, every
from geomprobe.integrations import ProbeCallback
from tests.hosts.harness import STEPS, assert_same, settings
from tests.tiny_models import hooks

PAD, IMAGE, START, END = 0, 60, 61, 62
NEW = 12
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": None,
}


def qwen2_vl() -> Any:
    config = transformers.Qwen2VLConfig(
        text_config=TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        vision_config={
            "depth": 1,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=IMAGE,
        video_token_id=63,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def llava() -> Any:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision, image_size=8, patch_size=4, projection_dim=32),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        image_seq_length=4,
    )
    return transformers.LlavaForConditionalGeneration(config)


def images(name: str, rows: int) -> dict[str, Tensor]:
    """One image for each row, each of four tokens."""
    generator = torch.Generator().manual_seed(1)
    if name == "qwen2_vl":
        patches = torch.randn(rows * 16, 3 * 2 * 4 * 4, generator=generator)
        return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 4, 4]] * rows)}
    return {"pixel_values": torch.randn(rows, 3, 8, 8, generator=generator)}


def row_of(name: str, batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    size = 16 if name == "qwen2_vl" else 1
    one = {"pixel_values": batch["pixel_values"][row * size : (row + 1) * size]}
    return one | ({"image_grid_thw": batch["image_grid_thw"][row : row + 1]} if name == "qwen2_vl" else {})


def prompts() -> tuple[Tensor, Tensor]:
    """Three prompts with an image, of different lengths, padded on the left."""
    texts = [[START, *[IMAGE] * 4, END, *range(5, 5 + length)] for length in (3, 8, 5)]
    longest = max(map(len, texts))
    ids = torch.tensor([[PAD] * (longest - len(text)) + text for text in texts])
    return ids, (ids != PAD).long()


def extra(name: str, ids: Tensor) -> dict[str, Tensor]:
    """What the processor of Qwen adds: which tokens belong to an image."""
    return {"mm_token_type_ids": (ids == IMAGE).int()} if name == "qwen2_vl" else {}


def tiny(name: str) -> Any:
    torch.manual_seed(0)
    return {"qwen2_vl": qwen2_vl, "llava": llava}[name]().eval()


@pytest.mark.parametrize("decoder_only", [False, True], ids=["model", "decoder"])
@pytest.mark.parametrize("name", ["qwen2_vl", "llava"])
def test_rows_that_end_apart_count_as_alone(name: str, decoder_only: bool) -> None:
    model = tiny(name)
    ids, mask = prompts()
    pictures = images(name, len(ids))
    inputs = {"input_ids": ids, "attention_mask": mask, **pictures, **extra(name, ids)}
    how = {"max_new_tokens": NEW, "do_sample": True, "suppress_tokens": [PAD, IMAGE, START, END, 63], "pad_token_id": PAD}

    def generate() -> Tensor:
        torch.manual_seed(3)
        output: Tensor = model.generate(**inputs, **how)
        return output

    free = generate()[:, ids.shape[1] :]
    eos = int(free[0, 4])  # the first row meets it early
    model.generation_config.eos_token_id = eos
    bare, own_hooks = generate(), hooks(model)  # Transformers leaves hooks of its own on some image encoders
    with Probe(model.get_decoder() if decoder_only else model, on_error="raise") as probe:
        output = generate()
    assert torch.equal(output, bare)
    assert hooks(model) == own_hooks

    texts = []
    for row in range(len(ids)):
        answer = output[row, ids.shape[1] :].tolist()
        answer = answer[: answer.index(eos)] if eos in answer else answer[: NEW - 1]
        texts.append(ids[row][mask[row].bool()].tolist() + answer)
    assert len({len(text) - int(own.sum()) for text, own in zip(texts, mask, strict=True)}) > 1
    assert_same(probe.read(), _alone(model, name, texts, pictures))
    assert probe.read().notes == []


@pytest.mark.parametrize("name", ["qwen2_vl", "llava"])
def test_training(tmp_path: Path, name: str) -> None:
    """At learning rate 0 every step is its texts alone, with their images."""
    ids, mask = prompts()
    pictures = images(name, len(ids))
    rows: list[list[int]] = []

    def collate(items: list[int]) -> dict[str, Tensor]:
        rows.append(items)
        parts = [row_of(name, pictures, item) for item in items]
        batch = {"input_ids": ids[items], "attention_mask": mask[items], "labels": ids[items], **extra(name, ids[items])}
        return batch | {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def make(callbacks: list[Any]) -> Any:
        rows.clear()
        args = TrainingArguments(**settings(tmp_path, learning_rate=0.0, remove_unused_columns=False))
        return Trainer(tiny(name), args, train_dataset=[0, 1, 2] * 2 * STEPS, data_collator=collate, callbacks=callbacks)

    bare = make([])
    bare.train()
    callback = ProbeCallback(when=every(1), on_error="raise")
    probed = make([callback])
    probed.train()
    assert [entry.get("loss") for entry in probed.state.log_history] == [entry.get("loss") for entry in bare.state.log_history]
    assert len(callback.history) == STEPS
    for (_, reading), items in zip(callback.history, rows[:STEPS], strict=True):
        texts = [ids[item][mask[item].bool()].tolist() for item in items]
        parts = [row_of(name, pictures, item) for item in items]
        batch = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        assert_same(reading, _alone(probed.model.eval(), name, texts, batch))
        assert reading.notes == []


def _alone(model: Any, name: str, texts: list[list[int]], pictures: dict[str, Tensor]) -> Reading:
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        for row, text in enumerate(texts):
            ids = torch.tensor([text])
            model(input_ids=ids, use_cache=False, **row_of(name, pictures, row), **extra(name, ids))
    return probe.read()
