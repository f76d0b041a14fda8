"""WandbSink: its own runs and those of others, with and without a login."""

import json
import os
import subprocess
import sys
from pathlib import Path

import plotly.graph_objects as go
import pytest
import wandb

from geomprobe import GeomprobeError, Reading
from geomprobe.integrations import WandbSink
from geomprobe.integrations.wandb_sink import logged_in, offline_without_login, viewer, viewing_hint
from tests.integrations.wandb_file import read_run

pytestmark = pytest.mark.slow  # it starts W&B

SCRIPT = """
from geomprobe import Reading
from geomprobe.integrations import WandbSink

with WandbSink("p", name="n", config={"a": 1}) as sink:
    for step in (1, 2):
        sink.log(Reading(mode="train", sites=("embed",), values={"entropy/embed": step / 2}), step=step)
"""


def reading(value: float, mode: str = "train") -> Reading:
    return Reading(mode=mode, sites=("embed",), values={"entropy/embed": value, "anisotropy/embed": float("nan")})


def script(directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: W&B not started, no terminal, and the home directory of someone who never logged in."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    clean |= {"HOME": str(directory), "NETRC": str(directory / "no-netrc")} | environment
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.run(
        command, cwd=directory, env=clean, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL, check=True
    )


def test_a_run_of_its_own(wandb_directory: Path) -> None:
    with WandbSink(project="p") as sink:
        assert sink.run is wandb.run
        sink.log(reading(0.25), step=10)
        sink.log(reading(0.75, "eval"), step=10)
        sink.log(reading(0.5), step=5)
    assert wandb.run is None
    run = read_run(wandb_directory)
    assert run.series("geomprobe/entropy/embed", "geomprobe/step") == {10: 0.25, 5: 0.5}
    assert run.series("geomprobe/eval/entropy/embed", "geomprobe/step") == {10: 0.75}
    assert run.axes == {
        "geomprobe/step": None,
        "geomprobe/entropy/embed": "geomprobe/step",
        "geomprobe/eval/entropy/embed": "geomprobe/step",
    }
    assert run.globs == {}


def test_in_a_run_of_others_it_loses_nothing_of_theirs_or_its_own(wandb_directory: Path) -> None:
    theirs = wandb.init(project="p")
    with WandbSink(project="ignored") as sink:
        assert sink.run is theirs
        sink.log(reading(0.0), step=0)  # two readings in a row, before they log anything
        sink.log(reading(0.1), step=1)
        for step in (2, 3, 4):
            theirs.log({"loss": float(step)}, step=step)
            sink.log(reading(step / 10), step=step)
            sink.log(reading(step / 10, "eval"), step=step)
    assert wandb.run is theirs
    wandb.finish()
    run = read_run(wandb_directory)
    assert run.series("loss", "_step") == {2: 2, 3: 3, 4: 4}
    assert run.series("geomprobe/entropy/embed", "geomprobe/step") == {0: 0, 1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}
    assert run.series("geomprobe/eval/entropy/embed", "geomprobe/step") == {2: 0.2, 3: 0.3, 4: 0.4}


def test_a_page_is_kept_as_it_is(wandb_directory: Path) -> None:
    page = "<!DOCTYPE html><title>tokens</title><p>&lt;script&gt; 🙂"
    with WandbSink(project="p") as sink:
        sink.log_html("tokens", page)
    (kept,) = wandb_directory.rglob("media/html/geomprobe/tokens*.html")
    assert kept.read_text("utf-8") == page
    with pytest.raises(GeomprobeError, match="not open"):
        sink.log_html("tokens", page)


def test_figures_are_panels(wandb_directory: Path) -> None:
    with WandbSink(project="p") as sink:
        sink.log_figures({"gain": go.Figure(go.Scatter(y=[1, 2]))})
    (kept,) = wandb_directory.rglob("files/media/plotly/geomprobe/gain_*.plotly.json")
    assert json.loads(kept.read_text("utf-8"))["data"][0]["y"] == [1, 2]
    assert read_run(wandb_directory).names("geomprobe/") > {"geomprobe/gain._type"}


def test_an_axis_of_the_callers_and_a_loss_in_the_row(wandb_directory: Path) -> None:
    with WandbSink(project="p", axis="checkpoint/step") as sink:
        sink.log(reading(0.25), step=512, loss=2.0)
        sink.log(reading(0.5), step=1, loss=float("nan"))
    run = read_run(wandb_directory)
    assert run.series("geomprobe/entropy/embed", "checkpoint/step") == {512: 0.25, 1: 0.5}
    assert run.series("geomprobe/loss", "checkpoint/step") == {512: 2.0}
    assert set(run.axes) == {"checkpoint/step", "geomprobe/entropy/embed", "geomprobe/loss"}


def test_a_run_is_continued_by_its_id(wandb_directory: Path) -> None:
    with WandbSink(project="p", run_id="mine") as sink:
        assert sink.run.id == "mine"
        assert sink.run.settings.resume == "allow"
        with WandbSink(run_id="mine") as same:
            assert same.run is sink.run
        with pytest.raises(GeomprobeError, match="another W&B run, 'mine', is active: finish that one"), WandbSink(run_id="x"):
            pass
    assert read_run(wandb_directory).id == "mine"


def test_a_sink_that_is_not_open() -> None:
    sink = WandbSink()
    with pytest.raises(GeomprobeError, match="not open: use it as 'with WandbSink"):
        sink.log(reading(1), step=1)
    with pytest.raises(GeomprobeError, match="not open"):
        sink.run  # noqa: B018


def test_an_error_inside_marks_the_run_failed_and_passes(wandb_directory: Path) -> None:
    with pytest.raises(ZeroDivisionError), WandbSink():
        raise ZeroDivisionError
    assert wandb.run is None


def test_without_a_login_it_runs_offline_and_says_so_in_one_line(tmp_path: Path) -> None:
    done = script(tmp_path)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    (folder,) = (path for path in (tmp_path / "wandb").iterdir() if path.name.startswith("offline-run"))
    where = f"wandb/{folder.name}"
    upload = f"wandb login && wandb sync {where}"
    assert line == f"The W&B run is offline: view it with `{viewer()} {where}`, upload it with `{upload}`"
    assert read_run(folder).series("geomprobe/entropy/embed", "geomprobe/step") == {1: 0.5, 2: 1.0}


def test_without_a_login_a_terminal_is_not_prompted(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "no-netrc")}
    keyboard, terminal = os.openpty()
    try:
        command = [sys.executable, "-c", SCRIPT]
        subprocess.run(  # it would wait for an answer that nobody types
            command, cwd=tmp_path, env=environment, stdin=terminal, stdout=terminal, stderr=terminal, timeout=100, check=True
        )
    finally:
        os.close(terminal)
        os.close(keyboard)
    assert read_run(tmp_path).history


