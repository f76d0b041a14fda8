"""ProbeCallback: right numbers at right steps, training untouched, and what happens when things go wrong."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import wandb
from transformers import Trainer, TrainerCallback

from geomprobe import GeomprobeError, InformationGain, Metric, Probe, Reading, RepresentationEntropy, budget, every
from geomprobe.accumulators.information_gain import InformationGainSum
from geomprobe.files import StepFile
from geomprobe.integrations import ProbeCallback
from geomprobe.integrations.histograms import spectra
from geomprobe.integrations.picture import PICTURE
from tests.integrations.by_hand import LEARNING_RATE, ByHand
from tests.integrations.training import ACCUMULATION, BATCH, LENGTH, losses, trainer
from tests.integrations.wandb_file import read_run
from tests.tiny_models import hooks, snapshot, tiny, token_batch

pytestmark = pytest.mark.slow  # it trains

EVALUATION = {"eval_strategy": "steps", "eval_steps": 3}


def steps(callback: ProbeCallback) -> list[tuple[int, str]]:
    return [(step, reading.mode) for step, reading in callback.history]


def test_wandb_run_holds_every_metric_at_its_step_beside_the_loss(tmp_path: Path) -> None:
    callback = ProbeCallback(when=every(3), log="all")
    trained = trainer(tmp_path, callback, report_to="wandb", **EVALUATION)
    trained.train()
    wandb.finish()
    run = read_run(tmp_path)

    assert steps(callback) == [(3, "train"), (3, "eval"), (6, "train"), (6, "eval")]
    expected: dict[str, dict[int, float]] = {}
    for step, reading in callback.history:
        prefix = "geomprobe/eval" if reading.mode == "eval" else "geomprobe"
        for name, value in reading.items():
            expected.setdefault(f"{prefix}/{name}", {})[step] = value
        assert reading.cost is not None
        expected.setdefault(f"{prefix}/cost", {})[step] = reading.cost.share
    assert {"geomprobe/entropy/embed", "geomprobe/eval/information_gain/final_norm"} <= set(expected)
    named = {name for name in run.names("geomprobe") if not name.startswith(PICTURE)}
    histograms = {name.rpartition(".")[0] for name in named if "/spectrum_log10/" in name}
    assert len(histograms) == 8  # four of each mode
    assert {name for name in named if "/spectrum_log10/" not in name} == set(expected)
    for step, reading in callback.history:
        for name, values in spectra(reading).items():
            assert run.series(f"{name}._type")[step] == "histogram"
            counts, edges = np.histogram(values, bins=64)
            assert run.series(f"{name}.values")[step] == counts.tolist()
            assert run.series(f"{name}.bins")[step] == pytest.approx(edges.tolist())
            assert run.axes[name] == "train/global_step"
    assert run.series(f"{PICTURE}._type") == {6: "image-file"}
    for name, series in expected.items():
        assert run.series(name) == series
    assert run.series("train/loss") == losses(trained)
    (shared,) = [row for row in run.history if row.get("train/global_step") == 6 and "train/loss" in row]
    assert "geomprobe/entropy/layer_00" in shared

    assert {name: run.axes.get(name) for name in expected} == dict.fromkeys(expected, "train/global_step")
    assert not [glob for glob in run.globs if glob.startswith("geomprobe")]


class Recorded(Trainer):  # type: ignore[misc]
    """Keeps the batches of each step."""

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        self.seen = [*getattr(self, "seen", []), inputs["input_ids"]]
        return super().compute_loss(model, inputs, *arguments, **options)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_readings_are_those_of_plain_pytorch(tmp_path: Path, bf16: bool) -> None:
    callback, by_hand = ProbeCallback(when=1, on_error="raise"), ByHand(bf16=bf16)
    plain = {
        "optim": "sgd",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "dropout": 0.0,
    }
    trained = trainer(tmp_path, callback, kind=Recorded, max_steps=3, bf16=bf16, **plain)
    trained.train()
    # Trainer divides the sum of the losses by the number of tokens: bf16 rounds the second step's weights differently, and
    # earlier versions also count the first token of each text, for which there is no loss.
    for step, reading in callback.history[
        : 1 if bf16 or tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 15) else 3
    ]:
        by_hand.train(trained.seen[ACCUMULATION * (step - 1) : ACCUMULATION * step])
        by_hand.check(reading)


def test_a_measured_step_is_all_its_micro_batches_and_nothing_else(tmp_path: Path) -> None:
    callback = ProbeCallback(when={4}.__contains__)
    trainer(tmp_path, callback, **EVALUATION).train()
    assert steps(callback) == [(3, "eval"), (4, "train"), (6, "eval")]
    tokens = [reading["tokens/final_norm"] for _, reading in callback.history]
    assert tokens == [4 * LENGTH, BATCH * ACCUMULATION * LENGTH, 4 * LENGTH]


def test_by_default_as_many_steps_as_a_budget_allows(tmp_path: Path) -> None:
    """A step of the tiny model takes as long as reading it, so after three steps the next one is far away."""
    callback = ProbeCallback([RepresentationEntropy()], sites=["final_norm"])
    trainer(tmp_path, callback, save_strategy="steps", save_steps=4).train()
    assert steps(callback) == [(1, "train"), (2, "train"), (3, "train")]
    assert callback.history[0][1].sites == ("final_norm",)
    costs = [reading.cost for _, reading in callback.history]
    assert [cost and cost.interval for cost in costs] == [1, 1, 1]
    assert costs[1] is not None
    assert 0 < costs[1].share < 1

    resumed = ProbeCallback([RepresentationEntropy()], sites=["final_norm"], when=budget(0.01, interval=4))
    trainer(tmp_path, resumed, save_strategy="steps", save_steps=4).train()
    assert steps(resumed) == [(4, "train")]
    saved = tmp_path / "trained" / "checkpoint-4"
    resumed = ProbeCallback([RepresentationEntropy()], sites=["final_norm"])
    trainer(tmp_path, resumed).train(resume_from_checkpoint=str(saved))
    assert steps(resumed) == [(4, "train")]  # the interval is that of the checkpoint, not 1


def test_a_budget_that_left_time_for_few_readings_tells_so(tmp_path: Path) -> None:
    callback = ProbeCallback([RepresentationEntropy()], sites=["final_norm"])
    with pytest.warns(RuntimeWarning, match=r"3 of 12 optimizer steps .*: ProbeCallback\(when=1\) measures at least 10"):
        trainer(tmp_path, callback, max_steps=12).train()


def test_evaluations_do_not_count_for_the_budget(tmp_path: Path) -> None:
    slow = [{"input_ids": block, "labels": block} for block in token_batch(60, LENGTH)]
    callback = ProbeCallback([RepresentationEntropy()], sites=["embed"], when=budget(0.99))
    trainer(tmp_path, callback, evaluated=slow, eval_strategy="steps", eval_steps=1).train()
    assert len([step for step, mode in steps(callback) if mode == "eval"]) == 6
    assert callback._steps.schedule.interval <= 4


def test_a_number_means_every_so_many_steps(tmp_path: Path) -> None:
    callback = ProbeCallback([RepresentationEntropy()], sites=["final_norm"], when=3)
    trainer(tmp_path, callback).train()
    assert steps(callback) == [(3, "train"), (6, "train")]
    with pytest.raises(GeomprobeError, match="when=0: expected a whole number of steps"):
        ProbeCallback(when=0)


def test_training_computes_the_same_and_nothing_stays_on_the_model(tmp_path: Path) -> None:
    bare = trainer(tmp_path, logging_steps=1, **EVALUATION)
    bare.train()
    probed = trainer(tmp_path, ProbeCallback(when=every(1)), logging_steps=1, **EVALUATION)
    probed.train()
    assert losses(probed) == losses(bare)
    for name, weight in bare.model.state_dict().items():
        assert torch.equal(probed.model.state_dict()[name], weight), name
    assert list(snapshot(probed.model)) == list(snapshot(bare.model))
    assert not hooks(probed.model)


def apart_from_losses(lines: str) -> list[dict[str, Any]]:
    return [record for line in lines.splitlines() if "sites" in (record := json.loads(line))]


def test_the_file_has_the_losses_that_trainer_logged(tmp_path: Path) -> None:
    trained = trainer(tmp_path, ProbeCallback([RepresentationEntropy()], when=3, on_error="raise"), **EVALUATION)
    trained.train()
    records = StepFile(tmp_path / "trained" / "geomprobe.jsonl").records()
    by_mode: dict[str | None, dict[int, float]] = {}
    for record in records:
        if "loss" in record:
            by_mode.setdefault(record.get("mode"), {})[record["step"]] = record["loss"]
    assert [record["step"] for record in records if record.get("mode") == "train"] == [3, 6]
    assert by_mode[None] == losses(trained)  # at steps 2, 4 and 6
    assert by_mode["eval"] == {one["step"]: one["eval_loss"] for one in trained.state.log_history if "eval_loss" in one}


@pytest.mark.parametrize("odd", [None, "0.7 nats", [0.5], float("nan")])
def test_what_a_trainer_logs_as_its_loss_need_not_be_a_number(tmp_path: Path, odd: Any) -> None:
    class Odd(Trainer):  # type: ignore[misc]
        def log(self, logs: dict[str, Any], *arguments: Any) -> None:
            super().log(logs | {"loss": odd} if "loss" in logs else logs, *arguments)

        def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
            output = super().evaluation_loop(*arguments, **options)
            output.metrics["eval_loss"] = odd
            return output

    trainer(tmp_path, ProbeCallback([RepresentationEntropy()], when=3, on_error="raise"), kind=Odd, **EVALUATION).train()
    records = StepFile(tmp_path / "trained" / "geomprobe.jsonl").records()
    assert [(record["step"], record["mode"]) for record in records] == [(3, "train"), (3, "eval"), (6, "train"), (6, "eval")]
    assert not any("loss" in record for record in records)


def test_a_callback_can_be_pickled_for_spawned_processes(tmp_path: Path) -> None:
    callback = pickle.loads(pickle.dumps(ProbeCallback(when=every(3))))
    trainer(tmp_path, callback).train()
    assert steps(callback) == [(3, "train"), (6, "train")]


def test_a_resumed_training_keeps_the_evaluation_before_the_first_step(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path, ProbeCallback(when=every(3)), eval_on_start=True, **options).train()
    resumed = ProbeCallback(when=every(3))
    trainer(tmp_path, resumed, **options).train(resume_from_checkpoint=str(tmp_path / "trained" / "checkpoint-3"))
    lines = apart_from_losses((tmp_path / "trained" / "geomprobe.jsonl").read_text())
    assert [(line["step"], line["mode"]) for line in lines] == steps(resumed) == [(0, "eval"), (3, "train"), (6, "train")]


def test_a_budget_begins_with_its_interval_after_steps_that_had_no_budget(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path, ProbeCallback(when=every(1)), **options).train()
    resumed = ProbeCallback(when=budget(0.01, interval=64))
    trainer(tmp_path, resumed, **options).train(resume_from_checkpoint=str(tmp_path / "trained" / "checkpoint-3"))
    assert steps(resumed) == [(1, "train"), (2, "train"), (3, "train")]


def test_a_resumed_training_continues_the_series(tmp_path: Path) -> None:
    options = EVALUATION | {"save_strategy": "steps", "save_steps": 3}
    whole, file = ProbeCallback(when=every(1), jsonl=tmp_path / "whole.jsonl"), tmp_path / "resumed.jsonl"
    trainer(tmp_path, whole, **options).train()
    written = (tmp_path / "whole.jsonl").read_text()
    file.write_text(written + '{"step": 6, "sit')  # it went on after the checkpoint, and was killed while it wrote

    resumed = ProbeCallback(when=every(1), jsonl=file)
    trainer(tmp_path, resumed, **options).train(resume_from_checkpoint=str(tmp_path / "trained" / "checkpoint-3"))
    old, new = apart_from_losses(written), apart_from_losses(file.read_text())  # Trainer's mean begins anew when it is resumed
    assert [line | {"cost": None} for line in new] == [line | {"cost": None} for line in old]
    assert new[:3] == old[:3]
    assert steps(resumed) == steps(whole)
    for (_, one), (_, other) in zip(resumed.history, whole.history, strict=True):
        assert dict(one) == dict(other)


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b'{"step": 2}\n'], ids=["missing", "binary", "no reading"])
def test_a_resumed_training_goes_on_without_earlier_readings(tmp_path: Path, content: bytes | None) -> None:
    options = {"save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path, ProbeCallback(when=every(1)), **options).train()
    saved = tmp_path / "trained" / "checkpoint-3" / "geomprobe.jsonl"
    saved.unlink() if content is None else saved.write_bytes(content)
    resumed = ProbeCallback(when=every(1))
    with pytest.warns(UserWarning, match="earlier readings"):
        trainer(tmp_path, resumed, **options).train(resume_from_checkpoint=str(saved.parent))
    assert steps(resumed) == [(4, "train"), (5, "train"), (6, "train")]
    assert resumed.fault is None


def test_checkpoints_that_lie_elsewhere_stop_nothing(tmp_path: Path) -> None:
    """A hyperparameter search has a directory per run."""
    callback = ProbeCallback(when=every(1))
    trained = trainer(tmp_path, callback, save_strategy="steps", save_steps=3)
    trained._get_output_dir = lambda trial=None: str(tmp_path / "run-0")
    trained.train()
    assert callback.fault is None
    assert len(callback.history) == 6


def test_the_same_callback_resumes_its_history(tmp_path: Path) -> None:
    callback = ProbeCallback(when=every(1))
    trained = trainer(tmp_path, callback, save_strategy="steps", save_steps=3)
    trained.train()
    before = [(step, dict(reading)) for step, reading in callback.history]
    trained.train(resume_from_checkpoint=str(tmp_path / "trained" / "checkpoint-3"))
    assert [(step, dict(reading)) for step, reading in callback.history] == before


def test_the_file_holds_whole_readings_and_only_the_latest_keep_curves_in_memory(tmp_path: Path) -> None:
    callback = ProbeCallback(when=every(2), jsonl=tmp_path / "new" / "geometry.jsonl")
    trainer(tmp_path, callback, **EVALUATION).train()
    lines = apart_from_losses((tmp_path / "new" / "geometry.jsonl").read_text())
    read = [(line["step"], Reading.from_dict(line)) for line in lines]
    assert [(step, dict(reading)) for step, reading in read] == [(s, dict(r)) for s, r in callback.history]
    assert all(len(reading.curve("gain", "embed")) == LENGTH for _, reading in read)
    assert [bool(reading.to_dict()["curves"]) for _, reading in callback.history] == [False, False, False, True, True]


class Later(TrainerCallback):  # type: ignore[misc]
    """Asks for an evaluation at step 5, after ProbeCallback was called."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_evaluate = state.global_step == 5


