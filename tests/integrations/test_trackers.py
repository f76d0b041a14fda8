"""Every tracker is read back: its file or database holds the numbers of the readings at the steps of the loss."""

import json
import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from accelerate import Accelerator
from transformers import TrainerCallback

from geomprobe import GeomprobeError, Probe, Reading, RepresentationEntropy
from geomprobe.files import StepFile
from geomprobe.integrations import ProbeCallback, flat, log_reading
from geomprobe.integrations.histograms import spectra
from geomprobe.integrations.picture import PICTURE
from geomprobe.integrations.records import reading_of
from geomprobe.report.training_file import Training
from geomprobe.report.training_page import training_page
from tests.integrations.training import losses, trainer
from tests.integrations.wandb_file import read_run
from tests.tiny_models import hooks, tiny, token_batch

ROOT = Path(__file__).resolve().parents[2]
EVALUATION = {"eval_strategy": "steps", "eval_steps": 3}

Series = dict[str, dict[int, float]]


def expected(callback: ProbeCallback) -> Series:
    """The numbers of an overview by name and step."""
    series: Series = {}
    for step, reading in callback.history:
        for name, value in flat(reading, "overview").items():
            series.setdefault(name, {})[step] = value
    return series


def ours(series: Series) -> Series:
    return {name: values for name, values in series.items() if name.startswith("geomprobe/") and name != PICTURE}


def readings_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of the file of a training that are readings."""
    return [record for record in StepFile(folder / "trained" / "geomprobe.jsonl").records() if "sites" in record]


def approx(series: Series) -> Any:
    """As float32, which event files have."""
    return {name: pytest.approx(values, rel=1e-6) for name, values in series.items()}


def event_file(folder: Path) -> tuple[Series, dict[str, list[int]]]:
    """Scalars by name and step, and the steps of pictures by name, of the one run of TensorBoard under a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = {file.parent for file in folder.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in tags["scalars"]}
    return scalars, {tag: [event.step for event in events.Images(tag)] for tag in tags["images"]}


def histograms(folder: Path) -> dict[tuple[str, int], tuple[float, float, list[float]]]:
    """The histograms of the one run of TensorBoard under a folder by name and step: the number of values, their sum, and the
    counts of the bins."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = {file.parent for file in folder.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(run), size_guidance={"histograms": 0})
    events.Reload()
    found = {}
    for name in events.Tags()["histograms"]:
        for event in events.Histograms(name):
            told = event.histogram_value
            found[name, event.step] = (told.num, told.sum, list(told.bucket)[-64:])
    return found


# -- trackers of Trainer ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    callback = ProbeCallback(when=2, on_error="raise")
    trained = trainer(tmp_path, callback, report_to="tensorboard", **EVALUATION)
    trained.train()
    scalars, pictures = event_file(tmp_path)  # one run: that of the loss
    readings = [(record["step"], Reading.from_dict(record)) for record in readings_of(tmp_path)]
    told: dict[tuple[str, int], Any] = {
        (name, step): (len(values), pytest.approx(sum(values)), pytest.approx(np.histogram(values, bins=64)[0].tolist()))
        for step, reading in readings
        for name, values in spectra(reading).items()
    }
    assert histograms(tmp_path) == told
    assert len(told) == 4 * len(readings)
    assert ours(scalars) == approx(expected(callback))
    assert scalars["train/loss"] == pytest.approx(losses(trained))
    assert pictures == {PICTURE: [4, 6]}
    assert all("geomprobe" not in name for entry in trained.state.log_history for name in entry)


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    module.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield module
    module.end_run()
    module.set_tracking_uri(None)


@pytest.mark.slow
def test_mlflow(tmp_path: Path, mlflow: Any) -> None:
    callback = ProbeCallback(when=2, on_error="raise")
    trained = trainer(tmp_path, callback, report_to="mlflow", **EVALUATION)
    trained.train()
    mlflow.flush_async_logging()  # Trainer logs its loss so
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        rows = database.execute("select key, step, value, run_uuid from metrics").fetchall()
    assert len({run for *_, run in rows}) == 1
    series: Series = {}
    for name, step, value, _ in rows:
        series.setdefault(name, {})[step] = value
    assert ours(series) == expected(callback)
    assert series["loss"] == losses(trained)
    (run,) = mlflow.search_runs(output_format="list")
    assert len(mlflow.MlflowClient().list_artifacts(run.info.run_id, "images")) >= 2


@pytest.mark.slow
def test_trackio(tmp_path: Path) -> None:
    pytest.importorskip("trackio", exc_type=ImportError)  # it cannot be imported beside an older huggingface_hub
    code = """
