"""The sum of states over all ranks of a distributed run, by one all-reduce."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from geomprobe.accumulators.state import Key, pad_to
from geomprobe.errors import GeomprobeError

__all__ = ["is_distributed", "on_all_ranks", "replicas", "sum_over_ranks"]

T = TypeVar("T")


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


def on_all_ranks(make: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Return ``make()``, before a collective operation. If ``make``, which is not a collective operation itself, raises an
    error on one rank, for example because memory is full, this raises an error on all ranks, because the others would wait for
    that rank. This is a collective operation.

    Raises:
        GeomprobeError: if it raised on another rank, or the other ranks cannot be reached.
    """
    if not is_distributed():
        return make()
    error: Exception | None = None
    try:
        made = make()
    except Exception as raised:
        error = raised
    failed = [False] * dist.get_world_size(group)
    with _reaching_all(group):
        dist.all_gather_object(failed, error is not None, group=group)
    if error is not None:
        raise error
    if any(failed):
        raise GeomprobeError(
            f"rank {failed.index(True)} could not add its sums to those of the others: see the error on that rank"
        )
    return made


def sum_over_ranks(
    sums: Mapping[Key, Tensor], group: dist.ProcessGroup | None = None, *, replicas: int = 1
) -> dict[Key, Tensor]:
    """Return the sums of all ranks together. This is a collective operation: call it on all ranks of ``group``, including
    those that measured nothing.

    Ranks may have different keys, and curves of different lengths. The shapes are gathered first, and then all sums are
    reduced as one float64 vector. The result is bit-identical on all ranks.

    Args:
        sums: the sums of this rank.
        group: the process group. Default: all ranks.
        replicas: number of ranks that measured the same rows, which are counted once.

    Raises:
        GeomprobeError: if the other ranks cannot be reached.
    """
    shapes: dict[Key, torch.Size] = {}
    gathered: list[dict[Key, torch.Size]] = [{} for _ in range(dist.get_world_size(group))]
    with _reaching_all(group):
        dist.all_gather_object(gathered, {key: value.shape for key, value in sums.items()}, group=group)
    for theirs in gathered:
        for key, shape in theirs.items():
            known = shapes.get(key, shape)
            shapes[key] = torch.Size(map(max, zip(known, shape, strict=True)))
    flat = on_all_ranks(lambda: _flat(sums, shapes, _device(group)), group)
    with _reaching_all(group):
        dist.all_reduce(flat, group=group)
    flat /= replicas
    parts = torch.split(flat, [shape.numel() for shape in shapes.values()])
    return {key: part.view(shape) for (key, shape), part in zip(shapes.items(), parts, strict=True)}


def _flat(sums: Mapping[Key, Tensor], shapes: Mapping[Key, torch.Size], device: torch.device) -> Tensor:
    """All sums as one vector, padded to ``shapes``. Those that this rank does not have are zero."""
    return torch.cat(
        [torch.zeros(0, dtype=torch.float64, device=device)]
        + [
            pad_to(sums[key].to(device), shape).flatten() if key in sums else torch.zeros(shape.numel(), device=device)
            for key, shape in shapes.items()
        ]
    )


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
