"""What tokens attend to."""

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
    """Where the heads of each layer look: softmax weights before dropout, on whatever attention the model runs on.

    The site of a layer shows the attention inside that layer; ``final_norm`` shows the last layer's; ``embed`` has none.
    Scalars, means over heads and over tokens with a past:

    - ``attention_entropy``: ``−Σ_j a_j log a_j`` in nats; it grows with how much there is to see;
    - ``attention_sink``: the weight on the text's first token (Xiao et al. 2024), 0 to 1;
    - ``attention_distance``: ``Σ_j a_j (t − j)``, how many tokens back;
    - ``attention_picks``: how many tokens have a head-mean weight above 0.01 (section 4.2).

    Curves: ``attention_entropy`` by position in the text; ``attention_octaves``, head-mean weight by distance: on the token
    itself, 1 back, 2–3, 4–7, 8–15 …; ``attention_entropy_by_head``, ``attention_sink_by_head`` and
    ``attention_distance_by_head``, by number of the head.

    Weights say where a head looks, not what it changes by it: a head that looks at a sink often does nothing.

    Raises:
        GeomprobeError: when the probe is attached, and the model has no attention or keeps it to itself.
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
