"""The W&B run of a sweep: one run for the whole folder, however often the sweep was stopped and resumed."""

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from geomprobe.errors import GeomprobeError
from geomprobe.files import write_whole
from geomprobe.integrations import WandbSink
from geomprobe.reading import Reading
from geomprobe.sweeps.records import Record

if TYPE_CHECKING:
    import wandb
    from plotly.graph_objects import Figure

__all__ = ["STATE", "SweepTracker"]

STATE = "wandb.json"
"""Name of the file in a run's folder that says which W&B run it has, and which records have arrived there."""


class SweepTracker:
    """The records of a sweep in one W&B run, beside the files that hold them.

        with SweepTracker(folder, project, config) as tracker:
            for record in records:  # of earlier sessions too: what W&B has is skipped
                tracker.record(record)
            tracker.finish(figures, html)

    A checkpoint is a point of ``geomprobe/<metric>/<site>``, and of ``geomprobe/loss``, over ``checkpoint/step``, or over
    ``checkpoint/parameters``. What has no place on that axis is in the run's summary: a null baseline as
    ``baseline/<kind>/<name>/<metric>/<site>`` (the kind once where it is also the name), a checkpoint whose step is not known
    as ``checkpoint/<name>/<metric>/<site>``.

    The folder's ``wandb.json`` holds the run's id, and the names of the records that sessions with a connection logged and saw
    to their end. All else is logged again by the next session: W&B keeps up to 32 kB in memory, which a process that is killed
    takes along, and it begins the file of every offline session at its first row, so that the latest one is to hold them all.
    No point is lost. One that had arrived after all stands there twice, with the same value.

    W&B is a guest. Whatever it refuses, at any moment, is one warning, and the sweep goes on without it.

    Args:
        folder: of the sweep.
        project: W&B project. Another one than last time begins a new run, with every record.
        config: configuration of the W&B run.
        axis: what tells the checkpoints apart: the training step, or the size of the model.
    """

    def __init__(
        self, folder: Path, project: str, config: Mapping[str, Any], *, axis: Literal["step", "parameters"] = "step"
    ) -> None:
        self._folder = folder
        self._project = project
        self._config = config
        self._axis = axis
        self._logged: list[str] = []
        self._sink: WandbSink | None = None
        self._refused = False

    def __enter__(self) -> Self:
        with self._guarded("start a run"):
            self._folder.mkdir(parents=True, exist_ok=True)
            earlier = self._read()
            self._sink = WandbSink(
                self._project,
                name=self._folder.resolve().name,
                config=self._config,
                axis=f"checkpoint/{self._axis}",
                run_id=earlier.get("id"),
            ).__enter__()
            arrived = earlier.get("logged", [])
            self._logged = [] if self._sink.run.offline else [*arrived]
            self._write(self._sink.run, arrived)
        return self

    def record(self, record: Record) -> None:
        """Log what a record read, unless the W&B run has it. Those of earlier sessions too."""
        name = f"{record.kind}/{record.name}"
        if self._sink is None or self._refused or record.reading is None or name in self._logged:
            return
        with self._guarded(f"log {record.name}"):
            place = getattr(record, self._axis) if record.kind == "checkpoint" else None
            if place is None:
                self._sink.run.summary.update(_summary_values(record, record.reading))
            else:  # a sweep reads every checkpoint in one mode, and its names tell of none
                self._sink.log(replace(record.reading, mode="train"), step=place, loss=record.loss)
            self._logged.append(name)

    def finish(self, figures: Mapping[str, "Figure"], html: Mapping[str, str]) -> None:
        """Log what a sweep ends with, each as the panel ``geomprobe/<name>``: figures, and pages of their own."""
        if self._sink is None or self._refused:
            return
        with self._guarded("log the figures"):
            self._sink.log_figures(figures)
            for name, page in html.items():
                self._sink.log_html(name, page)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._sink is not None:
            with self._guarded("end its run"):
                run = self._sink.run
                self._sink.__exit__(kind, error, trace)
                if not run.offline:
                    self._write(run, self._logged)
        self._sink = None

    # -- how ----------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """What goes wrong inside, in W&B, its service, the network or the disk, ends the logging, not the sweep."""
        try:
            yield
        except Exception as error:
            if not self._refused:
                warnings.warn(
                    f"W&B could not {what}: {type(error).__name__}: {error}. The sweep goes on without it and keeps its "
                    f"numbers in {self._folder}. Run it again when W&B works, and what is missing is logged; to the same W&B "
                    f"run, or without {self._folder / STATE} to a new one",
                    stacklevel=4,  # the line that called record() and the like
                )
            self._refused = True

    def _read(self) -> dict[str, Any]:
        """What earlier sessions left for this project."""
        path = self._folder / STATE
        try:
            state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return state if state["project"] == self._project else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise GeomprobeError(f"cannot read {path}: {type(error).__name__}: {error}") from error

    def _write(self, run: "wandb.Run", logged: list[str]) -> None:
        if not run.disabled:
            write_whole(self._folder / STATE, json.dumps({"project": self._project, "id": run.id, "logged": logged}, indent=1))


def _summary_values(record: Record, reading: Reading) -> dict[str, float]:
    """What stands in the summary of a record that is no point of a series."""
    shelf = "checkpoint" if record.kind == "checkpoint" else "baseline"
    place = "/".join(dict.fromkeys((shelf, record.kind, record.name)))
    values = reading.values | ({} if record.loss is None else {"loss": record.loss})
    return {f"{place}/{name}": value for name, value in values.items() if math.isfinite(value)}
