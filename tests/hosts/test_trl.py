"""TRL: supervised training, preferences, rewards and reinforcement learning.

Reference models, old policies and rollouts run through the policy's own modules, in training mode without gradients. A step
measures the loss forwards alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from geomprobe import GeomprobeError, Probe, every
from tests.hosts.harness import (
    EOS,
    LossForwards,
    alone,
    assert_same,
    assert_steps_are_the_loss_texts,
    compared_with_bare,
    letters,
    model,
    readings,
    settings,
    tokenizer,
)

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install geomprobe[hosts]")
peft = pytest.importorskip("peft", reason="peft is not installed: pip install geomprobe[hosts]")
datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install geomprobe[data]")

Make = Callable[[list[Any]], Any]


def arguments(directory: Path, **options: Any) -> dict[str, Any]:
    return settings(directory, bf16=False, **options)


def lora(adapted: bool) -> dict[str, Any]:
    """A LoRA adapter on the policy, or a reference model beside it."""
    if not adapted:
        return {"ref_model": model()}
    return {"peft_config": peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")}


# -- supervised training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "packed"),
    [
        ({}, False),
        ({"packing": True, "max_length": 32}, True),
        ({"padding_free": True, "max_length": None}, True),
        ({"gradient_accumulation_steps": 2}, False),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, False),
        ({"label_smoothing_factor": 0.1}, False),  # runs the model a second time without gradients, to log more
    ],
    ids=["padded", "packed", "padding_free", "accumulated", "reentrant", "smoothed"],
)
def test_supervised_training(tmp_path: Path, options: dict[str, Any], packed: bool) -> None:
    def make(callbacks: list[Any]) -> Any:
        return trl.SFTTrainer(
            model(),
            args=trl.SFTConfig(**arguments(tmp_path, **options)),
            train_dataset=datasets.Dataset.from_dict({"text": letters(60, 4, 20)}),
            processing_class=tokenizer(),
            callbacks=callbacks,
        )

    trained, seen, callback = compared_with_bare(make)
    assert_steps_are_the_loss_texts(trained, seen, readings(callback))
    assert seen.padded == 0 if packed else seen.padded >= 5
    assert all(len(step.texts) >= (4 if "packing" in options else 3) for step in seen.steps)
    assert bool(seen.without_gradients) is ("label_smoothing_factor" in options)


def test_bfloat16(tmp_path: Path) -> None:
    """TRL trains under autocast by default. Rounding depends on the shapes of batches, counts do not."""

    def make(callbacks: list[Any]) -> Any:
        return trl.SFTTrainer(
            model(),
            args=trl.SFTConfig(**settings(tmp_path)),
            train_dataset=datasets.Dataset.from_dict({"text": letters(60, 4, 20)}),
            processing_class=tokenizer(),
            callbacks=callbacks,
        )

    trained, seen, callback = compared_with_bare(make)
    assert trained.args.bf16
    for step, reading in zip(seen.steps, readings(callback), strict=True):
        trained.model.load_state_dict(step.weights)
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(reading, alone(trained.model, step.texts), rel=1e-2)


def test_evaluation_has_numbers_of_its_own(tmp_path: Path) -> None:
    held_out = letters(4, 4, 20, seed=1)

    def make(callbacks: list[Any]) -> Any:
        return trl.SFTTrainer(
            model(),
            args=trl.SFTConfig(**arguments(tmp_path, eval_strategy="steps", eval_steps=3)),
            train_dataset=datasets.Dataset.from_dict({"text": letters(60, 4, 20)}),
            eval_dataset=datasets.Dataset.from_dict({"text": held_out}),
            processing_class=tokenizer(),
            callbacks=callbacks,
        )

    trained, seen, callback = compared_with_bare(make)
    last = readings(callback, "eval")[-1]
    assert len(readings(callback, "eval")) == 2
    texts = [torch.tensor([*tokenizer()(text)["input_ids"], EOS]) for text in held_out]
    assert_same(last, alone(trained.model, texts))  # the last evaluation sees the final weights
    assert_steps_are_the_loss_texts(trained, seen, readings(callback))


# -- preferences and rewards -------------------------------------------------------------------------------------------------


def preferences(trainer: str, directory: Path, adapted: bool, **options: Any) -> Make:
    prompts, good, bad = letters(60, 2, 8), letters(60, 2, 10, seed=1), letters(60, 2, 10, seed=2)
    if trainer == "KTO":
        columns: dict[str, Any] = {"prompt": prompts, "completion": good, "label": [i % 2 == 0 for i in range(60)]}
    else:
        columns = {"prompt": prompts, "chosen": good, "rejected": bad}

    def make(callbacks: list[Any]) -> Any:
        return getattr(trl, f"{trainer}Trainer")(
            model(),
            args=getattr(trl, f"{trainer}Config")(**arguments(directory, **options)),
            train_dataset=datasets.Dataset.from_dict(columns),
            eval_dataset=datasets.Dataset.from_dict({name: values[:6] for name, values in columns.items()}),
            processing_class=tokenizer(),
            callbacks=callbacks,
            **lora(adapted),
        )

    return make


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("trainer", ["DPO", "KTO"])
def test_preferences(tmp_path: Path, trainer: str, adapted: bool) -> None:
    trained, seen, callback = compared_with_bare(preferences(trainer, tmp_path, adapted))
    assert_steps_are_the_loss_texts(trained, seen, readings(callback))
    assert seen.padded >= 5
    assert bool(seen.without_gradients) is (adapted or trainer == "KTO")  # the reference, and the texts of KTO's KL term


def test_the_reference_of_an_adapter_has_numbers_of_its_own(tmp_path: Path) -> None:
    """DPO with LoRA runs the reference through the policy's modules, with the adapter disabled."""
    trained, seen, callback = compared_with_bare(preferences("DPO", tmp_path, adapted=True), no_grad=True)
    reference = readings(callback, "no_grad")
    assert seen.without_gradients == len(seen.steps)
    for step, policy, base in zip(seen.steps, readings(callback), reference, strict=True):
        assert base["tokens/final_norm"] == policy["tokens/final_norm"] == sum(map(len, step.texts))
        trained.model.load_state_dict(step.weights)
        with trained.model.disable_adapter():
            assert_same(base, alone(trained.model, step.texts))
    policy, base = readings(callback)[-1], reference[-1]
    assert policy["effective_rank/final_norm"] != pytest.approx(base["effective_rank/final_norm"], rel=1e-3)


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_an_evaluation_in_which_a_reference_runs_says_so(tmp_path: Path, adapted: bool) -> None:
    """Nothing has gradients in an evaluation, so the reference of an adapter cannot be told from the policy."""
    make = preferences("DPO", tmp_path, adapted, eval_strategy="steps", eval_steps=3)
    trained, seen, callback = compared_with_bare(make)
    assert_steps_are_the_loss_texts(trained, seen, readings(callback))
    evaluations = readings(callback, "eval")
    assert len(evaluations) == 2
    for reading in evaluations:
        assert reading["texts/final_norm"] == (24 if adapted else 12)
        assert bool(reading.notes) is adapted
        assert all("forwards" in note for note in reading.notes)


