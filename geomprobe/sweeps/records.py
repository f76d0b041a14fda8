"""What a sweep leaves: a manifest, and one line for every checkpoint."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from geomprobe.errors import GeomprobeError
from geomprobe.files import read_lines
from geomprobe.reading import Reading

__all__ = ["MANIFEST", "READINGS", "Kind", "Record", "Run"]

MANIFEST, READINGS = "manifest.json", "readings.jsonl"
"""Names of the two files of a run."""

Kind = Literal["checkpoint", "untrained", "gaussian"]
"""A checkpoint; the same architecture with random weights; rows drawn from a Gaussian, in texts of the same lengths."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one checkpoint of a sweep read, or why it did not.

    Attributes:
        name: what the checkpoint is called in the run: ``"step512"``, ``"checkpoint-400"``, ``"EleutherAI/pythia-70m"``.
        kind: a checkpoint, or one of the null baselines.
        model: hub id or directory.
        revision: on the hub.
        step: the training step, as far as its name tells.
        parameters: how many the model has; ``None`` for Gaussian rows.
        width: dimensions of a row at ``final_norm``; ``None`` where nothing was read.
        config: a hash of the model's configuration: a checkpoint's baselines are those with the same one.
        weights: a hash of the weights' files, or on a hub the commit.
        tokens: a hash of the tokens that were read.
        loss: nats per token of next-token prediction on those tokens; ``None`` where it is not known.
        reading: the numbers; ``None`` for a checkpoint that failed. The one site of Gaussian rows is ``"gaussian"``.
        error: why it failed.
        seconds: what it took, loading included.
        finished: when, as ISO 8601 in UTC.
    """

    name: str
    kind: Kind = "checkpoint"
    model: str = ""
    revision: str | None = None
    step: int | None = None
    parameters: int | None = None
    width: int | None = None
    config: str | None = None
    weights: str | None = None
    tokens: str | None = None
    loss: float | None = None
    reading: Reading | None = None
    error: str | None = None
    seconds: float = 0.0
    finished: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; NaN is ``None``."""
        plain = {name: value for name, value in vars(self).items() if name != "reading"}
        if self.loss is not None and not math.isfinite(self.loss):
            plain["loss"] = None
        return plain | {"reading": None if self.reading is None else self.reading.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """What :meth:`to_dict` gave.

        Raises:
            GeomprobeError: it is not that.
        """
        try:
            reading = None if data["reading"] is None else Reading.from_dict(data["reading"])
            return cls(**{**data, "reading": reading})
        except (KeyError, TypeError) as error:
            raise GeomprobeError(f"this is not a record of a sweep: {type(error).__name__}: {error}") from error


class Run:
    """A folder that a sweep wrote, or is writing.

    Attributes:
        path: the folder.
        manifest: ``{"arguments": …, "versions": …, "data": …}``.
        records: the last record of every checkpoint and baseline, in the order in which they were first met.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], records: list[Record]) -> None:
        self.path = path
        self.manifest = manifest
        self.records = list({(record.kind, record.name): record for record in records}.values())

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read a run.

        Raises:
            GeomprobeError: there is none, or it is damaged.
        """
        path = Path(path)
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise GeomprobeError(f"{path}: no run of a sweep: expected a folder with a {MANIFEST} in it") from error
        except (OSError, ValueError) as error:
            raise GeomprobeError(f"cannot read {path / MANIFEST}: {error}") from error
        return cls(path, manifest, [Record.from_dict(line) for line in read_lines(path / READINGS)])

    @property
    def name(self) -> str:
        """What the run is called: its folder's name."""
        return self.path.resolve().name

    @property
    def checkpoints(self) -> list[Record]:
        """The checkpoints that were read, by step, or where those are not known by size."""
        found = [record for record in self.records if record.kind == "checkpoint" and record.reading is not None]
        return sorted(found, key=lambda record: (record.step or 0, record.parameters or 0))

    @property
    def failed(self) -> list[Record]:
        """Those that failed."""
        return [record for record in self.records if record.error is not None]

    @property
    def axis(self) -> Literal["step", "parameters"]:
        """What tells the checkpoints apart: the training step, or the size of the model."""
        steps = {record.step for record in self.checkpoints}
        return "step" if None not in steps and len(steps) >= len({r.parameters for r in self.checkpoints}) else "parameters"

    def baseline(self, record: Record, kind: Kind) -> Record | None:
        """The null baseline of ``record``: its architecture untrained, or Gaussian rows as many and as wide; if it was read."""
        return next((r for r in self.records if r.kind == kind and r.config == record.config and r.reading is not None), None)
