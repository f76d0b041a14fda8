"""The W&B run of a sweep: its points, its end, and what happens when it is stopped or W&B refuses."""

# ruff: noqa: PT012, PT031, SIM117  # what must raise or warn is a whole session of a sweep
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import wandb

from geomprobe.reading import Reading
from geomprobe.sweeps.records import Kind, Record
from geomprobe.tracking.sweep_run import STATE, SweepTracker
from tests.integrations.wandb_file import RunFile, read_run, run_files

pytestmark = pytest.mark.slow  # it sweeps checkpoints

SITES = ("embed", "layer_00")


def record(
    name: str, step: int | None = None, *, kind: Kind = "checkpoint", parameters: int = 100, loss: float = 2.5
) -> Record:
    """A record whose every number tells it from the others."""
    value = float(step if step is not None else parameters)
    values = {f"{metric}/{site}": value + i for i, metric in enumerate(("entropy", "anisotropy")) for site in SITES}
    reading = Reading(mode="eval", sites=SITES, values=values | {"stable_rank/embed": float("nan")})
    return Record(name=name, kind=kind, step=step, parameters=parameters, loss=loss + value, reading=reading)


STEPS = [record(f"step{step}", step) for step in (0, 1, 512)]


def sweep(folder: Path, *records: Record, project: str = "p", **options: Any) -> None:
    """One session of a sweep."""
    with SweepTracker(folder, project, {"data": "x"}, **options) as tracker:
        for each in records:
            tracker.record(each)


def sessions(directory: Path) -> list[RunFile]:
    """What each session wrote, in order."""
    return [read_run(path.parent) for path in run_files(directory)]


def steps(run: RunFile) -> list[int]:
    """Where it has a point, in order, as often as it has one."""
    return [row["checkpoint/step"] for row in run.history if "geomprobe/entropy/embed" in row]


def state(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / STATE).read_text("utf-8"))
    return content


def ours(said: pytest.WarningsRecorder) -> list[str]:
    """The files that the tracker's warnings point at: W&B 0.27 deprecates names that it uses itself."""
    return [warning.filename for warning in said if warning.category is UserWarning]


def test_every_number_is_a_series_over_the_step(wandb_directory: Path) -> None:
    sweep(wandb_directory, *STEPS)
    run = read_run(wandb_directory)
    for i, metric in enumerate(("entropy", "anisotropy")):
        for site in SITES:
            assert run.series(f"geomprobe/{metric}/{site}", "checkpoint/step") == {0: i, 1: 1 + i, 512: 512 + i}
    assert run.series("geomprobe/loss", "checkpoint/step") == {0: 2.5, 1: 3.5, 512: 514.5}
    names = {f"geomprobe/{metric}/{site}" for metric in ("entropy", "anisotropy") for site in SITES} | {"geomprobe/loss"}
    assert run.axes == {"checkpoint/step": None} | dict.fromkeys(names, "checkpoint/step")
    assert run.names("geomprobe/") == names
    assert run.globs == {}


def test_models_of_several_sizes_stand_over_their_parameters(wandb_directory: Path) -> None:
    sweep(wandb_directory, record("a/70m", parameters=70), record("a/160m", parameters=160), axis="parameters")
    run = read_run(wandb_directory)
    assert run.series("geomprobe/entropy/embed", "checkpoint/parameters") == {70: 70, 160: 160}
    assert run.axes["geomprobe/entropy/embed"] == "checkpoint/parameters"


def test_what_has_no_place_on_the_axis_is_in_the_summary(wandb_directory: Path) -> None:
    baselines = [record("untrained", 0, kind="untrained"), record("wide", kind="gaussian", parameters=7)]
    sweep(wandb_directory, *STEPS, *baselines, record("main", parameters=9))
    run = read_run(wandb_directory)
    assert set(run.series("geomprobe/entropy/embed", "checkpoint/step")) == {0, 1, 512}
    assert run.summary["baseline/untrained/anisotropy/layer_00"] == 1
    assert run.summary["baseline/untrained/loss"] == 2.5
    assert run.summary["baseline/gaussian/wide/entropy/embed"] == 7
    assert run.summary["checkpoint/main/entropy/embed"] == 9
    assert not any("stable_rank" in name for name in run.summary)


