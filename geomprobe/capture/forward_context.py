"""One forward pass of the decoder: which rows are tokens, which text each belongs to, and what came before it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from geomprobe.capture.generation import CachedSequence, Mode, mode_of
from geomprobe.core.attention_summary import AttentionRows, Layout
from geomprobe.core.rows import Rows
from geomprobe.errors import GeomprobeError

__all__ = ["Call", "ForwardContext", "cache_of", "one_mask", "padding_mask", "text_starts"]


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a decoder, by name: families differ in what they pass by position.

    Attributes:
        seen: how many columns the cache was seen to take in, for a cache that does not count them itself.
    """

    arguments: dict[str, Any]
    training: bool
    seen: int = 1

    @property
    def ids(self) -> Tensor | None:
        """Token ids ``(batch, length)``, if the model was given any."""
        ids = self.arguments.get("input_ids")
        return ids if isinstance(ids, Tensor) else None

    @property
    def cache(self) -> Any:
        """The cache, as :func:`cache_of` finds it."""
        return cache_of(self.arguments)

    @cached_property
    def past(self) -> int:
        """How many columns the cache holds."""
        if self.cache is None:
            return 0
        try:
            return int(self.cache.get_seq_length())
        except ValueError:  # nothing but recurrent states (Mamba): they know no more than whether anything came before
            return self.seen if self.cache.has_previous_state() else 0

    @property
    def shape(self) -> tuple[int, int]:
        """Batch and length.

        Raises:
            GeomprobeError: neither ids nor embeddings were given.
        """
        tokens = self.ids if self.ids is not None else self.arguments.get("inputs_embeds")
        if not isinstance(tokens, Tensor):
            raise GeomprobeError("the decoder was called without input_ids or inputs_embeds, so its texts are unknown")
        return tokens.shape[0], tokens.shape[1]

    @cached_property
    def mask(self) -> Tensor | None:
        """Where there is a token, ``(batch, length)`` bool; ``None`` for everywhere."""
        return padding_mask(self.arguments.get("attention_mask"), *self.shape, past=self.past)

    def whole_mask(self) -> Tensor | None:
        """A 2-D mask that says of the cached columns, too, where there is a token."""
        mask = self.arguments.get("attention_mask")
        whole = isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == self.past + self.shape[1]
        return mask.bool() if whole and isinstance(mask, Tensor) else None

    def starts(self) -> Tensor | None:
        """Where a text starts within packed rows, ``(batch, length)`` bool; ``None`` when each row is one text."""
        starts = text_starts(self.arguments, *self.shape, tokens=self.mask)
        if starts is not None and starts.device.type == "cpu" and not starts[:, 1:].any():
            return None  # one text a row after all; on a GPU, looking would wait for it
        return starts


@dataclass(frozen=True)
class ForwardContext:
    """What blocks never see and a probe must know.

    Attributes:
        training: the decoder's ``training`` flag; evaluation inside a training run goes through the same hooks.
        mask: ``(batch, length)`` bool, True where there is a token; ``None`` when every place is one.
        starts: where texts start in packed rows; ``None`` when each row is one text.
        sequence: the sequence this forward adds to, when it runs on a KV cache.
        refed: mask of the leading columns that the forward before has counted already (generation without a cache feeds the
            whole text again at every step); ``None`` when this is a text of its own.
    """

    training: bool
    mask: Tensor | None = None
    starts: Tensor | None = None
    sequence: CachedSequence | None = None
    refed: Tensor | None = None

    @property
    def mode(self) -> Mode:
        """Which sums this forward adds to."""
        return mode_of(self.training)

    def rows(self, hidden: Tensor, attention: AttentionRows | None = None) -> Rows:
        """``hidden`` ``(sites, batch, length, width)`` with this context's mask and texts."""
        mask = None if self.mask is None else self.mask.to(hidden.device)
        texts = {} if self.starts is None else _texts(self.starts.to(hidden.device), mask)
        return Rows(hidden, mask, attention=attention, **texts)

    def refed_rows(self, hidden: Tensor, attention: AttentionRows | None = None) -> Rows | None:
        """The part of ``hidden`` that was counted before, if any."""
        if self.refed is None:
            return None
        length = self.refed.shape[1]
        before = None if attention is None else attention.until(length)
        return ForwardContext(self.training, self.refed).rows(hidden[..., :length, :], before)

    def layout(self, batch: int, length: int, device: torch.device) -> Layout:
        """Where tokens stand among the columns that this forward's rows may attend to."""
        if device not in self._layouts:
            tokens = self.mask if self.sequence is None else self.sequence.tokens
            tokens = torch.ones((batch, length), dtype=torch.bool) if tokens is None else tokens
            starts = None if self.starts is None else self.starts.to(device)
            self._layouts[device] = Layout.of(tokens.to(device), length, starts)
        return self._layouts[device]

    @cached_property
    def _layouts(self) -> dict[torch.device, Layout]:
        return {}


