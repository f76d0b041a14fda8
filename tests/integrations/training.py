"""A Trainer small enough to run many times."""

from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments

from tests.tiny_models import tiny, token_batch

__all__ = ["ACCUMULATION", "BATCH", "LENGTH", "losses", "trainer"]

BATCH, LENGTH, ACCUMULATION = 2, 12, 2


def trainer(
    directory: Path,
    *callbacks: Any,
    kind: Any = Trainer,
    data: Any = None,
    evaluated: Any = None,
    dropout: Any = 0.1,
    **options: Any,
) -> Any:
    """Six steps of two micro-batches, the loss logged at 2, 4, 6, with dropout: every draw of random numbers counts."""
    model = tiny("llama", attention_dropout=dropout)  # not GPT-NeoX: Trainer does not find its head in a checkpoint again
    blocks = token_batch(24, LENGTH)
    texts = [{"input_ids": block, "labels": block} for block in blocks]
    settings: dict[str, Any] = {
        "output_dir": str(directory / "trained"),
        "max_steps": 6,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATION,
        "logging_steps": 2,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    args = TrainingArguments(**(settings | options))
    return kind(model, args, train_dataset=data or texts, eval_dataset=evaluated or texts[:4], callbacks=list(callbacks))


def losses(trained: Any) -> dict[int, float]:
    """Training loss by step, as logged."""
    return {entry["step"]: entry["loss"] for entry in trained.state.log_history if "loss" in entry}
