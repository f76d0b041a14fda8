"""The files of a sweep: a manifest, and one record for every checkpoint."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Self

from geomprobe.errors import GeomprobeError
from geomprobe.files import Format, check_shape, read_json, read_lines
from geomprobe.reading import Reading
from geomprobe.sweeps.checkpoints import Checkpoint, is_of_files

__all__ = ["FORMAT", "MANIFEST", "READINGS", "Kind", "Place", "Record", "Run", "place"]

MANIFEST, READINGS = "manifest.json", "readings.jsonl"
"""Names of the two files of a run."""

FORMAT = 1
"""Number of the format of these files, and of the Gram matrices beside them."""

Kind = Literal["checkpoint", "untrained", "gaussian"]
"""The kind of a record: a checkpoint; a model of the same configuration with random weights; or rows drawn from a Gaussian, in
texts of the same lengths."""


KINDS: tuple[Kind, ...] = ("untrained", "gaussian", "checkpoint")
"""All kinds, in the order in which they are measured."""


_RECORD: dict[Any, Any] = {
    "format": Format(FORMAT),
    **dict.fromkeys(("name", "model", "finished"), str),
    **dict.fromkeys(("revision", "config", "weights", "tokens", "error"), str | None),
    **dict.fromkeys(("step", "parameters", "width"), int | None),
    "kind": frozenset(KINDS),
    "loss": float | None,
    "seconds": float,
    "partners": {str: str},
    "reading": (NoneType, {str: object}),  # which is a Reading
}
_MANIFEST: dict[Any, Any] = {
    "format": Format(FORMAT),
    "arguments": {
        "models": [str],
        "revisions": [str],
        **dict.fromkeys(("data", "field", "split", "dtype"), str),
        **dict.fromkeys(("device_map", "tokenizer"), str | None),
        **dict.fromkeys(("seed", "tokens", "sample"), int),
        "length": int | None,
        str: object,
    },
    "data": {"name": str, "hash": str, "tokens": int, "sample_tokens": int, str: object},
    "versions": {"geomprobe": str, str: str},
}
_ADVICE = "give what Record.to_dict() returned"
_LINE = "restore the file, or remove that line, which is then measured again"
_WAY_OUT = "restore the file, or give another folder to start a new run"


@dataclass(frozen=True, kw_only=True)
class Record:
    """The result of one checkpoint of a sweep, or the error with which it failed.

    Attributes:
        name: name of the checkpoint in the run, such as ``"step512"``, ``"checkpoint-400"`` or ``"EleutherAI/pythia-70m"``.
        kind: ``"checkpoint"``, or the kind of a null baseline.
        model: hub id or directory.
        revision: branch, tag or commit on the hub.
        step: the training step, if the name contains it.
        parameters: number of parameters of the model; ``None`` for Gaussian rows.
        width: number of dimensions of a row at ``final_norm``; ``None`` if nothing was measured.
        config: hash of the configuration of the model. The baselines of a checkpoint are those with the same hash.
        weights: hash of the files of weights, or the commit on a hub.
        tokens: hash of the tokens that were read.
        loss: loss of next-token prediction on these tokens, in nats per token; ``None`` if it is not known.
        reading: the numbers; ``None`` if the checkpoint failed. Gaussian rows have the single site ``"gaussian"``.
        partners: for each comparison (``diff_erank``, ``cka_first``, ``cka_previous``) the name of the record that this one was
            compared with.
        error: message of the error with which the checkpoint failed; ``None`` if it did not.
        seconds: time that the checkpoint took, including loading.
        finished: when it was finished, as ISO 8601 in UTC.
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
    partners: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0
    finished: str = ""

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint that was measured."""
        return Checkpoint(self.name, self.model, self.revision, self.step, local=is_of_files(self.weights))

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that can be written as JSON, with NaN as ``None``."""
        plain = {name: value for name, value in vars(self).items() if name != "reading"} | {"partners": dict(self.partners)}
        if self.loss is not None and not math.isfinite(self.loss):
            plain["loss"] = None
        return {"format": FORMAT} | plain | {"reading": None if self.reading is None else self.reading.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, what: str = "this is not a record of a sweep", advice: str = _ADVICE) -> Self:
        """Return the record from the dict that :meth:`to_dict` returned.

        Args:
            data: the dict.
            what: where it comes from, with which the message of an error begins.
            advice: what to do, with which it ends.

        Raises:
            GeomprobeError: if ``data`` is not such a dict.
        """
        check_shape(data, _RECORD, what, advice=advice)
        if (data["reading"] is None) == (data["error"] is None):
            raise GeomprobeError(f"{what}: expected either a reading or an error; {advice}")
        plain = {name: value for name, value in data.items() if name not in ("format", "reading")}
        if data["reading"] is None:
            return cls(**plain)
        return cls(**plain, reading=Reading.from_dict(data["reading"], what=f"{what}, reading", advice=advice))


