"""What each row of an attention call may see, from the many ways in which implementations are told."""

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
    """How ``length`` rows see ``columns`` keys.

    Args:
        name: the implementation.
        mask: what it was given: 4-D of bool or of numbers to add, a block mask of flex attention, 2-D of tokens, or nothing.
        length: number of rows.
        columns: number of keys.
        causal: whether a row sees nothing after it, where the mask leaves that to the implementation.
        window: how many columns a row sees, where the mask leaves that to it.
        starts: where texts start within packed rows, ``(batch, length)``, which flash attention is told and masks do not show.

    Raises:
        GeomprobeError: a mask of another kind.
    """
    if isinstance(mask, Tensor) and mask.dim() == 4:
        return _ByMask(mask[..., :columns])
    if hasattr(mask, "mask_mod"):
        return _ByFunction(mask.mask_mod, columns)
    if not (mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)):
        kind = f"{type(mask).__name__} {tuple(getattr(mask, 'shape', ()))}"
        raise GeomprobeError(f"attention was called with a mask that geomprobe cannot read: {kind}")
    flash = "flash" in name
    return _ByPosition(
        keys=columns,
        causal=causal and name != "eager" and (length > 1 or flash),
        offset=0 if name == "sdpa" else columns - length,  # SDPA counts from the first key, flash from the last
        window=window if flash else None,
        tokens=None if mask is None else mask[:, -columns:].bool(),
        texts=starts.cumsum(1) if flash and starts is not None and length == columns else None,
    )


@dataclass(frozen=True)
class _ByMask:
    """A mask ``(batch, heads, rows, columns)``: True where a row sees a column, or numbers to add."""

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
    """A function of batch, head, row and column, as flex attention takes it."""

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
    """What is left to the implementation: nothing after a row, nothing out of its window, of its text, or in padding."""

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
            first = 0 if self.window is not None else self.offset + rows.start  # what is before the corner is seen
            there = torch.arange(first, end, device=scores.device)
            hidden = there > here if self.window is None else (there > here) | (there <= here - self.window)
            scores[..., first:].masked_fill_(hidden, HIDDEN)
        if self.tokens is not None:
            scores.masked_fill_(~self.tokens[:, None, None, :end], HIDDEN)
        if self.texts is not None:
            scores.masked_fill_((self.texts[:, rows, None] != self.texts[:, None, :end]).unsqueeze(1), HIDDEN)
