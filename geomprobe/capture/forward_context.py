"""The context of one forward pass: which rows are tokens, which text each belongs to, and which tokens came before."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from geomprobe.capture.generation import CachedSequence, Mode
from geomprobe.core.attention_summary import Layout
from geomprobe.core.layer_rows import NOTHING, LayerRows
from geomprobe.core.rows import Rows
from geomprobe.errors import GeomprobeError

__all__ = ["Call", "ForwardContext", "cache_of", "carries_cache", "one_mask", "padding_mask", "padding_runs", "text_starts"]


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a decoder, by name, because architectures differ in what they pass by position.

    Attributes:
        arguments: the arguments by name.
        mode: the mode of the forward.
        seen: number of columns that were observed to enter the cache, for a cache that does not count them itself.
        pad: the padding token, if the user named it. It is used when no mask is given.
        eos: the end tokens of the model.
    """

    arguments: dict[str, Any]
    mode: Mode
    seen: int = 1
    pad: int | None = None
    eos: tuple[int, ...] = ()

    @property
    def ids(self) -> Tensor | None:
        """The token ids ``(batch, length)``, or ``None`` if the model was called with embeddings."""
        ids = self.arguments.get("input_ids")
        return ids if isinstance(ids, Tensor) else None

    @cached_property
    def cache(self) -> Any:
        """The cache that :func:`cache_of` finds, or ``None``."""
        return cache_of(self.arguments)

    @cached_property
    def past(self) -> int:
        """The number of columns in the cache."""
        if self.cache is None:
            return 0
        try:
            layers = getattr(self.cache, "layers", None) or ()
            # The first layer may have no keys, as in models that mix attention with recurrent states.
            return int(self.cache.get_seq_length()) or max(map(_columns, layers), default=0)
        except ValueError:  # only recurrent states (Mamba), which record no more than whether any token came before
            return self.seen if self.cache.has_previous_state() else 0

    @property
    def shape(self) -> tuple[int, int]:
        """The batch size and the length.

        Raises:
            GeomprobeError: if the decoder was called with neither token ids nor embeddings.
        """
        tokens = self.ids if self.ids is not None else self.arguments.get("inputs_embeds")
        if not isinstance(tokens, Tensor):
            raise GeomprobeError(
                "the decoder was called without token ids: expected input_ids, inputs_embeds, or a tensor of integers "
                "(batch, length), which for one text is ids[None]"
            )
        return tokens.shape[0], tokens.shape[1]

    @cached_property
    def mask(self) -> Tensor | None:
        """Which positions are tokens, ``(batch, length)`` bool; ``None`` if all are."""
        if self.pad is not None and self.ids is not None and self.past == 0 and self.arguments.get("attention_mask") is None:
            return ~padding_runs(self.ids, self.pad, self.eos)
        return padding_mask(self.arguments.get("attention_mask"), *self.shape, past=self.past)

    def whole_mask(self) -> Tensor | None:
        """Return which columns are tokens, including the cached ones, if the 2-D mask covers them; else ``None``."""
        mask = self.arguments.get("attention_mask")
        whole = isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == self.past + self.shape[1]
        return mask.bool() if whole and isinstance(mask, Tensor) else None

    def starts(self) -> Tensor | None:
        """Return the positions at which packed texts start, ``(batch, length)`` bool; ``None`` if each batch row is one
        text."""
        starts = text_starts(self.arguments, *self.shape, tokens=self.mask)
        if starts is not None and starts.device.type == "cpu" and not starts[:, 1:].any():
            return None  # each row is one text; on a GPU this check would wait for the device
        return starts


def _columns(layer: Any) -> int:
    """The number of columns in a layer of a cache; 0 for one with recurrent states only."""
    return int(layer.get_seq_length()) if hasattr(layer, "get_seq_length") else 0