def test_evaluations_that_other_callbacks_ask_for_and_one_before_training(tmp_path: Path) -> None:
    callback = ProbeCallback(when=lambda step: False)
    trainer(tmp_path, callback, Later(), eval_strategy="no", eval_on_start=True).train()
    assert steps(callback) == [(0, "eval"), (5, "eval")]


def test_evaluation_can_be_left_out(tmp_path: Path) -> None:
    callback = ProbeCallback(when=every(6), evaluate=False)
    trainer(tmp_path, callback, eval_on_start=True, **EVALUATION).train()
    assert steps(callback) == [(6, "train")]


def test_evaluation_by_epoch(tmp_path: Path) -> None:
    callback = ProbeCallback(when=lambda step: False)
    trainer(tmp_path, callback, eval_strategy="epoch").train()
    assert steps(callback) == [(6, "eval")]


def test_several_evaluation_sets_are_kept_apart(tmp_path: Path) -> None:
    sets = {name: [{"input_ids": b, "labels": b} for b in token_batch(n, LENGTH)] for name, n in (("one", 2), ("two", 6))}
    callback = ProbeCallback(when=lambda step: False, log="all")
    trainer(tmp_path, callback, evaluated=sets, report_to="wandb", eval_strategy="steps", eval_steps=6).train()
    wandb.finish()
    assert steps(callback) == [(6, "eval_one"), (6, "eval_two")]
    run = read_run(tmp_path)
    assert run.series("geomprobe/eval_one/texts/embed") == {6: 2}
    assert run.series("geomprobe/eval_two/texts/embed") == {6: 6}


