"""The W&B run of a sweep. There is one run for the whole folder, however often the sweep was stopped and resumed."""

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from geomprobe.files import Format, check_shape, read_json, write_whole
from geomprobe.integrations import WandbSink
from geomprobe.integrations.names import safe_name
from geomprobe.reading import Reading
from geomprobe.sweeps.records import Record

if TYPE_CHECKING:
    import wandb
    from plotly.graph_objects import Figure

__all__ = ["STATE", "SweepTracker"]

STATE = "wandb.json"
"""Name of the file in a run's folder that contains the id of its W&B run and the names of the records that W&B has received."""

_FORMAT = 1


class SweepTracker:
    """Logs the records of a sweep to one W&B run.

        with SweepTracker(folder, project, config) as tracker:
            for record in records:  # including those of earlier sessions: records that W&B has are skipped
                tracker.record(record)
            tracker.finish(lambda: figures, lambda: pages)

    A checkpoint is a point of ``geomprobe/<metric>/<site>``, and of ``geomprobe/loss``, over ``checkpoint/step`` or
    ``checkpoint/parameters``. Records that have no position on that axis are logged to the summary of the run: a null baseline
    as ``baseline/<kind>/<name>/<metric>/<site>`` (with the kind once if it is also the name), and a checkpoint whose step is
    not known as ``checkpoint/<name>/<metric>/<site>``.

    The file ``wandb.json`` in the folder contains the id of the run, and the names and times of the records that were logged by
    online sessions that ended normally. All other records are logged again by the next session, for two reasons: W&B keeps up
    to 32 kB in memory, which is lost if the process is killed, and each offline session writes a new file, which must contain
    all records. So no point is lost, but a point may be logged twice, with the same value.

    Errors of W&B never stop a sweep: the first one is issued as a warning, and the sweep continues without W&B.

    Args:
        folder: folder of the sweep.
        project: W&B project. If it differs from the project of the last session, a new run is started with all records.
        config: configuration of the W&B run.
        axis: the quantity in which the checkpoints differ: the training step, or the size of the model.
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
        """Log a record, unless the W&B run has it already."""
        name = f"{record.kind}/{record.name} {record.finished}"  # a record whose comparisons were mended is logged again
        if self._sink is None or self._refused or record.reading is None or name in self._logged:
            return
        with self._guarded(f"log {record.name}"):
            place = getattr(record, self._axis) if record.kind == "checkpoint" else None
            if place is None:
                self._sink.run.summary.update(_summary_values(record, record.reading))
            else:  # a sweep measures in evaluation mode only, so the names in W&B have no prefix of the mode
                reading = Reading("train", record.reading.sites, record.reading)
                self._sink.log(reading, step=place, loss=record.loss, log="all")
            self._logged.append(name)

    def finish(self, figures: Callable[[], Mapping[str, "Figure"]], html: Callable[[], Mapping[str, str]]) -> None:
        """Log figures and pages at the end of a sweep, each as the panel ``geomprobe/<name>``. They are made here, so that an
        error in making them does not stop the sweep either."""
        if self._sink is None or self._refused:
            return
        with self._guarded("get the figures and the page of a text"):
            self._sink.log_figures(figures())
            for name, page in html().items():
                self._sink.log_html(name, page)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._sink is not None:
            with self._guarded("end its run"):
                run = self._sink.run
                self._sink.__exit__(kind, error, trace)
                if not run.offline:
                    self._write(run, self._logged)
        self._sink = None

    # -- implementation -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """A context in which an error, of W&B, its service, the network or the disk, ends the logging and not the sweep."""
        try:
            yield
        except Exception as error:
            if not self._refused:
                warnings.warn(
                    f"W&B could not {what}: {type(error).__name__}: {error}. The sweep continues without W&B, and its numbers "
                    f"are in {self._folder}. Run the same command again when W&B works, to log the missing records to the same "
                    f"W&B run; delete {self._folder / STATE} first to log them to a new run",
                    stacklevel=4,  # the line that called record() and the like
                )
            self._refused = True

    def _read(self) -> dict[str, Any]:
        """The state that earlier sessions saved for this project."""
        path = self._folder / STATE
        try:
            state: dict[str, Any] = read_json(path)
        except FileNotFoundError:
            return {}
        check_shape(state, {"format": Format(_FORMAT), "project": str, "id": str, "logged": [str]}, str(path))
        return state if state["project"] == self._project else {}

    def _write(self, run: "wandb.Run", logged: list[str]) -> None:
        if not run.disabled:
            state = {"format": _FORMAT, "project": self._project, "id": run.id, "logged": logged}
            write_whole(self._folder / STATE, json.dumps(state, indent=1))


def _summary_values(record: Record, reading: Reading) -> dict[str, float]:
    """The values in the summary for a record that has no position on the axis."""
    shelf = "checkpoint" if record.kind == "checkpoint" else "baseline"
    place = "/".join(dict.fromkeys((shelf, record.kind, safe_name(record.name))))
    values = dict(reading) | ({} if record.loss is None else {"loss": record.loss})
    return {f"{place}/{name}": value for name, value in values.items() if math.isfinite(value)}