@dataclass(frozen=True)
class ForwardContext:
    """Information about one forward that decoder layers do not receive, and that a probe needs.

    Attributes:
        mode: the mode to whose sums this forward is added. Evaluation during training runs through the same hooks.
        mask: ``(batch, length)`` bool, True where there is a token; ``None`` if all positions are tokens.
        starts: positions at which packed texts start; ``None`` if each batch row is one text.
        sequence: the cached sequence that this forward extends, if it runs on a KV cache.
        refed: mask of the leading columns that were counted in the forward before, because generation without a cache runs the
            whole text again at every step; ``None`` if this forward does not repeat earlier tokens.
        generated: whether this forward is a later step of a generation without a cache.
        refed_generated: whether the forward before was one.
    """

    mode: Mode
    mask: Tensor | None = None
    starts: Tensor | None = None
    sequence: CachedSequence | None = None
    refed: Tensor | None = None
    generated: bool = False
    refed_generated: bool = False

    def rows(self, hidden: Tensor, beside: LayerRows = NOTHING) -> Rows:
        """Return ``hidden`` ``(sites, batch, length, width)`` as rows with the mask and texts of this context."""
        mask = None if self.mask is None else self.mask.to(hidden.device)
        texts = {} if self.starts is None else _texts(self.starts.to(hidden.device), mask)
        return Rows(hidden, mask, attention=beside.attention, routing=beside.routing, generated=self.generated, **texts)

    def refed_rows(self, hidden: Tensor, beside: LayerRows = NOTHING) -> Rows | None:
        """Return the part of ``hidden`` that was counted in the forward before, or ``None``."""
        if self.refed is None:
            return None
        length = self.refed.shape[1]
        counted = ForwardContext(self.mode, self.refed, generated=self.refed_generated)
        return counted.rows(hidden[..., :length, :], beside.until(length))

    def layout(self, batch: int, length: int, device: torch.device) -> Layout:
        """Return the positions of tokens among the columns that the rows of this forward may attend to."""
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
    """Return which of the ``length`` new columns are tokens, from any mask that a decoder of Transformers accepts.

    A 2-D mask includes the cached columns, which are cut off. In a 4-D mask (or a dict of them, one for each kind of layer) a
    position is a token if it attends to itself, which causal masks and windows allow and padding does not.

    Raises:
        GeomprobeError: if the mask has another shape.
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
        f"cannot read which rows are tokens from an attention mask of {shape}: expected (batch, length), as the tokenizer "
        f"returns it, or (batch, heads, {length}, {past + length} or more)"
    )


def one_mask(mask: Any) -> Any:
    """Return the mask itself, or for a dict of masks by kind of layer the one of full attention."""
    if not isinstance(mask, dict):
        return mask
    return mask.get("full_attention", next((value for value in mask.values() if value is not None), None))


def cache_of(arguments: dict[str, Any]) -> Any:
    """Return the KV cache, or the recurrent states of a state-space model, if the model was called with one; else ``None``.

    Raises:
        GeomprobeError: if an argument looks like a cache, and is not one that this package can read. Tokens that were processed
            earlier would otherwise be missing without a warning.
    """
    found = []
    for name, value in arguments.items():
        if not _looks_like_cache(name, value):
            continue
        if name in _POSITIONS:
            raise GeomprobeError(
                f"a forward with {name} was left out, because it continues texts in a cache of the model's own, whose hidden "
                f"states are unknown: run whole texts without {name}"
            )
        kind = type(value).__name__
        if name in _CACHES and _is_readable(value):
            found.append(value)
        else:
            raise GeomprobeError(
                f"a forward with {name}={kind} was left out, because a probe cannot follow it: expected a cache of "
                f"transformers.cache_utils, such as DynamicCache, as one of {', '.join(_CACHES)}, or none. Continuous "
                "batching, in which one row holds parts of many texts, cannot be measured: use generate()"
            )
    if len({id(cache) for cache in found}) > 1:
        raise GeomprobeError(
            f"the decoder was called with {len(found)} caches, and a probe can follow only one: call it with one of them"
        )
    return found[0] if found else None


def carries_cache(arguments: dict[str, Any]) -> bool:
    """Return whether any argument looks like a cache. Dynamo can trace this."""
    return any(_looks_like_cache(name, value) for name, value in arguments.items())


def _looks_like_cache(name: str, value: Any) -> bool:
    if name in _POSITIONS:  # of models that keep a cache themselves
        return isinstance(value, Tensor) or bool(value)
    if value is None or isinstance(value, bool | int | str | Tensor):
        return False
    return name in ("state", "mems") or "past" in name or "cache" in name or "cache" in type(value).__name__.lower()


def _is_readable(cache: Any) -> bool:
    """Whether a cache tells how many columns it holds. Paged caches hold parts of many texts instead."""
    tells = hasattr(cache, "get_seq_length") or hasattr(cache, "has_previous_state")
    return tells and "paged" not in type(cache).__name__.lower()


_CACHES = ("past_key_values", "cache", "cache_params")
"""The names of the argument: ``cache`` is that of Transformers 5.24 and later, ``cache_params`` that of older state-space
models."""


_POSITIONS = ("input_pos", "start_pos")
"""The names of the arguments that tell models outside of Transformers at which position of their own cache new tokens are."""


def padding_runs(ids: Tensor, pad: int, eos: Collection[int] = ()) -> Tensor:
    """Return where the rows of ``ids`` ``(batch, length)`` begin or end with a run of the token ``pad``.

    If ``pad`` also ends texts, the first token of a run at the end is the end of the text, and not padding.

    >>> padding_runs(torch.tensor([[0, 0, 5, 0, 6, 0, 0]]), 0).int().tolist()
    [[1, 1, 0, 0, 0, 1, 1]]
    >>> padding_runs(torch.tensor([[0, 0, 5, 0, 6, 0, 0]]), 0, eos=[0]).int().tolist()
    [[1, 1, 0, 0, 0, 0, 1]]
    """
    pads = (ids == pad).int()
    leading = pads.cumprod(1).bool()
    trailing = pads.flip(1).cumprod(1).flip(1).bool()
    if pad in eos:
        trailing = trailing & trailing.roll(1, 1)
        trailing[:, 0] = False
    return leading | trailing


def text_starts(arguments: dict[str, Any], batch: int, length: int, *, tokens: Tensor | None = None) -> Tensor | None:
    """Return where packed documents start: where position ids do not continue, or where ``cu_seq_lens`` has a boundary.

    ``tokens`` tells which positions are tokens: padding between two tokens of a text does not start a new one.
    """
    positions, cuts, mask = (arguments.get(name) for name in ("position_ids", "cu_seq_lens_q", "attention_mask"))
    mask = one_mask(mask)
    if isinstance(positions, Tensor) and positions.dim() == 3 and positions.shape[0] == 4:
        positions = positions[0]  # those in the text, before those in time, height and width of images
    starts: Tensor | None = None
    if isinstance(cuts, Tensor) and batch == 1:
        starts = torch.zeros((1, length + 1), dtype=torch.bool, device=cuts.device)
        starts[0, cuts.long()] = True
        starts = starts[:, :length]
    elif isinstance(positions, Tensor) and positions.dim() == 2 and positions.shape[1] == length > 1:
        starts = torch.ones_like(positions, dtype=torch.bool)
        steps = positions.diff(dim=1)
        # Without a mask Transformers separates documents wherever positions do not go on; with one, positions may skip ahead.
        starts[:, 1:] = steps != 1 if mask is None else steps < 1
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
        starts = ~seen.tril(-1).any(-1).expand(batch, length)  # the first token of a text attends to no earlier token
    return starts


def _texts(starts: Tensor, mask: Tensor | None) -> dict[str, Any]:
    """Text index, position in the text and number of texts, as :class:`Rows` takes them. This does not wait for the device."""
    batch, length = starts.shape
    tokens = (mask if mask is not None else torch.ones_like(starts)).long()
    rows = torch.arange(batch, device=starts.device).unsqueeze(1) * length
    seen = tokens.cumsum(1)
    before = torch.where(starts, seen - tokens, 0).cummax(1).values
    text = rows + (starts.long().cumsum(1) - 1).clamp_min(0)
    return {"text": text, "position": (seen - 1 - before).clamp_min(0), "texts": batch * length}