def test_reward_model(tmp_path: Path) -> None:
    def make(callbacks: list[Any]) -> Any:
        config = model().config
        config.num_labels = 1
        torch.manual_seed(0)
        return trl.RewardTrainer(
            transformers.AutoModelForSequenceClassification.from_config(config),
            args=trl.RewardConfig(**arguments(tmp_path)),
            train_dataset=datasets.Dataset.from_dict({"chosen": letters(60, 4, 16), "rejected": letters(60, 4, 16, seed=1)}),
            processing_class=tokenizer(),
            callbacks=callbacks,
        )

    trained, seen, callback = compared_with_bare(make)
    assert_steps_are_the_loss_texts(trained, seen, readings(callback))
    assert seen.padded >= 5
    assert all(len(step.texts) == 6 for step in seen.steps)


# -- reinforcement learning --------------------------------------------------------------------------------------------------


def vowels(completions: list[str], **_: Any) -> list[float]:
    return [float(sum(letter in "aeio" for letter in completion)) for completion in completions]


def reinforcement(trainer: str, directory: Path, **options: Any) -> Make:
    chosen = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 12,
        "num_iterations": 2,
    } | options
    adapted = chosen.pop("adapted", False)
    model().save_pretrained(directory / "model")  # TRL loads the reference model from where the policy came from

    def make(callbacks: list[Any]) -> Any:
        return getattr(trl, f"{trainer}Trainer")(
            str(directory / "model"),
            reward_funcs=vowels,
            args=getattr(trl, f"{trainer}Config")(**arguments(directory, **chosen)),
            train_dataset=datasets.Dataset.from_dict({"prompt": letters(60, 2, 8)}),
            eval_dataset=datasets.Dataset.from_dict({"prompt": letters(4, 2, 8, seed=1)}),
            processing_class=tokenizer(),
            callbacks=callbacks,
            **(lora(True) if adapted else {}),
        )

    return make


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("trainer", ["GRPO", "RLOO"])
def test_reinforcement_learning_at_learning_rate_zero(tmp_path: Path, trainer: str, adapted: bool) -> None:
    """Two steps learn from one rollout, and at learning rate 0 they must read the same."""
    make = reinforcement(trainer, tmp_path, learning_rate=0.0, beta=0.04, adapted=adapted)
    trained, seen, callback = compared_with_bare(make)
    assert seen.without_gradients > len(seen.steps)  # rollouts and old log-probabilities, and the reference of the adapter
    assert seen.padded >= 5
    series = readings(callback)
    assert_steps_are_the_loss_texts(trained, seen, series)
    for first, second in zip(series[::2], series[1::2], strict=True):
        assert_same(second, first)
    entropies = [reading["entropy/final_norm"] for reading in series[::2]]
    assert len(set(entropies)) == len(entropies)  # each rollout has texts of its own


