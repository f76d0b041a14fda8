"""What the processes of one training must agree on."""

import torch.distributed as dist

__all__ = ["largest", "on_any_rank"]


def largest(value: float) -> float:
    """Return the largest ``value`` of all processes. This is a collective operation."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return max(values)


def on_any_rank(flag: bool) -> bool:
    """Return whether ``flag`` is true in any process. This is a collective operation."""
    return bool(largest(flag))