import sys
from pathlib import Path
from geomprobe.integrations import ProbeCallback
from tests.integrations.training import trainer
trainer(Path(sys.argv[1]), ProbeCallback(when=2, on_error="raise"), report_to="trackio", project="p").train()
"""
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": str(ROOT)}  # read when it is imported
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=200, env=environment)
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        rows = [json.loads(row) for (row,) in database.execute("select metrics from metrics")]
    loss, numbers = (
        {row["train/global_step"]: row for row in rows if name in row} for name in ("train/loss", "geomprobe/tokens")
    )
    assert list(loss) == list(numbers) == [2, 4, 6]
    for record in readings_of(tmp_path):
        logged = {name: value for name, value in numbers[record["step"]].items() if name.startswith("geomprobe/")}
        picture = logged.pop(PICTURE, None)
        reading = reading_of(record)
        for name, values in spectra(reading).items():
            counts, edges = np.histogram(values, bins=64)
            assert logged.pop(name) == {"_type": "trackio.histogram", "bins": edges.tolist(), "values": counts.tolist()}
        assert logged == flat(reading, "overview")
        assert (picture is None) == (record["step"] == 2)


class Other(TrainerCallback):  # type: ignore[misc]
    """A reporter of the user's own, which is no tracker that Transformers knows."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        assert all("geomprobe" not in name for name in logs)


@pytest.mark.slow
def test_a_reporter_whose_client_is_not_known_logs_the_numbers_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import INTEGRATION_TO_CALLBACK

    seen: dict[int, dict[str, float]] = {}

    class Comet(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen.setdefault(state.global_step, {}).update(logs)

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "comet_ml", Comet)
    callback = ProbeCallback([RepresentationEntropy()], when=2, on_error="raise")
    trained = trainer(tmp_path, callback, Comet(), Other())
    trained.train()
    for step, reading in callback.history:
        assert flat(reading, "overview").items() <= seen[step].items()
        assert seen[step]["loss"] == losses(trained)[step]


# -- a tracker that raises --------------------------------------------------------------------------------------------------


class Fails(TrainerCallback):  # type: ignore[misc]
    """A reporter of Trainer whose network breaks at step 4."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "geomprobe/tokens" in logs:
            self.steps.append(state.global_step)
            if state.global_step == 4:
                raise ConnectionError("no route to host")


def dropped(caught: Any) -> list[str]:
    """The warnings about places that get no more readings."""
    return [said for w in caught if (said := str(w.message)).startswith("geomprobe: no more readings are logged to ")]


@pytest.mark.slow
def test_a_tracker_that_raises_is_dropped_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import INTEGRATION_TO_CALLBACK

    pytest.importorskip("tensorboard")
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "comet_ml", Fails)
    bare, fails, callback = trainer(tmp_path), Fails(), ProbeCallback([RepresentationEntropy()], when=1)
    bare.train()
    probed = trainer(tmp_path, fails, callback, report_to="tensorboard")
    with pytest.warns(RuntimeWarning) as caught:
        probed.train()
    end = "Fails, and training continues: ConnectionError: no route to host"
    assert dropped(caught) == [f"geomprobe: no more readings are logged to {end}"]
    assert fails.steps == [1, 2, 3, 4]
    assert callback.fault is None
    assert [step for step, _ in callback.history] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in readings_of(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert ours(event_file(tmp_path)[0]) == approx(expected(callback))
    assert losses(probed) == losses(bare)
    with pytest.raises(ConnectionError):
        trainer(tmp_path, Fails(), ProbeCallback([RepresentationEntropy()], when=1, on_error="raise")).train()


class Closes(TrainerCallback):  # type: ignore[misc]
    """Finishes a run of W&B while the training goes on."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            self.run.finish()


@pytest.mark.slow
def test_a_run_that_is_closed_is_dropped(tmp_path: Path) -> None:
    run = wandb.init(project="mine", reinit="create_new")
    callback = ProbeCallback([RepresentationEntropy()], when=2, to=run)
    with pytest.warns(RuntimeWarning) as caught:
        trainer(tmp_path, callback, Closes(run)).train()
    (said,) = dropped(caught)
    assert "to=<wandb" in said
    assert "finished" in said
    assert [step for step, _ in callback.history] == [2, 4, 6]
    assert list(read_run(tmp_path).series("geomprobe/tokens")) == [2]


@pytest.mark.slow
def test_on_a_full_disk_the_trackers_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: StepFile, step: int, record: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StepFile, "append", full)
    seen: list[int] = []
    callback = ProbeCallback([RepresentationEntropy()], when=2, to=lambda numbers, step: seen.append(step))
    with pytest.warns(RuntimeWarning) as caught:
        trainer(tmp_path, callback).train()
    (said,) = dropped(caught)
    assert said.endswith("geomprobe.jsonl, and training continues: OSError: [Errno 28] No space left on device")
    assert seen == [2, 4, 6]


