"""Alarms of a Trainer: they ring, are told everywhere, do what is asked, and leave the training as it is."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from transformers import TrainerCallback

from geomprobe import Alarm, GeomprobeError, Monitor, Probe, ResidualGrowth, Rule, budget
from geomprobe.files import StepFile
from geomprobe.integrations import ProbeCallback
from tests.integrations.training import LENGTH, losses, trainer
from tests.integrations.wandb_file import read_run
from tests.recording.test_all_reduce import RANKS, torchrun
from tests.tiny_models import hooks, token_batch

pytestmark = pytest.mark.slow  # it trains

TEXTS = {"input_ids": token_batch(3, LENGTH, seed=5)}
RULES = [
    Rule(signal="loss", direction="up", difference=0.3, window=4, hits=2),
    Rule(signal="residual_growth", direction="up", difference=0.05, window=4, hits=2),
    Rule(signal="gradient_norm", direction="up", ratio=50.0, window=4, hits=2),
    Rule(signal="repeated_batch", direction="up", difference=0.5, window=4, hits=1),
    Rule(signal="token_entropy", direction="down", ratio=1.3, window=4, hits=1),
]


class Fault(TrainerCallback):  # type: ignore[misc]
    """Multiplies a weight at a step, after which the loss is larger and layers lengthen their rows."""

    def __init__(self, step: int = 14) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                for layer in model.model.layers:
                    layer.mlp.down_proj.weight *= 30


def watching(**options: Any) -> ProbeCallback:
    settings: dict[str, Any] = {"alarms": RULES, "texts": TEXTS, "alarms_when": 2, "texts_when": 4, "on_error": "raise"}
    return ProbeCallback([ResidualGrowth()], **(settings | options))


def rings(callback: ProbeCallback) -> list[tuple[int, str, str]]:
    return [(alarm.step, alarm.name, alarm.mode) for alarm in callback.alarms]


def train(directory: Path, *callbacks: Any, resume: Any = None, **options: Any) -> Any:
    trained = trainer(directory, *callbacks, **({"max_steps": 24, "learning_rate": 1e-3, "logging_steps": 1} | options))
    trained.train(resume_from_checkpoint=resume)
    return trained


def test_a_fault_rings_everywhere_and_the_training_stays_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare = train(tmp_path / "bare", Fault())
    told: list[Alarm] = []
    callback = watching(on_alarm=told.append)
    with caplog.at_level(logging.WARNING, logger="geomprobe"):
        trained = train(tmp_path, Fault(), callback, report_to="wandb")
    wandb.finish()
    assert losses(trained) == losses(bare)
    assert all(torch.equal(a, b) for a, b in zip(trained.model.parameters(), bare.model.parameters(), strict=True))
    assert not hooks(trained.model)

    assert rings(callback) == [(18, "residual_growth_up", "train"), (20, "residual_growth_up", "fixed")]
    assert told == callback.alarms
    assert [alarm.moved for alarm in told] == [("train", "fixed"), ("fixed", "train")]
    said = [record.getMessage() for record in caplog.records if record.name == "geomprobe.integrations.alarms"]
    assert said == [f"geomprobe: an alarm rings. {alarm}" for alarm in told]
    lines = [line["alarm"] for line in StepFile(tmp_path / "trained" / "geomprobe.jsonl").records() if "alarm" in line]
    assert [Alarm.from_dict(line) for line in lines] == told
    run = read_run(tmp_path)
    series = run.series("geomprobe/alarm/residual_growth_up")
    assert min(series) == 18
    assert series[18] == 1


def test_the_numbers_of_a_step_are_those_of_the_trainer(tmp_path: Path) -> None:
    seen: dict[int, dict[str, float]] = {}

    class Keeps(Monitor):
        def update(self, step: int, reading: Any = None, *, mode: Any = None, **numbers: Any) -> list[Alarm]:
            if mode == "train":
                seen[step] = dict(numbers["numbers"])
            return super().update(step, reading, mode=mode, **numbers)

    trained = train(tmp_path, watching(alarms=Keeps(RULES)), max_steps=6)
    log = {entry["step"]: entry for entry in trained.state.log_history if "loss" in entry}
    assert sorted(seen) == [2, 4, 6]
    for step, numbers in seen.items():
        assert numbers["loss"] == pytest.approx(log[step]["loss"], abs=1e-4)  # which Trainer rounds
        assert numbers["gradient_norm"] == pytest.approx(log[step]["grad_norm"], rel=1e-6)
        assert numbers["repeated_batch"] == 0.0
        assert 0 < numbers["token_entropy"] < 4


def test_a_resumed_training_rings_as_one_that_never_stopped(tmp_path: Path) -> None:
    whole = watching()
    train(tmp_path / "whole", Fault(), whole)
    first = watching()
    saving = {"save_strategy": "steps", "save_steps": 16}
    train(tmp_path / "parts", Fault(), first, **saving)
    resumed = watching()
    train(tmp_path / "parts", Fault(), resumed, resume=str(tmp_path / "parts" / "trained" / "checkpoint-16"), **saving)
    assert whole.alarms
    assert max(step for step, *_ in rings(whole)) > 16
    assert resumed.alarms == whole.alarms
    lines = [line for line in StepFile(tmp_path / "parts" / "trained" / "geomprobe.jsonl").records() if "alarm" in line]
    assert [line["step"] for line in lines] == [alarm.step for alarm in whole.alarms]
    assert resumed.monitor is not None
    assert whole.monitor is not None
    assert resumed.monitor.state_dict() == whole.monitor.state_dict()


def test_without_a_saved_state_alarms_begin_anew_and_say_so(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4, "max_steps": 6}
    train(tmp_path, ProbeCallback([ResidualGrowth()], when=2), **saving)
    checkpoint = tmp_path / "trained" / "checkpoint-4"
    assert not (checkpoint / "geomprobe-alarms.json").exists()
    with pytest.warns(
        RuntimeWarning, match="the alarms start again, .*geomprobe-alarms.json does not exist: this checkpoint was"
    ):
        train(tmp_path, watching(on_error="warn"), resume=str(checkpoint), **saving)


def test_save_and_stop(tmp_path: Path) -> None:
    callback = watching(on_alarm=["save", "stop"])
    trained = train(tmp_path, Fault(), callback)
    step = callback.alarms[0].step
    assert trained.state.global_step == step < 24
    state = json.loads((tmp_path / "trained" / f"checkpoint-{step}" / "geomprobe-alarms.json").read_text())
    assert [alarm["name"] for alarm in state["alarms"]] == [alarm.name for alarm in callback.alarms]


def fails(alarm: Alarm) -> None:
    raise ValueError("no connection")


def test_a_function_that_raises_does_not_end_the_training(tmp_path: Path) -> None:
    callback = watching(on_alarm=fails, on_error="warn")
    with pytest.warns(RuntimeWarning, match="on_alarm=.*ValueError: no connection"):
        trained = train(tmp_path, Fault(), callback)
    assert trained.state.global_step == 24
    with pytest.raises(ValueError, match="no connection"):
        train(tmp_path / "strict", Fault(), watching(on_alarm=fails))


def test_fixed_texts_have_readings_and_a_loss_of_their_own(tmp_path: Path) -> None:
    callback = watching()
    trained = train(tmp_path, callback, max_steps=4, learning_rate=0.0)
    (line,) = [one for one in StepFile(tmp_path / "trained" / "geomprobe.jsonl").records() if one.get("mode") == "fixed"]
    model = trained.model.eval()
    with Probe(model, [ResidualGrowth()]) as probe, torch.no_grad():
        loss = model(**TEXTS, labels=TEXTS["input_ids"]).loss
    assert line["step"] == 4
    assert line["loss"] == pytest.approx(float(loss), rel=1e-5)
    fixed = next(reading for _, reading in callback.history if reading.mode == "fixed")
    assert dict(fixed) == pytest.approx(dict(probe.read("eval")), nan_ok=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alarms_when": budget(0.01)}, "alarms_when=budget.*a budget depends on timing"),
        ({"alarms": False}, "are about alarms: give alarms=True"),
        ({"on_alarm": "ring"}, "on_alarm='ring': expected 'log', 'save'"),
        ({"texts": "one text"}, "texts='one text': expected a list of texts"),
        ({"texts": {"ids": [1]}}, "expected a list of texts, or the tensors"),
        ({"alarms": ["loss"]}, "expected a list of Rule"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(GeomprobeError, match=said):
        watching(**options)


def test_texts_that_do_not_fit_are_named_when_training_starts(tmp_path: Path) -> None:
    for texts, said in ((["a text"], "there is no tokenizer"), ({"input_ids": token_batch(1, 300)}, "has 300 tokens")):
        with pytest.raises(GeomprobeError, match=said):
            train(tmp_path, watching(texts=texts))


def test_the_default_metrics_are_those_of_the_default_rules(tmp_path: Path) -> None:
    callback = ProbeCallback(alarms=True, alarms_when=2, on_error="raise")
    train(tmp_path, callback, max_steps=4)
    assert callback.monitor is not None
    assert callback.monitor.without_data == ("router_load_entropy_down",)  # which this model does not have


class Breaks(TrainerCallback):  # type: ignore[misc]
    """Makes the loss NaN from the fifth step on."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 4:
            with torch.no_grad():
                model.lm_head.weight.fill_(float("nan"))