def test_checkpoints_that_failed_are_logged_when_they_are_read(wandb_directory: Path) -> None:
    sweep(wandb_directory, Record(name="step1", step=1, error="no such revision"))
    sweep(wandb_directory, STEPS[1])
    first, second = sessions(wandb_directory)
    assert first.names("geomprobe/") == set()
    assert second.series("geomprobe/entropy/embed", "checkpoint/step") == {1: 1}


# -- stopped and resumed ----------------------------------------------------------------------------------------------------


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs say that they are not offline; their files are read all the same."""
    monkeypatch.setattr(wandb.Run, "offline", False)


@pytest.mark.usefixtures("online")
def test_a_resumed_sweep_goes_on_in_the_same_run(wandb_directory: Path) -> None:
    with pytest.raises(KeyboardInterrupt), SweepTracker(wandb_directory, "p", {}) as tracker:
        tracker.record(STEPS[0])
        raise KeyboardInterrupt
    sweep(wandb_directory, *STEPS, *STEPS)
    first, second = sessions(wandb_directory)
    assert first.id == second.id
    assert steps(first) == [0]
    assert steps(second) == [1, 512]


def test_every_session_without_a_connection_holds_the_whole_run(wandb_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(wandb_directory, *STEPS[:2])
    sweep(wandb_directory, *STEPS, *STEPS)
    monkeypatch.setattr(wandb.Run, "offline", False)
    sweep(wandb_directory, *STEPS)
    monkeypatch.undo()
    sweep(wandb_directory, *STEPS)
    monkeypatch.setattr(wandb.Run, "offline", False)
    sweep(wandb_directory, *STEPS)
    runs = sessions(wandb_directory)
    assert len({run.id for run in runs}) == 1
    assert [steps(run) for run in runs] == [[0, 1], [0, 1, 512], [0, 1, 512], [0, 1, 512], []]


KILLED = """
import os, signal, sys
from pathlib import Path
import wandb
from tests.tracking.test_sweep_run import STEPS, SweepTracker
wandb.Run.offline = False
with SweepTracker(Path(sys.argv[1]), "p", {}) as tracker:
    for record in STEPS[:2]:
        tracker.record(record)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("online")
def test_a_sweep_that_is_killed_loses_no_point(wandb_directory: Path) -> None:
    sweep(wandb_directory, STEPS[0])
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # a W&B of its own
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", KILLED, str(wandb_directory)]
    assert subprocess.run(command, env=environment, timeout=100, check=False).returncode == -signal.SIGKILL
    sweep(wandb_directory, *STEPS)
    first, killed, last = run_files(wandb_directory)
    assert killed.stat().st_size < 100  # W&B wrote nothing
    assert steps(read_run(first.parent)) == [0]
    assert steps(read_run(last.parent)) == [1, 512]
    assert read_run(first.parent).id == read_run(last.parent).id


def test_another_project_gets_every_record_in_a_run_of_its_own(wandb_directory: Path) -> None:
    sweep(wandb_directory, *STEPS[:2])
    sweep(wandb_directory, *STEPS, project="q")
    first, second = sessions(wandb_directory)
    assert first.id != second.id
    assert steps(second) == [0, 1, 512]


