"""Trainer of Transformers: padded batches, gradient accumulation, and activation checkpointing of both kinds."""

from pathlib import Path
from typing import Any

import pytest
from transformers import (
    DataCollatorForLanguageModeling,
    GenerationConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from tests.hosts.harness import (
    PAD,
    assert_steps_are_the_loss_texts,
    compared_with_bare,
    letters,
    model,
    readings,
    settings,
    tokenizer,
)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("reentrant", [None, False, True], ids=["stored", "checkpointed", "reentrant"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_every_step_is_its_loss_texts(tmp_path: Path, accumulation: int, reentrant: bool | None, side: str) -> None:
    options: dict[str, Any] = {"gradient_accumulation_steps": accumulation}
    if reentrant is not None:
        options |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}

    def make(callbacks: list[Any]) -> Any:
        tokens = tokenizer()
        tokens.padding_side = side
        return Trainer(
            model(),
            TrainingArguments(**settings(tmp_path, **options)),
            train_dataset=[{"input_ids": tokens(text)["input_ids"]} for text in letters(80, 3, 20)],
            data_collator=DataCollatorForLanguageModeling(tokens, mlm=False),
            callbacks=callbacks,
        )

    trained, seen, callback = compared_with_bare(make)
    assert seen.padded >= 5
    assert all(len(step.texts) == 3 * accumulation for step in seen.steps)
    assert_steps_are_the_loss_texts(trained, seen, readings(callback))


def test_an_evaluation_that_generates_says_so(tmp_path: Path) -> None:
    """``predict_with_generate`` generates answers and runs the loss forward, both in evaluation."""
    tokens = tokenizer()
    tokens.padding_side = "left"
    data = [{"input_ids": tokens(text)["input_ids"]} for text in letters(80, 3, 20)]
    options = {"eval_strategy": "steps", "eval_steps": 3, "predict_with_generate": True}

    def make(callbacks: list[Any]) -> Any:
        return Seq2SeqTrainer(
            model(),
            Seq2SeqTrainingArguments(
                **settings(tmp_path, **options), generation_config=GenerationConfig(max_new_tokens=5, pad_token_id=PAD)
            ),
            train_dataset=data,
            eval_dataset=data[:6],
            data_collator=DataCollatorForLanguageModeling(tokens, mlm=False),
            compute_metrics=lambda predicted: {},  # without it nothing is generated
            callbacks=callbacks,
        )

    trained, seen, callback = compared_with_bare(make)
    assert_steps_are_the_loss_texts(trained, seen, readings(callback))
    evaluations = readings(callback, "eval")
    assert len(evaluations) == 2
    for reading in evaluations:
        assert reading["texts/final_norm"] == 12
        assert any(note.startswith("contains generation") for note in reading.notes)
