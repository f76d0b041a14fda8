"""How fixed texts run through a model during its training, without an effect on the training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from geomprobe.recording.all_reduce import is_distributed, replicas

__all__ = ["counts_here", "undisturbed"]

_SMALL = 1 << 16
"""Largest number of elements of a buffer that is copied."""


def counts_here(model: nn.Module) -> bool:
    """Return whether this rank counts texts that all ranks run: the first one does, with those that share its layers."""
    return not is_distributed() or dist.get_rank() < replicas(model)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """A context of evaluation mode without gradients, after which everything is as before: the flag ``training`` of each
    module, whether gradients are on, buffers, and the random numbers of the CPU and of the model's devices.

    The flags are set without calling ``eval()``, which some modules override, for example to merge their adapters.
    """
    modules = [module for module in model.modules() if module.training]
    # Inside autocast, a copy of a weight that is made without gradients may otherwise serve the next forward with gradients.
    cached = torch.is_autocast_cache_enabled()
    with _random_numbers(model), torch.no_grad(), _buffers(model):
        try:
            torch.set_autocast_cache_enabled(False)
            for module in modules:
                module.training = False
            yield
        finally:
            for module in modules:
                module.training = True
            torch.set_autocast_cache_enabled(cached)


@contextmanager
def _buffers(model: nn.Module) -> Iterator[None]:
    """A context after which each module with buffers has the buffers, and the numbers beside them, that it had.

    Some models change them in every forward: rotary embeddings of a dynamic base follow the longest text so far, and routers
    count the tokens of each expert. Large buffers, such as weights that are quantized, are restored only if they were replaced.
    """
    owners = [module for module in model.modules() if module._buffers]
    kept = [(module, dict(module._buffers), _numbers(module)) for module in owners]
    small = {id(one): one for one in model.buffers() if one.numel() <= _SMALL and not one.is_inference()}.values()
    copies = [(buffer, buffer._version, buffer.clone()) for buffer in small]
    try:
        yield
    finally:
        for module, buffers, numbers in kept:
            if any(module._buffers.get(name) is not buffer for name, buffer in buffers.items()):
                module._buffers.update(buffers)
            vars(module).update(numbers)
        for buffer, version, copy in copies:
            if buffer._version != version:
                buffer.copy_(copy)


def _numbers(module: nn.Module) -> dict[str, Any]:
    """The numbers and tensors among the attributes of a module."""
    return {
        name: value for name, value in vars(module).items() if isinstance(value, int | float | Tensor) and name != "training"
    }


@contextmanager
def _random_numbers(model: nn.Module) -> Iterator[None]:
    """A context after which the generators of the CPU and of the model's devices are in the state in which they were."""
    devices = {parameter.device for parameter in model.parameters()} - {torch.device("cpu"), torch.device("meta")}
    generators = [(torch.get_device_module(device), () if device.type == "mps" else (device,)) for device in devices]
    cpu, states = torch.get_rng_state(), [kind.get_rng_state(*which) for kind, which in generators]
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        for (kind, which), state in zip(generators, states, strict=True):
            kind.set_rng_state(state, *which)
