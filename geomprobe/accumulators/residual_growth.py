"""Sums over rows of how much a decoder layer changes their length."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from geomprobe.accumulators.state import State, zeros
from geomprobe.core.rows import Rows, has_direction

__all__ = ["ResidualGrowthSum"]


@dataclass(frozen=True)
class ResidualGrowthSum:
    """Sums of ``log ‖h_out‖ − log ‖h_in‖`` over the rows of a site, where h_in is the same row before the layer.

    State (float64): ``rows``, the number of rows whose two lengths are not zero; ``growth``, the sum over them in nats;
    ``zero``, the number of rows that have no logarithm, because one of the two lengths is zero. All are zero at a site whose
    layer's input was not measured.
    """

    name: ClassVar[str] = "residual_growth"
    version: ClassVar[int] = 1

    def new_state(self, width: int, device: torch.device) -> State:
        return zeros(dict.fromkeys(("rows", "growth", "zero"), ()), device)

    def contribution(self, rows: Rows) -> State:
        before, after = rows.input_norms, rows.norms
        if before is None:
            before = torch.full_like(after, torch.nan)
        known = rows.valid & before.isfinite()
        counted = known & has_direction(before) & has_direction(after)
        growth = torch.where(counted, after, 1).double().log() - torch.where(counted, before, 1).double().log()
        return {
            "rows": counted.sum((-2, -1)),
            "growth": growth.sum((-2, -1)),
            "zero": (known & ~counted).sum((-2, -1)),
        }
