"""What commands write: results alone on stdout, one line when they are stopped, help that fits a terminal."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from geomprobe.cli.console import VERBOSE, Command
from geomprobe.cli.main import app
from geomprobe.sweeps.records import READINGS, Run
from geomprobe.sweeps.sweep import sweep
from tests.sweeps.conftest import save_checkpoint

PATIENCE = 120.0
HOOK = """
import os, sys, warnings, logging
print("a library prints")
os.write(1, b"code that is not Python prints\\n")
logging.getLogger("library").warning("a library logs")
warnings.warn("a library warns", FutureWarning)
"""
"""What an import of a library may do. It stands for tqdm, which the commands import when they run."""


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in (VERBOSE, "COLUMNS")}
    return kept | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"} | variables


def geomprobe(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "geomprobe", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**variables), timeout=PATIENCE, check=False)


def loud(folder: Path) -> dict[str, str]:
    """Variables under which an import of ``plotly``, ``transformers`` and ``wandb_workspaces`` is noisy."""
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Loud:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('transformers.utils.logging', 'matplotlib', 'wandb_workspaces') and name not in self.seen:\n"
        "            self.seen.add(name)\n"
        f"            exec({HOOK!r})\n"
        "    seen = set()\n"
        "sys.meta_path.insert(0, Loud())\n"
    )
    return {"PYTHONPATH": str(folder)}


# -- stdout -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("models") / "model", 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "{model}", "a dog", "--json"],
        ["inspect", "{model}", "a dog", "--json", "--html", "{tmp}/page.html"],
        ["bench", "overhead", "--length", "8", "--batch", "1", "--rounds", "3", "--json"],
        ["bench", "precision", "--model", "{model}", "--length", "8", "--json"],
        ["dashboard", "--project", "p", "--entity", "e", "--dry-run"],
    ],
    ids=["inspect", "inspect-html", "bench", "bench-precision", "dashboard"],
)
def test_json_is_all_of_stdout_and_libraries_are_quiet(arguments: list[str], model: Path, tmp_path: Path) -> None:
    run = geomprobe(*(word.format(model=model, tmp=tmp_path) for word in arguments), **loud(tmp_path))
    assert run.returncode == 0, run.stderr
    json.loads(run.stdout)
    said = [line for line in run.stderr.splitlines() if line and not line.startswith(("wrote", "wandb"))]
    assert set(said) == {"a library prints", "code that is not Python prints"} | (
        {"[INFO] Running in WANDB offline mode"} if any("WANDB offline" in line for line in said) else set()
    )


@pytest.mark.slow
def test_libraries_are_heard_on_request(model: Path, tmp_path: Path) -> None:
    run = geomprobe("inspect", str(model), "a dog", "--json", **loud(tmp_path), **{VERBOSE: "1"})
    assert run.returncode == 0, run.stderr
    json.loads(run.stdout)
    assert "a library logs" in run.stderr
    assert "a library warns" in run.stderr
    assert "Loading weights" in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", [["paper", "concordance"], ["inspect", "{model}", "a dog"]])
def test_a_reader_that_has_seen_enough_ends_the_command(command: list[str], model: Path) -> None:
    words = [sys.executable, "-m", "geomprobe", *(word.format(model=model) for word in command)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert said == ""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_stdout_that_is_full_is_one_line() -> None:
    words = [sys.executable, "-m", "geomprobe", "paper", "concordance"]
    with open("/dev/full", "w") as full:
        run = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("geomprobe: cannot write the results to stdout: ")
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.slow
def test_no_progress_lines_without_a_terminal(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three four five")
    out = str(tmp_path / "run")
    run = geomprobe("sweep", str(model), "--data", str(tmp_path / "a.txt"), "--out", out, "--tokens", "20", "--no-baselines")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("run: 1 checkpoints, final_norm\n")
    assert run.stderr == f"\nmake a report of it:  geomprobe report {out}\n"
    told = geomprobe("export", out, "--to", str(tmp_path / "numbers.csv"))
    rows = len((tmp_path / "numbers.csv").read_text().splitlines()) - 1
    assert (told.returncode, told.stdout) == (0, "")
    assert told.stderr == f"wrote {tmp_path / 'numbers.csv'}: {rows:,} numbers of 1 records, one per row\n"
    training = geomprobe("paper", "fig3", "--steps", "1", "--out", str(tmp_path / "paper"), "--tokens", "256")
    assert training.returncode == 0, training.stderr
    assert [line for line in training.stderr.splitlines() if "it/s" in line or "%|" in line or "?tok" in line] == []


# -- Ctrl-C -------------------------------------------------------------------------------------------------------------------


def stopped(arguments: list[str], ready: Callable[[], object], **variables: str) -> str:
    """The stderr of a command that is stopped by SIGINT when ``ready`` is true, after its exit code was checked."""
    words = [sys.executable, "-m", "geomprobe", *arguments]
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**variables),
        # A program in the background of a script ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            until = time.monotonic() + PATIENCE
            while not ready():
                assert process.poll() is None, f"it ended by itself: {process.communicate()}"
                assert time.monotonic() < until
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()  # if it did not end
    assert process.returncode == 130, said
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("geomprobe: ")]  # nor any warning of its own
    assert said.endswith(line + "\n")
    return line


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[tuple[str, Callable[[], bool]]]:
    """A file that is never read to its end, and whether a process is reading it."""
    path = tmp_path / "endless.txt"
    os.mkfifo(path)
    opened: list[int] = []

    def reading() -> bool:
        try:
            opened.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody reads
            return False
        return True

    yield str(path), reading
    for number in opened:
        os.close(number)


@pytest.mark.slow
def test_inspect_that_is_stopped(model: Path, tmp_path: Path, pipe: tuple[str, Callable[[], bool]]) -> None:
    line = stopped(["inspect", str(model), "--file", pipe[0], "--html", str(tmp_path / "page.html")], pipe[1])
    assert line == "geomprobe: stopped. Nothing was written; run the same command to start again"
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
def test_paper_that_is_stopped(model: Path, tmp_path: Path, pipe: tuple[str, Callable[[], bool]]) -> None:
    out = tmp_path / "paper"
    arguments = ["paper", "fig1", "--models", str(model), "--data", pipe[0], "--out", str(out), "--fresh"]
    line = stopped(arguments, pipe[1])
    assert line == (f"geomprobe: stopped. What was finished is kept in {out}; run the same command (without --fresh) to go on")


@pytest.mark.slow
def test_a_sweep_that_is_stopped_goes_on(tmp_path: Path) -> None:
    for step in range(1, 13):
        save_checkpoint(tmp_path / "training" / f"checkpoint-{step}", step)
    (tmp_path / "a.txt").write_text("one two three four five " * 200)
    out = tmp_path / "run"
    readings = out / READINGS

    def begun() -> bool:
        return readings.exists() and readings.read_bytes().count(b"\n") >= 3

    options: dict[str, Any] = {"data": str(tmp_path / "a.txt"), "tokens": 2000, "sample": 500}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    line = stopped(["sweep", str(tmp_path / "training"), "--out", str(out), *words], begun)
    assert line == f"geomprobe: stopped. The records that were finished are kept in {out}; run the same command to go on"
    before = Run.open(out)
    assert before.failed == []
    assert 3 <= len(before.records) < 14
    run = sweep(str(tmp_path / "training"), out=out, **options)
    assert run.records[: len(before.records)] == before.records
    assert len(run.records) == 14


@pytest.mark.slow
def test_a_demo_that_is_stopped(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    line = stopped(["demo", "--out", str(out), "--steps", "400"], (out / "checkpoint-2").exists)
    assert line == (
        f"geomprobe: stopped. The checkpoints that were saved are kept in {out}; the same command starts the demo from its "
        "beginning"
    )
    assert (out / "checkpoint-1" / "model.safetensors").exists()


def test_an_interrupt_while_an_object_is_finalized_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python prints and ignores it there."""

    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def interrupted() -> str:
        Finalized()
        for _ in range(500):
            time.sleep(0.01)
        return "it was lost"

    monkeypatch.setattr("geomprobe.paper.concordance.to_text", interrupted)
    # A program in the background of a script ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = CliRunner().invoke(app, ["paper", "concordance"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "geomprobe: stopped. Nothing was written; run the same command to start again\n"


