"""The metric of the routers of a mixture of experts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from geomprobe.accumulators.routing import RoutingSum
from geomprobe.accumulators.state import Accumulator, State
from geomprobe.metrics.base import Curve, Metric

__all__ = ["RouterProfile"]

_FITS = 0.01
"""Largest mean difference between the weights that a model used and those computed from its logits: rounding of bfloat16."""


@dataclass(frozen=True, kw_only=True)
class RouterProfile(Metric):
    """How the router of a mixture of experts divides tokens among E experts, in each layer that has one.

    The site of a layer has the router inside that layer, ``final_norm`` has that of the last layer, and ``embed`` and layers
    without a router have NaN. The load ``f_e`` is the share of all choices that fell on expert e: each token chooses k experts,
    so it sums to 1, is 1/E if the load is even, and is at most 1/k. It counts the experts that the model used, after biases and
    groups. Shared experts, which process every token, are not counted.

    Scalars:

    - ``router_load_entropy``: ``−Σ_e f_e log f_e / log E``, 0 to 1; 1 if every expert has the same load.
      ``router_load_entropy_nats`` is not divided;
    - ``router_entropy``: the mean over tokens of ``−Σ_e p_e log p_e / log E``, 0 to 1; near 0 if the router is certain, 1 if it
      prefers no expert to another. ``router_entropy_nats`` is not divided. ``p_e = s_e / Σ_e s_e`` are the normalised scores of
      the router before biases. The scores s_e are those of a softmax, or of a sigmoid as in DeepSeek-V3 (2024, section 2.1.2),
      whichever explains the weights that the model used. The number is NaN if neither does, as in Phi-MoE, or if the weights
      are not known;
    - ``router_dead_experts``: the share of experts that no token chose, 0 to 1;
    - ``router_largest_share``: ``max_e f_e``, 1/E to 1/k.

    Curves ``router_load``, ``f_e``, and ``router_probability``, the mean of ``p_e``, by the number of the expert. Their counts
    are numbers of choices and of tokens.

    With few tokens, some experts get none by chance, which lowers the entropy of the load. Compare only readings of equally
    many tokens, and measure many more tokens than E/k. The entropy of the load falls and the largest share grows as a mixture
    collapses (Shazeer et al. 2017; Fedus et al. 2022, whose balancing loss has its least value at the even load).

        Probe(model, [RouterProfile()])

    Raises:
        GeomprobeError: when the probe is attached, if no router is found; name them with ``Decoder(routers=…)``.

    >>> state = {"routed": torch.tensor(4.0), "load": torch.tensor([6.0, 2.0, 0.0, 0.0])}
    >>> state |= {"probability": torch.ones(4, 4), "entropy": torch.full((4,), 4 * math.log(4)), "misfit": torch.zeros(4)}
    >>> numbers = RouterProfile().scalars({RoutingSum(): state})
    >>> {name: round(float(value), 3) for name, value in numbers.items() if "nats" not in name}
    {'router_load_entropy': 0.406, 'router_entropy': 1.0, 'router_dead_experts': 0.5, 'router_largest_share': 0.75}
    """

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        return (RoutingSum(),)

    def scalars(self, states: Mapping[Accumulator, State]) -> Mapping[str, Tensor | float]:
        state = states[RoutingSum()]
        names = ("load_entropy", "load_entropy_nats", "entropy", "entropy_nats", "dead_experts", "largest_share")
        if not (choices := state["load"].sum()) > 0:  # or NaN
            return {f"router_{name}": math.nan for name in names}
        load, experts = state["load"] / choices, len(state["load"])
        even = math.log(experts) if experts > 1 else math.nan
        spread = torch.special.entr(load).sum()
        way = _way(state)
        own = math.nan if way is None else state["entropy"][way] / state["routed"]
        numbers = (spread / even, spread, own / even, own, (load == 0).double().mean(), load.max())
        return {f"router_{name}": number for name, number in zip(names, numbers, strict=True)}

    def curves(self, states: Mapping[Accumulator, State]) -> Mapping[str, Curve]:
        state = states[RoutingSum()]
        load = state["load"]
        if not (choices := load.sum()) > 0:
            return {}
        curves = {"router_load": Curve.from_sums(load, choices.expand_as(load))}
        if (way := _way(state)) is not None:
            curves["router_probability"] = Curve.from_sums(state["probability"][way], state["routed"].expand_as(load))
        return curves


def _way(state: State) -> int | None:
    """The number of the way in which the model computes scores from logits, by which its weights are explained best. ``None``
    if they are explained by none, or equally well by ways that differ in entropy."""
    misfit = (state["misfit"] / state["routed"]).tolist()
    entropy = (state["entropy"] / state["routed"] / math.log(max(2, len(state["load"])))).tolist()
    best = min(range(len(misfit)), key=lambda way: misfit[way])
    near = min(_FITS, 4 * misfit[best] + 1e-5)
    known = misfit[best] <= _FITS
    known &= all(abs(entropy[way] - entropy[best]) <= 1e-3 for way, miss in enumerate(misfit) if miss <= near)
    return best if known else None