class Run:
    """The folder of a sweep, finished or not.

    Attributes:
        path: the folder.
        manifest: ``{"arguments": …, "versions": …, "data": …}``.
        records: the latest record of every checkpoint and baseline. :meth:`open` returns them in the order of the run's list,
            with the baselines of a configuration before its first checkpoint, whenever they were measured.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], records: list[Record]) -> None:
        self.path = path
        self.manifest = manifest
        self.records = records

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read the run in a folder.

        Raises:
            GeomprobeError: if the folder is not a run of a sweep, or if its files are damaged.
        """
        path = Path(path)
        try:
            manifest = read_json(path / MANIFEST, advice=_WAY_OUT)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise GeomprobeError(f"{path} is not a run of a sweep: expected a folder that contains {MANIFEST}") from error
        check_shape(manifest, _MANIFEST, str(path / MANIFEST), advice=_WAY_OUT)
        lines = enumerate(read_lines(path / READINGS, advice=_LINE), 1)
        records = [Record.from_dict(line, what=f"{path / READINGS}, line {n}", advice=_LINE) for n, line in lines]
        latest = {(record.kind, record.name): record for record in records}.values()
        return cls(path, manifest, _in_order(manifest["arguments"], latest))

    @property
    def name(self) -> str:
        """The name of the run, which is that of its folder."""
        return self.path.resolve().name

    @property
    def checkpoints(self) -> list[Record]:
        """The records of checkpoints that were measured, sorted by step, or by size if steps are not known."""
        found = [record for record in self.records if record.kind == "checkpoint" and record.reading is not None]
        return sorted(found, key=lambda record: (record.step or 0, record.parameters or 0))

    @property
    def failed(self) -> list[Record]:
        """The records of checkpoints and baselines that failed."""
        return [record for record in self.records if record.error is not None]

    @property
    def axis(self) -> Literal["step", "parameters"]:
        """The quantity in which the checkpoints differ: the training step, or the size of the model."""
        steps = {record.step for record in self.checkpoints}
        return "step" if None not in steps and len(steps) >= len({r.parameters for r in self.checkpoints}) else "parameters"

    def baseline(self, record: Record, kind: Kind) -> Record | None:
        """Return the null baseline of ``record``, or ``None`` if it was not measured: its model with random weights, or
        Gaussian rows of the same number and width."""
        return next((r for r in self.records if r.kind == kind and r.config == record.config and r.reading is not None), None)


Place = tuple[int, bool, int, int, str]


def place(of: Record | Checkpoint, models: Sequence[str], revisions: Sequence[str]) -> Place:
    """Return what the checkpoints of a run are sorted by: the model as it was given, and the step; those without a step come
    last, as their revisions were given (``main`` is usually the end of training)."""
    path = Path(of.model)
    given = [i for i, model in enumerate(models) if Path(model) in (path, path.parent)]
    revision = revisions.index(of.revision) if of.revision in revisions else len(revisions)
    return (given[0] if given else len(models), of.step is None, of.step or 0, revision, of.name)


def _in_order(arguments: Mapping[str, Any], records: Iterable[Record]) -> list[Record]:
    """The records in the order of the run's list, with the baselines of a configuration before its first checkpoint."""

    def at(record: Record) -> Place:
        return place(record, arguments["models"], arguments["revisions"])

    checkpoints = sorted((r for r in records if r.kind == "checkpoint"), key=at)
    first: dict[str | None, Place] = {}
    for record in checkpoints:
        first.setdefault(record.config, at(record))
    nulls = sorted((r for r in records if r.kind != "checkpoint"), key=lambda r: KINDS.index(r.kind))
    told = [(first.get(r.config, ()), r) for r in nulls] + [(at(r), r) for r in checkpoints]
    return [record for _, record in sorted(told, key=lambda pair: pair[0])]
