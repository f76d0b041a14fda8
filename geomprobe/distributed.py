"""States over ranks: they add, so one all-reduce is all there is."""

import torch
import torch.distributed as dist

from geomprobe.core.state import State, pad_to

__all__ = ["Keyed", "is_distributed", "sum_over_ranks"]

Keyed = dict[str, State]
"""States by a name that means the same on every rank."""


def is_distributed() -> bool:
    """Whether several processes run together, as ``accelerate launch`` or ``torchrun`` start them."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_ranks(states: Keyed, group: dist.ProcessGroup | None = None) -> Keyed:
    """The sum of every rank's states: a collective, to be called on all ranks of ``group``, also on those that saw nothing.

    Ranks may hold different names and curves of different lengths: shapes are agreed on first, then everything travels as one
    float64 vector. On every rank the result is the same to the last bit.
    """
    shapes: dict[tuple[str, str], torch.Size] = {}
    gathered: list[dict[tuple[str, str], torch.Size]] = [{} for _ in range(dist.get_world_size(group))]
    mine = {(name, key): value.shape for name, state in states.items() for key, value in state.items()}
    dist.all_gather_object(gathered, mine, group=group)
    for theirs in gathered:
        for place, shape in theirs.items():
            known = shapes.get(place, shape)
            shapes[place] = torch.Size(map(max, zip(known, shape, strict=True)))
    device = _device(group)
    flat = torch.cat(
        [torch.zeros(0, dtype=torch.float64, device=device)]
        + [
            pad_to(states[name][key].to(device), shape).flatten()
            if (name, key) in mine
            else torch.zeros(shape.numel(), device=device)
            for (name, key), shape in shapes.items()
        ]
    )
    dist.all_reduce(flat, group=group)
    total: Keyed = {}
    parts = torch.split(flat, [shape.numel() for shape in shapes.values()])
    for ((name, key), shape), part in zip(shapes.items(), parts, strict=True):
        total.setdefault(name, {})[key] = part.view(shape)
    return total


def _device(group: dist.ProcessGroup | None) -> torch.device:
    """Where this group's collectives run: NCCL moves CUDA tensors only."""
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend(group) else torch.device("cpu")
