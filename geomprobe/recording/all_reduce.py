"""The sum of states over all ranks of a distributed run, by one all-reduce."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from geomprobe.accumulators.state import State, pad_to
from geomprobe.errors import GeomprobeError

__all__ = ["Keyed", "is_distributed", "replicas", "sum_over_ranks"]

Keyed = dict[str, State]
"""States by a name that is the same on every rank."""


def is_distributed() -> bool:
    """Return whether several processes run together, as started by ``accelerate launch`` or ``torchrun``."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def replicas(model: nn.Module) -> int:
    """Return the number of ranks that run the same texts through ``model``, because they share its layers by tensor
    parallelism.

    Transformers marks a model that it loaded with tensor parallelism. Otherwise it is recognised by parameters that are
    DTensors on a mesh with a dimension ``"tp"``, or on any mesh in a model without FSDP (which uses DTensors too, but whose
    ranks run different texts).
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
    from torch.distributed.fsdp import FSDPModule  # slow to import, and missing in builds of torch without distributed

    has_fsdp = any(isinstance(module, FSDPModule) for module in model.modules())
    return 1 if has_fsdp or not meshes else int(meshes[0].size())


def sum_over_ranks(states: Keyed, group: dist.ProcessGroup | None = None, *, replicas: int = 1) -> Keyed:
    """Return the sum of the states of all ranks. This is a collective operation: call it on all ranks of ``group``, including
    those that measured nothing.

    Ranks may have different names, and curves of different lengths. The shapes are gathered first, and then all states are
    reduced as one float64 vector. The result is bit-identical on all ranks.

    Args:
        states: the states of this rank.
        group: the process group. Default: all ranks.
        replicas: number of ranks that measured the same rows, which are counted once.

    Raises:
        GeomprobeError: if the other ranks cannot be reached.
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
    except RuntimeError as error:  # from gloo or NCCL: a closed connection, a timeout, or a mismatched collective
        raise GeomprobeError(
            f"rank {dist.get_rank(group)} could not sum over {dist.get_world_size(group)} ranks: another rank has ended, or "
            f"does not call read() ({type(error).__name__}: {error}). The sums of this rank are not lost: state_dict() returns "
            "them, and read() works after torch.distributed.destroy_process_group()"
        ) from error


def _device(group: dist.ProcessGroup | None) -> torch.device:
    """The device of the tensors that are reduced: NCCL accepts CUDA tensors only."""
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend(group) else torch.device("cpu")
