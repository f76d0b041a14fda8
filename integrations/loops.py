"""Logs readings from your own training loop, together with the loss that the loop logs."""

from collections.abc import Callable
from typing import Any

from geomprobe import GeomprobeError, Reading
from geomprobe.integrations.names import Log, flat

__all__ = ["log_reading", "sender"]


def log_reading(reading: Reading, to: Any, *, step: int | None = None, log: Log = "overview") -> None:
    """Log the scalars of ``reading`` where a training loop logs its loss, at the same step.

        accelerator.log({"train/loss": loss.item()}, step=step)
        log_reading(probe.read("train", reset=True), accelerator, step=step)

    This calls ``accelerator.log(flat(reading, log), step=step)``, or the corresponding function of another object. Only the
    main process of accelerate or Lightning writes, and no tracker is started. No separate step axis is defined, so pass
    ``step`` in the same way as for the other numbers of the loop. (W&B ignores, with a warning, a ``step=`` smaller than an
    earlier one. In a loop that logs without ``step=``, log readings without it too.)

    Args:
        reading: the reading that ``probe.read(...)`` returned, on every process.
        to: the ``Accelerator`` after ``init_trackers`` or one of its trackers, a Lightning ``Fabric`` or logger, a
            ``SummaryWriter``, a run of W&B or Trackio, the module ``mlflow``, or a function of ``(numbers, step)``.
        step: the step that the loop passes for its loss.
        log: ``"overview"`` for at most 24 numbers, or ``"all"``, as for :func:`flat`.

    Raises:
        GeomprobeError: if ``to`` is none of these.
        Exception: what the tracker raises.
    """
    sender(to)(flat(reading, log), step)


def sender(to: Any) -> Callable[[dict[str, float], int | None], object]:
    """Return the function that logs numbers by name, at a step, to an object of a tracker's client (see :func:`log_reading`).

    Raises:
        GeomprobeError: if it is not such an object.
    """
    if hasattr(to, "add_scalar"):  # SummaryWriter

        def add_scalars(values: dict[str, float], step: int | None) -> None:
            for name, value in values.items():
                to.add_scalar(name, value, step)

        return add_scalars
    # The module mlflow also has log_dict, and Fabric also has log, which do other things: the order matters.
    for name in ("log_metrics", "log_dict", "log"):
        if hasattr(to, name):
            send = getattr(to, name)
            return lambda values, step: send(values, step=step)
    if callable(to):
        return lambda values, step: to(values, step)
    raise GeomprobeError(
        f"to={to!r}: expected where numbers are logged: an Accelerator, a Fabric, a logger of Lightning, a SummaryWriter, a "
        "run, or a function of (numbers, step)"
    )
