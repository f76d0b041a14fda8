"""Faults of commands: what is stopped, what cannot be written, what is not understood."""

import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from geomprobe.cli.main import app
from geomprobe.sweeps.measure import measure
from geomprobe.sweeps.records import Run
from tests.faults.table import fault, refused
from tests.sweeps.conftest import save_checkpoint


def stopped(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The stderr of a command in which a ``KeyboardInterrupt`` is raised."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the next Ctrl-C is for pytest
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout) == (130, "")
    return result.stderr


@fault(
    "commands: Ctrl-C in a sweep",
    says="geomprobe: stopped. The records that were finished are kept in …/run; run the same command to go on",
    kept="the finished records; the same command measures the others",
    slow=True,
)
def sweep_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for step in (1, 2, 3):
        save_checkpoint(folder / "training" / f"checkpoint-{step}", step)
    (folder / "a.txt").write_text("one two three four five")
    calls = []

    def second(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    out = folder / "run"
    words = ["sweep", str(folder / "training"), "--data", str(folder / "a.txt"), "--out", str(out), "--tokens", "20"]
    words.append("--no-baselines")
    with monkeypatch.context() as patched:
        patched.setattr("geomprobe.sweeps.sweep.measure", second)
        said = stopped(words, monkeypatch)
    before = Run.open(out).records
    assert [record.name for record in before] == ["checkpoint-1"]
    assert CliRunner().invoke(app, words).exit_code == 0
    after = Run.open(out).records
    assert after[:1] == before
    assert [record.name for record in after] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    return said


@fault(
    "commands: Ctrl-C in a command that writes at its end (`inspect`, `report`, `export`, `dashboard`)",
    says="geomprobe: stopped. Nothing was written; run the same command to start again",
    kept="an earlier page or table as it was",
)
def report_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("geomprobe.sweeps.records.Run.open", interrupted)
    (folder / "manifest.json").touch()
    (folder / "page.html").write_text("earlier")
    said = stopped(["report", str(folder), "--out", str(folder / "page.html")], monkeypatch)
    assert (folder / "page.html").read_text() == "earlier"
    return said


@fault(
    "commands: Ctrl-C in `paper`",
    says="geomprobe: stopped. What was finished is kept in …/paper; run the same command to go on",
    kept="the experiments and trained models that were finished",
)
def paper_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("geomprobe.paper.run.run_experiment", interrupted)
    return stopped(["paper", "fig2", "--out", str(folder / "paper")], monkeypatch)


@fault(
    "commands: a stdout that cannot be written",
    says="cannot write the results to stdout: …No space left on device",
    kept="what the command wrote to files",
)
def full_stdout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    from geomprobe.cli import console

    with open("/dev/full", "w") as full:
        monkeypatch.setattr(console, "_results", full)
        said = refused(lambda: console.show("results"))
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space"):
            full.close()
    return said


@fault(
    "commands: a file for the results in a folder that does not exist",
    says="cannot write …/missing/a.csv: expected the name of a file in a folder that exists",
    kept="nothing is read or measured",
)
def missing_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    result = CliRunner().invoke(app, ["export", str(folder), "--to", str(folder / "missing" / "a.csv")])
    return str(result.exception)


@fault(
    "commands: an option that does not exist",
    says="Usage: geomprobe inspect [OPTIONS] …Error: No such option: --nothing…",
    kept="nothing is read or measured; the exit code is 2",
)
def unknown_option(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    result = CliRunner().invoke(app, ["inspect", "model", "text", "--nothing"], prog_name="geomprobe")
    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr


@fault(
    "commands: a dtype that does not exist",
    says="Usage: geomprobe sweep [OPTIONS] …Error: Invalid value for '--dtype': …'int8' is not one of 'float32', 'bfloat16', "
    "'float16', 'auto'.",
    kept="nothing is read or measured; the exit code is 2",
)
def unknown_dtype(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    words = ["sweep", "model", "--data", "a.txt", "--out", str(folder / "run"), "--dtype", "int8"]
    result = CliRunner().invoke(app, words, prog_name="geomprobe")
    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr
