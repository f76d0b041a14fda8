"""Sums over tokens of summaries of their attention weights."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from geomprobe.accumulators.state import State, zeros
from geomprobe.core.attention_summary import AttentionRequest, AttentionRows
from geomprobe.core.rows import Rows

__all__ = ["AttentionSum"]


@dataclass(frozen=True)
class AttentionSum:
    """Sums over targets, which are the rows that have earlier tokens in their text and finite attention weights.

    State (float64): ``targets``, the number of targets; sums over targets of the means over heads ``entropy`` (nats), ``first``
    (weight on the first token of the text), ``distance`` (tokens) and ``normalised`` (entropy divided by the logarithm of the
    number of tokens up to the row), and of ``picks``; the same by head in ``head_entropy``, ``head_first``, ``head_distance``,
    ``head_normalised`` and ``head_count``; by position in the text ``entropy_at`` and ``count``; ``octaves``, the
    weight averaged over heads by distance: 0, 1, 2–3, 4–7, …

    With ``sink_tokens`` also, for k = 1 … K: ``head_sinks`` ``(heads, K)``, in how many texts a head gives its k-th token more
    than ``sink_threshold`` of the weight of the token itself and of later ones, ``α_k = 1/(T − k + 1) Σ_{t≥k} a_tk``; and
    ``sink_texts`` ``(K,)``, the number of texts that have a k-th token.

    With ``logits`` also ``top`` and ``head_top``, sums of the largest score of a row before the softmax.

    Args:
        sink_tokens: K, the number of tokens at the start of a text for which sinks are counted.
        sink_threshold: the share of weight above which a token is a sink.
        logits: whether the largest scores are summed.
    """

    name: ClassVar[str] = "attention"
    version: ClassVar[int] = 2

    sink_tokens: int = 0
    sink_threshold: float = 0.3
    logits: bool = False

    @property
    def attention(self) -> AttentionRequest:
        return AttentionRequest(first=max(1, self.sink_tokens), logits=self.logits)

    def new_state(self, width: int, device: torch.device) -> State:
        by_head = ("entropy", "first", "distance", "normalised", *["top"] * self.logits)
        sums: dict[str, tuple[int, ...]] = dict.fromkeys(("targets", "picks", *by_head), ())
        curves = dict.fromkeys((*(f"head_{name}" for name in by_head), "head_count", "entropy_at", "count", "octaves"), (0,))
        sinks = {"head_sinks": (0, self.sink_tokens), "sink_texts": (self.sink_tokens,)} if self.sink_tokens else {}
        return zeros(sums | curves | sinks, device)

    def contribution(self, rows: Rows) -> State:
        if (seen := rows.attention) is None:
            nothing = self.new_state(rows.width, rows.hidden.device)
            return {name: value.expand((*rows.hidden.shape[:-3], *value.shape)) for name, value in nothing.items()}
        by_head = {"entropy": seen.entropy, "first": seen.first[..., 0, :], "distance": seen.distance}
        if self.logits:
            assert seen.top is not None
            by_head["top"] = seen.top
        finite = torch.stack([value.isfinite().all(-2) for value in by_head.values()]).all(0)
        targets = rows.valid & (rows.position > 0) & finite
        counted = targets.double()
        by_head["normalised"] = seen.entropy / (rows.position + 1).to(seen.entropy).log().unsqueeze(-2)
        heads = {name: _sum(value, targets.unsqueeze(-2), (-3, -1)) for name, value in by_head.items()}
        entropy = torch.where(targets, seen.entropy.double().mean(-2), 0)
        return {
            "targets": counted.sum((-2, -1)),
            **{name: value.mean(-1) for name, value in heads.items()},
            **{f"head_{name}": value for name, value in heads.items()},
            "head_count": counted.sum((-2, -1)).unsqueeze(-1).expand_as(heads["entropy"]),
            "picks": _sum(seen.picks, targets, (-2, -1)),
            "entropy_at": rows.at_positions(entropy),
            "count": rows.at_positions(counted),
            "octaves": _sum(seen.octaves, targets.unsqueeze(-1), (-3, -2)),
            **(self._sinks(rows, seen) if self.sink_tokens else {}),
        }

    def _sinks(self, rows: Rows, seen: AttentionRows) -> State:
        weights = seen.first[..., : self.sink_tokens, :].double()  # (…, batch, heads, K, length)
        counted = rows.valid & weights.isfinite().all(-2).all(-2)
        after = rows.position >= torch.arange(self.sink_tokens, device=weights.device).view(-1, 1, 1)
        after = after & counted.unsqueeze(-3)  # (…, K, batch, length)
        weights = torch.where(after.unsqueeze(-4), weights.movedim(-4, -2), 0)  # (…, heads, K, batch, length)
        rows_of_text = rows.per_text(after.double())
        share = rows.per_text(weights) / rows_of_text.clamp_min(1).unsqueeze(-3)
        return {
            "head_sinks": (share > self.sink_threshold).double().sum(-1),
            "sink_texts": (rows_of_text > 0).double().sum(-1),
        }


def _sum(values: Tensor, where: Tensor, dims: tuple[int, int]) -> Tensor:
    return torch.where(where, values.double(), 0).sum(dims)
