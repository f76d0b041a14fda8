"""A small byte-level GPT-NeoX and its training data, the help pages of Python. It trains on a CPU without a network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tqdm import tqdm
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

__all__ = ["BLOCK", "byte_blocks", "byte_tokenizer", "held_out_text", "prose", "toy_trainer"]

BLOCK = 128
"""Number of bytes in a text."""
_BATCH = 32


def prose() -> str:
    """Return English prose that every Python installation contains: the pages of ``help()``."""
    from pydoc_data.topics import topics

    return "\n\n".join(page for _, page in sorted(topics.items()))


def byte_blocks(length: int = BLOCK) -> tuple[torch.Tensor, torch.Tensor]:
    """Return :func:`prose` as bytes in blocks ``(n, length)``: those for training, and 64 held-out blocks."""
    data = torch.frombuffer(bytearray(prose().encode()), dtype=torch.uint8).long()
    blocks = data[: len(data) // length * length].view(-1, length)
    return blocks[:-64], blocks[-64:]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are the bytes of a text, so that checkpoints of the demo can be loaded like any model."""
    # ByteLevel writes non-printable bytes as letters from U+0100 on, in order, and all others as themselves.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(byte for byte in range(256) if byte not in letters)}
    tokenizer = Tokenizer(BPE({letter: byte for byte, letter in letters.items()}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def held_out_text(length: int = BLOCK) -> bytes:
    """Return the text of the held-out blocks."""
    return bytes(byte_blocks(length)[1].flatten().tolist())


def toy_trainer(
    out: Path,
    *,
    steps: int,
    width: int = 128,
    layers: int = 4,
    length: int = BLOCK,
    seed: int = 0,
    report_to: str = "none",
    run_name: str | None = None,
    quiet: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trainer:
    """Return a Trainer on the CPU with a new model, whose initial weights depend on ``seed`` only, and heads of 32 dimensions.

    Args:
        out: output folder of the Trainer.
        steps: number of optimizer steps, of 32 texts each.
        width: number of dimensions of a hidden state, a multiple of 32.
        layers: number of decoder layers.
        length: number of bytes in a text, which is also the maximum length of the model.
        seed: the seed of the initial weights, and of the order of the texts.
        report_to: ``"wandb"`` to log every step and the held-out loss to W&B.
        run_name: name of the W&B run.
        quiet: whether to hide the progress bar.
        callbacks: callbacks of the Trainer.
    """
    set_seed(seed)
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=256,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            intermediate_size=4 * width,
            max_position_embeddings=length,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    whole = torch.ones(length, dtype=torch.long)  # says that repeated bytes at the end of a block are no padding
    training, held_out = (
        [{"input_ids": block, "labels": block, "attention_mask": whole} for block in blocks] for blocks in byte_blocks(length)
    )
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(out),
            max_steps=steps,
            seed=42 + seed,  # 42 is the default of Transformers
            per_device_train_batch_size=_BATCH,
            per_device_eval_batch_size=_BATCH,
            learning_rate=2e-3,
            warmup_steps=min(20, steps // 10),
            lr_scheduler_type="cosine",
            logging_steps=1,
            eval_on_start=True,
            use_cpu=True,
            report_to=report_to,
            run_name=run_name,
            disable_tqdm=quiet,
            dataloader_pin_memory=False,
        ),
        processing_class=byte_tokenizer(),
        data_collator=default_data_collator,
        train_dataset=training,
        eval_dataset=held_out,
        callbacks=list(callbacks),
    )
    trainer.pop_callback(PrinterCallback)  # prints every log if there is no bar
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(_Bar)
    return trainer


class _Bar(ProgressCallback):  # type: ignore[misc]
    """The progress bar of the Trainer, which shows the loss instead of printing a line for every log."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.training_bar = tqdm(total=state.max_steps, dynamic_ncols=True, disable=None)  # only in a terminal
        self.current_step = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.2f}")

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        pass  # no second bar for the evaluation, which takes about a second
