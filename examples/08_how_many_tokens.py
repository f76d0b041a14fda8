"""Measure how many tokens a number needs: how samples of d, 3d, 10d and 30d tokens differ from 100d tokens and from each other.

    python examples/08_how_many_tokens.py [MODEL [FILE]]

MODEL is a hub id or a directory, and FILE is a text file. Without them, a small GPT-NeoX with random weights runs on Python's
help pages, so that this runs anywhere. d is the width of the model.
"""

import statistics
import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from geomprobe import Probe

SAMPLES, MOST = 8, 100
METRICS = ("entropy", "effective_rank", "anisotropy", "gain_per_token")

text = Path(sys.argv[2]).read_text("utf-8") if len(sys.argv) > 2 else "\n\n".join(topics[name] for name in sorted(topics))
if len(sys.argv) > 1:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False).eval()
    ids = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False)(text, return_tensors="pt")["input_ids"][0]
else:
    torch.manual_seed(0)
    config = GPTNeoXConfig(vocab_size=256, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
    model = GPTNeoXForCausalLM(config).eval()
    ids = torch.tensor(list(text.encode()))

width, layers = model.config.hidden_size, model.config.num_hidden_layers
length = min(width, 128)  # tokens in a text
texts = ids[: len(ids) // length * length].view(-1, length)
texts = texts[torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))]
if len(texts) * length < MOST * width:
    sys.exit(f"the file has {ids.numel():,} tokens, but {MOST} times d = {width} are needed: give a longer one")

with torch.no_grad(), Probe(model, sites=[layers // 2, "final_norm"]) as probe:

    def measure(sample: torch.Tensor) -> dict[str, float]:
        for batch in sample.split(16):
            model(batch)
        return dict(probe.read(reset=True))

    whole = measure(texts[: MOST * width // length])
    samples = {}
    for times in (1, 3, 10, 30):
        size = max(1, times * width // length)  # number of texts in a sample; no text is in two samples
        samples[times] = [measure(sample) for sample in texts[: SAMPLES * size].split(size) if len(sample) == size]

for site in (f"layer_{layers // 2:02d}", "final_norm"):
    print(f"\n{site}, d = {width}: mean of samples relative to {MOST}d tokens, ± standard deviation of samples")
    print(f"{'tokens':<6}{'samples':>8}" + "".join(f"{metric:>16}" for metric in METRICS))
    for times, found in samples.items():
        cells = []
        for metric in METRICS:
            values, reference = [numbers[f"{metric}/{site}"] for numbers in found], whole[f"{metric}/{site}"]
            bias, spread = statistics.fmean(values) / reference - 1, statistics.stdev(values) / reference
            cells.append(f"{bias:+7.1%} ± {spread:5.1%}")
        print(f"{f'{times}d':<6}{len(found):>8}" + "".join(f"{cell:>16}" for cell in cells))
    print(f"{f'{MOST}d':<6}{1:>8}" + "".join(f"{whole[f'{metric}/{site}']:>16.3f}" for metric in METRICS))
