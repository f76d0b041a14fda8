"""How sharply the path of a text's hidden states turns, summed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from geomprobe.accumulators.state import State, zeros
from geomprobe.core.rows import Rows, unit_rows

__all__ = ["CurvatureSum"]


@dataclass(frozen=True)
class CurvatureSum:
    """Sums over turns: rows that have one before and one after them in their text.

    The turn at row t is the angle, 0 to π, between the steps ``x_t − x_{t−1}`` and ``x_{t+1} − x_t`` of the rows as the model
    made them (Hénaff et al. 2019; Hosseini & Fedorenko 2023). A row left out (NaN, Inf) makes its neighbours consecutive.

    State (float64): curves ``angle``, ``angle_sq`` and ``count`` by position t; ``still``: turns where a step has length zero,
    as between equal rows, which have no angle and count nowhere else.
    """

    def new_state(self, width: int, device: torch.device) -> State:
        return zeros(dict.fromkeys(("angle", "angle_sq", "count"), (0,)) | {"still": ()}, device)

    def contribution(self, rows: Rows) -> State:
        # The rows of each text one after the other, what is not used last.
        owner = torch.where(rows.valid, rows.text, rows.texts)
        owner, order = owner.sort(dim=-1, stable=True)
        hidden = rows.hidden.gather(-2, order.unsqueeze(-1).expand_as(rows.hidden))
        steps = hidden.diff(dim=-2)
        directions = unit_rows(steps, torch.linalg.vector_norm(steps, dim=-1))
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
    """Angles between unit rows ``(…, d)``; the arc cosine of a product would lose half the digits near 0 and π."""
    apart, together = (torch.linalg.vector_norm(rows, dim=-1).double() for rows in (second - first, second + first))
    return 2 * torch.atan2(apart, together)
