"""The file of readings that a training wrote, as runs that the figures of a report can draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from geomprobe.errors import GeomprobeError
from geomprobe.files import StepFile, check_shape
from geomprobe.monitoring.alarm import Alarm
from geomprobe.reading import Reading
from geomprobe.report.theme import shorten
from geomprobe.sweeps.records import MANIFEST, Record, Run

__all__ = ["FILE", "Training", "find_training"]

FILE = "geomprobe.jsonl"
"""Name of the file in the output folder of a training."""

_ADVICE = "give the geomprobe.jsonl that ProbeCallback or LightningCallback wrote, or the folder of a sweep"


def find_training(path: Path) -> Path | None:
    """Return the file of readings that ``path`` is or contains; ``None`` for the folder of a sweep.

    Raises:
        GeomprobeError: if it is none of these.
    """
    try:
        if path.is_file():
            return path
        if (path / FILE).is_file() and not (path / MANIFEST).exists():
            return path / FILE
        if path.is_dir() and any((path / name).exists() for name in (MANIFEST, "readings.jsonl")):
            return None
    except (OSError, ValueError) as error:  # a name that is too long, or that no file can have
        raise GeomprobeError(f"cannot read {path}: {error}") from error
    raise GeomprobeError(
        f"{path} is not a run of a sweep or a training: expected a folder that contains {MANIFEST} or {FILE}, or that file"
    )


_LINE = {"loss?": float | None, "stopped?": str, "alarm?": {str: object}, "mode?": str, str: object}


@dataclass(frozen=True)
class Training:
    """The readings of a training.

    Attributes:
        path: the file.
        runs: for each mode the readings in the order of their steps, as the records of a run. ``"train"`` is the first.
        losses: for each mode the loss by step, in order.
        stopped: the step at which an error ended the measurement and the error, for each time that this happened.
        alarms: the alarms that rang, in order.
    """

    path: Path
    runs: dict[str, Run]
    losses: dict[str, dict[int, float]]
    stopped: list[tuple[int, str]]
    alarms: list[Alarm]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            GeomprobeError: if it cannot be read, if it is not such a file, or if it contains no reading.
        """
        records: dict[str, list[Record]] = {}
        losses: dict[str, dict[int, float]] = {}
        stopped: list[tuple[int, str]] = []
        alarms: list[Alarm] = []
        for number, line in enumerate(StepFile(path).records(), 1):
            what = f"{path}, line {number}"
            check_shape(line, _LINE, what, advice=_ADVICE)
            if (loss := line.get("loss")) is not None:
                losses.setdefault(line.get("mode", "train"), {})[line["step"]] = float(loss)
            if "stopped" in line:
                stopped.append((line["step"], line["stopped"]))
            elif "alarm" in line:
                alarms.append(Alarm.from_dict(line["alarm"], what=f"{what}: this is not an alarm"))
            elif "sites" in line or "loss" not in line:
                reading = Reading.from_dict(line, what=what, advice=_ADVICE)
                one = Record(name=f"line {number}", step=line["step"], reading=reading)
                records.setdefault(reading.mode, []).append(one)
        if not records:
            why = "; ".join(f"measuring stopped at step {step}: {error}" for step, error in stopped)
            raise GeomprobeError(f"{path} has no readings, so there is nothing to draw: {why or 'no step was measured yet'}")
        modes = sorted(records, key=lambda mode: mode != "train")
        return cls(path, {mode: as_run(mode, records[mode]) for mode in modes}, losses, stopped, alarms)

    @property
    def name(self) -> str:
        """The name of the output folder, with that of the file if it is another one than usual."""
        folder = self.path.resolve().parent.name
        return folder if self.path.name == FILE and folder else f"{folder}/{self.path.name}"


def as_run(mode: str, records: Sequence[Record]) -> Run:
    """Return records as a run that is called as the mode."""
    return Run(Path(shorten(mode).replace("/", "_")), {}, list(records))
