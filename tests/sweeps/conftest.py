"""A training in small: checkpoints of a byte-level GPT-NeoX, and texts."""

import json
from pathlib import Path

import pytest
import torch

from geomprobe.models.toy import byte_tokenizer
from tests.tiny_models import prose, tiny

STEPS = (1, 4, 16)


def save_checkpoint(folder: Path, seed: int, **options: int) -> Path:
    """A model whose weights have moved ``seed`` steps away from their start, with its tokenizer."""
    model = tiny("gpt_neox", layers=2, vocabulary=256, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * seed * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ``checkpoint-1``, ``checkpoint-4``, ``checkpoint-16``. Not to be written to."""
    folder = tmp_path_factory.mktemp("training")
    for step in STEPS:
        save_checkpoint(folder / f"checkpoint-{step}", step)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty documents of English as JSON lines, in the field ``prose``."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    documents = [prose(60 + 40 * (i % 7), 3000 * i) for i in range(20)]
    path.write_text("".join(json.dumps({"id": i, "prose": text}) + "\n" for i, text in enumerate(documents)), "utf-8")
    return path
