"""``python -m tests.seeds``: how much numbers differ between trainings that differ in their seed only.

A small GPT-NeoX is trained with several seeds, and the same held-out tokens are measured. The table has the mean over the seeds
at ``final_norm``, and the standard deviation as a share of it.
"""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from geomprobe import Reading
from geomprobe.integrations import ProbeCallback
from geomprobe.models.toy import toy_trainer

__all__ = ["readings", "table"]

METRICS = ("entropy", "effective_rank", "anisotropy", "gain_per_token")
SEEDS = 5


def readings(seed: int, *, steps: int = 120, every: int = 20, width: int = 64, length: int = 64) -> dict[int, Reading]:
    """Train with one seed, and return the readings of the held-out texts by step; step 0 is the untrained model."""
    callback = ProbeCallback(when=steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = toy_trainer(
            Path(folder), steps=steps, width=width, layers=3, length=length, seed=seed, quiet=True, callbacks=[callback]
        )
        trainer.args.eval_strategy, trainer.args.eval_steps = "steps", every
        trainer.args.save_strategy = "no"
        trainer.train()
    return {step: reading for step, reading in callback.history if reading.mode == "eval"}


def table(runs: Sequence[dict[int, Reading]], site: str = "final_norm") -> str:
    """Return the means and relative standard deviations over ``runs``, by step."""
    lines = [f"{'step':<6}" + "".join(f"{metric:>18}" for metric in METRICS)]
    for step in runs[0]:
        cells = []
        for metric in METRICS:
            values = [run[step][f"{metric}/{site}"] for run in runs]
            mean = statistics.fmean(values)
            cells.append(f"{mean:.3g} ± {statistics.stdev(values) / mean:.1%}")
        lines.append(f"{step:<6}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def main() -> int:
    """Train, and print the table."""
    runs = []
    for seed in range(SEEDS):
        runs.append(readings(seed))
        print(f"seed {seed} of {SEEDS}", file=sys.stderr)
    print(table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
