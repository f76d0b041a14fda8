"""What a layer computes for each row beside its hidden states: summaries of its attention, and the choice of its router."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geomprobe.core.attention_summary import AttentionRows

__all__ = ["NOTHING", "LayerRows", "RouterRows"]


@dataclass(frozen=True)
class RouterRows:
    """What the router of a mixture of E experts gave for every row; NaN where a layer has no router.

    Attributes:
        logits: what the router gave for each expert, ``(…, batch, length, E)``: logits, or probabilities in some models.
        chosen: the numbers of the k experts that computed the row, ``(…, batch, length, k)``.
        weights: the weights of their outputs, ``(…, batch, length, k)``; NaN if they are not known.
    """

    logits: Tensor
    chosen: Tensor
    weights: Tensor

    def map(self, change: Callable[[str, Tensor], Tensor]) -> "RouterRows":
        """Return a copy with ``change(name, tensor)`` in place of each tensor."""
        names = ("logits", "chosen", "weights")
        return RouterRows(*(change(name, getattr(self, name)) for name in names))

    def batch(self, part: slice) -> "RouterRows":
        """Return the rows of a part of the batch."""
        return self.map(lambda name, value: value[..., part, :, :])

    def until(self, length: int) -> "RouterRows":
        """Return the first ``length`` rows."""
        return self.map(lambda name, value: value[..., :length, :])

    @staticmethod
    def joined(parts: "Sequence[RouterRows]") -> "RouterRows":
        """Concatenate the rows of successive forwards of the same texts."""
        return parts[0].map(lambda name, _: torch.cat([getattr(part, name) for part in parts], -2))

    @staticmethod
    def stacked(sites: "Sequence[RouterRows | None]") -> "RouterRows | None":
        """Stack the rows of several sites along a new leading dimension; ``None`` if no site has any."""
        like = next((site for site in sites if site is not None), None)
        if like is None:
            return None
        nothing = like.map(lambda name, value: torch.full_like(value, 0 if name == "chosen" else torch.nan))
        return like.map(lambda name, _: torch.stack([getattr(site or nothing, name) for site in sites]))


@dataclass(frozen=True)
class LayerRows:
    """What a layer computed for each row beside its hidden states, as far as it was requested.

    Attributes:
        attention: summaries of the attention weights.
        routing: the choice of the router.
    """

    attention: AttentionRows | None = None
    routing: RouterRows | None = None

    def batch(self, part: slice) -> "LayerRows":
        """Return a part of the batch."""
        return self._each("batch", part)

    def until(self, length: int) -> "LayerRows":
        """Return the first ``length`` rows."""
        return self._each("until", length)

    def to(self, device: torch.device) -> "LayerRows":
        """Return the same rows on a device."""
        return self._each("map", lambda name, value: value.to(device))

    def _each(self, method: str, argument: Any) -> "LayerRows":
        parts = (self.attention, self.routing)
        return LayerRows(*(None if part is None else getattr(part, method)(argument) for part in parts))

    @staticmethod
    def joined(parts: "Sequence[LayerRows]") -> "LayerRows":
        """Concatenate the rows of successive forwards of the same texts."""
        attention = [part.attention for part in parts if part.attention is not None]
        routing = [part.routing for part in parts if part.routing is not None]
        return LayerRows(
            AttentionRows.joined(attention) if attention else None, RouterRows.joined(routing) if routing else None
        )

    @staticmethod
    def stacked(sites: "Sequence[LayerRows]") -> "LayerRows":
        """Stack the rows of several sites along a new leading dimension."""
        attention = AttentionRows.stacked([site.attention for site in sites])
        return LayerRows(attention, RouterRows.stacked([site.routing for site in sites]))

    @staticmethod
    def can_stack(sites: "Sequence[LayerRows]") -> bool:
        """Whether the sites that have attention have equally many heads, and those that have a router equally many experts."""
        heads = {site.attention.entropy.shape[-2] for site in sites if site.attention is not None}
        routed = [site.routing for site in sites if site.routing is not None]
        experts = {(rows.logits.shape[-1], rows.chosen.shape[-1]) for rows in routed}
        return len(heads) <= 1 and len(experts) <= 1


NOTHING = LayerRows()
"""What is beside hidden states if nothing was requested."""
