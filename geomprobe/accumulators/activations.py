"""The largest numbers in the hidden states of texts, summed over texts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from geomprobe.accumulators.state import State, zeros
from geomprobe.core.rows import Rows

__all__ = ["ActivationSum"]

_LARGE, _TIMES = 100, 1000
"""Sun et al. 2024: massive is what is above 100, and at least about a thousand times the median."""


@dataclass(frozen=True)
class ActivationSum:
    """Sums over texts of how far the largest magnitude |h| stands out of all n·d numbers of a text's rows.

    State (float64): ``texts``; sums over them of ``max`` and ``median`` |h| (of an even count the lower of the two in the
    middle), of ``massive``, how many numbers are above 100 and at least 1000 times the median, and of ``ratio``, maximum over
    median, with ``ratio_texts``, the texts whose median is not zero.

    Text by text, because every text has a median of its own: as many selections in n·d numbers as there are texts and sites,
    each of which the device is waited for.
    """

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
