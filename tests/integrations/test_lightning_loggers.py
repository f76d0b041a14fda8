"""What LightningCallback writes: the loss in the file, and a logger that raises is dropped."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import lightning
from lightning.pytorch.loggers.csv_logs import CSVLogger

from geomprobe import RepresentationEntropy
from geomprobe.files import StepFile
from geomprobe.integrations import LightningCallback
from tests.integrations.test_lightning import Module, fit, rows

pytestmark = pytest.mark.slow  # it trains


class Offline(CSVLogger):  # type: ignore[misc]
    """A logger that has no network for what the probe measures."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if "geomprobe/tokens" in metrics:
            raise ConnectionError("no route to host")
        super().log_metrics(metrics, step)


class Loggers(lightning.Callback):  # type: ignore[misc]
    """Gives a Trainer its loggers."""

    def __init__(self, *loggers: Any) -> None:
        self.loggers = list(loggers)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        trainer.loggers = self.loggers


def callback(**options: Any) -> LightningCallback:
    return LightningCallback([RepresentationEntropy()], when=1, **options)


def test_a_logger_that_raises_is_dropped_and_the_others_go_on(tmp_path: Path) -> None:
    bare, module = Module(), Module()
    fit(tmp_path / "bare", bare)
    loggers = [Offline(str(tmp_path / "offline")), CSVLogger(str(tmp_path / "fine"))]
    with pytest.warns(RuntimeWarning) as caught:
        fit(tmp_path / "mine", module, Loggers(*loggers), callback())
    (said,) = [str(w.message) for w in caught if str(w.message).startswith("geomprobe")]
    assert said == (
        "geomprobe: no more readings are logged to Offline, and training continues: ConnectionError: no route to host"
    )
    assert module.losses == bare.losses
    for logger in loggers:
        logger.save()
    assert [row["step"] for row in rows(loggers[1]) if row["geomprobe/tokens"]] == ["0", "1", "2", "3"]
    records = StepFile(Path(loggers[0].log_dir) / "geomprobe.jsonl").records()
    assert [record["step"] for record in records if record["mode"] == "train"] == [1, 2, 3, 4]
    with pytest.raises(ConnectionError):
        fit(tmp_path / "mine", Module(), Loggers(*loggers), callback(on_error="raise"))


@pytest.mark.parametrize("accumulated", [2, 3])
def test_the_file_has_the_loss_of_each_step(tmp_path: Path, accumulated: int) -> None:
    module = Module()
    logger = fit(tmp_path, module, callback(on_error="raise"), accumulate_grad_batches=accumulated, max_steps=3)
    records = StepFile(Path(logger.log_dir) / "geomprobe.jsonl").records()
    batches = [module.losses[i : i + accumulated] for i in range(0, 8, accumulated)]  # eight in an epoch
    assert [record["loss"] for record in records if record["mode"] == "train"] == pytest.approx(
        [sum(batch) / len(batch) for batch in batches[:3]]
    )
    assert all("loss" not in record for record in records if record["mode"] == "eval")
