"""What the training loop of a Trainer knows of a step, and does not pass to callbacks."""

import inspect
from typing import Any, NamedTuple

__all__ = ["MicroBatch", "micro_batch"]


class MicroBatch(NamedTuple):
    """What Trainer has at the end of a micro-batch. What it does not have is ``None``.

    Attributes:
        loss: the share of this micro-batch in the loss of the step, as Trainer adds it up for its log, before it replaces NaN.
        inputs: what the model was called with.
        gradient_norm: the norm of the gradient before clipping, after the last micro-batch of a step.
    """

    loss: Any = None
    inputs: Any = None
    gradient_norm: Any = None


_LOSS, _INPUTS, _NORM = "tr_loss_step", "inputs", "grad_norm"
"""Names of variables in the loop of Trainer."""


def micro_batch(state: object) -> MicroBatch:
    """Return what the loop of the Trainer that is calling a callback now has: callbacks get none of it, and Trainer's log has
    means over several steps.

    Args:
        state: the state of this Trainer. The loop of another one, in which this one trains, is not read.
    """
    frame = inspect.currentframe()
    while frame is not None and _LOSS not in frame.f_code.co_varnames:
        frame = frame.f_back
    if frame is None or getattr(frame.f_locals.get("self"), "state", None) is not state:
        return MicroBatch()
    return MicroBatch(*map(frame.f_locals.get, (_LOSS, _INPUTS, _NORM)))
