"""Logs readings from a training loop that uses accelerate, together with the loss that the loop logs."""

from typing import Any, Protocol

from geomprobe import Reading
from geomprobe.integrations.flat import flat

__all__ = ["log_reading"]


class _Log(Protocol):
    """An object that logs a dict of numbers at a step: ``accelerate.Accelerator``, one of its trackers, or a ``wandb.Run``."""

    def log(self, values: dict[str, Any], /, step: int | None = None) -> object: ...


def log_reading(reading: Reading, to: _Log, *, step: int | None = None) -> None:
    """Log the scalars of ``reading`` to every tracker of an accelerate loop, at the same step as the loss.

        accelerator.log({"train/loss": loss.item()}, step=step)
        log_reading(probe.read("train", reset=True), accelerator, step=step)

    This is ``accelerator.log(flat(reading), step=step)``: only the main process writes, and no tracker is started. It does not
    define a step axis of its own, so pass ``step`` in the same way as for the other numbers of the loop. (W&B ignores, with a
    warning, a ``step=`` smaller than an earlier one. In a loop that logs without ``step=``, log readings without it too.)

    Args:
        reading: the reading that ``probe.read(...)`` returned, on every process.
        to: the ``Accelerator`` after ``init_trackers``, one of its trackers, or a ``wandb.Run``.
        step: the step that the loop passes to ``accelerator.log``.

    Raises:
        Exception: only exceptions that a tracker raises.
    """
    to.log(flat(reading), step=step)
