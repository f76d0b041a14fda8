"""Sums over the Lasso regressions of rows on the earlier rows of their text."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from geomprobe.accumulators.state import State, zeros
from geomprobe.core.agreement import jaccard, precision, rank_correlation
from geomprobe.core.attention_summary import AttentionRequest
from geomprobe.core.lasso import explained, literal_penalty, sklearn_penalty, solve_lasso
from geomprobe.core.rows import Rows
from geomprobe.core.symmetric import assemble

__all__ = ["ContextLassoSum"]

_AGREEMENT = ("jaccard", "precision", "chance", "rank")

_DECIMALS = 6
"""Weights that are equal to this many decimals have the same rank, so that rounding does not order equal tokens."""


@dataclass(frozen=True)
class ContextLassoSum:
    """Sums over targets, which are the sampled rows that have earlier rows in their text.

    State (float64): ``targets``, the number of targets; sums over targets of ``picks`` (the number of weights above
    ``threshold``), ``nonzero`` (the number of weights that are not zero), ``r2`` (``1 − ‖z − Σβz‖²/‖z‖²``) and ``first`` (the
    share of Σ|β| on the first row of the text); ``weighted``, the number of targets with any weight; curves by distance,
    starting at 1: ``weight`` Σ|β| and ``reach``, the number of targets that have a row at that distance; ``unsolved``, the
    number of targets whose duality gap stayed above ``tol`` (they are included in the other sums).

    With ``compare`` also sums over the attention weights a, averaged over heads, of the same targets: ``jaccard``,
    ``precision``, ``chance`` and ``rank`` (:mod:`geomprobe.core.agreement`), with the number of targets for which each is
    defined in ``jaccard_count`` and so on; ``attended``, the number of targets with attention weights; ``attention_weight`` Σa
    by distance; and, for the coefficients ``a_tj / a_jj`` of Eq. 5's second term, ``eq5_r2`` and ``eq5_weight`` by distance.
    The first term of Eq. 5, the token's own value vector, is left out.

    Args:
        penalty: α or λ of the convention below.
        convention: ``"sklearn"`` for ``1/(2d)‖z − Zβ‖² + α‖β‖₁``; ``"literal"`` for ``‖z − Zβ‖² + λ‖β‖₁``.
        threshold: weight above which a row counts as picked.
        rate: share of targets that are solved. The choice depends on the position of a token and on the length of its text
            only, so it is the same in every batch, on every rank and on every machine.
        tol: duality gap to which each target is solved.
        compare: whether to compare the Lasso weights with attention weights.
    """

    name: ClassVar[str] = "context_lasso"
    version: ClassVar[int] = 1

    penalty: float = 1e-4
    convention: Literal["sklearn", "literal"] = "sklearn"
    threshold: float = 0.01
    rate: float = 1.0
    tol: float = 1e-6
    compare: bool = False

    @property
    def attention(self) -> AttentionRequest | None:
        return AttentionRequest(maps=True) if self.compare else None

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
        # From here on ``(…, batch, k, T)``: only the rows of the targets, because work on all rows costs as much as solving.
        places, targets = _places(chosen)
        weights = torch.where(targets.unsqueeze(-1), solution.coefficients.take_along_dim(places.unsqueeze(-1), -2), 0)
        size, counted = weights.abs(), targets.double()
        total = size.sum(-1)
        # Where the first row of a text is: at position 0 of the text that the target belongs to.
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
        """The additional sums of ``compare``; zero for sites without attention."""
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
        """A share of the positions, spread evenly: steps of the golden ratio, with another beginning for every text length.

        They are computed in whole numbers only. A choice by the content of rows would differ with the rounding of a machine.
        """
        if self.rate >= 1:
            return torch.ones_like(rows.valid)
        length = rows.counts.long()[..., rows.text]
        return (rows.position * 2654435769 + length * 2246822519) % 2**32 < self.rate * 2**32

    @staticmethod
    def _distances(rows: Rows, places: Tensor) -> tuple[Tensor, Tensor]:
        """For the targets at ``places``, the distance to each row less 1 and whether it is an earlier row of the same text,
        ``(…, batch, k, T)``."""
        position, text = rows.position.expand_as(rows.valid), rows.text.expand_as(rows.valid)
        distance = position.gather(-1, places).unsqueeze(-1) - position.unsqueeze(-2)
        same = (text.gather(-1, places).unsqueeze(-1) == text.unsqueeze(-2)) & (distance > 0)
        return torch.where(same, distance - 1, 0), same & rows.valid.unsqueeze(-2)


def _places(targets: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of the targets of each batch row, ``(…, batch, k)`` with k the largest number of targets of a batch row, and
    which of these entries are targets."""
    k = int(targets.sum(-1).max()) if targets.numel() else 0
    places = targets.byte().argsort(dim=-1, descending=True, stable=True)[..., :k]
    return places, targets.gather(-1, places)


def _by_distance(values: Tensor, distance: Tensor) -> Tensor:
    """Sums of ``values`` ``(…, batch, k, T)`` by distance, ``(…, T)``. Values between different texts must be zero."""
    flat = values.flatten(-3)
    sums = flat.new_zeros((*flat.shape[:-1], values.shape[-1]))
    return sums.scatter_add_(-1, distance.flatten(-3), flat)
