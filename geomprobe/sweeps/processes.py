"""The processes of one sweep: each reads its share of the batches, the main one writes."""

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from geomprobe.errors import GeomprobeError

__all__ = ["Team"]

T = TypeVar("T")


class Team:
    """All processes that ``accelerate launch`` or ``torchrun`` started; one alone without them.

    Attributes:
        rank: this one's number; 0 is the main one.
        size: how many there are.
    """

    def __init__(self) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
            from accelerate import PartialState

            PartialState()
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.size = dist.get_world_size() if together else 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def device(self) -> str | None:
        """This process's own GPU where several run on GPUs; no matter of the team's otherwise."""
        shared = self.size > 1 and torch.cuda.is_available() and "nccl" in dist.get_backend()
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if shared else None

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part."""
        return list(items[self.rank :: self.size])

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all, a collective."""
        if self.size > 1:
            value = value if self.device is None else value.to(self.device)
            dist.all_reduce(value)
        return value.cpu()

    def told(self, value: T) -> T:
        """What the main process has, a collective."""
        if self.size == 1:
            return value
        box: list[T] = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def all_do(self, action: Callable[[], T]) -> T:
        """Do ``action``, which is no collective, in every process; a failure in one is a failure in all.

        Raises:
            GeomprobeError: it failed; in the process where it did, with the cause.
        """
        result, failure = None, None
        try:
            result = action()
        except GeomprobeError as error:
            failure = error
        except Exception as error:  # a checkpoint's own fault, such as memory or a model's code: the others can go on
            failure = GeomprobeError(f"{type(error).__name__}: {error}")
            failure.__cause__ = error
        said: list[str | None] = [None if failure is None else str(failure)] * self.size
        if self.size > 1:
            dist.all_gather_object(said, said[0])
        if failure is not None:
            raise failure
        if other := next((text for text in said if text is not None), None):
            raise GeomprobeError(other)
        return result  # type: ignore[return-value]  # nothing failed, so it is what action gave
