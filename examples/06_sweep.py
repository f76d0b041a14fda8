"""Sweep over the checkpoints of a training: measure each on the same tokens, and write a folder that can be resumed.

    python examples/06_sweep.py [FOLDER_OF_CHECKPOINTS DATA]

The folder contains folders ``checkpoint-*`` as Trainer writes them, and DATA is a text file. Without them, a small GPT-NeoX is
trained for a few steps, so that this runs anywhere. If you run it again, recorded checkpoints are not measured again. The same
on the command line is ``geomprobe sweep FOLDER --data DATA --out run``, and ``geomprobe report run`` makes a page of it.
"""

import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from geomprobe import sweep


def train(folder: Path) -> None:
    """Train for sixteen steps, and save a checkpoint at steps 1, 2, 4, 8 and 16."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([topics["assignment"]], vocab_size=300, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer)
    ids = torch.tensor(tokenizer(topics["assignment"])["input_ids"])
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=300,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPTNeoXForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(1, 17):
        batch = torch.stack([ids[i : i + 64] for i in torch.randint(len(ids) - 64, (16,)).tolist()])
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in (1, 2, 4, 8, 16):
            model.save_pretrained(folder / f"checkpoint-{step}")
            tokenizer.save_pretrained(folder / f"checkpoint-{step}")


if len(sys.argv) > 2:
    models, data = sys.argv[1:3]
else:
    models, data = "training", "text.txt"
    if not Path(models).exists():
        train(Path(models))
        Path(data).write_text(topics["lambda"] + topics["yield"], encoding="utf-8")

run = sweep(models, data=data, out="run", tokens=4096, sample=1024)

print("final_norm        loss  entropy  eff.rank  gain/token  CKA with the first")
for record in run.checkpoints:
    reading = record.reading
    numbers = [reading[f"{name}/final_norm"] for name in ("entropy", "effective_rank", "gain_per_token")]
    same = reading.get("cka_first/final_norm", 1.0)  # the first checkpoint is not compared with itself
    print(f"{record.name:<14} {record.loss:>7.3f} {numbers[0]:>8.3f} {numbers[1]:>9.1f} {numbers[2]:>11.3f} {same:>19.3f}")
null = run.baseline(run.checkpoints[0], "gaussian")
print(f"Gaussian rows  {'–':>7} {null.reading['entropy/gaussian']:>8.3f} {null.reading['effective_rank/gaussian']:>9.1f}")
for record in run.failed:
    print(f"{record.name} failed: {record.error}")