def test_reinforcement_learning_that_learns(tmp_path: Path) -> None:
    trained, seen, callback = compared_with_bare(reinforcement("GRPO", tmp_path, beta=0.0))
    assert_steps_are_the_loss_texts(trained, seen, readings(callback))


def test_a_schedule(tmp_path: Path) -> None:
    """Steps that are not measured generate too."""
    trained, seen, callback = compared_with_bare(reinforcement("GRPO", tmp_path, num_iterations=1), when=every(2))
    measured = seen.steps[1::2]
    for step, reading in zip(measured, readings(callback), strict=True):
        trained.model.load_state_dict(step.weights)
        assert_same(reading, alone(trained.model, step.texts))
        assert reading.notes == []


@pytest.mark.parametrize("iterations", [1, 2])
def test_rollouts_are_no_numbers_of_training_or_evaluation(tmp_path: Path, iterations: int) -> None:
    """Rollouts run in training mode without gradients. An evaluation generates texts and scores them, and says so."""
    make = reinforcement("GRPO", tmp_path, num_iterations=iterations, beta=0.0, eval_strategy="steps", eval_steps=3)
    trained, seen, callback = compared_with_bare(make, no_grad=True)
    assert_steps_are_the_loss_texts(trained, seen, readings(callback))
    for step, reading in zip(seen.steps[::iterations], readings(callback, "no_grad"), strict=True):
        trained.model.load_state_dict(step.weights)
        generated = [text[:-1] for text in step.texts]  # the last token of a text is never fed
        if iterations == 1:
            assert_same(reading, alone(trained.model, generated))
            assert reading.notes == []
        else:  # with the old log-probabilities
            assert_same(reading, alone(trained.model, generated + step.texts))
            assert any(note.startswith("contains generation") for note in reading.notes)
    evaluations = readings(callback, "eval")
    assert len(evaluations) == 2
    for reading in evaluations:
        assert any(note.startswith("contains generation") for note in reading.notes)


def test_rollouts_by_continuous_batching_are_left_out(tmp_path: Path) -> None:
    """The numbers of the loss stay right, and say that something was left out."""
    pages = {"page_size": 16, "num_blocks": 32, "max_batch_tokens": 64, "seed": 0}  # by default a large part of the memory
    continuous = {"use_transformers_continuous_batching": True, "transformers_continuous_batching_config": pages}
    make = reinforcement("GRPO", tmp_path, beta=0.0, **continuous)
    with pytest.warns(RuntimeWarning, match="Continuous batching"):
        trained, seen, callback = compared_with_bare(make, on_error="warn")
    assert seen.without_gradients
    assert_steps_are_the_loss_texts(trained, seen, readings(callback), notes=1)
    assert all("Continuous batching" in reading.notes[0] for reading in readings(callback))


def test_a_probe_around_a_whole_training(tmp_path: Path) -> None:
    """``with Probe(model)`` measures the loss forwards of all steps together; at learning rate 0 the weights are the same."""
    seen = LossForwards()
    trained = reinforcement("GRPO", tmp_path, learning_rate=0.0, beta=0.0)([seen])
    with Probe(trained.model, on_error="raise") as probe:
        trained.train()
    assert_same(probe.read("train"), alone(trained.model, [text for step in seen.steps for text in step.texts]))
    with pytest.raises(GeomprobeError, match="no_grad"):
        probe.read()


def test_proximal_policy_optimization(tmp_path: Path) -> None:
    """The trainer of older versions of TRL wraps the policy and a value model, so the probe is put on the policy."""
    ppo = pytest.importorskip("trl.experimental.ppo", reason="this version of TRL has no PPO")
    config, tokens = model().config, tokenizer()
    config.num_labels = 1
    scores = [transformers.AutoModelForSequenceClassification.from_config(config) for _ in range(2)]
    chosen = {"per_device_train_batch_size": 2, "total_episodes": 24, "num_mini_batches": 1, "num_ppo_epochs": 2}
    options = settings(tmp_path, learning_rate=0.0, bf16=False, response_length=8, num_sample_generations=0, **chosen)
    del options["max_steps"]
    policy, seen = model(), LossForwards()
    tokens.padding_side = "left"
    trained = ppo.PPOTrainer(
        args=ppo.PPOConfig(**options),
        processing_class=tokens,
        model=policy,
        ref_model=model(),
        reward_model=scores[0],
        value_model=scores[1],
        train_dataset=datasets.Dataset.from_dict({"input_ids": tokens(letters(24, 2, 8))["input_ids"]}),
        eval_dataset=datasets.Dataset.from_dict({"input_ids": tokens(letters(4, 2, 8))["input_ids"]}),
    )
    seen.on_step_begin(None, None, None)
    seen.on_train_begin(None, None, None, model=policy)
    with Probe(policy, on_error="raise") as probe:
        trained.train()
    seen.on_train_end(None, None, None)
    (step,) = seen.steps
    assert step.padded
    assert seen.without_gradients
    assert len(step.texts) == 2 * 24
    assert_same(probe.read("train"), alone(policy, step.texts))
