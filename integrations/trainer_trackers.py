"""The trackers of a Trainer: finds its reporters, and logs numbers, a picture and histograms through the client of each."""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import (
    INTEGRATION_TO_CALLBACK,
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)
from transformers.trainer_callback import CallbackHandler

from geomprobe.integrations.loops import sender
from geomprobe.integrations.outlets import Outlets
from geomprobe.integrations.wandb_sink import StepAxis, active_run

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TrainerTrackers"]

_AXIS = "train/global_step"
"""The step axis of Trainer in W&B and in Trackio."""


_BINS = 64
"""Number of bins of a histogram, as W&B has it."""


@dataclass(frozen=True)
class _Entry:
    """What is logged at one step, by name. ``commit`` is ``False`` if Trainer logs its loss at this step next, so that both can
    be in one row of W&B."""

    numbers: dict[str, float]
    step: int
    pictures: "Mapping[str, NDArray[np.uint8]]"
    histograms: Mapping[str, Sequence[float]]
    commit: bool


class TrainerTrackers:
    """Logs numbers, pictures and histograms where a Trainer logs its loss, at its ``global_step``, or to ``to`` if it is given.

    The names are the same everywhere, except with reporters of Trainer whose clients are not known here, such as Comet and
    ClearML: those log the numbers themselves, with ``train/`` before each name.

    A tracker that raises an exception gets nothing more in this training (:class:`Outlets`).

    Args:
        to: as for :func:`log_reading`. Default: the active W&B run, and the reporters of the Trainer.

    Raises:
        GeomprobeError: if ``to`` is no place where numbers can be logged.
    """

    def __init__(self, to: Any = None) -> None:
        self._to = to
        self._send = None if to is None else sender(to)
        self._reporters: list[TrainerCallback] = []
        self._event: tuple[TrainingArguments, TrainerState, TrainerControl]
        self._outlets: Outlets
        self._axis: StepAxis | None = None

    def begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, outlets: Outlets) -> bool:
        """Find the trackers, which are written to through ``outlets``. Call this where Trainer calls a callback.

        Returns:
            Whether there is a tracker.
        """
        self._event, self._outlets = (args, state, control), outlets
        known = tuple(INTEGRATION_TO_CALLBACK.values())
        self._reporters = [] if self._to is not None else [one for one in _callbacks() if isinstance(one, known)]
        return self._to is not None or bool(self._reporters) or active_run() is not None

    def end(self) -> None:
        """Release the reporters."""
        self._reporters = []

    def log(
        self,
        values: Mapping[str, float],
        step: int,
        *,
        pictures: "Mapping[str, NDArray[np.uint8]] | None" = None,
        histograms: Mapping[str, Sequence[float]] | None = None,
        commit: bool = True,
    ) -> None:
        """Log numbers, pictures and histograms by name.

        Args:
            values: the numbers by name.
            step: the ``global_step``.
            pictures: pictures by name, as arrays of height, width and three colours. Clients without pictures get none.
            histograms: the values of each histogram by name. Clients without histograms get none.
            commit: ``False`` if Trainer logs its loss at this step next, so that both can be in one row of W&B.

        Raises:
            Exception: what a client raises, if the outlets raise it.
        """
        entry = _Entry(dict(values), step, pictures or {}, histograms or {}, commit)
        for place, name, log in self._places():
            self._outlets.write(place, name, partial(log, place, entry))

    def alert(self, title: str, text: str) -> None:
        """Send an alert through each client that has alerts: the active W&B run and Trackio, or the run ``to``."""
        for place, name, _ in self._places():
            if _is_wandb_run(place):
                self._outlets.write(place, name, partial(place.alert, title=title, text=text, level="WARN"))
            elif isinstance(place, TrackioCallback) and hasattr(trackio := sys.modules["trackio"], "alert"):
                self._outlets.write(place, name, partial(trackio.alert, title, text))

    def _places(self) -> list[tuple[Any, str, Callable[[Any, _Entry], None]]]:
        """Each tracker, its name, and the function that logs to it."""
        if self._to is not None:
            return [(self._to, f"to={self._to!r:.80}", self._log_to_own)]
        run = active_run()
        runs = [] if run is None else [(run, f"W&B (the run {run.name or run.id!r})", self._log_to_wandb)]
        # The reporter of W&B logs to the active run.
        others = [reporter for reporter in self._reporters if not isinstance(reporter, WandbCallback)]
        return [*runs, *((one, type(one).__name__.removesuffix("Callback"), self._log_beside) for one in others)]

    def _log_to_own(self, to: Any, entry: _Entry) -> None:
        """Log to ``to``."""
        if _is_wandb_run(to):
            self._log_to_wandb(to, replace(entry, commit=True))
            return
        assert self._send is not None
        self._send(entry.numbers, entry.step)
        if hasattr(to, "add_image"):
            _add_media(to, entry)

    def _log_beside(self, reporter: TrainerCallback, entry: _Entry) -> None:
        """Log where a reporter of the Trainer logs."""
        if isinstance(reporter, TensorBoardCallback):
            if (writer := reporter.tb_writer) is not None:
                sender(writer)(entry.numbers, entry.step)
                _add_media(writer, entry)
                writer.flush()
        elif isinstance(reporter, MLflowCallback):
            mlflow = sys.modules["mlflow"]  # which the reporter has imported
            mlflow.log_metrics(entry.numbers, step=entry.step)
            for name, picture in entry.pictures.items():
                mlflow.log_image(picture, key=name, step=entry.step)
        elif isinstance(reporter, TrackioCallback):
            trackio = sys.modules["trackio"]
            trackio.log({**entry.numbers, **_media(trackio, entry), _AXIS: entry.step})
        else:
            reporter.on_log(*self._event, logs=entry.numbers)

    def _log_to_wandb(self, run: Any, entry: _Entry) -> None:
        import wandb

        if self._axis is None or self._axis.run is not run:
            self._axis = StepAxis(run, _AXIS)
        self._axis.log({**entry.numbers, **_media(wandb, entry)}, entry.step, commit=entry.commit)


def _media(client: Any, entry: _Entry) -> dict[str, Any]:
    """The pictures and histograms in the types of W&B, or of Trackio, which has the same names."""
    pictures = {name: client.Image(picture) for name, picture in entry.pictures.items()}
    return pictures | {name: client.Histogram(values, num_bins=_BINS) for name, values in entry.histograms.items()}


def _callbacks() -> list[TrainerCallback]:
    """The callbacks of the Trainer that is calling one of them now. Trainer gives a callback everything but the other
    callbacks, and the writer of its TensorBoard run is an attribute of one of them."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not CallbackHandler.call_event.__code__:
        frame = frame.f_back
    return [] if frame is None else list(frame.f_locals["self"].callbacks)


def _is_wandb_run(to: Any) -> bool:
    return hasattr(to, "define_metric") and hasattr(to, "summary")


def _add_media(writer: Any, entry: _Entry) -> None:
    for name, picture in entry.pictures.items():
        writer.add_image(name, picture, entry.step, dataformats="HWC")
    for name, values in entry.histograms.items():
        writer.add_histogram(name, np.array(values), entry.step, bins=_BINS)