def test_only_the_main_process_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("geomprobe.paper.concordance.to_text", interrupted)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for rank, count in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        result = CliRunner().invoke(app, ["paper", "concordance"])
        assert result.exit_code == 130
        assert result.stderr.count("geomprobe: stopped. ") == count


# -- help and usage -----------------------------------------------------------------------------------------------------------


def commands() -> dict[str, Any]:
    """Every command, by the words that call it."""
    top = typer.main.get_command(app)
    found: dict[str, Any] = {}
    for name, command in top.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {word}": below for word, below in inner.items()}
    return found


COMMANDS = commands()


def test_every_command_keeps_stdout_for_its_results() -> None:
    assert len(COMMANDS) > 15
    assert [name for name, command in COMMANDS.items() if not isinstance(command, Command)] == []


@pytest.mark.parametrize("name", ["", "paper", *COMMANDS])
def test_help_fits_80_columns_and_cuts_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, [*name.split(), "--help"])
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "..." not in result.stdout.replace("[ARGS]...", "").replace("}...", "").replace("models...", "").replace(
        "runs...", ""
    ).replace("RUN...", "")
    for parameter in COMMANDS[name].params if name in COMMANDS else []:
        for option in parameter.opts:
            assert option in result.stdout
        if parameter.name == "dtype":
            assert "<float32|bfloat16|float16|auto>" in result.stdout
        if parameter.name == "what":
            assert "<overhead|decode|memory|lasso|attention|sweep|precision|alarms>" in result.stdout


def test_the_version() -> None:
    from importlib.metadata import version

    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"geomprobe {version('geomprobe')}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Usage: "),
        (["paper"], "Usage: "),
        (["nothing"], "No such command 'nothing'"),
        (["paper", "fig9"], "No such command 'fig9'"),
        (["--nothing"], "No such option: --nothing"),
        (["inspect"], "Missing argument 'model'"),
        (["sweep", "model"], "Missing option '--data'"),
        (["inspect", "model", "text", "--dtype", "int8"], "'int8' is not one of 'float32', 'bfloat16', 'float16', 'auto'"),
        (["sweep", "model", "--data", "a.txt", "--out", "x", "--tokens", "1"], "Invalid value for '--tokens'"),
        (["bench", "speed"], "'speed' is not one of"),
    ],
)
def test_wrong_usage_is_told_on_stderr(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr


# -- the warnings of geomprobe ------------------------------------------------------------------------------------------------


def test_warnings_of_geomprobe_are_lines_without_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging
    import warnings

    def warned() -> str:
        warnings.warn("geomprobe: a forward was left out", RuntimeWarning, stacklevel=2)
        warnings.warn("W&B could not start a run", UserWarning, stacklevel=2)
        warnings.warn("another library", UserWarning, stacklevel=2)
        print("another library")
        return "result"

    monkeypatch.setattr("geomprobe.paper.concordance.to_text", warned)
    result = CliRunner().invoke(app, ["paper", "concordance"])
    assert result.stdout == "result\n"
    assert result.stderr == "geomprobe: a forward was left out\ngeomprobe: W&B could not start a run\nanother library\n"
    assert logging.root.manager.disable == logging.NOTSET
