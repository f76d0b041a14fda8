"""Watch a model's geometry while Hugging Face Trainer trains it.

Run it as it is: a small byte-level GPT-NeoX is trained on Python's help pages, on the CPU and in a few seconds. With
`report_to="wandb"`, `"tensorboard"`, `"mlflow"` or `"trackio"`, the numbers are logged to the same run as the loss. All
readings are in `trained/geomprobe.jsonl`.
"""

from pydoc_data.topics import topics

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Trainer, TrainingArguments

from geomprobe import every
from geomprobe.integrations import ProbeCallback

# Bytes are the tokens: no tokenizer, no download.
text = "\n".join(topics[name] for name in sorted(topics)).encode()
blocks = torch.tensor(list(text[: 600 * 64])).view(-1, 64)
data = [{"input_ids": block, "labels": block} for block in blocks]

config = GPTNeoXConfig(
    vocab_size=256,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=256,
    max_position_embeddings=64,
)
args = TrainingArguments(
    output_dir="trained",
    max_steps=60,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=2,  # a measured step includes all its micro-batches
    learning_rate=2e-3,
    logging_steps=20,
    eval_strategy="steps",
    eval_steps=30,
    save_strategy="no",
    use_cpu=True,
    disable_tqdm=True,
    report_to="none",
)

probe = ProbeCallback(when=every(20))
Trainer(GPTNeoXForCausalLM(config), args, train_dataset=data[:-64], eval_dataset=data[-64:], callbacks=[probe]).train()

for step, reading in probe.history:
    print(f"step {step:3d}, {reading.mode:5s}: effective rank {reading['effective_rank/final_norm']:5.2f} of 64 at final_norm")
print(probe.history[-1][1])
