"""The metric of attention weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from geomprobe.accumulators.attention import AttentionSum
from geomprobe.accumulators.state import Accumulator, State
from geomprobe.errors import GeomprobeError, is_whole
from geomprobe.metrics.base import Curve, Metric

__all__ = ["AttentionProfile"]


@dataclass(frozen=True, kw_only=True)
class AttentionProfile(Metric):
    """Summaries of the attention weights of each layer: softmax weights before dropout, under any attention implementation.

    The site of a layer has the weights inside that layer, ``final_norm`` has those of the last layer, and ``embed`` has none.

    Scalars, which are means over heads and over tokens that have earlier tokens in their text:

    - ``attention_entropy``: ``−Σ_j a_j log a_j`` in nats (Zhai et al. 2023). It grows with the number of visible tokens;
    - ``attention_entropy_normalised``: the entropy of token t divided by ``log t``, its largest value under causal attention,
      so that texts of different lengths can be compared. It is 0 to 1, but stays below 1 in a layer with a sliding window,
      which sees fewer than t tokens, and can reach 1.07 at t = 2 where part of the weight goes to no token (the sinks of
      GPT-OSS);
    - ``attention_sink``: the weight on the first token of the text (Xiao et al. 2024), 0 to 1;
    - ``attention_distance``: ``Σ_j a_j (t − j)``, the mean distance in tokens;
    - ``attention_picks``: the number of tokens whose weight, averaged over heads, is above 0.01 (section 4.2).

    With ``logits`` also ``attention_top_logit``: the mean over heads and tokens of the largest score ``max_j s_j`` of a token,
    as it enters the softmax (after scale, soft cap and bias). It is at most the soft cap, or the scale times the largest
    ``‖q‖‖k‖``. Also ``attention_top_logit_max_head``: the mean over tokens in the head in which this mean is largest. Dehghani
    et al. (2023) and Wortsman et al. (2023) saw growing scores before the loss diverged. They take the maximum over tokens,
    which cannot be added over batches as these means can. A constant added to all scores of a token changes its largest score,
    but no weight.

    With ``sink_tokens`` also ``attention_sink_share_1`` … ``attention_sink_share_K``: the share of heads for which the k-th
    token of a text is a sink (``Sink_k`` of Gu et al. 2024), 0 to 1, as a mean over texts that have a k-th token. A head has a
    sink at token k if ``α_k = 1/(T − k + 1) Σ_{t≥k} a_tk`` is above ``sink_threshold``. It depends on the length T of the
    texts: compare only readings of texts of equal length. Curve ``attention_sink_share_by_head``: the share of texts in which
    the first token is a sink of the head.

    Curves: ``attention_entropy`` by position in the text; ``attention_octaves``, the weight averaged over heads by distance: on
    the token itself, on the token before, 2–3, 4–7, 8–15 tokens back, and so on; ``attention_entropy_by_head``,
    ``attention_entropy_normalised_by_head``, ``attention_sink_by_head``, ``attention_distance_by_head`` and, with ``logits``,
    ``attention_top_logit_by_head`` by the number of the head.

    The weights show which tokens a head attends to, not how much this changes its output: a head that attends to a sink often
    contributes nothing.

    Args:
        sink_tokens: number of tokens at the start of a text for which shares of sinks are computed.
        sink_threshold: the weight above which a token is a sink.
        logits: whether to measure the largest scores. Under eager attention this computes them from queries and keys, which the
            other numbers do not need.

    Raises:
        GeomprobeError: if an argument is out of range; when the probe is attached, if the model has no attention or its weights
            (or, with ``logits``, its scores) cannot be read.
    """

    sink_tokens: int = 0
    sink_threshold: float = 0.3
    logits: bool = False

    def __post_init__(self) -> None:
        if not is_whole(self.sink_tokens, least=0) or self.sink_tokens > 64:
            raise GeomprobeError(f"AttentionProfile(sink_tokens={self.sink_tokens!r}): expected a whole number from 0 to 64")
        if not isinstance(self.logits, bool):
            raise GeomprobeError(f"AttentionProfile(logits={self.logits!r}): expected True or False")
        if not isinstance(self.sink_threshold, int | float) or not 0 < self.sink_threshold < 1:
            raise GeomprobeError(
                f"AttentionProfile(sink_threshold={self.sink_threshold!r}): expected a number between 0 and 1, such as 0.3"
            )

    @property
    def _sum(self) -> AttentionSum:
        threshold = self.sink_threshold if self.sink_tokens else 0.3
        return AttentionSum(sink_tokens=self.sink_tokens, sink_threshold=threshold, logits=self.logits)

    @property
    def _by_head(self) -> dict[str, str]:
        """The sums of which there are means over heads and curves over heads, by their names."""
        names = {"entropy": "entropy", "entropy_normalised": "normalised", "sink": "first", "distance": "distance"}
        return names | ({"top_logit": "top"} if self.logits else {})

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        return (self._sum,)

    def scalars(self, states: Mapping[Accumulator, State]) -> Mapping[str, Tensor | float]:
        state = states[self._sum]
        targets = torch.where(state["targets"] > 0, state["targets"], torch.nan)
        measured = {f"attention_{name}": state[key] / targets for name, key in (self._by_head | {"picks": "picks"}).items()}
        if self.logits:  # no heads at ``embed``
            heads = state["head_top"] / targets
            measured["attention_top_logit_max_head"] = heads.amax() if len(heads) else targets * torch.nan
        if self.sink_tokens:
            texts = torch.where(state["sink_texts"] > 0, state["sink_texts"], torch.nan)
            shares = state["head_sinks"].mean(0) / texts
            measured |= {f"attention_sink_share_{k}": share for k, share in enumerate(shares, 1)}
        return measured

    def curves(self, states: Mapping[Accumulator, State]) -> Mapping[str, Curve]:
        state = states[self._sum]
        by_head = {
            f"attention_{name}_by_head": Curve.from_sums(state[f"head_{key}"], state["head_count"])
            for name, key in self._by_head.items()
        }
        if self.sink_tokens and len(state["head_sinks"]):
            of_first = state["head_sinks"][:, 0]
            by_head["attention_sink_share_by_head"] = Curve.from_sums(of_first, state["sink_texts"][0].expand_as(of_first))
        return by_head | {
            "attention_entropy": Curve.from_sums(state["entropy_at"], state["count"]),
            "attention_octaves": Curve.from_sums(state["octaves"], state["targets"].expand_as(state["octaves"])),
        }
