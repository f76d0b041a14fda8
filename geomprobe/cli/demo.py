"""``geomprobe demo``: train a small GPT-NeoX on text every Python ships, under the probe; sweep its checkpoints; report."""

import os
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from geomprobe.errors import GeomprobeError
from geomprobe.files import write_whole
from geomprobe.integrations import ProbeCallback
from geomprobe.models.toy import BLOCK, held_out_text, toy_trainer
from geomprobe.reading import Reading
from geomprobe.report.page import report_page
from geomprobe.sweeps.sweep import sweep
from geomprobe.tracking.closing import closing_figures, closing_page
from geomprobe.tracking.sweep_run import SweepTracker

__all__ = ["Demo", "log_spaced", "run", "summary", "sweep_and_report", "train"]

TEXT, SWEEP, REPORT = "held-out.txt", "demo-sweep", "report.html"
"""Names of what the demo leaves beside its checkpoints and W&B runs."""


@dataclass(frozen=True)
class Demo:
    """What the demo saw.

    Attributes:
        losses: training loss of every step.
        held_out: held-out loss by step.
        readings: the probe's reading of the held-out text by step; empty without the probe.
    """

    losses: list[float]
    held_out: dict[int, float]
    readings: dict[int, Reading]


def log_spaced(steps: int) -> list[int]:
    """1, 2, 4 … and the last step: training moves geometry most at its start.

    >>> log_spaced(20)
    [1, 2, 4, 8, 16, 20]
    """
    return [2**i for i in range(steps.bit_length()) if 2**i < steps] + [steps]


def train(out: Path, *, steps: int = 400, probe: bool = True, quiet: bool = False) -> Demo:
    """Train, with the probe on the held-out text at log-spaced steps; checkpoints of the same steps stay in ``out``."""
    record = _Record(log_spaced(steps))
    watcher = ProbeCallback(when=record.steps.__contains__)
    callbacks = [record, *([watcher] if probe else [])]
    trainer = toy_trainer(out, steps=steps, report_to="wandb", run_name="geomprobe demo", quiet=quiet, callbacks=callbacks)
    trainer.train()
    readings = {step: reading for step, reading in watcher.history if reading.mode == "eval"} if probe else {}
    return Demo(record.losses, record.held_out, readings)


def run(out: Path, *, steps: int = 400) -> None:
    """The command: train with a progress bar, say what happened, then read the checkpoints again for a report.

    Raises:
        GeomprobeError: ``out`` is not an empty folder or one of an earlier demo, or cannot be written.
    """
    _clear(out)
    # Offline unless the user chose otherwise: the demo is to run without an account.
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_DIR", str(out))
    os.environ.setdefault("WANDB_PROJECT", "geomprobe-demo")
    os.environ.setdefault("WANDB_SILENT", "true")
    print("Training a byte-level GPT-NeoX of 0.9 million parameters, every layer probed.", flush=True)
    disable_progress_bar()  # of shards being read and written; the bars of the training and of the sweep stay
    try:
        demo = train(out, steps=steps)
        print(f"\n{summary(demo)}\n")
        print("Sweeping over its checkpoints, beside an untrained model and Gaussian rows.", flush=True)
        training, swept = _finished_run(), sweep_and_report(out, log_spaced(steps))
    finally:
        enable_progress_bar()
    print()
    print(f"open this:    {out / REPORT}")
    print(f"look inside:  geomprobe inspect {out / f'checkpoint-{steps}'} 'def f(x):'")
    if os.environ["WANDB_MODE"] == "offline":
        print(f"see curves:   wandb leet {training}")
        print(f"… the sweep:  wandb leet {swept}")
        print(f"upload them:  wandb login && wandb sync {training} {swept}")


def sweep_and_report(out: Path, steps: Sequence[int]) -> Path:
    """Read the checkpoints of ``steps`` on the held-out text, write the report; the folder of the sweep's W&B run.

    Every token is measured closely, so that the page has the numbers of the terminal.
    """
    folder = out / SWEEP
    with SweepTracker(folder, os.environ["WANDB_PROJECT"], {}) as tracker:
        run = sweep(
            [str(out / f"checkpoint-{step}") for step in steps],
            data=str(out / TEXT),
            out=folder,
            tokens=64 * BLOCK,
            length=BLOCK,
            sample=64 * BLOCK,
            device="cpu",
            progress=True,
            on_record=tracker.record,
        )
        tracker.finish(closing_figures(run), closing_page(run, device="cpu"))
        place = _run_folder()
    write_whole(out / REPORT, report_page([run]))
    return place


