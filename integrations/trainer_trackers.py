"""The trackers of a Trainer: finds its reporters, and logs numbers and a picture through the client of each."""

import inspect
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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
from geomprobe.integrations.wandb_sink import StepAxis, active_run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["TrainerTrackers"]

_AXIS = "train/global_step"
"""The step axis of Trainer in W&B and in Trackio."""


class TrainerTrackers:
    """Logs numbers and pictures where a Trainer logs its loss, at its ``global_step``, or to ``to`` if that is given.

    The names are the same everywhere, except with reporters of Trainer whose clients are not known here, such as Comet and
    ClearML: those log the numbers themselves, with ``train/`` before each name.

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
        self._axis: StepAxis | None = None

    def begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> bool:
        """Find the trackers. Call this where Trainer calls a callback.

        Returns:
            Whether there is a tracker.
        """
        self._event = (args, state, control)
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
        commit: bool = True,
    ) -> None:
        """Log numbers and pictures by name.

        Args:
            values: the numbers by name.
            step: the ``global_step``.
            pictures: pictures by name, as arrays of height, width and three colours. Clients without pictures get none.
            commit: ``False`` if Trainer logs its loss at this step next, so that both can be in one row of W&B.

        Raises:
            Exception: what a client raises.
        """
        numbers, pictures = dict(values), pictures or {}
        if self._send is None:
            if (run := active_run()) is not None:
                self._log_to_wandb(run, numbers, step, pictures, commit=commit)
            for reporter in self._reporters:
                self._log_beside(reporter, numbers, step, pictures)
        elif _is_wandb_run(self._to):
            self._log_to_wandb(self._to, numbers, step, pictures, commit=True)
        else:
            self._send(numbers, step)
            if hasattr(self._to, "add_image"):
                _add_images(self._to, pictures, step)

    def _log_beside(
        self, reporter: TrainerCallback, numbers: dict[str, float], step: int, pictures: "Mapping[str, NDArray[np.uint8]]"
    ) -> None:
        """Log where a reporter of the Trainer logs."""
        if isinstance(reporter, WandbCallback):
            return  # it logs to the active run
        if isinstance(reporter, TensorBoardCallback):
            if (writer := reporter.tb_writer) is not None:
                sender(writer)(numbers, step)
                _add_images(writer, pictures, step)
                writer.flush()
        elif isinstance(reporter, MLflowCallback):
            mlflow = sys.modules["mlflow"]  # which the reporter has imported
            mlflow.log_metrics(numbers, step=step)
            for name, picture in pictures.items():
                mlflow.log_image(picture, key=name, step=step)
        elif isinstance(reporter, TrackioCallback):
            trackio = sys.modules["trackio"]
            drawn = {name: trackio.Image(picture) for name, picture in pictures.items()}
            trackio.log({**numbers, **drawn, _AXIS: step})
        else:
            reporter.on_log(*self._event, logs=numbers)

    def _log_to_wandb(
        self, run: Any, numbers: dict[str, float], step: int, pictures: "Mapping[str, NDArray[np.uint8]]", *, commit: bool
    ) -> None:
        import wandb

        if self._axis is None or self._axis.run is not run:
            self._axis = StepAxis(run, _AXIS)
        drawn = {name: wandb.Image(picture) for name, picture in pictures.items()}
        self._axis.log({**numbers, **drawn}, step, commit=commit)


def _callbacks() -> list[TrainerCallback]:
    """The callbacks of the Trainer that is calling one of them now. Trainer gives a callback everything but the other
    callbacks, and the writer of its TensorBoard run is an attribute of one of them."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not CallbackHandler.call_event.__code__:
        frame = frame.f_back
    return [] if frame is None else list(frame.f_locals["self"].callbacks)


def _is_wandb_run(to: Any) -> bool:
    return hasattr(to, "define_metric") and hasattr(to, "summary")


def _add_images(writer: Any, pictures: "Mapping[str, NDArray[np.uint8]]", step: int) -> None:
    for name, picture in pictures.items():
        writer.add_image(name, picture, step, dataformats="HWC")