class Sampler(TrainerCallback):  # type: ignore[misc]
    """Does what users do between steps: generates with a cache, and predicts."""

    def __init__(self) -> None:
        self.trainer: Any = None

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.config.use_cache = True
        model.generate(token_batch(1, 4), max_new_tokens=3, do_sample=False)
        self.trainer.predict(self.trainer.eval_dataset)


def test_what_others_run_between_steps_is_not_measured(tmp_path: Path) -> None:
    callback, sampler = ProbeCallback(when=every(1), on_error="raise"), Sampler()
    trained = trainer(tmp_path, callback, sampler, **EVALUATION)
    sampler.trainer = trained
    trained.train()
    assert {reading["texts/embed"] for _, reading in callback.history if reading.mode == "eval"} == {4}


def test_values_reach_a_run_of_the_users_own(tmp_path: Path) -> None:
    wandb.init(project="mine")
    trainer(tmp_path, ProbeCallback([RepresentationEntropy()], when=every(2))).train()
    wandb.finish()
    assert list(read_run(tmp_path).series("geomprobe/entropy/layer_00")) == [2, 4, 6]


def test_a_disabled_wandb_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    callback = ProbeCallback(when=every(1))
    trainer(tmp_path, callback, report_to="wandb", **EVALUATION).train()
    wandb.finish()
    assert callback.fault is None
    assert len(callback.history) == 8
    assert "wandb" not in "".join(capfd.readouterr())
    assert not (tmp_path / "wandb").exists()


