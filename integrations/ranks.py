"""What the processes of one training must agree on."""

from typing import TypeVar

import torch.distributed as dist

__all__ = ["gathered", "largest", "on_any_rank"]

T = TypeVar("T")


def gathered(value: T) -> list[T]:
    """Return the ``value`` of each process, the main one first. This is a collective operation."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def largest(value: float) -> float:
    """Return the largest ``value`` of all processes. This is a collective operation."""
    return max(gathered(value))


def on_any_rank(flag: bool) -> bool:
    """Return whether ``flag`` is true in any process. This is a collective operation."""
    return bool(largest(flag))
