"""log_reading: the row and the axis of the loop it is in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader

from geomprobe import Probe, Reading
from geomprobe.integrations import log_reading
from tests.integrations.by_hand import LEARNING_RATE, ByHand
from tests.integrations.wandb_file import read_run
from tests.tiny_models import tiny, token_batch

pytestmark = pytest.mark.slow  # it trains


TRAINING, VALIDATION = token_batch(8), token_batch(4, seed=1)
Read = Callable[[str], None]


def with_accelerate(model: Any, bf16: bool, read: Read) -> list[float]:
    AcceleratorState._reset_state(reset_partial_state=True)  # there is one in a process
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if bf16 else "no", gradient_accumulation_steps=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    model, optimizer, training = accelerator.prepare(model, optimizer, DataLoader(list(TRAINING), batch_size=2))  # type: ignore[arg-type]
    losses = []
    for batch in training:
        with accelerator.accumulate(model):
            loss = model(input_ids=batch, labels=batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if accelerator.sync_gradients:
            read("train")
    model.eval()
    with torch.no_grad():
        model(input_ids=VALIDATION)
    read("eval")
    AcceleratorState._reset_state(reset_partial_state=True)
    return losses


def with_fabric(model: Any, bf16: bool, read: Read) -> list[float]:
    fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", precision="bf16-mixed" if bf16 else "32-true")
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=LEARNING_RATE))
    losses = []
    for number, batch in enumerate(fabric.setup_dataloaders(DataLoader(list(TRAINING), batch_size=2)), start=1):  # type: ignore[arg-type]
        with fabric.no_backward_sync(model, enabled=number % 2 != 0):
            loss = model(input_ids=batch, labels=batch).loss
            fabric.backward(loss / 2)
        losses.append(loss.item())
        if number % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()
            read("train")
    model.eval()
    with torch.no_grad():
        model(input_ids=VALIDATION)
    read("eval")
    return losses


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("loop", [with_accelerate, with_fabric])
def test_readings_of_a_loop_are_those_of_plain_pytorch(loop: Any, bf16: bool) -> None:
    readings: list[Reading] = []
    with Probe(model := tiny().train(), on_error="raise") as probe:
        losses = loop(model, bf16, lambda mode: readings.append(probe.read(mode, reset=True)))
    assert losses == loop(tiny().train(), bf16, lambda mode: None)
    by_hand, batches = ByHand(bf16=bf16), torch.split(TRAINING, 2)
    for step, reading in enumerate(readings[:2]):
        by_hand.train(list(batches[2 * step : 2 * step + 2]))
        by_hand.check(reading)
    by_hand.validate(VALIDATION)
    by_hand.check(readings[2])
    assert losses == by_hand.losses


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
