"""Single numbers that dwarf all others."""

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
    """How far the largest numbers of a text's hidden states stand out (Sun et al. 2024), means over texts.

    - ``activation_max``, ``activation_median``: the largest and the median |h| of all n·d numbers of a text, 0 or more;
    - ``activation_ratio``: the first over the second, 1 or more; of texts whose median is not zero;
    - ``massive_activations``: how many numbers are above 100 and at least 1000 times the median; mostly a few, at fixed
      dimensions of the first token, in the middle layers.

    They are of numbers by coordinate, so a rotation of the space changes them, as it changes nothing else a probe reads. They
    are not outlier *features* (Dettmers et al. 2022), dimensions that are large at every token, and say nothing of which
    token or dimension is massive. Costs a median of n·d numbers for every text at every site.
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
