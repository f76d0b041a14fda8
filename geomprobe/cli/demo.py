"""``geomprobe demo``: trains a small GPT-NeoX with a probe on Python's help pages, sweeps over its checkpoints, and writes a
report."""

import math
import os
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from geomprobe.cli.console import show
from geomprobe.errors import GeomprobeError
from geomprobe.files import write_whole
from geomprobe.integrations import ProbeCallback
from geomprobe.integrations.wandb_sink import viewer
from geomprobe.models.toy import BLOCK, held_out_text, toy_trainer
from geomprobe.reading import Reading
from geomprobe.report.lead import leading_text
from geomprobe.report.page import report_page
from geomprobe.sweeps.records import Run
from geomprobe.sweeps.sweep import sweep
from geomprobe.tracking.closing import closing_figures, closing_page
from geomprobe.tracking.sweep_run import SweepTracker

__all__ = ["Demo", "log_spaced", "run", "summary", "sweep_and_report", "train"]

TEXT, SWEEP, REPORT = "held-out.txt", "demo-sweep", "report.html"
"""Names of the files and folders that the demo writes besides checkpoints and W&B runs."""


@dataclass(frozen=True)
class Demo:
    """The losses and readings of the training.

    Attributes:
        losses: training loss of every step.
        held_out: loss on the held-out text by step.
        readings: reading of the held-out text by step; empty without a probe.
    """

    losses: list[float]
    held_out: dict[int, float]
    readings: dict[int, Reading]


def log_spaced(steps: int) -> list[int]:
    """Return the steps 1, 2, 4 … and the last step, because the geometry changes most at the start of training.

    >>> log_spaced(20)
    [1, 2, 4, 8, 16, 20]
    """
    return [2**i for i in range(steps.bit_length()) if 2**i < steps] + [steps]


def train(out: Path, *, steps: int = 400, probe: bool = True, quiet: bool = False) -> Demo:
    """Train the small model. At log-spaced steps the held-out text is measured, and a checkpoint is saved in ``out``."""
    record = _Record(log_spaced(steps))
    watcher = ProbeCallback(when=record.steps.__contains__, log="all")  # every name that the sweep logs too
    callbacks = [record, *([watcher] if probe else [])]
    trainer = toy_trainer(out, steps=steps, report_to="wandb", run_name="geomprobe demo", quiet=quiet, callbacks=callbacks)
    trainer.train()
    readings = {step: reading for step, reading in watcher.history if reading.mode == "eval"} if probe else {}
    return Demo(record.losses, record.held_out, readings)


def run(out: Path, *, steps: int = 400) -> None:
    """Run the demo: train, sweep over the checkpoints, write the report, and print a table and its finding.

    Raises:
        GeomprobeError: if ``out`` is neither empty nor the folder of an earlier demo, or if it cannot be written.
    """
    _clear(out)
    # Offline unless the user chose otherwise, because the demo must run without an account.
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_DIR", str(out))
    os.environ.setdefault("WANDB_PROJECT", "geomprobe-demo")
    os.environ.setdefault("WANDB_SILENT", "true")
    show("Training a byte-level GPT-NeoX (0.9 million parameters), probed at every layer.")
    disable_progress_bar()  # the bars for reading and writing shards; those of the training and of the sweep remain
    try:
        train(out, steps=steps)
        show("Measuring its checkpoints, an untrained model and Gaussian rows (baselines).")
        training = _finished_run()
        swept, sweep_run = sweep_and_report(out, log_spaced(steps))
    finally:
        enable_progress_bar()
    show(f"\n{summary(swept)}\n")
    show(f"open the report:      {out / REPORT}")
    show(f"draw the training:    geomprobe report {out}")
    show(f"inspect a text:       geomprobe inspect {out / f'checkpoint-{steps}'} 'def f(x):'")
    if os.environ["WANDB_MODE"] == "offline":
        show(f"view the training:    {viewer()} {training}")
        show(f"view the sweep:       {viewer()} {sweep_run}")
        show(f"upload both to W&B:   wandb login && wandb sync {training} {sweep_run}")


