"""Watch a model's geometry in a training loop of your own, under accelerate.

Run it as it is: without a W&B login the run stays offline, and W&B prints how to view it.
"""

from pydoc_data.topics import topics

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from geomprobe import Probe
from geomprobe.integrations import log_reading, offline_without_login

# Bytes are the tokens: no tokenizer, no download.
text = "\n".join(topics[name] for name in sorted(topics)).encode()
blocks = torch.tensor(list(text[: 600 * 64])).view(-1, 64)

config = LlamaConfig(vocab_size=256, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128)
model = LlamaForCausalLM(config)

offline_without_login()  # otherwise W&B would ask for a login
accelerator = Accelerator(cpu=True, log_with="wandb")
accelerator.init_trackers("geomprobe-example")
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(blocks, batch_size=16, shuffle=True))

with Probe(model) as probe:
    for step, batch in enumerate(loader, start=1):
        probe.paused = step % 10 != 0  # every tenth step is measured
        loss = model(input_ids=batch, labels=batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.log({"loss": loss.item()}, step=step)
        if not probe.paused:
            reading = probe.read(reset=True)
            log_reading(reading, accelerator, step=step)
            accelerator.print(f"step {step:2d}: loss {loss:.3f}, entropy {reading['entropy/final_norm']:.4f} at final_norm")

print(reading)
accelerator.end_training()