class Breaks(Metric):
    """Cannot be computed from its third reading on."""

    def __init__(self) -> None:
        self.readings = 0

    @property
    def accumulators(self) -> tuple[Any, ...]:
        return ()

    def scalars(self, states: Any) -> dict[str, float]:
        self.readings += 1
        if self.readings > 2:
            raise ArithmeticError("no more")
        return {"fine": 1.0}


def test_a_fault_in_reading_stops_the_probe_not_the_training(tmp_path: Path) -> None:
    bare = trainer(tmp_path)
    bare.train()
    callback = ProbeCallback([Breaks()], sites=["embed"], when=every(1), jsonl=tmp_path / "geometry.jsonl")
    probed = trainer(tmp_path, callback, report_to="wandb")
    with pytest.warns(
        RuntimeWarning, match="stopped measuring at step 3, and training continues: ArithmeticError: no more"
    ) as caught:
        probed.train()
    wandb.finish()
    assert len([w for w in caught if "geomprobe" in str(w.message)]) == 1
    assert losses(probed) == losses(bare)
    assert steps(callback) == [(1, "train"), (2, "train")]
    assert isinstance(callback.fault, ArithmeticError)
    run = read_run(tmp_path)
    assert run.series("geomprobe/stopped") == {3: 1}
    assert run.series("geomprobe/fine/embed") == {1: 1, 2: 1}
    last = json.loads((tmp_path / "geometry.jsonl").read_text().splitlines()[-1])
    assert last == {"step": 3, "format": 1, "stopped": "ArithmeticError: no more"}
    assert not hooks(probed.model)


