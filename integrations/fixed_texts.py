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

    The loss of the texts is the one that the model returns, if it takes ``labels`` and predicts tokens: the mean over the
    predicted tokens. If tensors are given without ``labels``, the tokens themselves are the labels. A model that predicts
    classes or rewards has no loss here.

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
        self._has_loss = False

    def prepare(self, model: nn.Module, tokenizer: Any, *, most: int) -> None:
        """Tokenize the texts, in batches of at most ``most``.

        Raises:
            GeomprobeError: if there is no tokenizer for texts, or the model cannot run them. What it cannot read is found here,
                because on a GPU a token that the model does not have would end the training.
        """
        found = [dict(self._texts)] if isinstance(self._texts, Mapping) else _tokenized(self._texts, tokenizer)
        inner = _inner(model)
        _check(found, inner)
        taken = inspect.signature(type(inner).forward).parameters
        self._has_loss = "labels" in taken and _predicts_tokens(inner)
        self._batches = []
        for one in found:
            extra = {"use_cache": False} if "use_cache" in taken else {}
            if self._has_loss and "labels" not in one:
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
                if self._has_loss and isinstance(loss, Tensor) and (predicted := int((batch["labels"][:, 1:] != -100).sum())):
                    total, count = total + float(loss) * predicted, count + predicted  # without a prediction it is NaN
        return total / count if count else None


def _inner(model: Any) -> Any:
    """The model whose arguments are known, inside one that passes on what it is called with."""
    model = getattr(model, "module", model)  # FSDP
    model = getattr(model, "_orig_mod", model)  # torch.compile
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT


def _predicts_tokens(model: Any) -> bool:
    """Whether the labels of a model are tokens, not classes or rewards of texts: one of Transformers has a head then."""
    return not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is not None


def _check(found: Sequence[Mapping[str, Any]], model: Any) -> None:
    """Check that a model can run tensors.

    Raises:
        GeomprobeError: if it cannot.
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    longest = getattr(config, "max_position_embeddings", None) or math.inf
    vocabulary = getattr(config, "vocab_size", None) or math.inf
    lengths: list[int] = []
    for one in found:
        ids, mask = one["input_ids"], one.get("attention_mask")
        if ids.shape[1] and (ids.is_floating_point() or ids.dtype == torch.bool):
            raise GeomprobeError(f"texts= have input_ids of {ids.dtype}: expected token ids, such as torch.int64")
        if ids.shape[1] > longest:
            raise GeomprobeError(
                f"a text of texts= has {ids.shape[1]} tokens, and this model reads {longest}: give shorter texts"
            )
        for name, value in one.items():
            if isinstance(value, Tensor) and (value.dim() == 0 or len(value) != len(ids)):
                raise GeomprobeError(f"texts= have {name} of {tuple(value.shape)}: expected {len(ids)} rows, one for each text")
        if mask is not None and mask.shape != ids.shape:
            raise GeomprobeError(f"texts= have an attention_mask of {tuple(mask.shape)}: expected {tuple(ids.shape)}")
        lengths += ((torch.ones_like(ids) if mask is None else mask) != 0).sum(1).tolist()
        if outside := [token for token in ids.flatten().tolist() if not 0 <= token < vocabulary]:
            raise GeomprobeError(
                f"a text of texts= has the token {outside[0]:.0f}, and the model has {vocabulary}: give the tokens of its own "
                "tokenizer"
            )
    if 0 in lengths:
        raise GeomprobeError(f"text {lengths.index(0) + 1} of {len(lengths)} has no token: leave it out of texts=")


def _tokenized(texts: Sequence[str], processor: Any) -> list[dict[str, Any]]:
    """The tensors of texts: padded on the right, or each text alone if the tokenizer has no padding token."""
    tokenizer = getattr(processor, "tokenizer", processor)  # that of a processor of texts and pictures
    if not callable(tokenizer):
        raise GeomprobeError(
            "texts= are given as texts, and there is no tokenizer: give Trainer(processing_class=tokenizer), or the tensors "
            "that the model is called with, such as texts=dict(tokenizer(texts, return_tensors='pt'))"
        )
    if getattr(tokenizer, "pad_token", None) is None:
        found = [tokenizer([text], return_tensors="pt") for text in texts]
    else:
        found = [tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="right")]
    # The rest, such as token types, is nothing that every model takes.
    return [{name: one[name] for name in ("input_ids", "attention_mask") if name in one} for one in found]
