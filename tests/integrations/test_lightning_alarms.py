"""Alarms under Lightning: the same as under Trainer, and saved in Lightning's checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("lightning")

import lightning

from geomprobe import GeomprobeError, ResidualGrowth, Rule
from geomprobe.files import StepFile
from geomprobe.integrations import LightningCallback
from tests.tiny_models import hooks, tiny, token_batch

pytestmark = pytest.mark.slow  # it trains

LENGTH = 12
DATA = [{"input_ids": block, "labels": block} for block in token_batch(48, LENGTH)]
TEXTS = {"input_ids": token_batch(3, LENGTH, seed=5)}
RULES = [
    Rule(signal="loss", direction="up", difference=0.5, window=4),
    Rule(signal="gradient_norm", direction="up", ratio=100.0, window=4),
    Rule(signal="residual_growth", direction="up", difference=0.05, window=4),
    Rule(signal="repeated_batch", direction="up", difference=0.5, window=4),
]


class Module(lightning.LightningModule):  # type: ignore[misc]
    """A model whose layers are changed after step 14. With dropout, every draw of random numbers counts."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny(attention_dropout=0.1).train()
        self.losses: list[float] = []

    def training_step(self, batch: Any, index: int) -> Any:
        if self.trainer.global_step == 14:
            with torch.no_grad():
                for layer in self.model.model.layers:
                    layer.mlp.down_proj.weight.mul_(30)
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.model.parameters(), lr=1e-3)


def fit(folder: Path, *callbacks: Any, resume: Path | None = None, steps: int = 24) -> Any:
    torch.manual_seed(0)
    module = Module()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(
        max_steps=steps, default_root_dir=folder, logger=False, callbacks=list(callbacks), log_every_n_steps=1, **quiet
    )
    trainer.fit(module, DataLoader(DATA, batch_size=2), ckpt_path=resume)  # type: ignore[arg-type]
    return trainer


def watching(**options: Any) -> LightningCallback:
    settings: dict[str, Any] = {"alarms": RULES, "texts": TEXTS, "alarms_when": 2, "texts_when": 4, "on_error": "raise"}
    return LightningCallback([ResidualGrowth()], **(settings | options))


def rings(callback: LightningCallback) -> list[tuple[int, str, str]]:
    return [(alarm.step, alarm.name, alarm.mode) for alarm in callback.alarms]


def test_a_fault_rings_and_the_training_stays_the_same(tmp_path: Path) -> None:
    bare = fit(tmp_path / "bare").lightning_module
    callback = watching()
    probed = fit(tmp_path, callback).lightning_module
    assert probed.losses == bare.losses
    assert not hooks(probed)
    assert rings(callback)[0] == (18, "residual_growth_up", "train")
    assert callback.alarms[0].moved == ("train", "fixed")
    records = StepFile(tmp_path / "geomprobe.jsonl").records()
    assert [record["alarm"] for record in records if "alarm" in record] == [alarm.to_dict() for alarm in callback.alarms]
    fixed = [record for record in records if record.get("mode") == "fixed"]
    assert [record["step"] for record in fixed] == [4, 8, 12, 16, 18, 20, 24]
    assert all(0 < record["loss"] < 10 for record in fixed)
    assert callback._alarms is not None
    assert callback._alarms.monitor.without_data == ()


def test_a_resumed_training_rings_as_one_that_never_stopped(tmp_path: Path) -> None:
    whole, first, resumed = watching(), watching(), watching()
    fit(tmp_path / "whole", whole)
    fit(tmp_path / "parts", first, steps=16).save_checkpoint(tmp_path / "at-16.ckpt")
    fit(tmp_path / "parts", resumed, resume=tmp_path / "at-16.ckpt")
    assert whole.alarms
    repeated = [ring for ring in rings(resumed) if ring[1] == "repeated_batch_up"]
    assert [ring for ring in rings(resumed) if ring not in repeated] == rings(whole)
    assert repeated  # as Lightning warns, a plain loader begins anew after a resume, which an alarm tells


def test_save_and_stop(tmp_path: Path) -> None:
    callback = watching(on_alarm=("save", "stop"))
    trainer = fit(tmp_path, callback)
    assert trainer.global_step == callback.alarms[0].step < 24
    saved = torch.load(tmp_path / f"geomprobe-alarm-step{trainer.global_step}.ckpt", weights_only=False)
    assert saved["global_step"] == trainer.global_step


def test_texts_need_to_be_tensors(tmp_path: Path) -> None:
    with pytest.raises(GeomprobeError, match="there is no tokenizer"):
        fit(tmp_path, watching(texts=["a text"]), steps=1)
