"""Sums over tokens of the choices of the router of a mixture of experts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from geomprobe.accumulators.state import State, zeros
from geomprobe.core.layer_rows import RouterRows
from geomprobe.core.rows import Rows

__all__ = ["RoutingSum"]

_SCORES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda logits: logits.clamp_min(0),
    lambda logits: logits.softmax(-1),
    lambda logits: logits.sigmoid(),
    lambda logits: torch.nn.functional.softplus(logits).sqrt(),
)
"""How routers turn logits into scores: not at all, because they gave probabilities; softmax; sigmoid (DeepSeek-V3); the root of
softplus (DeepSeek-V4)."""


@dataclass(frozen=True)
class RoutingSum:
    """Sums over tokens that have a router, which is read from what it returned.

    State (float64), with E experts: ``routed``, the number of tokens; ``load`` ``(E,)``, how many tokens each expert was chosen
    for, NaN if a token chose one that does not exist (a negative number stands for none).

    A model turns logits l into scores s in one of four ways: l itself (if they are probabilities), softmax, sigmoid, or
    ``√log(1 + e^l)``. For each way: sums over tokens of the probabilities ``p = s / Σ_e s_e`` in ``probability`` ``(4, E)``, of
    their entropy ``−Σ_e p_e log p_e`` (nats) in ``entropy`` ``(4,)``, and in ``misfit`` ``(4,)`` of how far it is from
    explaining the model: for l itself ``|1 − Σ_e l_e|`` and negative numbers, for the others the largest difference between the
    weights of the chosen experts that the model used and their scores, both divided by their sums (not if k = 1). It is 1 for a
    token whose weights are not known.
    """

    name: ClassVar[str] = "routing"
    version: ClassVar[int] = 1
    routing: ClassVar[bool] = True

    def new_state(self, width: int, device: torch.device) -> State:
        ways = len(_SCORES)
        return zeros({"routed": (), "load": (0,), "probability": (ways, 0), "entropy": (ways,), "misfit": (ways,)}, device)

    def contribution(self, rows: Rows) -> State:
        if (seen := rows.routing) is None:
            nothing = self.new_state(rows.width, rows.hidden.device)
            return {name: value.expand((*rows.hidden.shape[:-3], *value.shape)) for name, value in nothing.items()}
        logits = seen.logits if seen.logits.dtype == torch.float64 else seen.logits.float()
        routed = rows.valid & (logits < torch.inf).all(-1)
        logits = torch.where(routed.unsqueeze(-1), logits, 0)
        chosen = torch.where(routed.unsqueeze(-1), seen.chosen, -1)
        inside, beyond = (chosen >= 0) & (chosen < logits.shape[-1]), chosen >= logits.shape[-1]
        chosen = torch.where(inside, chosen, 0)
        load = logits.new_zeros((*logits.shape[:-3], logits.shape[-1]), dtype=torch.float64)
        load.masked_fill_(beyond.flatten(-3).any(-1, keepdim=True), torch.nan)
        measured = [_measured(score(logits), chosen, seen) for score in _SCORES]
        measured[0]["misfit"] = (1 - logits.sum(-1)).abs() + (-logits).clamp_min(0).sum(-1)
        sums = {name: torch.stack([_sum(way[name], routed) for way in measured], -1) for name in ("entropy", "misfit")}
        return {
            "routed": routed.double().sum((-2, -1)),
            "load": load.scatter_add_(-1, chosen.flatten(-3), inside.double().flatten(-3)),
            "probability": torch.stack([_sum(way["probability"], routed.unsqueeze(-1), -3) for way in measured], -2),
            **sums,
        }


def _measured(scores: Tensor, chosen: Tensor, seen: RouterRows) -> dict[str, Tensor]:
    """The sums of one way to compute scores, for each token."""
    probability = scores / scores.sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    ours, theirs = scores.gather(-1, chosen), seen.weights.to(scores.dtype)
    if chosen.shape[-1] > 1:
        ours, theirs = (each / each.sum(-1, keepdim=True) for each in (ours, theirs))
    return {
        "probability": probability,
        "entropy": torch.special.entr(probability).sum(-1),
        "misfit": (ours - theirs).abs().amax(-1).nan_to_num(1, 1, 1),
    }


def _sum(values: Tensor, where: Tensor, first: int = -2) -> Tensor:
    """The sum over the two dimensions of the batch and the length, of which the batch is ``first``."""
    return torch.where(where, values, 0).sum((first, first + 1), dtype=torch.float64)