def _clear(out: Path) -> None:
    """Make ``out`` the folder of a new demo. What an earlier one left there, of weights that will be gone, is taken away."""
    try:
        if out.is_dir() and any(out.iterdir()) and not (out / TEXT).exists():
            raise GeomprobeError(f"{out} holds other files: give a folder of the demo's own (--out)")
        for folder in (out / SWEEP, *out.glob("checkpoint-*")):
            if folder.is_dir():
                shutil.rmtree(folder)
        (out / REPORT).unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GeomprobeError(f"cannot write {out}: {error}; give another folder (--out)") from error
    write_whole(out / TEXT, held_out_text())


def _run_folder() -> Path:
    """Where the active W&B run is kept."""
    import wandb

    return Path(os.path.relpath(Path(wandb.run.dir).parent)) if wandb.run is not None else Path()


def _finished_run() -> Path:
    """The folder of the training's W&B run, which Trainer leaves open."""
    import wandb

    place = _run_folder()
    wandb.finish()
    return place


def summary(demo: Demo) -> str:
    """Entropy and gain of the held-out text by layer and step beside the loss, and what to look for."""
    last = max(demo.readings)
    sites = demo.readings[last].sites
    tokens = demo.readings[last][f"tokens/{sites[0]}"]
    parts = [
        f"How {tokens:,.0f} held-out bytes look from inside, by training step",
        _table(demo, "entropy", "representation entropy, of its maximum (Def. 3.1)", "{:.3f}"),
        _table(demo, "effective_rank", "effective rank, of 128 dimensions", "{:.1f}"),
        _table(demo, "gain_per_token", "information gain, nats per token (section 4.1)", "{:.2f}"),
        _finding(demo),
    ]
    return "\n\n".join(parts)


def _table(demo: Demo, metric: str, title: str, form: str) -> str:
    """Steps down, sites across, the loss beside; under each site its course as a line of blocks."""
    steps = sorted(demo.readings)
    sites = demo.readings[steps[0]].sites
    lines = [title, f"{'step':>5} {'loss':>6}" + "".join(f"{site:>11}" for site in sites)]
    for step in steps:
        values = "".join(f"{form.format(demo.readings[step][f'{metric}/{site}']):>11}" for site in sites)
        lines.append(f"{step:>5} {demo.held_out[step]:>6.2f}{values}")
    courses = [_trajectory([demo.readings[step][f"{metric}/{site}"] for step in steps]) for site in sites]
    return "\n".join([*lines, " " * 12 + "".join(f"{course[-10:]:>11}" for course in courses)])


def _trajectory(values: list[float]) -> str:
    """Values as a line of blocks, the lowest empty and the highest full.

    >>> _trajectory([1.0, 2.0, 3.0])
    '▁▅█'
    """
    least, span = min(values), max(values) - min(values)
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * (value - least) / span)) if span else 0] for value in values)


def _finding(demo: Demo) -> str:
    """One sentence on what to look for, with this run's own numbers."""
    first, *_, last = sorted(demo.readings)
    rank = {step: reading["effective_rank/final_norm"] for step, reading in demo.readings.items()}
    gain = {step: reading["gain_per_token/final_norm"] for step, reading in demo.readings.items()}
    lowest = min(rank, key=lambda step: rank[step])
    dip = f" by way of {rank[lowest]:.1f} at step {lowest}" if lowest not in (first, last) else ""
    return textwrap.fill(
        f"Look for the turn in the last column: while the held-out loss went from {demo.held_out[first]:.2f} to "
        f"{demo.held_out[last]:.2f}, the effective rank of final_norm went from {rank[first]:.1f} to {rank[last]:.1f}{dip}, "
        f"and the information gain of each token from {gain[first]:.2f} to {gain[last]:.2f} nats.",
        80,
    )


class _Record(TrainerCallback):  # type: ignore[misc]
    """Evaluates and saves at chosen steps, and keeps the losses."""

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