def test_the_commands_it_names_exist() -> None:
    for command in (viewer(), "wandb login", "wandb sync"):
        subprocess.run([sys.executable, "-m", *command.split(), "--help"], capture_output=True, timeout=60, check=True)


def test_disabled_is_silent_and_leaves_nothing(tmp_path: Path) -> None:
    done = script(tmp_path, WANDB_MODE="disabled")
    assert (done.stdout, done.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_silence_is_kept_without_a_login(tmp_path: Path) -> None:
    done = script(tmp_path, WANDB_SILENT="true")
    assert (done.stdout, done.stderr) == ("", "")
    assert read_run(tmp_path).history


def test_a_mode_that_is_set_is_obeyed(wandb_directory: Path) -> None:
    assert not offline_without_login()
    with WandbSink() as sink:
        assert sink.run.offline


def test_a_login_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody is told of this key
    wandb.teardown()
    assert logged_in()
    assert not offline_without_login()


def test_without_a_login_this_process_goes_offline(
    monkeypatch: pytest.MonkeyPatch, wandb_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", str(wandb_directory / "no-netrc"))
    wandb.teardown()
    assert offline_without_login()
    run = wandb.init(project="p")
    assert run.offline
    assert viewer() in viewing_hint(run)
    assert not offline_without_login()
