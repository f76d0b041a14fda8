"""Fixtures every test can use. Trained models are loaded once per session; what cannot be had is skipped with a reason."""

import gzip
import json
from pathlib import Path

import pytest

from tests.models import smollm2, train_byte_model

_SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def _shared(name: str) -> Path:
    if not (_SHARED / name).exists():
        pytest.skip(f"../shared/data/{name} is not beside this checkout")
    return _SHARED / name


@pytest.fixture(scope="session")
def rlhf_texts() -> list[str]:
    """The first six texts of hh-rlhf's harmless-base test split that fill 256 tokens of any tokenizer used here."""
    with gzip.open(_shared("hh-harmless-base-test.jsonl.gz"), "rt") as lines:
        texts = (json.loads(line)["chosen"] for line in lines)
        long = (text for text in texts if len(text) > 1500)
        return [next(long) for _ in range(6)]


@pytest.fixture(scope="session")
def stories_model() -> Path:
    """``stories260K-hf``: a trained Llama of 260 thousand parameters."""
    return _shared("stories260K-hf")


@pytest.fixture(scope="session")
def smollm2_model() -> Path:
    """SmolLM2-135M-Instruct: a trained Llama of 135 million parameters."""
    try:
        return smollm2()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level GPT-NeoX trained on the text the demo trains on."""
    return train_byte_model(tmp_path_factory.mktemp("demo_model"))
