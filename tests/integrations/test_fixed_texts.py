"""The fixed texts of the alarms: what is refused when a training begins, and which loss is told."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, LlamaConfig

from geomprobe import GeomprobeError, Probe, ResidualGrowth
from geomprobe.integrations.fixed_texts import FixedTexts
from tests.tiny_models import HandMade, tiny, token_batch

IDS = token_batch(3, 12)


def prepared(texts: Any, model: nn.Module | None = None, tokenizer: Any = None, most: int = 8) -> FixedTexts:
    found = FixedTexts(texts)
    found.prepare(tiny() if model is None else model, tokenizer, most=most)
    return found


def loss_of(texts: Any, model: nn.Module | None = None, tokenizer: Any = None, most: int = 8) -> float | None:
    model = tiny() if model is None else model
    found = prepared(texts, model, tokenizer, most)
    with Probe(model, [ResidualGrowth()], on_error="raise") as probe:
        loss: float | None = found.run(model, probe, torch.device("cpu"))
        assert probe.read("fixed").mode == "fixed"
    return loss


def mask(*lengths: int) -> Tensor:
    return (torch.arange(12) < torch.tensor(lengths)[:, None]).long()


def test_a_text_of_one_token_has_no_loss_and_leaves_that_of_the_others() -> None:
    with torch.no_grad():
        expected = tiny()(input_ids=IDS[:2], labels=IDS[:2]).loss
    found = loss_of({"input_ids": IDS, "attention_mask": mask(12, 12, 1)}, most=2)  # a batch with nothing to predict
    assert found == pytest.approx(float(expected), rel=1e-6)
    assert loss_of({"input_ids": IDS[:, :1]}) is None


def test_a_loss_that_is_nan_is_told() -> None:
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    assert math.isnan(loss_of({"input_ids": IDS}, model) or 0.0)


@pytest.mark.parametrize("labels", [1, 3])
def test_a_model_whose_labels_are_no_tokens_has_no_loss(labels: int) -> None:
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 64}
    model = AutoModelForSequenceClassification.from_config(LlamaConfig(num_labels=labels, pad_token_id=0, **size))
    assert loss_of({"input_ids": IDS}, model) is None
    assert loss_of({"input_ids": IDS, "labels": torch.zeros(3, dtype=torch.long)}, model) is None


def test_a_model_that_takes_no_labels_has_no_loss() -> None:
    assert loss_of({"input_ids": IDS}, tiny().model) is None
    assert loss_of({"input_ids": IDS}, HandMade()) is None


def test_a_model_inside_another_has_its_loss() -> None:
    peft = pytest.importorskip("peft")
    expected = loss_of({"input_ids": IDS})
    adapted = peft.get_peft_model(tiny(), peft.LoraConfig(r=2, target_modules=["q_proj"]))  # no task: forward(*args, **kwargs)
    assert loss_of({"input_ids": IDS}, adapted) == expected
    compiled: Any = torch.compile(tiny(), backend="eager")
    assert loss_of({"input_ids": IDS}, compiled) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"input_ids": IDS.float()}, "input_ids of torch.float32: expected token ids"),
        ({"input_ids": IDS + 1000}, r"has the token \d+, and the model has 64"),
        ({"input_ids": IDS - 100}, r"has the token -\d+, and the model has 64"),
        ({"input_ids": IDS, "attention_mask": mask(12, 3, 0)}, "text 3 of 3 has no token"),
        ({"input_ids": IDS, "attention_mask": mask(5, 5, 5)[:, :5]}, r"attention_mask of \(3, 5\): expected \(3, 12\)"),
        ({"input_ids": IDS, "position_ids": torch.arange(12)[None]}, r"position_ids of \(1, 12\): expected 3 rows"),
        ({"input_ids": token_batch(1, 257)}, "has 257 tokens, and this model reads 256"),
    ],
)
def test_texts_that_would_fail_later_are_refused_when_training_begins(texts: Any, said: str) -> None:
    with pytest.raises(GeomprobeError, match=said):
        prepared(texts)


class Tokenizer:
    """One token for each letter, and a name that no model takes. Without a padding token as tokenizers of base models."""

    def __init__(self, pad_token: str | None = None) -> None:
        self.pad_token = pad_token

    def __call__(self, texts: list[str], return_tensors: str, padding: bool = False, padding_side: str = "") -> Any:
        assert return_tensors == "pt"
        assert padding or len({len(text) for text in texts}) == 1
        longest = max(map(len, texts))
        ids = torch.tensor([[ord(letter) % 60 for letter in text.ljust(longest)] for text in texts])
        there = torch.tensor([[i < len(text.strip()) for i in range(longest)] for text in texts]).long()
        return {"input_ids": ids, "attention_mask": there, "token_type_ids": 0 * ids}


class Processor:
    """A processor of texts and pictures, as Trainer has it for models of both."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer("<pad>")

    def __call__(self, images: Any = None, text: Any = None, **_: Any) -> Any:
        raise TypeError(images)


def test_texts_have_the_same_loss_with_and_without_padding() -> None:
    texts = ["abcdefgh", "xyz", "q"]
    alone = loss_of(texts, tokenizer=Tokenizer())
    assert alone == pytest.approx(loss_of(texts, tokenizer=Tokenizer("<pad>")), rel=1e-5)
    assert alone == pytest.approx(loss_of(texts, tokenizer=Processor()), rel=1e-5)
    assert all("token_type_ids" not in batch for batch in prepared(texts, tokenizer=Tokenizer())._batches)


def test_a_text_without_a_token_is_named() -> None:
    with pytest.raises(GeomprobeError, match="text 2 of 2 has no token"):
        prepared(["abc", "  "], tokenizer=Tokenizer("<pad>"))
    with pytest.raises(GeomprobeError, match="text 2 of 2 has no token"):
        prepared(["abc", "  "], tokenizer=Tokenizer())
