"""Watch a model's geometry in a loop of Lightning Fabric, with mixed precision, gradient accumulation and separate validation.

Run it as it is; it needs the extra `geomprobe[lightning]`. Fabric's `CSVLogger` writes the numbers beside the loss in `logs/`.
Any other logger of Fabric gets them in the same way.
"""

from pydoc_data.topics import topics

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from geomprobe import Probe
from geomprobe.integrations import log_reading

# Bytes are the tokens: no tokenizer, no download.
text = "\n".join(topics[name] for name in sorted(topics)).encode()
blocks = torch.tensor(list(text[: 704 * 64])).view(-1, 64)

config = LlamaConfig(vocab_size=256, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128)
model = LlamaForCausalLM(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed", loggers=CSVLogger(".", name="logs"))
fabric.launch()
model, optimizer = fabric.setup(model, optimizer)
training = fabric.setup_dataloaders(DataLoader(blocks[:640], batch_size=8, shuffle=True))
validation = fabric.setup_dataloaders(DataLoader(blocks[640:], batch_size=8))

batches, accumulated = iter(training), 2
with Probe(model) as probe:
    for step in range(1, len(training) // accumulated + 1):
        probe.paused = step % 10 != 0  # every tenth optimizer step is measured, with all its batches
        for number in range(1, accumulated + 1):
            batch = next(batches)
            with fabric.no_backward_sync(model, enabled=number < accumulated):
                loss = model(input_ids=batch, labels=batch).loss / accumulated
                fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if probe.paused:
            continue
        fabric.log("loss", loss.item() * accumulated, step=step)
        log_reading(probe.read("train", reset=True), fabric, step=step)
        model.eval()
        with torch.no_grad():
            for batch in validation:
                model(input_ids=batch)
        model.train()
        reading = probe.read("eval", reset=True)  # these numbers have names that begin with geomprobe/eval/
        log_reading(reading, fabric, step=step)
        fabric.print(f"step {step}: loss {loss * accumulated:.3f}, entropy {reading['entropy/final_norm']:.4f} at final_norm")

fabric.logger.finalize("success")  # writes the last rows
print(reading)
