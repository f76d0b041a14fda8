"""log_reading: the row and the axis of the loop it is in."""

from pathlib import Path
from typing import Any

import pytest
import wandb
from accelerate import Accelerator

from geomprobe import Probe, Reading
from geomprobe.integrations import log_reading
from tests.integrations.wandb_file import read_run
from tests.tiny_models import tiny, token_batch

pytestmark = pytest.mark.slow  # it trains


def test_readings_share_the_rows_of_the_loss(wandb_directory: Path) -> None:
    accelerator = Accelerator(cpu=True, log_with="wandb")
    accelerator.init_trackers("p")
    model = accelerator.prepare(tiny().train())
    readings = {}
    with Probe(model) as probe:
        for step in (10, 20):
            accelerator.log({"loss": model(token_batch(seed=step)).logits.mean().item()}, step=step)
            readings[step] = probe.read("train", reset=True)
            log_reading(readings[step], accelerator, step=step, log="all")
            model.eval()(token_batch())
            log_reading(probe.read("eval", reset=True), accelerator, step=step)
            model.train()
    accelerator.end_training()
    run = read_run(wandb_directory)
    assert [(row["_step"], "loss" in row) for row in run.history] == [(10, True), (20, True)]
    for name in readings[10]:
        assert run.series(f"geomprobe/{name}", "_step") == {step: reading[name] for step, reading in readings.items()}
    assert set(run.series("geomprobe/eval/entropy/final_norm", "_step")) == {10, 20}


def test_without_step_like_a_loop_without_step(wandb_directory: Path) -> None:
    run = wandb.init(project="p")
    for value in (0.25, 0.5):
        log_reading(Reading(mode="train", sites=("embed",), values={"entropy/embed": value}), run)
    run.finish()
    assert read_run(wandb_directory).series("geomprobe/entropy/embed", "_step") == {0: 0.25, 1: 0.5}


def test_any_tracker_gets_finite_numbers() -> None:
    seen: list[tuple[dict[str, Any], int | None]] = []

    class Tracker:
        def log(self, values: dict[str, Any], step: int | None = None) -> None:
            seen.append((values, step))

    values = {"entropy/embed": 0.5, "anisotropy/embed": float("nan"), "stable_rank/embed": float("inf")}
    log_reading(Reading(mode="eval_math", sites=("embed",), values=values), Tracker(), step=3)
    assert seen == [({"geomprobe/eval_math/entropy/embed": 0.5}, 3)]


def test_no_trackers_is_no_error() -> None:
    log_reading(Reading(mode="train", sites=(), values={}), Accelerator(cpu=True), step=1)