def test_disabled_leaves_nothing_behind(wandb_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb.teardown()
    sweep(wandb_directory, *STEPS)
    assert list(wandb_directory.iterdir()) == []


# -- the end ----------------------------------------------------------------------------------------------------------------


def test_figures_and_pages(wandb_directory: Path) -> None:
    figures = {"heatmap/entropy": go.Figure(go.Heatmap(z=[[1, 2], [3, 4]])), "gain": go.Figure(go.Scatter(y=[1, 2]))}
    with SweepTracker(wandb_directory, "p", {}) as tracker:
        tracker.finish(lambda: figures, lambda: {"tokens": "<!DOCTYPE html><p>tokens"})
    media = wandb_directory / "wandb/latest-run/files/media"
    (heatmap,) = media.glob("plotly/geomprobe/heatmap/entropy_*.plotly.json")
    assert json.loads(heatmap.read_text("utf-8"))["data"][0]["z"] == [[1, 2], [3, 4]]
    (page,) = media.glob("html/geomprobe/tokens_*.html")
    assert page.read_text("utf-8") == "<!DOCTYPE html><p>tokens"
    logged = {name.removesuffix("._type") for name in read_run(wandb_directory).names("geomprobe/") if name.endswith("._type")}
    assert logged == {"geomprobe/heatmap/entropy", "geomprobe/gain", "geomprobe/tokens"}


# -- W&B refuses ------------------------------------------------------------------------------------------------------------


def refuse(*_: Any, **__: Any) -> Any:
    raise wandb.errors.CommError("It appears that you do not have permission")


def test_without_a_run_the_sweep_goes_on_and_is_logged_later(wandb_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        monkeypatch.context() as broken,
        pytest.warns(UserWarning, match=r"could not start a run: CommError: It app.*again") as said,
    ):
        broken.setattr(wandb, "init", refuse)
        with SweepTracker(wandb_directory, "p", {}) as tracker:
            tracker.record(STEPS[0])
            tracker.finish(dict, lambda: {"tokens": ""})
    assert ours(said) == [__file__]
    sweep(wandb_directory, *STEPS)
    assert steps(read_run(wandb_directory)) == [0, 1, 512]


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("how", ["log", "finished"])
def test_a_run_that_takes_no_more_is_completed_later(wandb_directory: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    with pytest.warns(UserWarning, match="could not log step1: ") as said, monkeypatch.context() as broken:
        with SweepTracker(wandb_directory, "p", {}) as tracker:
            tracker.record(STEPS[0])
            if how == "log":
                broken.setattr(wandb.Run, "log", refuse)
            else:
                wandb.finish()
            for each in STEPS[1:]:
                tracker.record(each)
            tracker.record(record("untrained", kind="untrained"))
    assert len(ours(said)) == 1
    sweep(wandb_directory, *STEPS)
    first, second = sessions(wandb_directory)
    assert first.id == second.id
    assert steps(first) == [0]
    assert steps(second) == [1, 512]


def test_a_baseline_in_a_run_that_is_finished(wandb_directory: Path) -> None:
    with SweepTracker(wandb_directory, "p", {}) as tracker:
        wandb.finish()
        with pytest.warns(UserWarning, match="could not log untrained"):
            tracker.record(record("untrained", kind="untrained"))


@pytest.mark.usefixtures("online")
def test_a_run_that_cannot_be_ended_is_logged_again(wandb_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken, pytest.warns(UserWarning, match="could not end its run: CommError") as said:
        broken.setattr(wandb.Run, "finish", refuse)
        sweep(wandb_directory, *STEPS)
    assert len(ours(said)) == 1
    assert state(wandb_directory)["logged"] == []


def test_a_full_disk_and_a_damaged_file(wandb_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (wandb_directory / STATE).mkdir()
    with pytest.warns(UserWarning, match=r"could not start a run: GeomprobeError: cannot read .*wandb\.json"):
        sweep(wandb_directory, *STEPS)
    (wandb_directory / STATE).rmdir()
    (wandb_directory / STATE).write_text("[1]")
    said = r"wandb\.json: it is a list, expected an object.* delete .*wandb\.json first to log them to a new"
    with pytest.warns(UserWarning, match=said):
        sweep(wandb_directory, *STEPS)
    (wandb_directory / STATE).unlink()
    with monkeypatch.context() as full, pytest.warns(UserWarning, match="cannot write") as warned:
        full.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        sweep(wandb_directory, *STEPS)
    assert len(ours(warned)) == 1
    assert wandb.run is None
    sweep(wandb_directory, *STEPS)
    assert steps(sessions(wandb_directory)[-1]) == [0, 1, 512]
