"""LightningCallback: whole optimizer steps, validation apart, beside the loss, and training untouched."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("lightning")

import lightning
from lightning.pytorch.loggers.csv_logs import CSVLogger

from geomprobe import Probe, Reading, RepresentationEntropy
from geomprobe.files import StepFile
from geomprobe.integrations import LightningCallback, flat
from tests.tiny_models import hooks, tiny, token_batch

pytestmark = pytest.mark.slow  # it trains

BATCH, LENGTH = 2, 12


class Module(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self, *, train: bool = True) -> None:
        super().__init__()
        self.model = tiny().train(train)
        self.losses: list[float] = []

    def loss(self, batch: Any) -> Any:
        return self.model(input_ids=batch, labels=batch).loss

    def training_step(self, batch: Any, index: int) -> Any:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.model.parameters(), lr=0.0)


def fit(folder: Path, module: Module, *callbacks: Any, **options: Any) -> CSVLogger:
    logger = CSVLogger(str(folder))
    settings: dict[str, Any] = {"max_steps": 4, "accumulate_grad_batches": 2, "log_every_n_steps": 2, "val_check_interval": 4}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(logger=logger, callbacks=list(callbacks), **(settings | quiet | options))
    training, validation = list(token_batch(16, LENGTH)), list(token_batch(6, LENGTH, seed=1))
    trainer.fit(module, DataLoader(training, batch_size=BATCH), DataLoader(validation, batch_size=BATCH))  # type: ignore[arg-type]
    return logger


def rows(logger: CSVLogger) -> list[dict[str, str]]:
    with (Path(logger.log_dir) / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_readings_are_those_of_whole_steps_and_of_validations(tmp_path: Path, precision: Any) -> None:
    bare, module = Module(), Module()
    fit(tmp_path / "bare", bare, precision=precision)
    logger = fit(tmp_path, module, LightningCallback(when=2, on_error="raise"), precision=precision)
    assert module.losses == bare.losses
    assert not hooks(module.model)
    records = StepFile(Path(logger.log_dir) / "geomprobe.jsonl").records()
    assert [(record["step"], record["mode"]) for record in records] == [(2, "train"), (2, "eval"), (4, "train"), (4, "eval")]
    texts: dict[str, Any] = {
        "train": token_batch(16, LENGTH)[4:8],
        "eval": token_batch(6, LENGTH, seed=1),
    }  # the second step, of two batches
    for record in records[:2]:
        reading = Reading.from_dict(record)
        module.model.train(record["mode"] == "train")
        with (
            Probe(module.model, on_error="raise") as probe,
            torch.set_grad_enabled(record["mode"] == "train"),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"),
        ):
            for batch in texts[record["mode"]].split(BATCH):
                module.model(input_ids=batch)
        alone = probe.read()
        assert {name: reading[name] for name in reading} == pytest.approx({n: alone[n] for n in alone}, rel=1e-6, abs=1e-9)
        (row,) = [row for row in rows(logger) if row[next(iter(flat(reading, "overview")))]][:1]
        assert int(row["step"]) == record["step"] - 1
        assert 0 < float(row["geomprobe/cost" if record["mode"] == "train" else "geomprobe/eval/cost"]) < 1
        for name, value in flat(reading, "overview").items():
            assert float(row[name]) == pytest.approx(value)
    assert [row["step"] for row in rows(logger) if row["loss"]] == [
        row["step"] for row in rows(logger) if row["geomprobe/tokens"]
    ]


def test_a_model_in_evaluation_mode_is_told(tmp_path: Path) -> None:
    callback = LightningCallback([RepresentationEntropy()], when=1, on_error="raise")
    with pytest.warns(RuntimeWarning, match=r"nothing was measured in step 1, .* call model.train\(\) after from_pretrained"):
        fit(tmp_path, Module(train=False), callback, max_steps=1)


class Stops(lightning.Callback):  # type: ignore[misc]
    def on_train_batch_end(self, *arguments: Any) -> None:
        raise ArithmeticError


def test_an_exception_leaves_no_hooks(tmp_path: Path) -> None:
    module = Module()
    with pytest.raises(ArithmeticError):
        fit(tmp_path, module, LightningCallback(when=1), Stops())
    assert not hooks(module.model)
