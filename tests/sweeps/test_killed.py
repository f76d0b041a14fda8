"""A sweep that is killed at any moment, and begun again, leaves the records of one that was not."""

import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from geomprobe.sweeps.records import MANIFEST, READINGS, Run
from geomprobe.sweeps.sweep import sweep
from tests.sweeps.conftest import save_checkpoint
from tests.sweeps.test_comparisons import without_times
from tests.sweeps.test_sweep import OPTIONS, lines

pytestmark = pytest.mark.slow  # it starts processes

STEPS = range(1, 15)
AT_ONCE, OPENED, RECORDED = "at once", "opened", "recorded"
MOMENTS = [AT_ONCE, *[OPENED] * 3, *[RECORDED] * 6]
"""When it is killed: before it does anything; after it took hold of the folder; after it wrote a record."""

PATIENCE = 120.0


BROKEN = 3
"""The checkpoint that fails in every session until it is mended: early, so that later ones are compared without it."""


def command(training: Path, texts: Path, out: Path) -> int:
    """A sweep as a user starts it, to its end. Returns its exit code."""
    options = {name.replace("_", "-"): value for name, value in OPTIONS.items()}
    words = [sys.executable, "-m", "geomprobe", "sweep", str(training), "--data", str(texts), "--out", str(out)]
    words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode


def swept(training: Path, texts: Path, out: Path) -> None:
    """The same, in a process that need not import everything first."""
    torch.set_num_threads(1)
    sweep(str(training), data=str(texts), out=out, **OPTIONS)


def wait(process: BaseProcess, happened: Callable[[], bool]) -> None:
    """Until something is seen of a process that is still at work."""
    until = time.monotonic() + PATIENCE
    while not happened():
        assert process.is_alive(), f"it ended by itself, with {process.exitcode}"
        assert time.monotonic() < until, "nothing was seen of it"
        time.sleep(0.001)


def recorded(out: Path) -> int:
    """How many whole records there are."""
    return (out / READINGS).read_bytes().count(b"\n") if (out / READINGS).exists() else 0


@pytest.mark.parametrize("fails", [False, True], ids=["all can be read", "one fails"])
def test_killed_at_ten_moments_and_begun_again(texts: Path, tmp_path: Path, fails: bool) -> None:
    """Moments are counted from what the process was seen to do, so that they are the same on a slow machine. If a checkpoint
    fails, the last kills come while it is mended and those after it are compared again."""
    training, whole, out = tmp_path / "training", tmp_path / "whole", tmp_path / "killed"
    for step in STEPS:
        save_checkpoint(training / f"checkpoint-{step}", step)
    assert command(training, texts, whole) == 0
    weights = training / f"checkpoint-{BROKEN}" / "model.safetensors"
    mended = weights.read_bytes()
    if fails:
        weights.write_bytes(mended[:1000])
    pause = statistics.median(record.seconds for record in Run.open(whole).checkpoints)

    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload([__name__, "transformers.models.gpt_neox.modeling_gpt_neox"])
    draw = random.Random(0)
    seen = [0]
    moments = draw.sample(MOMENTS, len(MOMENTS))
    for i, moment in enumerate(moments):
        if fails and i == len(moments) - 2:
            weights.write_bytes(mended)
        (out / ".lock").unlink(missing_ok=True)  # of a process that is gone: the next one is seen to make it
        process = forked.Process(target=swept, args=(training, texts, out))
        process.start()
        if moment == OPENED:
            wait(process, (out / ".lock").exists)
        elif moment == RECORDED:
            wait(process, lambda: recorded(out) > seen[-1])
        # Then anywhere within a checkpoint, or while the record's own files are still being written.
        time.sleep(draw.choice([0, draw.random() * pause]))
        assert process.is_alive(), "it ended before it was killed"
        process.kill()
        process.join(PATIENCE)
        assert process.exitcode == -9
        seen.append(recorded(out))
    assert seen == sorted(seen)  # no record is ever lost
    assert command(training, texts, out) == 0
    if not fails:
        assert lines(out) == lines(whole)  # so none was read twice, either
        names = [(line["kind"], line["name"]) for line in lines(out)]
        assert len(set(names)) == len(names) == len(STEPS) + 2
    assert without_times(Run.open(out)) == without_times(Run.open(whole))
    assert (out / MANIFEST).read_bytes() == (whole / MANIFEST).read_bytes()