def test_a_loss_that_is_nan_rings_and_the_file_goes_on(tmp_path: Path) -> None:
    callback = watching(alarms=[Rule(signal="loss", direction="up", difference=0.3, window=2, hits=1)])
    train(tmp_path, Breaks(), callback, max_steps=8)
    assert rings(callback) == [(6, "loss_up", "train"), (6, "loss_up", "fixed")]
    lines = StepFile(tmp_path / "trained" / "geomprobe.jsonl").records()
    assert [(line["step"], "loss" in line) for line in lines if line.get("mode") == "fixed"] == [
        (4, True),
        (6, False),
        (8, False),
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alarms_when": 5}, "no alarm could ring: alarms_when= selected none of the steps$"),
        ({"warmup_steps": 2}, "no alarm could ring: alarms_when= selected none of the steps after step 4"),
        ({}, "too few numbers to compare: 2 steps were read for them, and a rule needs 4 before"),
    ],
)
def test_a_training_too_short_to_ring_says_so(tmp_path: Path, options: dict[str, int], said: str) -> None:
    options = {"alarms_when": 2} | options
    callback = watching(when=1, texts=None, texts_when=None, alarms_when=options.pop("alarms_when"))
    with pytest.warns(RuntimeWarning, match=said):
        train(tmp_path, callback, max_steps=4, **options)


def on_two_ranks(folder: str) -> None:
    rank = os.environ["RANK"]
    callback = watching()
    train(Path(folder), Fault(), callback, seed=3)
    fixed = [reading["tokens/final_norm"] for _, reading in callback.history if reading.mode == "fixed"]
    found = {"alarms": [alarm.to_dict() for alarm in callback.alarms], "tokens": fixed}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))


def test_two_ranks_ring_together(tmp_path: Path) -> None:
    torchrun("tests.integrations.test_alarms", str(tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS))
    assert first == second
    assert "residual_growth_up" in {alarm["name"] for alarm in first["alarms"]}
    assert set(first["tokens"]) == {TEXTS["input_ids"].numel()}  # counted once
    lines = [line["alarm"] for line in StepFile(tmp_path / "trained" / "geomprobe.jsonl").records() if "alarm" in line]
    assert lines == first["alarms"]


if __name__ == "__main__":
    on_two_ranks(*sys.argv[1:])
