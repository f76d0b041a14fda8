"""A sweep that is killed at any moment, and begun again, leaves the records of one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from geomprobe.runs.records import MANIFEST, READINGS
from tests.runs.conftest import save_checkpoint
from tests.runs.test_sweep import OPTIONS, lines

STEPS = range(1, 9)
KILLS = 10


def start(training: Path, texts: Path, out: Path) -> "subprocess.Popen[bytes]":
    """A sweep as a process of its own; it takes some seconds to begin."""
    options = {name.replace("_", "-"): value for name, value in OPTIONS.items()}
    command = [sys.executable, "-m", "geomprobe", "sweep", str(training), "--data", str(texts), "--out", str(out)]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def test_killed_at_ten_moments_and_begun_again(texts: Path, tmp_path: Path) -> None:
    training, out = tmp_path / "training", tmp_path / "killed"
    for step in STEPS:
        save_checkpoint(training / f"checkpoint-{step}", step)
    began = time.monotonic()
    whole = start(training, texts, tmp_path / "whole")
    while not (tmp_path / "whole" / MANIFEST).exists():
        time.sleep(0.01)
        assert whole.poll() is None
    begun = time.monotonic() - began
    assert whole.wait(timeout=120) == 0
    working = time.monotonic() - began - begun

    draw = random.Random(0)
    seen: list[int] = []
    for _ in range(KILLS):
        process = start(training, texts, out)
        # Most kills come while checkpoints are read, some while the process starts; none so late that all would be done.
        time.sleep(begun + draw.uniform(-0.2, 2 / KILLS) * working)
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = (out / READINGS).read_bytes() if (out / READINGS).exists() else b""
        seen.append(before.count(b"\n"))
    assert seen == sorted(seen)  # no record is ever lost
    assert len(set(seen)) > 2, seen  # the kills did come at different places
    process = start(training, texts, out)
    assert process.wait(timeout=120) == 0, process.stderr.read() if process.stderr else ""
    assert lines(out) == lines(tmp_path / "whole")  # so none was read twice, either
    names = [(line["kind"], line["name"]) for line in lines(out)]
    assert len(set(names)) == len(names) == len(STEPS) + 2


@pytest.mark.parametrize("cut", [1, 1000])
def test_a_line_half_written_when_it_was_killed(training: Path, texts: Path, tmp_path: Path, cut: int) -> None:
    whole = start(training, texts, tmp_path / "run")
    assert whole.wait(timeout=120) == 0
    before = lines(tmp_path / "run")
    path = tmp_path / "run" / READINGS
    path.write_bytes(path.read_bytes()[:-cut])
    assert start(training, texts, tmp_path / "run").wait(timeout=120) == 0
    assert lines(tmp_path / "run") == before