def padding_mask(mask: Any, batch: int, length: int, *, past: int = 0) -> Tensor | None:
    """Which of the ``length`` new columns are tokens, from any mask a decoder of Transformers takes.

    A 2-D mask covers cached columns too, and is cut. In a 4-D mask (or a dict of them, one per kind of layer) a token is a
    place that attends to itself: causality and windows allow that, padding does not.

    Raises:
        GeomprobeError: any other shape.
    """
    mask = one_mask(mask)
    if mask is None:
        return None
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] in (length, past + length):
        return mask[:, -length:].bool()
    if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[2] == length and mask.shape[3] >= length:
        first = min(past, mask.shape[3] - length)  # a window's cache, once full, ends with the newest column
        own = mask[:, 0, :, first : first + length].diagonal(dim1=-2, dim2=-1)
        return (own if own.dtype == torch.bool else own > -1).expand(batch, length)
    shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
    raise GeomprobeError(
        f"cannot read which rows are tokens off an attention mask of {shape}: expected (batch, length), as the tokenizer "
        f"gives, or (batch, heads, {length}, {past + length} or more)"
    )


def one_mask(mask: Any) -> Any:
    """The mask itself, or of a dict of them by kind of layer the one that hides no more than padding and causality must."""
    if not isinstance(mask, dict):
        return mask
    return mask.get("full_attention", next((value for value in mask.values() if value is not None), None))


def cache_of(arguments: dict[str, Any]) -> Any:
    """The KV cache, or the recurrent states of a state-space model, if the model was given one."""
    cache = arguments.get("past_key_values")
    return cache if cache is not None else arguments.get("cache_params")


def text_starts(arguments: dict[str, Any], batch: int, length: int, *, tokens: Tensor | None = None) -> Tensor | None:
    """Where a document starts in packed rows: where position ids do not go on, or where ``cu_seq_lens`` cuts.

    ``tokens`` says where there are any: padding between two tokens of a text starts none.
    """
    positions, cuts, mask = (arguments.get(name) for name in ("position_ids", "cu_seq_lens_q", "attention_mask"))
    mask = one_mask(mask)
    starts: Tensor | None = None
    if isinstance(cuts, Tensor) and batch == 1:
        starts = torch.zeros((1, length + 1), dtype=torch.bool, device=cuts.device)
        starts[0, cuts.long()] = True
        starts = starts[:, :length]
    elif isinstance(positions, Tensor) and positions.dim() == 2 and positions.shape[1] == length > 1:
        starts = torch.ones_like(positions, dtype=torch.bool)
        starts[:, 1:] = positions.diff(dim=1) != 1
        starts = starts.expand(batch, length)
        if tokens is not None:
            seen = torch.where(tokens, torch.arange(length, device=tokens.device), -1).cummax(1).values
            last = seen[:, :-1].clamp_min(0)
            before = positions.expand(batch, length).gather(1, last)
            goes_on = (seen[:, :-1] >= 0) & (positions[:, 1:] == before + 1)
            starts = starts.clone()
            starts[:, 1:] &= ~goes_on & tokens[:, 1:]
    elif isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[2] == length > 1:
        seen = mask[:, 0, :, :length] if mask.dtype == torch.bool else mask[:, 0, :, :length] > -1
        starts = ~seen.tril(-1).any(-1).expand(batch, length)  # a start attends to nothing before it; padding may lie between
    return starts


def _texts(starts: Tensor, mask: Tensor | None) -> dict[str, Any]:
    """Text index, position in the text and number of texts, as :class:`Rows` takes them. Counts nothing on the host."""
    batch, length = starts.shape
    tokens = (mask if mask is not None else torch.ones_like(starts)).long()
    rows = torch.arange(batch, device=starts.device).unsqueeze(1) * length
    seen = tokens.cumsum(1)
    before = torch.where(starts, seen - tokens, 0).cummax(1).values
    text = rows + (starts.long().cumsum(1) - 1).clamp_min(0)
    return {"text": text, "position": (seen - 1 - before).clamp_min(0), "texts": batch * length}
