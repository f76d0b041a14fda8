"""One forward pass of the decoder: which rows are tokens, and where they stand."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from geomprobe.core.rows import Rows
from geomprobe.errors import GeomprobeError

__all__ = ["Frame", "read_frame"]


@dataclass(frozen=True)
class Frame:
    """What blocks never see and a probe must know.

    Attributes:
        mask: ``(batch, length)`` bool, True where there is a token; ``None`` when every place is one.
        training: the decoder's ``training`` flag; evaluation inside a training run goes through the same hooks.
    """

    mask: Tensor | None
    training: bool

    def rows(self, hidden: Tensor) -> Rows:
        """``hidden`` ``(batch, length, width)`` with this frame's mask, on a device that has float64."""
        device = torch.device("cpu") if hidden.device.type == "mps" else hidden.device  # MPS has no float64
        return Rows(hidden.to(device), None if self.mask is None else self.mask.to(device))


def read_frame(base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Frame:
    """The frame of one call of ``base``. Families differ in what they pass by position, so arguments are bound by name.

    Raises:
        GeomprobeError: a padding mask or a cache that cannot be followed exactly.
    """
    call = dict(zip(_parameters(type(base).forward), args, strict=False)) | kwargs
    tokens = call.get("input_ids")
    if tokens is None:
        tokens = call.get("inputs_embeds")
    if tokens is None:
        raise GeomprobeError(f"{type(base).__name__} was called without input_ids or inputs_embeds, so its texts are unknown")
    cache = call.get("past_key_values")
    if cache is not None and int(cache.get_seq_length()) > 0:
        raise GeomprobeError(
            "this forward continues a KV cache, which a probe cannot follow yet: "
            "run the whole text without past_key_values, or generate with use_cache=False outside the probe"
        )
    return Frame(mask=_padding_mask(call.get("attention_mask"), tokens.shape[1]), training=base.training)


def _padding_mask(mask: Any, length: int) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise GeomprobeError(
            f"expected a padding mask of shape (batch, length), and got {shape}: which rows are tokens cannot be read off it. "
            "Pass the 2-D mask that the tokenizer gives"
        )
    return mask[:, -length:].bool()


@lru_cache(maxsize=64)
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]