def test_a_fault_inside_a_forward_drops_the_unfinished_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contribution, calls = InformationGainSum.contribution, []

    def breaks(self: Any, rows: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:  # both sites of the second measured micro-batch
            raise MemoryError("full")
        return contribution(self, rows)

    monkeypatch.setattr(InformationGainSum, "contribution", breaks)
    callback = ProbeCallback([InformationGain()], sites=["embed", "final_norm"], when=every(1))
    with pytest.warns(RuntimeWarning, match="MemoryError: full") as caught:
        trainer(tmp_path, callback, report_to="wandb").train()
    wandb.finish()
    assert len([w for w in caught if "geomprobe" in str(w.message)]) == 1
    assert callback.history == []
    assert read_run(tmp_path).names("geomprobe") == {"geomprobe/stopped"}


def test_on_error_raise(tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError):
        trainer(tmp_path, ProbeCallback([Breaks()], when=every(1), on_error="raise")).train()
    with pytest.raises(GeomprobeError, match="expected 'warn' or 'raise'"):
        ProbeCallback(on_error="ignore")


class Interrupts(TrainerCallback):  # type: ignore[misc]
    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


def test_after_an_interrupted_training_the_next_one_just_works(tmp_path: Path) -> None:
    interrupted = trainer(tmp_path, ProbeCallback(when=every(1)), Interrupts())
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    again = ProbeCallback(when=every(3))
    retried = trainer(tmp_path, again)
    retried.model = retried.model_wrapped = retried.callback_handler.model = interrupted.model
    assert Probe.on(interrupted.model) is not None
    retried.train()
    assert steps(again) == [(3, "train"), (6, "train")]
    assert Probe.on(interrupted.model) is None


def test_the_end_of_a_callback_frees_its_model() -> None:
    model = tiny()
    callback = ProbeCallback()
    args = _Some(output_dir="trained", eval_on_start=False, logging_strategy="steps", logging_first_step=False)
    callback.on_train_begin(args, _Some(is_world_process_zero=True, global_step=0), None, model=model)
    assert Probe.on(model) is callback.probe is not None
    del callback
    assert Probe.on(model) is None


def test_a_probe_of_yours_on_the_model_is_an_error(tmp_path: Path) -> None:
    trained = trainer(tmp_path, ProbeCallback())
    with Probe(trained.model), pytest.raises(GeomprobeError, match="another probe is already attached"):
        trained.train()


def test_other_processes_measure_but_do_not_write(tmp_path: Path) -> None:
    callback = ProbeCallback(jsonl=tmp_path / "geometry.jsonl")
    model = tiny().train()
    args = _Some(output_dir="trained", eval_on_start=False, logging_strategy="steps", logging_first_step=False, report_to=[])
    state = _Some(is_world_process_zero=False, global_step=0, logging_steps=1)
    control = _Some(should_log=False, should_evaluate=False)
    callback.on_train_begin(args, state, control, model=model)
    callback.on_step_begin(args, state, control)
    model(token_batch())
    state.global_step = 1
    callback.on_step_end(args, state, control)
    assert steps(callback) == [(1, "train")]
    assert not (tmp_path / "geometry.jsonl").exists()


class _Some:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    global_step: int


def test_a_jsonl_of_the_users_own_is_refused_and_kept(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes\n")
    trained = trainer(tmp_path, ProbeCallback(jsonl=notes))
    with pytest.raises(GeomprobeError, match=r"notes.txt, line 1: not JSON.*give another one"):
        trained.train()
    assert notes.read_text() == "my notes\n"
    assert Probe.on(trained.model) is None


def test_the_name_of_an_evaluation_set_is_one_level(tmp_path: Path) -> None:
    blocks = token_batch(4, LENGTH)
    texts = [{"input_ids": block, "labels": block} for block in blocks]
    trainer(tmp_path, ProbeCallback(), evaluated={"my set/ä": texts}, report_to="wandb", **EVALUATION).train()
    wandb.finish()
    names = read_run(tmp_path).names("geomprobe/eval")
    assert "geomprobe/eval_my_set___08b7/entropy/layer_00" in names
    assert {name.count("/") for name in names if not name.endswith(("/tokens", "/cost"))} == {3}
