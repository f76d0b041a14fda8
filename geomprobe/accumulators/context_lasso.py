"""What rows are made of: sums over the Lasso of every row on the earlier rows of its text."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from geomprobe.accumulators.state import State, zeros
from geomprobe.core.agreement import jaccard, precision, rank_correlation
from geomprobe.core.lasso import explained, literal_penalty, sklearn_penalty, solve_lasso
from geomprobe.core.rows import Rows
from geomprobe.core.symmetric import assemble

__all__ = ["ContextLassoSum"]

_AGREEMENT = ("jaccard", "precision", "chance", "rank")

_DECIMALS = 6
"""Weights that agree so far are equal in rank: rounding must not order equal tokens."""


@dataclass(frozen=True)
class ContextLassoSum:
    """Sums over targets: rows that have a past, and were sampled.

    State (float64): ``targets``; sums over them of ``picks`` (weights above ``threshold``), ``nonzero`` (weights not zero),
    ``r2`` (``1 − ‖z − Σβz‖²/‖z‖²``), ``first`` (share of Σ|β| on the text's first row) and ``weighted``, the targets that have
    any weight to share; curves by distance, from 1: ``weight`` Σ|β| and ``reach``, the targets that have a row that far back;
    ``unsolved``: targets whose duality gap stayed above ``tol``, counted like the others.

    With ``compare`` also of the head-mean attention weights a of the same targets: ``jaccard``, ``precision``, ``chance`` and
    ``rank`` (:mod:`geomprobe.core.agreement`) with the targets that have each, ``jaccard_count`` …; ``attended``, the targets
    that have weights at all; ``attention_weight`` Σa by distance; and of Eq. 5's second term, the coefficients ``a_tj / a_jj``
    that weights imply: ``eq5_r2`` and ``eq5_weight``, by distance. Its first term, the token's own value vector, is left out.

    Args:
        penalty: of the convention below.
        convention: ``"sklearn"``: ``1/(2d)‖z − Zβ‖² + α‖β‖₁``; ``"literal"``: ``‖z − Zβ‖² + λ‖β‖₁``.
        threshold: the weight above which a row is picked.
        rate: the share of targets that are solved, chosen by their content: the same in any batch, on any rank.
        tol: duality gap.
        compare: whether to compare with attention.
    """

    penalty: float = 1e-4
    convention: Literal["sklearn", "literal"] = "sklearn"
    threshold: float = 0.01
    rate: float = 1.0
    tol: float = 1e-6
    compare: bool = False

    @property
    def attention(self) -> Literal["maps"] | None:
        return "maps" if self.compare else None

    def new_state(self, width: int, device: torch.device) -> State:
        sums: tuple[str, ...] = ("targets", "picks", "nonzero", "r2", "first", "weighted", "unsolved")
        curves: tuple[str, ...] = ("weight", "reach")
        if self.compare:
            sums += ("attended", "eq5_r2", *_AGREEMENT, *(f"{name}_count" for name in _AGREEMENT))
            curves += ("attention_weight", "eq5_weight")
        return zeros(dict.fromkeys(sums, ()) | dict.fromkeys(curves, (0,)), device)

    def contribution(self, rows: Rows) -> State:
        gram = assemble(rows.gram())
        penalty = (sklearn_penalty if self.convention == "sklearn" else literal_penalty)(self.penalty, *self._width(rows))
        chosen = rows.valid & (rows.position > 0) & self._sampled(rows)
        solution = solve_lasso(gram, penalty, tol=self.tol, which=chosen)
        # From here on ``(…, batch, k, T)``: the rows of the targets alone, for what is done to all costs as much as solving.
        places, targets = _places(chosen)
        weights = torch.where(targets.unsqueeze(-1), solution.coefficients.take_along_dim(places.unsqueeze(-1), -2), 0)
        size, counted = weights.abs(), targets.double()
        total = size.sum(-1)
        # Where a text's first row stands: its position is 0, in the text that the target belongs to.
        begins = (rows.position == 0) & rows.valid
        first = (size * begins.unsqueeze(-2)).sum(-1)
        weighted = targets & (total > 0)
        distance, past = self._distances(rows, places)
        past &= targets.unsqueeze(-1)
        compared = self._compared(rows, gram, weights, places, targets, distance, past) if self.compare else {}
        return compared | {
            "targets": counted.sum((-2, -1)),
            "picks": (weights > self.threshold).double().sum((-3, -2, -1)),
            "nonzero": (weights != 0).double().sum((-3, -2, -1)),
            "r2": torch.where(targets, explained(gram, weights, places).nan_to_num(0), 0).sum((-2, -1)),
            "first": torch.where(weighted, first / total.clamp_min(1e-300), 0).sum((-2, -1)),
            "weighted": weighted.double().sum((-2, -1)),
            "unsolved": (chosen & ~solution.converged).double().sum((-2, -1)),
            "weight": _by_distance(size, distance),
            "reach": _by_distance(past.double(), distance),
        }

    def _compared(
        self, rows: Rows, gram: Tensor, weights: Tensor, places: Tensor, targets: Tensor, distance: Tensor, past: Tensor
    ) -> State:
        """The sums that only ``compare`` has; zero for sites without attention."""
        maps = rows.maps.take_along_dim(places.unsqueeze(-1), -2).double()
        targets = targets & maps.isfinite().all(-1)
        past = past & targets.unsqueeze(-1)
        seen = torch.where(past, maps, 0)
        own = rows.maps.diagonal(dim1=-2, dim2=-1).double().unsqueeze(-2)
        implied = torch.where(past & (own > 0), seen / own, 0)
        picked = (weights > self.threshold) & past
        ordered = seen.round(decimals=_DECIMALS)
        agreement = {
            "jaccard": jaccard(picked, seen > self.threshold),
            "precision": precision(picked, ordered, past),
            "chance": torch.where(picked.any(-1), picked.sum(-1).double() / past.sum(-1), torch.nan),
            "rank": rank_correlation(weights.round(decimals=_DECIMALS), ordered, past),
        }
        sums: State = {}
        for name, values in agreement.items():
            there = targets & values.isfinite()
            sums |= {name: torch.where(there, values, 0).sum((-2, -1)), f"{name}_count": there.double().sum((-2, -1))}
        return sums | {
            "attended": targets.double().sum((-2, -1)),
            "eq5_r2": torch.where(targets, explained(gram, implied, places).nan_to_num(0, 0, 0), 0).sum((-2, -1)),
            "attention_weight": _by_distance(seen, distance),
            "eq5_weight": _by_distance(implied, distance),
        }

    def _width(self, rows: Rows) -> tuple[int, ...]:
        return (rows.width,) if self.convention == "sklearn" else ()

    def _sampled(self, rows: Rows) -> Tensor:
        """A share of the rows, as if by chance: the last digits of their length decide."""
        if self.rate >= 1:
            return torch.ones_like(rows.valid)
        bits = torch.where(rows.valid, rows.norms, 0).float().view(torch.int32).long()
        mixed = (bits * 2654435761) % 2**32
        return ((mixed >> 8) % 2**16).double() < self.rate * 2**16

    @staticmethod
    def _distances(rows: Rows, places: Tensor) -> tuple[Tensor, Tensor]:
        """How far back each row is of those at ``places``, less 1, and which are their past: ``(…, batch, k, T)``."""
        position, text = rows.position.expand_as(rows.valid), rows.text.expand_as(rows.valid)
        distance = position.gather(-1, places).unsqueeze(-1) - position.unsqueeze(-2)
        same = (text.gather(-1, places).unsqueeze(-1) == text.unsqueeze(-2)) & (distance > 0)
        return torch.where(same, distance - 1, 0), same & rows.valid.unsqueeze(-2)


def _places(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Where the targets of each batch row are, ``(…, batch, k)``, k being how many there are at most; and which are there."""
    k = int(targets.sum(-1).max()) if targets.numel() else 0
    places = targets.byte().argsort(dim=-1, descending=True, stable=True)[..., :k]
    return places, targets.gather(-1, places)


def _by_distance(values: Tensor, distance: Tensor) -> Tensor:
    """Sums of ``(…, batch, k, T)`` by distance, ``(…, T)``; what is not of one text must be zero."""
    flat = values.flatten(-3)
    sums = flat.new_zeros((*flat.shape[:-1], values.shape[-1]))
    return sums.scatter_add_(-1, distance.flatten(-3), flat)