# -- to= and the file -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_writer_of_the_users_own(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "mine")) as writer:
        callback = ProbeCallback(when=3, to=writer, on_error="raise")
        trainer(tmp_path, callback).train()
    scalars, pictures = event_file(tmp_path)
    assert scalars == approx(expected(callback))
    assert pictures == {PICTURE: [6]}


@pytest.mark.slow
def test_a_run_of_the_users_own(tmp_path: Path) -> None:
    run = wandb.init(project="mine", reinit="create_new")  # not the active run
    assert wandb.run is None
    callback = ProbeCallback(when=3, to=run, on_error="raise")
    trainer(tmp_path, callback).train()
    run.finish()
    file = read_run(tmp_path)
    for name, series in expected(callback).items():
        assert file.series(name) == series
        assert file.axes[name] == "train/global_step"
    assert list(file.series(f"{PICTURE}.path")) == [6]
    assert len(list(tmp_path.rglob("media/images/geomprobe/*.png"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("log", ["overview", "all"])
def test_a_function_gets_the_numbers_of_each_reading_and_training_stays_the_same(tmp_path: Path, log: Any) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    callback = ProbeCallback(when=3, to=lambda numbers, step: seen.append((step, numbers)), log=log, on_error="raise")
    bare = trainer(tmp_path, **EVALUATION)
    bare.train()
    probed = trainer(tmp_path, callback, **EVALUATION)
    probed.train()
    assert seen == [(step, flat(reading, log)) for step, reading in callback.history]
    assert losses(probed) == losses(bare)
    assert not hooks(probed.model)


def test_what_is_no_tracker_is_refused() -> None:
    with pytest.raises(GeomprobeError, match=r"to=3: expected where numbers are logged: an Accelerator, .* or a function of"):
        ProbeCallback(to=3)
    with pytest.raises(GeomprobeError, match="log='none': expected 'overview'"):
        ProbeCallback(log="none")


@pytest.mark.slow
def test_without_a_tracker_one_line_names_the_file_that_has_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="geomprobe")
    callback = ProbeCallback(when=2, on_error="raise")
    trainer(tmp_path, callback, **EVALUATION).train()
    file = tmp_path / "trained" / "geomprobe.jsonl"
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("geomprobe")]
    assert (
        line
        == f"geomprobe: this training has no tracker; its readings are written to {file}, and drawn by: geomprobe report {file}"
    )
    records = readings_of(tmp_path)
    assert [(record["step"], record["mode"]) for record in records] == [
        (2, "train"),
        (3, "eval"),
        (4, "train"),
        (6, "train"),
        (6, "eval"),
    ]
    assert [list(Reading.from_dict(record)) for record in records] == [list(reading) for _, reading in callback.history]
    page = training_page(Training.open(file))  # the command that the line names
    assert "the effective rank after the last layer (final_norm)" in page
    assert "the loss went from" in page
    trainer(tmp_path, ProbeCallback(when=6), max_steps=6).train()  # a new training begins anew
    assert [record["step"] for record in readings_of(tmp_path)] == [6]


# -- loops ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def reading() -> Reading:
    with Probe(model := tiny().eval()) as probe:
        model(token_batch())
    return probe.read()


def test_a_loop_with_a_writer(tmp_path: Path, reading: Reading) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        log_reading(reading, writer, step=7)
    scalars, _ = event_file(tmp_path)
    assert scalars == {name: {7: pytest.approx(value, rel=1e-6)} for name, value in flat(reading, "overview").items()}


def test_a_loop_with_accelerate_and_tensorboard(tmp_path: Path, reading: Reading) -> None:
    pytest.importorskip("tensorboard")
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path))
    accelerator.init_trackers("loop")
    log_reading(reading, accelerator, step=7, log="all")
    accelerator.end_training()
    scalars, _ = event_file(tmp_path)
    assert scalars == {name: {7: pytest.approx(value, rel=1e-6)} for name, value in flat(reading).items()}


@pytest.mark.parametrize("through", ["fabric", "logger"])
def test_a_loop_with_lightning(tmp_path: Path, reading: Reading, through: str) -> None:
    pytest.importorskip("lightning")
    pytest.importorskip("tensorboard")
    from lightning.fabric import Fabric
    from lightning.fabric.loggers.tensorboard import TensorBoardLogger

    logger = TensorBoardLogger(str(tmp_path))
    log_reading(reading, Fabric(accelerator="cpu", loggers=logger) if through == "fabric" else logger, step=7)
    logger.finalize("success")
    scalars, _ = event_file(tmp_path)
    assert scalars == {name: {7: pytest.approx(value, rel=1e-6)} for name, value in flat(reading, "overview").items()}


def test_a_loop_with_mlflow(reading: Reading, mlflow: Any) -> None:
    with mlflow.start_run() as run:
        log_reading(reading, mlflow, step=7)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "geomprobe/eval/entropy/final_norm")
    assert [(point.step, point.value) for point in history] == [(7, reading["entropy/final_norm"])]
