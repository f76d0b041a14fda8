"""Write a metric of your own: name the accumulators that it needs, and compute numbers from their sums.

The metric here is the share of the largest eigenvalue in the sum of all eigenvalues of the covariance, at every site.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from geomprobe import Metric, Probe, RepresentationEntropy
from geomprobe.accumulators.covariance import Covariance, eigenvalues
from geomprobe.accumulators.state import Accumulator, State


@dataclass(frozen=True)
class TopShare(Metric):
    """Share of the largest eigenvalue of Σ: 1/d if the rows spread evenly over all directions, 1 if all have the same one."""

    accumulators = (Covariance(),)  # RepresentationEntropy needs the same sums, so they are computed only once

    def scalars(self, states: Mapping[Accumulator, State]) -> Mapping[str, float]:
        values = eigenvalues(states[Covariance()])
        return {"top_share": float(values.max() / values.sum())}


torch.manual_seed(0)
config = LlamaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
model = LlamaForCausalLM(config).eval()

with torch.no_grad(), Probe(model, [TopShare(), RepresentationEntropy()]) as probe:
    model(input_ids=torch.randint(0, 100, (4, 50)))
reading = probe.read()

for site in reading.sites:
    print(f"{site:<12} top share {reading[f'top_share/{site}']:.3f}   effective rank {reading[f'effective_rank/{site}']:.1f}")
