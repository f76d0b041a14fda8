"""Sums over texts of the largest and the median activation of each text."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from geomprobe.accumulators.state import State, zeros
from geomprobe.core.rows import Rows

__all__ = ["ActivationSum"]

_LARGE, _TIMES = 100, 1000
"""Sun et al. (2024) call an activation massive if it is above 100 and at least about 1000 times the median."""


@dataclass(frozen=True)
class ActivationSum:
    """Sums over texts of the largest and the median magnitude |h| among all n·d numbers in the rows of a text.

    State (float64): ``texts``, the number of texts; sums over texts of ``max`` and ``median`` (for an even count, the lower of
    the two middle values), of ``massive`` (how many numbers are above 100 and at least 1000 times the median) and of ``ratio``
    (maximum divided by median); ``ratio_texts``, the number of texts whose median is not zero.

    Each text has its own median, so the texts are processed one by one: one selection among n·d numbers for each text and site,
    each of which waits for the device.
    """

    name: ClassVar[str] = "activations"
    version: ClassVar[int] = 1

    def new_state(self, width: int, device: torch.device) -> State:
        return zeros(dict.fromkeys(("texts", "max", "median", "massive", "ratio", "ratio_texts"), ()), device)

    def contribution(self, rows: Rows) -> State:
        lead = rows.hidden.shape[:-3]
        measured = {name: value.expand(lead).clone() for name, value in self.new_state(rows.width, rows.hidden.device).items()}
        for site, place in rows.each_text():
            for name, value in _of_text(rows.hidden[site][place]).items():
                measured[name][site] += value
        return measured


def _of_text(hidden: Tensor) -> dict[str, Tensor | int]:
    size = hidden.abs().flatten()
    largest, median = size.max().double(), size.median().double()
    there = median > 0
    return {
        "texts": 1,
        "max": largest,
        "median": median,
        "massive": ((size > _LARGE) & (size >= _TIMES * median)).sum(),
        "ratio": torch.where(there, largest / median, 0),
        "ratio_texts": there,
    }
