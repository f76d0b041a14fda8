"""ProbeCallback: which forwards and steps it measures in trainers that run more than the loss, and what it says of them."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from transformers import Trainer, TrainerCallback

from geomprobe import Reading, RepresentationEntropy
from geomprobe.integrations import ProbeCallback
from tests.integrations.training import ACCUMULATION, BATCH, LENGTH, losses, trainer
from tests.integrations.wandb_file import read_run
from tests.tiny_models import token_batch

pytestmark = pytest.mark.slow  # it trains

EVALUATION = {"eval_strategy": "steps", "eval_steps": 3}


class WithReference(Trainer):  # type: ignore[misc]
    """Runs the texts through a reference model first, which is the same model without gradients, as DPO with adapters does."""

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        with torch.no_grad(), torch.random.fork_rng():
            model(input_ids=inputs["input_ids"])
        return super().compute_loss(model, inputs, *arguments, **options)


class WithRollouts(Trainer):  # type: ignore[misc]
    """Generates texts at every second step, in the mode that the model is in, as GRPO does."""

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step % 2 == 1:
            with torch.random.fork_rng():
                model.generate(inputs["input_ids"][:, :4], min_new_tokens=3, max_new_tokens=3, do_sample=False, use_cache=True)
        return super().compute_loss(model, inputs, *arguments, **options)


class InEvaluationMode(Trainer):  # type: ignore[misc]
    """Computes its loss in evaluation mode."""

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        return super().compute_loss(model.eval(), inputs, *arguments, **options)


def steps(callback: ProbeCallback, mode: str = "train") -> list[int]:
    return [step for step, reading in callback.history if reading.mode == mode]


def readings(callback: ProbeCallback, mode: str = "train") -> list[Reading]:
    return [reading for _, reading in callback.history if reading.mode == mode]


def trained(directory: Path, callback: ProbeCallback, *others: Any, **options: Any) -> tuple[Any, list[str]]:
    """The trainer after training, and what the probe said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = trainer(directory, callback, *others, **options)
        done.train()
    return done, [str(w.message) for w in caught if "geomprobe" in str(w.message)]


# -- forwards without gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [WithReference, WithRollouts])
def test_a_training_reading_holds_the_forwards_of_the_loss_alone(tmp_path: Path, kind: Any) -> None:
    alone, mixed = ProbeCallback(when=1, on_error="raise"), ProbeCallback(when=1, on_error="raise")
    bare, _ = trained(tmp_path, alone, logging_steps=1)
    done, said = trained(tmp_path, mixed, kind=kind, logging_steps=1)
    assert losses(done) == losses(bare)
    assert steps(mixed) == [1, 2, 3, 4, 5, 6]
    assert [dict(reading) for reading in readings(mixed)] == [dict(reading) for reading in readings(alone)]
    assert {reading.mode for _, reading in mixed.history} == {"train"}
    assert not said


def test_forwards_without_gradients_are_read_apart_on_request(tmp_path: Path) -> None:
    callback = ProbeCallback(when=2, no_grad=True, log="all", on_error="raise")
    trained(tmp_path, callback, kind=WithReference, dropout=0.0, report_to="wandb")
    wandb.finish()
    assert steps(callback) == steps(callback, "no_grad") == [2, 4, 6]
    for loss, reference in zip(readings(callback), readings(callback, "no_grad"), strict=True):
        assert reference["tokens/embed"] == loss["tokens/embed"] == BATCH * ACCUMULATION * LENGTH
        assert dict(reference) == pytest.approx(dict(loss), rel=1e-5)  # the reference is the policy itself
    run = read_run(tmp_path)
    for name, value in readings(callback, "no_grad")[-1].items():
        assert run.series(f"geomprobe/no_grad/{name}")[6] == value
        assert run.axes[f"geomprobe/no_grad/{name}"] == "train/global_step"
    (shared,) = [row for row in run.history if row.get("train/global_step") == 6 and "train/loss" in row]
    assert {"geomprobe/entropy/embed", "geomprobe/no_grad/entropy/embed"} <= set(shared)


def test_steps_without_such_forwards_have_no_such_reading(tmp_path: Path) -> None:
    """Rollouts serve several optimizer steps."""
    callback = ProbeCallback(when=1, no_grad=True, on_error="raise")
    _, said = trained(tmp_path, callback, kind=WithRollouts)
    assert steps(callback) == [1, 2, 3, 4, 5, 6]
    assert steps(callback, "no_grad") == [2, 4, 6]
    for reading in readings(callback, "no_grad"):
        assert reading["texts/embed"] == BATCH * ACCUMULATION
        assert reading["tokens/embed"] == BATCH * ACCUMULATION * (4 + 3 - 1)  # the last token is not fed
    assert not [text for text in said if "nothing" in text]


def test_a_resumed_training_continues_both_series(tmp_path: Path) -> None:
    options = {"kind": WithReference, "save_strategy": "steps", "save_steps": 3}
    whole = ProbeCallback(when=1, no_grad=True)
    trained(tmp_path, whole, **options)
    resumed = ProbeCallback(when=1, no_grad=True)
    trainer(tmp_path, resumed, **options).train(resume_from_checkpoint=str(tmp_path / "trained" / "checkpoint-3"))
    assert steps(resumed) == steps(resumed, "no_grad") == [1, 2, 3, 4, 5, 6]
    assert [dict(reading) for _, reading in resumed.history] == [dict(reading) for _, reading in whole.history]


def test_a_step_in_which_nothing_counts_ends_nothing(tmp_path: Path) -> None:
    callback = ProbeCallback(when=1, on_error="raise")
    _, said = trained(tmp_path, callback, kind=InEvaluationMode, **EVALUATION)
    assert steps(callback) == []
    assert steps(callback, "eval") == [3, 6]
    (text,) = said
    assert "no forward in training mode with gradients" in text
    assert "(train reading of step 1)" in text


