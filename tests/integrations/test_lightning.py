"""LightningCallback: whole optimizer steps, validation apart, beside the loss, and training untouched."""

import csv
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

pytest.importorskip("lightning")

import lightning
from lightning.pytorch.loggers.csv_logs import CSVLogger

from geomprobe import Decoder, GeomprobeError, Reading, RepresentationEntropy
from geomprobe.files import StepFile
from geomprobe.integrations import LightningCallback, flat
from geomprobe.integrations.records import interval_of
from tests.capture.test_own_decoder import GPT
from tests.integrations.by_hand import LEARNING_RATE, ByHand
from tests.recording.test_all_reduce import RANKS, torchrun
from tests.tiny_models import hooks, tiny, token_batch

pytestmark = pytest.mark.slow  # it trains

BATCH, LENGTH = 2, 12
TRAINING, VALIDATION = token_batch(16, LENGTH), token_batch(6, LENGTH, seed=1)


class Module(lightning.LightningModule):  # type: ignore[misc]
    """A model of Transformers. With dropout, every draw of random numbers counts."""

    def __init__(self, *, train: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.model = tiny(attention_dropout=dropout).train(train)
        self.batches: list[Tensor] = []
        self.losses: list[float] = []

    def loss(self, batch: Any) -> Any:
        return self.model(input_ids=batch, labels=batch).loss

    def training_step(self, batch: Any, index: int) -> Any:
        loss = self.loss(batch)
        self.batches.append(batch)
        self.losses.append(loss.item())
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE)


def fit(folder: Path, module: Module, *callbacks: Any, **options: Any) -> CSVLogger:
    """Four steps of two batches, and a validation after every second one."""
    torch.manual_seed(0)
    logger = CSVLogger(str(folder))
    settings: dict[str, Any] = {"max_steps": 4, "accumulate_grad_batches": 2, "log_every_n_steps": 2, "val_check_interval": 4}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(logger=logger, callbacks=list(callbacks), **(settings | quiet | options))
    trainer.fit(module, DataLoader(list(TRAINING), batch_size=BATCH), DataLoader(list(VALIDATION), batch_size=BATCH))  # type: ignore[arg-type]
    return logger


def rows(logger: CSVLogger) -> list[dict[str, str]]:
    return read_csv(Path(logger.log_dir) / "metrics.csv")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def records(logger: CSVLogger) -> list[dict[str, Any]]:
    return list(StepFile(Path(logger.log_dir) / "geomprobe.jsonl").records())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_readings_are_those_of_plain_pytorch(tmp_path: Path, precision: Any) -> None:
    module, by_hand = Module(), ByHand(bf16=precision == "bf16-mixed")
    logger = fit(tmp_path, module, LightningCallback(when=2, on_error="raise"), precision=precision)
    found, batches = records(logger), list(torch.split(TRAINING, BATCH))
    assert [(record["step"], record["mode"]) for record in found] == [(2, "train"), (2, "eval"), (4, "train"), (4, "eval")]
    for half in (0, 1):
        by_hand.train(batches[4 * half : 4 * half + 2], batches[4 * half + 2 : 4 * half + 4])
        by_hand.check(Reading.from_dict(found[2 * half]))
        by_hand.validate(*torch.split(VALIDATION, BATCH))
        by_hand.check(Reading.from_dict(found[2 * half + 1]))
    assert module.losses == by_hand.losses


def test_the_numbers_stand_in_the_logger_at_the_step_of_the_loss(tmp_path: Path) -> None:
    logger = fit(tmp_path, Module(), LightningCallback(when=2, on_error="raise"))
    for record in records(logger):
        numbers = flat(Reading.from_dict(record), "overview")
        (row,) = [row for row in rows(logger) if row["step"] == str(record["step"] - 1) and row[next(iter(numbers))]]
        assert {name: float(row[name]) for name in numbers} == pytest.approx(numbers)
        assert float(row["geomprobe/cost" if record["mode"] == "train" else "geomprobe/eval/cost"]) == record["cost"]["share"]
    steps = [{row["step"] for row in rows(logger) if row[name]} for name in ("loss", "geomprobe/tokens")]
    assert steps == [{"1", "3"}, {"1", "3"}]


def same_training(folder: Path, dropout: float, **options: Any) -> Module:
    """Train without and with a callback, to the bit the same."""
    bare, probed = Module(dropout=dropout), Module(dropout=dropout)
    fit(folder / "bare", bare, **options)
    fit(folder, probed, LightningCallback(when=1, on_error="raise"), **options)
    assert probed.losses == bare.losses
    assert all(torch.equal(weight, probed.state_dict()[name]) for name, weight in bare.state_dict().items())
    assert not hooks(probed)
    return probed


def test_training_stays_the_same(tmp_path: Path) -> None:
    same_training(tmp_path, dropout=0.1)


