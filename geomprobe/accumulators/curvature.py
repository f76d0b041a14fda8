"""Sums of the angles between successive steps of the hidden states of a text."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from geomprobe.accumulators.state import State, zeros
from geomprobe.core.rows import Rows, unit_rows

__all__ = ["CurvatureSum"]


@dataclass(frozen=True)
class CurvatureSum:
    """Sums over turns. There is a turn at every row that has a row before it and a row after it in its text.

    The turn at row t is the angle, 0 to π, between the steps ``x_t − x_{t−1}`` and ``x_{t+1} − x_t`` of the unscaled hidden
    states (Hénaff et al. 2019; Hosseini & Fedorenko 2023). If a row is left out because of NaN or Inf, the rows before and
    after it count as consecutive.

    State (float64): curves ``angle``, ``angle_sq`` and ``count`` by position t; ``still``, the number of turns at which a step
    is no longer than the rounding errors of its rows (8 eps of the longer one), as between two equal tokens at the start of a
    text. These have no angle and are not part of the other sums.
    """

    name: ClassVar[str] = "curvature"
    version: ClassVar[int] = 1

    def new_state(self, width: int, device: torch.device) -> State:
        return zeros(dict.fromkeys(("angle", "angle_sq", "count"), (0,)) | {"still": ()}, device)

    def contribution(self, rows: Rows) -> State:
        # Sort the rows so that those of each text are consecutive, and unused rows come last.
        owner = torch.where(rows.valid, rows.text, rows.texts)
        owner, order = owner.sort(dim=-1, stable=True)
        hidden = rows.hidden.gather(-2, order.unsqueeze(-1).expand_as(rows.hidden))
        norms = rows.norms.gather(-1, order)
        steps = hidden.diff(dim=-2)
        lengths = torch.linalg.vector_norm(steps, dim=-1)
        rounding = 8 * torch.finfo(hidden.dtype).eps * torch.maximum(norms[..., 1:], norms[..., :-1])
        directions = unit_rows(steps, torch.where(lengths > rounding, lengths, torch.inf))
        turn = (owner[..., 2:] == owner[..., :-2]) & (owner[..., 2:] < rows.texts)
        moving = directions.any(-1)
        counted = turn & moving[..., 1:] & moving[..., :-1]
        angle = torch.where(counted, _angles(directions[..., :-1, :], directions[..., 1:, :]), 0)

        def by_position(values: Tensor) -> Tensor:
            in_place = values.new_zeros(order.shape).scatter_(-1, order[..., 1:-1], values)
            return rows.at_positions(in_place)

        return {
            "angle": by_position(angle),
            "angle_sq": by_position(angle.square()),
            "count": by_position(counted.double()),
            "still": (turn & ~counted).double().sum((-2, -1)),
        }


def _angles(first: Tensor, second: Tensor) -> Tensor:
    """Angles between unit rows ``(…, d)``. The arc cosine of the inner product would lose half of the digits near 0 and π."""
    apart, together = (torch.linalg.vector_norm(rows, dim=-1).double() for rows in (second - first, second + first))
    return 2 * torch.atan2(apart, together)
