"""States over ranks: they add, so one all-reduce is all there is."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from geomprobe.accumulators.state import State, pad_to
from geomprobe.errors import GeomprobeError

__all__ = ["Keyed", "is_distributed", "replicas", "sum_over_ranks"]

Keyed = dict[str, State]
"""States by a name that means the same on every rank."""


def is_distributed() -> bool:
    """Whether several processes run together, as ``accelerate launch`` or ``torchrun`` start them."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def replicas(model: nn.Module) -> int:
    """How many ranks see the same rows of ``model``: those that share its layers by tensor parallelism.

    Transformers says it of a model that it loaded so. Else parameters do that are DTensors: on a mesh with a dimension
    ``"tp"``, or on any in a model without FSDP (which makes DTensors, too, but its ranks run texts of their own).
    """
    if not is_distributed():
        return 1
    for module in model.modules():
        if size := getattr(module, "_tp_size", None):
            return int(size)
    meshes = [mesh for parameter in model.parameters() if (mesh := getattr(parameter, "device_mesh", None)) is not None]
    for mesh in meshes:
        if "tp" in (mesh.mesh_dim_names or ()):
            return int(mesh["tp"].size())
    from torch.distributed.fsdp import FSDPModule  # slow to import, and not there where torch has no distributed part

    has_fsdp = any(isinstance(module, FSDPModule) for module in model.modules())
    return 1 if has_fsdp or not meshes else int(meshes[0].size())


def sum_over_ranks(states: Keyed, group: dist.ProcessGroup | None = None, *, replicas: int = 1) -> Keyed:
    """The sum of every rank's states: a collective, to be called on all ranks of ``group``, also on those that saw nothing.

    Ranks may hold different names and curves of different lengths: shapes are agreed on first, then everything travels as one
    float64 vector. On every rank the result is the same to the last bit.

    Args:
        states: this rank's.
        group: all ranks by default.
        replicas: how many ranks saw the same rows; they count once.

    Raises:
        GeomprobeError: the other ranks were not reached.
    """
    shapes: dict[tuple[str, str], torch.Size] = {}
    gathered: list[dict[tuple[str, str], torch.Size]] = [{} for _ in range(dist.get_world_size(group))]
    mine = {(name, key): value.shape for name, state in states.items() for key, value in state.items()}
    with _reaching_all(group):
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
    with _reaching_all(group):
        dist.all_reduce(flat, group=group)
    flat /= replicas
    total: Keyed = {}
    parts = torch.split(flat, [shape.numel() for shape in shapes.values()])
    for ((name, key), shape), part in zip(shapes.items(), parts, strict=True):
        total.setdefault(name, {})[key] = part.view(shape)
    return total


@contextmanager
def _reaching_all(group: dist.ProcessGroup | None) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's or NCCL's: a closed connection, a timeout, an answer to another question
        raise GeomprobeError(
            f"rank {dist.get_rank(group)} could not sum over {dist.get_world_size(group)} ranks: another has ended, or does "
            f"not call read() ({type(error).__name__}: {error}). What this rank saw is not lost: state_dict() holds it, and "
            "read() gives it after torch.distributed.destroy_process_group()"
        ) from error


def _device(group: dist.ProcessGroup | None) -> torch.device:
    """Where this group's collectives run: NCCL moves CUDA tensors only."""
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend(group) else torch.device("cpu")