def on_two_ranks(folder: str) -> None:
    module = same_training(Path(folder), dropout=0.0, strategy="ddp", devices=2, max_steps=2)
    torch.save(module.batches, Path(folder) / f"{os.environ['RANK']}.pt")


def test_on_two_ranks_one_reading_has_the_texts_of_both(tmp_path: Path) -> None:
    torchrun("tests.integrations.test_lightning", str(tmp_path))
    (file,), (table,) = tmp_path.rglob("geomprobe.jsonl"), (tmp_path / "lightning_logs").rglob("metrics.csv")
    found = StepFile(file).records()
    assert [(record["step"], record["mode"]) for record in found] == [(1, "train"), (2, "train"), (2, "eval")]
    batches = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    by_hand = ByHand(bf16=False)
    for step in (0, 1):
        by_hand.train([batch for mine in batches for batch in mine[2 * step : 2 * step + 2]])
        by_hand.check(Reading.from_dict(found[step]))
    by_hand.validate(VALIDATION)
    by_hand.check(Reading.from_dict(found[2]))
    assert [row["step"] for row in read_csv(table) if row["geomprobe/tokens"]] == ["0", "1"]


class Own(Module):
    """A model that Transformers does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.model = GPT()

    def loss(self, batch: Any) -> Any:
        return self.model(batch, batch)[1]


class Skips(Module):
    """Leaves out the third batch, as one does whose loss is not finite."""

    def training_step(self, batch: Any, index: int) -> Any:
        return None if index == 2 else super().training_step(batch, index)


@pytest.mark.parametrize(("batches", "known"), [(1, {1: [0], 2: [1], 4: [2]}), (2, {1: [0, 1], 2: [2], 3: [3, 4], 4: [5, 6]})])
def test_a_batch_without_a_loss_is_left_out(tmp_path: Path, batches: int, known: dict[int, list[int]]) -> None:
    module = Skips()
    logger = fit(tmp_path, module, LightningCallback(when=1, on_error="raise"), accumulate_grad_batches=batches)
    found = {record["step"]: record["loss"] for record in records(logger) if "loss" in record}
    assert found == pytest.approx({step: sum(module.losses[i] for i in own) / len(own) for step, own in known.items()})


def test_a_model_of_ones_own_is_named_by_the_line_of_the_error(tmp_path: Path) -> None:
    with pytest.raises(GeomprobeError) as caught:
        fit(tmp_path / "unnamed", Own(), LightningCallback(when=1))
    line = re.search(r"decoder=(Decoder\(base.*)\)$", str(caught.value))
    assert line is not None
    bare, module = Own(), Own()
    fit(tmp_path / "bare", bare)
    callback = LightningCallback(when=1, decoder=eval(f"lambda model: {line[1]}", {"Decoder": Decoder}), on_error="raise")
    readings = [Reading.from_dict(record) for record in records(fit(tmp_path, module, callback))]
    assert module.losses == bare.losses
    assert [reading["tokens/final_norm"] for reading in readings] == [48, 48, 72, 48, 48, 72]


def test_a_model_in_evaluation_mode_is_told(tmp_path: Path) -> None:
    callback = LightningCallback([RepresentationEntropy()], when=1, on_error="raise")
    with pytest.warns(RuntimeWarning, match=r"nothing was measured in step 1, .* call model.train\(\) after from_pretrained"):
        fit(tmp_path, Module(train=False), callback, max_steps=1)


def broken(step: int) -> bool:
    return 1 / (step - 3) < 0


def test_a_schedule_that_raises_ends_the_measurement_alone(tmp_path: Path) -> None:
    module = Module()
    with pytest.warns(RuntimeWarning, match="measuring ended at step 3, and training continues: ZeroDivisionError"):
        logger = fit(tmp_path, module, LightningCallback(when=broken))
    assert [(record["step"], record["mode"]) for record in records(logger)] == [(1, "train"), (2, "train"), (2, "eval")]
    assert len(module.losses) == 8
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path / "raises", Module(), LightningCallback(when=broken, on_error="raise"))


@pytest.mark.parametrize("cost", [0.5, {"seconds": 1.0, "share": 0.1}, {"seconds": 1.0, "share": 0.1, "interval": "4"}])
def test_an_interval_is_read_from_a_cost_alone(cost: Any) -> None:
    with pytest.raises(GeomprobeError, match="this is not the cost of a reading"):
        interval_of([{"step": 1, "mode": "train", "cost": cost}])


class Stops(lightning.Callback):  # type: ignore[misc]
    def on_train_batch_end(self, *arguments: Any) -> None:
        raise ArithmeticError


def test_an_exception_leaves_no_hooks(tmp_path: Path) -> None:
    module = Module()
    with pytest.raises(ArithmeticError):
        fit(tmp_path, module, LightningCallback(when=1), Stops())
    assert not hooks(module.model)


if __name__ == "__main__":
    on_two_ranks(*sys.argv[1:])
