"""The metric of attention weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from geomprobe.accumulators.attention import AttentionSum
from geomprobe.accumulators.state import Accumulator, State
from geomprobe.metrics.base import Curve, Metric

__all__ = ["AttentionProfile"]


@dataclass(frozen=True, kw_only=True)
class AttentionProfile(Metric):
    """Summaries of the attention weights of each layer: softmax weights before dropout, under any attention implementation.

    The site of a layer has the attention inside that layer, ``final_norm`` has that of the last layer, and ``embed`` has none.

    Scalars, means over heads and over tokens that have earlier tokens in their text:

    - ``attention_entropy``: ``−Σ_j a_j log a_j`` in nats. It grows with the number of visible tokens;
    - ``attention_sink``: the weight on the first token of the text (Xiao et al. 2024), 0 to 1;
    - ``attention_distance``: ``Σ_j a_j (t − j)``, the mean distance in tokens;
    - ``attention_picks``: the number of tokens whose weight, averaged over heads, is above 0.01 (section 4.2).

    Curves: ``attention_entropy`` by position in the text; ``attention_octaves``, the weight averaged over heads by distance: on
    the token itself, on the token before, 2–3, 4–7, 8–15 tokens back, and so on; ``attention_entropy_by_head``,
    ``attention_sink_by_head`` and ``attention_distance_by_head`` by the number of the head.

    The weights show which tokens a head attends to, not how much this changes its output: a head that attends to a sink often
    contributes nothing.

    Raises:
        GeomprobeError: when the probe is attached, if the model has no attention or its weights cannot be read.
    """

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        return (AttentionSum(),)

    def scalars(self, states: Mapping[Accumulator, State]) -> Mapping[str, Tensor | float]:
        state = states[AttentionSum()]
        targets = torch.where(state["targets"] > 0, state["targets"], torch.nan)
        names = {"entropy": "entropy", "sink": "first", "distance": "distance", "picks": "picks"}
        return {f"attention_{name}": state[key] / targets for name, key in names.items()}

    def curves(self, states: Mapping[Accumulator, State]) -> Mapping[str, Curve]:
        state = states[AttentionSum()]
        heads = {"entropy": "head_entropy", "sink": "head_first", "distance": "head_distance"}
        by_head = {f"attention_{name}_by_head": Curve.from_sums(state[key], state["head_count"]) for name, key in heads.items()}
        return by_head | {
            "attention_entropy": Curve.from_sums(state["entropy_at"], state["count"]),
            "attention_octaves": Curve.from_sums(state["octaves"], state["targets"].expand_as(state["octaves"])),
        }