# -- evaluations ------------------------------------------------------------------------------------------------------------


def test_an_evaluation_with_several_forwards_for_a_batch_says_so_once(tmp_path: Path) -> None:
    """All forwards of an evaluation are without gradients: those of a reference model cannot be told from those of the loss."""
    callback = ProbeCallback(when=6)
    _, said = trained(tmp_path, callback, kind=WithReference, **EVALUATION)
    assert [reading["texts/embed"] for reading in readings(callback, "eval")] == [8, 8]  # of 4 texts
    for reading in readings(callback, "eval"):
        assert [note for note in reading.notes if "up to 2 forwards ran for one batch" in note]
    assert len([text for text in said if "forwards ran for one batch" in text]) == 1
    assert not readings(callback)[0].notes


def test_an_evaluation_that_generates_says_so_once(tmp_path: Path) -> None:
    callback = ProbeCallback(when=6, jsonl=tmp_path / "geometry.jsonl")
    _, said = trained(tmp_path, callback, kind=WithRollouts, eval_strategy="steps", eval_steps=1)
    generated = [any("contains generation" in note for note in reading.notes) for reading in readings(callback, "eval")]
    assert generated == [True, False] * 3
    assert len([text for text in said if "contains generation" in text]) == 1
    lines = [json.loads(line) for line in (tmp_path / "geometry.jsonl").read_text().splitlines()]
    assert [line["notes"] for line in lines if "sites" in line] == [reading.notes for _, reading in callback.history]


def test_an_evaluation_with_one_forward_for_a_batch_has_no_notes(tmp_path: Path) -> None:
    callback = ProbeCallback(when=6)
    _, said = trained(tmp_path, callback, eval_on_start=True, **EVALUATION)
    assert [reading.notes for reading in readings(callback, "eval")] == [[], [], []]
    assert not said


class Poisons(TrainerCallback):  # type: ignore[misc]
    """Makes the embedding of one token NaN in the model that is evaluated."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        with torch.no_grad():
            model.model.embed_tokens.weight[5:8] = float("nan")


def test_a_note_is_told_once_to_those_who_look_at_numbers_only(tmp_path: Path) -> None:
    callback = ProbeCallback([RepresentationEntropy()], sites=["layer_00", "layer_01"], when=1)
    _, said = trained(tmp_path, callback, Poisons(), max_steps=3)
    told = [text for text in said if "NaN or Inf" in text]
    assert len(told) == 1
    assert "step 2" in told[0]
    assert all(reading.notes for reading in readings(callback)[1:])


def padded_texts() -> list[dict[str, Any]]:
    """Texts that end in four tokens of padding, without a mask."""
    blocks = token_batch(24, LENGTH)
    blocks[:, -4:] = 0
    return [{"input_ids": block, "labels": block} for block in blocks]


def test_padding_without_a_mask_is_told_and_can_be_named(tmp_path: Path) -> None:
    counted, named = ProbeCallback(when=6), ProbeCallback(when=6, pad_token_id=0)
    _, said = trained(tmp_path, counted, data=padded_texts())
    assert len([text for text in said if "pad_token_id=0" in text]) == 1
    assert readings(counted)[0]["tokens/embed"] == BATCH * ACCUMULATION * LENGTH
    _, said = trained(tmp_path, named, data=padded_texts())
    assert (said, readings(named)[0].notes) == ([], [])
    assert readings(named)[0]["tokens/embed"] == BATCH * ACCUMULATION * (LENGTH - 4)


# -- steps that are not measured --------------------------------------------------------------------------------------------


def test_a_schedule_that_selected_no_step_is_told_at_the_end(tmp_path: Path) -> None:
    callback = ProbeCallback(when=100)
    _, said = trained(tmp_path, callback)
    (text,) = said
    assert "none of the 6 optimizer steps" in text
    assert callback.history == []


class Closes(TrainerCallback):  # type: ignore[misc]
    """Closes the probe after two steps."""

    def __init__(self, callback: ProbeCallback) -> None:
        self.callback = callback

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.callback.close()


def test_after_close_nothing_is_measured_and_the_history_is_kept(tmp_path: Path) -> None:
    callback = ProbeCallback(when=1, no_grad=True)
    _, said = trained(tmp_path, callback, Closes(callback), kind=WithReference, **EVALUATION)
    assert steps(callback) == steps(callback, "no_grad") == [1, 2]
    assert steps(callback, "eval") == []
    assert (callback.probe, callback.fault, said) == (None, None, [])
    late = ProbeCallback(when=5)
    _, said = trained(tmp_path, late, Closes(late))
    assert (late.history, said) == ([], [])  # it could have selected a step


@pytest.mark.parametrize("no_grad", [False, True])
def test_the_modes_of_a_compiled_model(tmp_path: Path, no_grad: bool) -> None:
    """Inside a compiled graph gradients are always off."""
    alone, compiled = ProbeCallback(when=3, on_error="raise"), ProbeCallback(when=3, no_grad=no_grad, on_error="raise")
    trained(tmp_path, alone, dropout=0.0)
    trained(tmp_path, compiled, kind=WithReference, dropout=0.0, torch_compile=True, torch_compile_backend="aot_eager")
    assert steps(compiled) == [3, 6]
    assert steps(compiled, "no_grad") == ([3, 6] if no_grad else [])
    for one, other in zip(readings(compiled), readings(alone), strict=True):
        assert dict(one) == pytest.approx(dict(other), rel=1e-4, abs=1e-6)
