"""The metric of the growth of the residual stream."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from geomprobe.accumulators.residual_growth import ResidualGrowthSum
from geomprobe.accumulators.state import Accumulator, State
from geomprobe.metrics.base import Metric

__all__ = ["ResidualGrowth"]


@dataclass(frozen=True, kw_only=True)
class ResidualGrowth(Metric):
    """How much each decoder layer changes the length of the residual stream.

    Residual streams grow about exponentially over the layers (Heimersheim & Turner 2023), so the logarithm of the growth has
    about the same size at all layers. Scalars:

    - ``residual_growth``: the mean over tokens of ``log(‖h_out‖ / ‖h_in‖)`` in nats, where h_in is the row before the layer and
      h_out the row after it, both without scaling. It can have any value, and is 0 if lengths stay the same. By the triangle
      inequality, the logarithm of one token lies between ``log |1 − r|`` and ``log(1 + r)`` for a layer that adds a vector of r
      times the length of h_in;
    - ``residual_growth_left_out``: the share of tokens, 0 to 1, that have no logarithm, because one of the two rows is zero,
      such as the embedding of a padding token inside a text. They are left out of the mean.

    Both are NaN at ``embed`` and ``final_norm``, which are not layers, and at a layer whose input is not measured: ``sites``
    must contain the site before the layer. If no row is zero, the sum over all layers is the growth from ``embed`` to the last
    layer.

    The growth does not measure how much a layer contributes: a layer that adds a vector of the same length at a right angle has
    a growth of ``½ log 2``, and one that replaces the row by another vector of the same length has 0.

    Raises:
        GeomprobeError: when the probe is made, if none of its sites is a layer whose input is measured.
    """

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        return (ResidualGrowthSum(),)

    def scalars(self, states: Mapping[Accumulator, State]) -> Mapping[str, Tensor | float]:
        state = states[ResidualGrowthSum()]
        growth = state["growth"] / torch.where(state["rows"] > 0, state["rows"], torch.nan)
        return {"residual_growth": growth, "residual_growth_left_out": state["zero"] / (state["rows"] + state["zero"])}
