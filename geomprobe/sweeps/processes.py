"""The processes of one sweep: each measures its share of the batches, and the main process writes the records."""

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
    """The processes that ``accelerate launch`` or ``torchrun`` started, or the single process without them.

    It asks ``torch.distributed``, and not the state of accelerate: if a group was made without the environment variables of a
    launcher, as by ``torch.multiprocessing.spawn``, accelerate reports single processes, and each would write the folder.

    Attributes:
        rank: number of this process; 0 is the main process.
        size: number of processes.
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
        """Whether this is the main process, which writes the records."""
        return self.rank == 0

    @property
    def device(self) -> str | None:
        """The GPU of this process, if several processes run on GPUs; else ``None``."""
        shared = self.size > 1 and torch.cuda.is_available() and "nccl" in dist.get_backend()
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if shared else None

    def share(self, items: Sequence[T]) -> list[T]:
        """Return the part of ``items`` that belongs to this process."""
        return list(items[self.rank :: self.size])

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of ``value`` over all processes, on the CPU. This is a collective operation."""
        if self.size > 1:
            value = value if self.device is None else value.to(self.device)
            dist.all_reduce(value)
        return value.cpu()

    def told(self, value: T) -> T:
        """Return the value that rank 0 has, broadcast to all processes. This is a collective operation."""
        if self.size == 1:
            return value
        box: list[T] = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def all_do(self, action: Callable[[], T]) -> T:
        """Run ``action``, which must not be a collective operation, in every process. If it fails in one, it fails in all.

        Raises:
            GeomprobeError: if ``action`` failed in any process. In the process in which it failed, the error has its cause.
        """
        result, failure = None, None
        try:
            result = action()
        except GeomprobeError as error:
            failure = error
        except Exception as error:  # an error of one checkpoint, such as memory or code of the model: others can continue
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
