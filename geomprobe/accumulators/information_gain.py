"""Sums of the information gain of every token on the earlier tokens of its text."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from geomprobe.accumulators.state import State, zeros
from geomprobe.core import split
from geomprobe.core.cholesky import log_pivots
from geomprobe.core.precision import splits
from geomprobe.core.rows import Rows
from geomprobe.core.streaming_gain import GainStream
from geomprobe.core.symmetric import scaled

__all__ = ["InformationGainSum"]


@dataclass(frozen=True)
class InformationGainSum:
    """Sums of the information gain by position in the text, and of the total gain of each text.

    State (float64): curves ``gain``, ``gain_sq``, ``variance`` (posterior variance) and ``count`` by position; ``texts``, the
    number of texts; sums over texts of the total gain ``total``, of ``total_per_dim`` (divided by d) and of ``total_sq``;
    ``failed``, the number of texts whose Gram matrix could not be factored. These are not part of the other sums.

    Args:
        sigma: noise σ, 0.01 in the paper.
    """

    name: ClassVar[str] = "information_gain"
    version: ClassVar[int] = 1

    sigma: float = 0.01

    def new_state(self, width: int, device: torch.device) -> State:
        curves = dict.fromkeys(("gain", "gain_sq", "variance", "count"), (0,))
        return zeros(curves | dict.fromkeys(("texts", "total", "total_per_dim", "total_sq", "failed"), ()), device)

    def contribution(self, rows: Rows) -> State:
        gain, good = _text_gains(rows, self.sigma)
        variance = self.sigma**2 * torch.expm1(2 * gain)  # gain = ½ log(1 + σ⁻² variance), solved for the variance
        totals, texts = rows.per_text(gain), (rows.per_text(good.double()) > 0).sum(-1)
        return {
            "gain": rows.at_positions(gain),
            "gain_sq": rows.at_positions(gain.square()),
            "variance": rows.at_positions(variance),
            "count": rows.at_positions(good.double()),
            "texts": texts,
            "total": totals.sum(-1),
            "total_per_dim": totals.sum(-1) / rows.width,
            "total_sq": totals.square().sum(-1),
            "failed": rows.seen - texts,
        }


def _text_gains(rows: Rows, sigma: float) -> tuple[Tensor, Tensor]:
    """The gain of every row on the earlier rows of its text ``(…, batch, T)``, zero where it is undefined, and where it is
    defined.

    Texts longer than d use the d×d form, whose memory does not grow with the length; packed texts need their Gram matrix.
    """
    if rows.packed or rows.mask.shape[1] <= rows.width:
        gain, bad_pivot = log_pivots(scaled(rows.gram(), sigma**-2))
        good = rows.valid & (bad_pivot == 0).unsqueeze(-1)
        return torch.where(good, gain, 0), good
    if splits(rows.hidden.device):
        gain = split.stream_gains(rows.unit(), sigma)
    else:
        gain = GainStream(rows.width, sigma, batch=rows.hidden.shape[:-2], device=rows.hidden.device).append(rows.unit())
    good = rows.valid & gain.isfinite().all(-1, keepdim=True)
    return torch.where(good, gain, 0), good
