"""Readings in a training loop of your own, beside the loss that the loop logs."""

from typing import Any, Protocol

from geomprobe import Reading
from geomprobe.integrations.flat import flat

__all__ = ["log_reading"]


class _Log(Protocol):
    """``accelerate.Accelerator``, one of its trackers, a ``wandb.Run``: whatever takes a dict of numbers and a step."""

    def log(self, values: dict[str, Any], /, step: int | None = None) -> object: ...


def log_reading(reading: Reading, to: _Log, *, step: int | None = None) -> None:
    """Log the scalars of ``reading`` to every tracker of an accelerate loop, in the row of the loss.

        accelerator.log({"train/loss": loss.item()}, step=step)
        log_reading(probe.read("train", reset=True), accelerator, step=step)

    This is ``accelerator.log(flat(reading), step=step)``: the main process writes, the others pass, and no tracker is started
    or chosen here. It defines no step axis of its own: ``step`` is the one the loop's other numbers stand at, and must be given
    in the same way. (W&B ignores, with a warning, a ``step=`` smaller than one it has seen; a loop that logs without ``step=``
    logs readings without it, too.)

    Args:
        reading: what ``probe.read(...)`` returned. With several processes each reads its own shard; what the main one read is
            written.
        to: the ``Accelerator`` after ``init_trackers``, one of its trackers, or a ``wandb.Run``.
        step: what the loop gives ``accelerator.log``.

    Raises:
        Nothing of its own; what a tracker raises passes through.
    """
    to.log(flat(reading), step=step)
