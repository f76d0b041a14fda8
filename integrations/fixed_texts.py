"""Fixed texts, which run through a model in training at every reading of the alarms."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geomprobe import GeomprobeError, Probe

__all__ = ["FixedTexts", "Texts"]

Texts = Sequence[str] | Mapping[str, Tensor]
"""Texts, or the tensors that the model is called with: ``input_ids``, and an ``attention_mask`` if they are padded."""


class FixedTexts:
    """Fixed texts as batches of tensors.

    The loss of the texts is the one that the model returns, if it takes ``labels``: the mean over the predicted tokens. If
    tensors are given without ``labels``, the tokens themselves are the labels.

    Args:
        texts: the texts, or tensors.

    Raises:
        GeomprobeError: if ``texts`` is neither, or there are none.
    """

    def __init__(self, texts: Texts) -> None:
        if isinstance(texts, Mapping):
            ids = texts.get("input_ids")
            fits = isinstance(ids, Tensor) and ids.dim() == 2 and ids.numel() > 0
        else:
            fits = not isinstance(texts, str) and len(texts) > 0 and all(isinstance(text, str) and text for text in texts)
        if not fits:
            raise GeomprobeError(
                f"texts={texts!r:.80}: expected a list of texts, or the tensors that the model is called with, such as "
                "{'input_ids': …, 'attention_mask': …} of (texts, tokens)"
            )
        self._texts = texts
        self._batches: list[dict[str, Any]] = []

    def prepare(self, model: nn.Module, tokenizer: Any, *, most: int) -> None:
        """Tokenize the texts, in batches of at most ``most``.

        Raises:
            GeomprobeError: if there is no tokenizer for texts, or a text is longer than the model can read.
        """
        tensors = [dict(self._texts)] if isinstance(self._texts, Mapping) else _tokenized(self._texts, tokenizer)
        length = max(int(one["input_ids"].shape[1]) for one in tensors)
        limit = getattr(getattr(model, "config", None), "max_position_embeddings", None) or math.inf
        if length > limit:
            raise GeomprobeError(f"a text of texts= has {length} tokens, and this model reads {limit}: give shorter texts")
        inner: Any = type(getattr(model, "module", model))  # FSDP wraps a model
        taken = inspect.signature(inner.forward).parameters
        self._batches = []
        for one in tensors:
            extra = {"use_cache": False} if "use_cache" in taken else {}
            if "labels" in taken and "labels" not in one:
                mask = one.get("attention_mask")
                one = {**one, "labels": one["input_ids"] if mask is None else one["input_ids"].masked_fill(mask == 0, -100)}
            for start in range(0, len(one["input_ids"]), most):
                part = {
                    name: value[start : start + most] if isinstance(value, Tensor) else value for name, value in one.items()
                }
                self._batches.append(part | extra)

    def run(self, model: nn.Module, probe: Probe, device: torch.device) -> float | None:
        """Run the texts through the model in the mode ``fixed``, and return their loss in nats, if the model returns one."""
        total, count = 0.0, 0
        with probe.fixed():
            for batch in self._batches:
                moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
                loss = getattr(model(**moved), "loss", None)
                if isinstance(loss, Tensor) and "labels" in batch:
                    predicted = int((batch["labels"][:, 1:] != -100).sum())
                    total, count = total + float(loss) * predicted, count + predicted
        return total / count if count else None


def _tokenized(texts: Sequence[str], tokenizer: Any) -> list[dict[str, Any]]:
    """The tensors of texts: padded on the right, or each text alone if the tokenizer has no padding token."""
    if not callable(tokenizer):
        raise GeomprobeError(
            "texts= are given as texts, and there is no tokenizer: give Trainer(processing_class=tokenizer), or the tensors "
            "that the model is called with, such as texts=dict(tokenizer(texts, return_tensors='pt'))"
        )
    if getattr(tokenizer, "pad_token", None) is None:
        found = [tokenizer([text], return_tensors="pt") for text in texts]
    else:
        found = [tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="right")]
    return [dict(one) for one in found]
