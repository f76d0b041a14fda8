"""Which keys each query of an attention call may attend to, for every kind of mask that attention implementations accept."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geomprobe.core.attention_summary import HIDDEN, AttentionMask
from geomprobe.errors import GeomprobeError

__all__ = ["attention_mask_of"]


def attention_mask_of(
    name: str, mask: Any, length: int, columns: int, causal: bool, window: int | None, starts: Tensor | None
) -> AttentionMask:
    """Return which of ``columns`` keys each of ``length`` rows (queries) may attend to.

    Args:
        name: name of the attention implementation.
        mask: the mask that it was called with: a 4-D tensor of bool or of numbers to add, a block mask of flex attention, a 2-D
            padding mask, or ``None``.
        length: number of rows.
        columns: number of keys.
        causal: whether attention is causal, if the mask does not show it.
        window: size of the sliding window, if the mask does not show it.
        starts: whether a text starts at each row, ``(batch, length)``, for packed texts. Flash attention receives this
            separately from the mask.

    Raises:
        GeomprobeError: if the mask is of another kind.
    """
    if isinstance(mask, Tensor) and mask.dim() == 4:
        return _ByMask(mask[..., :columns])
    if hasattr(mask, "mask_mod"):
        return _ByFunction(mask.mask_mod, columns)
    if not (mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)):
        kind = f"{type(mask).__name__} {tuple(getattr(mask, 'shape', ()))}"
        raise GeomprobeError(
            f"attention was called with a mask that geomprobe cannot read: {kind}; expected a tensor of 4 or 2 dimensions, a "
            "block mask of flex attention, or none. Leave AttentionProfile and ContextLasso(attention=True) out"
        )
    flash = "flash" in name
    return _ByPosition(
        keys=columns,
        causal=causal and name != "eager" and (length > 1 or flash),
        offset=0 if name == "sdpa" else columns - length,  # SDPA aligns rows with the first keys, flash with the last
        window=window if flash else None,
        tokens=None if mask is None else mask[:, -columns:].bool(),
        texts=starts.cumsum(1) if flash and starts is not None and length == columns else None,
    )


@dataclass(frozen=True)
class _ByMask:
    """A mask ``(batch, heads, rows, columns)``: True where a row attends to a column, or numbers to add to the scores."""

    mask: Tensor

    def columns(self, rows: slice) -> int:
        return self.mask.shape[3]

    def hide(self, rows: slice, scores: Tensor) -> None:
        mask = self.mask if self.mask.shape[2] == 1 else self.mask[:, :, rows]
        if mask.dtype == torch.bool:
            scores.masked_fill_(~mask, HIDDEN)
        else:
            scores.add_(mask).clamp_(min=HIDDEN)


@dataclass(frozen=True)
class _ByFunction:
    """A mask function of batch, head, row and column, as flex attention takes it."""

    sees: Callable[..., Tensor]
    keys: int

    def columns(self, rows: slice) -> int:
        return self.keys

    def hide(self, rows: slice, scores: Tensor) -> None:
        batch, head, row, column = (torch.arange(n, device=scores.device) for n in (scores.shape[0], 1, rows.stop, self.keys))
        row = row[rows]
        seen = self.sees(batch[:, None, None], head, row[:, None], column)
        scores.masked_fill_(~seen.expand(len(batch), len(row), len(column)).unsqueeze(1), HIDDEN)


@dataclass(frozen=True)
class _ByPosition:
    """The masking that is left to the implementation: by causality, by a sliding window, by texts, and by padding."""

    keys: int
    causal: bool
    offset: int
    window: int | None
    tokens: Tensor | None
    texts: Tensor | None

    def columns(self, rows: slice) -> int:
        return min(self.keys, self.offset + rows.stop) if self.causal else self.keys

    def hide(self, rows: slice, scores: Tensor) -> None:
        end = scores.shape[-1]
        if self.causal:
            here = torch.arange(rows.start, rows.stop, device=scores.device).unsqueeze(1) + self.offset
            first = 0 if self.window is not None else self.offset + rows.start  # all earlier columns are visible
            there = torch.arange(first, end, device=scores.device)
            hidden = there > here if self.window is None else (there > here) | (there <= here - self.window)
            scores[..., first:].masked_fill_(hidden, HIDDEN)
        if self.tokens is not None:
            scores.masked_fill_(~self.tokens[:, None, None, :end], HIDDEN)
        if self.texts is not None:
            scores.masked_fill_((self.texts[:, rows, None] != self.texts[:, None, :end]).unsqueeze(1), HIDDEN)