def sweep_and_report(out: Path, steps: Sequence[int]) -> tuple[Run, Path]:
    """Sweep over the checkpoints of ``steps`` on the held-out text, and write the report. Return the sweep, and the folder of
    its W&B run.

    Metrics that cost more than a forward are measured on a quarter of the text, to save time.
    """
    folder = out / SWEEP
    with SweepTracker(folder, os.environ["WANDB_PROJECT"], {}) as tracker:
        run = sweep(
            [str(out / f"checkpoint-{step}") for step in steps],
            data=str(out / TEXT),
            out=folder,
            tokens=64 * BLOCK,
            length=BLOCK,
            sample=16 * BLOCK,
            device="cpu",
            progress=True,
            on_record=tracker.record,
        )
        tracker.finish(lambda: closing_figures(run), lambda: closing_page(run, device="cpu"))
        place = _run_folder()
    write_whole(out / REPORT, report_page([run]))
    return run, place


def _clear(out: Path) -> None:
    """Make ``out`` the folder of a new demo. The checkpoints, readings, sweep and report of an earlier demo are deleted."""
    try:
        if out.is_dir() and any(out.iterdir()) and not (out / TEXT).exists():
            raise GeomprobeError(f"{out} contains other files: give an empty folder or that of an earlier demo (--out)")
        for folder in (out / SWEEP, *out.glob("checkpoint-*")):
            if folder.is_dir():
                shutil.rmtree(folder)
        for file in (REPORT, "geomprobe.jsonl"):
            (out / file).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GeomprobeError(f"cannot write {out}: {error}; give another folder (--out)") from error
    write_whole(out / TEXT, held_out_text())


def _run_folder() -> Path:
    """The folder of the active W&B run."""
    import wandb

    return Path(os.path.relpath(Path(wandb.run.dir).parent)) if wandb.run is not None else Path()


def _finished_run() -> Path:
    """Finish the W&B run of the training, which Trainer leaves open, and return its folder."""
    import wandb

    place = _run_folder()
    wandb.finish()
    return place


def summary(run: Run) -> str:
    """Return a table of the effective rank of the held-out text by layer and step, and the first sentence of the report."""
    finding = leading_text([run])
    return f"{_table(run)}\n\n{textwrap.fill(str(finding), 80)}"


def _table(run: Run, metric: str = "effective_rank") -> str:
    """A table with one row per checkpoint and one column per site, with the loss. The first row is the untrained model, and the
    last one shows each column as a sparkline."""
    records = run.checkpoints
    reading = records[0].reading
    assert reading is not None
    sites = reading.sites
    known = [("untrained", run.baseline(records[0], "untrained")), *((f"{record.step}", record) for record in records)]
    rows = [(name, record.loss, record.reading) for name, record in known if record is not None and record.reading is not None]
    tokens = reading[f"tokens/{sites[0]}"]
    lines = [f"effective rank of {tokens:,.0f} held-out bytes, at most {records[0].width}", ""]
    lines.append(f"{'step':>9}{'loss':>5}" + "".join(f"{site:>11}" for site in sites))
    for name, loss, numbers in rows:
        values = "".join(f"{numbers[f'{metric}/{site}']:>11.1f}" for site in sites)
        lines.append(f"{name:>9}{math.nan if loss is None else loss:>5.2f}{values}")
    courses = [_trajectory([numbers[f"{metric}/{site}"] for _, _, numbers in rows[-len(records) :]]) for site in sites]
    return "\n".join([*lines, " " * 14 + "".join(f"{course[-10:]:>11}" for course in courses)])


def _trajectory(values: list[float]) -> str:
    """Values as a sparkline of blocks from the lowest to the highest.

    >>> _trajectory([1.0, 2.0, 3.0])
    '▁▅█'
    """
    least, span = min(values), max(values) - min(values)
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * (value - least) / span)) if span else 0] for value in values)


class _Record(TrainerCallback):  # type: ignore[misc]
    """A callback that evaluates and saves a checkpoint at chosen steps, and records the losses."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps
        self.losses: list[float] = []
        self.held_out: dict[int, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_evaluate = control.should_save = state.global_step in self.steps

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        if "loss" in logs:
            self.losses.append(logs["loss"])
        if "eval_loss" in logs:
            self.held_out[state.global_step] = logs["eval_loss"]
