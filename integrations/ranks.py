"""What the processes of one training must agree on."""

import torch.distributed as dist

__all__ = ["on_any_rank"]


def on_any_rank(flag: bool) -> bool:
    """Return whether ``flag`` is true in any process. This is a collective operation."""
    if not (dist.is_available() and dist.is_initialized()):
        return flag
    flags = [flag] * dist.get_world_size()
    dist.all_gather_object(flags, flag)
    return any(flags)
