"""Wrap any Hugging Face decoder in three lines and read its geometry.

    python examples/01_wrap_a_model.py [MODEL]

MODEL is a hub id or a directory. Without it, a small GPT-NeoX with random weights is used, so that this runs anywhere.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from geomprobe import Probe

TEXTS = ["The capital of France is Paris, and that of Italy is Rome.", "A stitch in time saves nine."]

if len(sys.argv) > 1:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
else:
    config = GPTNeoXConfig(
        vocab_size=256,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=128,
    )
    model = GPTNeoXForCausalLM(config).eval()
    tokens = [torch.tensor(list(text.encode())) for text in TEXTS]
    batch = {
        "input_ids": torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True),
        "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in tokens], batch_first=True),
    }

with torch.no_grad(), Probe(model) as probe:  # registers hooks on every layer
    model(**batch)
reading = probe.read()  # the hooks are removed, the numbers stay

print(reading)
print()
print("entropy after layer 2:     ", round(reading["entropy/layer_02"], 4))
curve = reading.curve("information_gain", "final_norm")
print("information gain by length:", [round(nats, 1) for nats in curve.mean[:8]], "… nats")
print("texts behind each length:  ", curve.count[:8], "…")
