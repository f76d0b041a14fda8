"""Find from which earlier tokens each token can be reproduced, and to which it attends, at every layer.

    python examples/05_what_tokens_are_made_of.py [MODEL]

MODEL is a hub id or a directory. Without it, a small Llama with random weights is used, so that this runs anywhere. For one
text, ``geomprobe inspect MODEL "text" --html page.html`` shows the weights of every token.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from geomprobe import AttentionProfile, ContextLasso, Probe

TEXT = "Is Paris the capital of France? Yes. Is Beijing the capital of China? Yes. Is Rome the capital of Italy?"

if len(sys.argv) > 1:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False).eval()
    ids = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False)(TEXT, return_tensors="pt")["input_ids"]
else:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.tensor([list(TEXT.encode())])

with torch.no_grad(), Probe(model, [ContextLasso(attention=True), AttentionProfile()]) as probe:
    model(ids)
reading = probe.read()

print(reading)
print()
for site in reading.sites[1:]:
    share, chance = (reading[f"lasso_attention_{name}/{site}"] for name in ("precision", "chance"))
    print(f"{site:<12} the Lasso picks {share:.0%} of the most attended tokens ({chance:.0%} by chance)")
octaves = reading.curve("attention_octaves", "final_norm").mean
print("attention by distance 0, 1, 2–3, 4–7, …:", [round(weight, 2) for weight in octaves])
