"""The metric of massive activations."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from geomprobe.accumulators.activations import ActivationSum
from geomprobe.accumulators.state import Accumulator, State
from geomprobe.metrics.base import Metric

__all__ = ["MassiveActivations"]


@dataclass(frozen=True, kw_only=True)
class MassiveActivations(Metric):
    """The largest activations of a text compared with its median activation (Sun et al. 2024).

    Scalars, means over texts:

    - ``activation_max``, ``activation_median``: the largest and the median |h| of all n·d numbers in the rows of a text;
    - ``activation_ratio``: the largest divided by the median, 1 or more, over texts whose median is not zero;
    - ``massive_activations``: how many numbers are above 100 and at least 1000 times the median. There are usually a few, at
      fixed dimensions of the first token, in the middle layers.

    These numbers depend on single coordinates, so they change under a rotation of the space, unlike the other numbers of a
    probe. They do not measure outlier *features* (Dettmers et al. 2022), which are dimensions that are large at every token,
    and they do not tell which token or dimension is massive. The cost is a median of n·d numbers for each text and site.
    """

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        return (ActivationSum(),)

    def scalars(self, states: Mapping[Accumulator, State]) -> Mapping[str, Tensor | float]:
        state = states[ActivationSum()]
        texts, ratio_texts = (torch.where(state[n] > 0, state[n], torch.nan) for n in ("texts", "ratio_texts"))
        return {
            "activation_max": state["max"] / texts,
            "activation_median": state["median"] / texts,
            "activation_ratio": state["ratio"] / ratio_texts,
            "massive_activations": state["massive"] / texts,
        }
