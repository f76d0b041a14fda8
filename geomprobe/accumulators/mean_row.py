"""The sum of the unit rows of a site."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from geomprobe.accumulators.state import State, zeros
from geomprobe.core.rows import Rows

__all__ = ["MeanRowSum"]


@dataclass(frozen=True)
class MeanRowSum:
    """The sum of rows scaled to length one. State (float64): ``n``, the number of rows; ``sum`` ``(d,)``, their sum. Rows of
    zeros add nothing to the sum, and count."""

    name: ClassVar[str] = "mean_row"
    version: ClassVar[int] = 1

    def new_state(self, width: int, device: torch.device) -> State:
        return zeros({"n": (), "sum": (width,)}, device)

    def contribution(self, rows: Rows) -> State:
        return {"n": rows.used, "sum": rows.unit().sum((-3, -2), dtype=torch.float64)}
