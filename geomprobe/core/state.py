"""States that add: the contract every accumulator keeps.

An accumulator is a frozen description (its options are its identity, so two metrics that ask for the same one share it).
What it has seen lives outside it, in a *state*: a dict of float64 tensors. Merging two states is adding them, after padding
curves to one length. From this one rule follow micro-batches, gradient accumulation, ranks (one all-reduce), saving and
resuming.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from geomprobe.core.rows import Rows

__all__ = ["Accumulator", "State", "Tally", "add_at", "copy_state", "merge", "pad_to"]

State = dict[str, Tensor]


@runtime_checkable
class Accumulator(Protocol):
    """A hashable description of sums over rows. Implementations are frozen dataclasses."""

    def zero(self, width: int, device: torch.device) -> State:
        """The state that has seen nothing, for rows of ``width`` numbers."""
        ...

    def update(self, state: State, rows: Rows) -> None:
        """Add what ``rows`` shows into ``state``, in place."""
        ...


@dataclass(frozen=True)
class Tally:
    """How much was seen: the count behind every other number.

    State: ``tokens`` (rows used), ``texts`` (texts with at least one row used), ``nonfinite`` (rows left out because they
    held NaN or Inf).
    """

    def zero(self, width: int, device: torch.device) -> State:
        return {name: torch.zeros((), dtype=torch.float64, device=device) for name in ("tokens", "texts", "nonfinite")}

    def update(self, state: State, rows: Rows) -> None:
        state["tokens"] += rows.valid.sum()
        state["texts"] += (rows.per_text(rows.valid) > 0).sum()
        state["nonfinite"] += (rows.mask & ~rows.valid).sum()


def pad_to(tensor: Tensor, shape: torch.Size) -> Tensor:
    """``tensor`` with zeros appended until it has ``shape``; itself when it already has.

    >>> pad_to(torch.tensor([1.0, 2.0]), torch.Size([3]))
    tensor([1., 2., 0.])
    """
    if tensor.shape == shape:
        return tensor
    padded = tensor.new_zeros(shape)
    padded[tuple(slice(n) for n in tensor.shape)] = tensor
    return padded


def merge(states: Iterable[State]) -> State:
    """The sum of states with the same keys; curves are padded with zeros to the longest. Changes none of them.

    >>> merge([{"n": torch.tensor([1.0])}, {"n": torch.tensor([1.0, 2.0])}])
    {'n': tensor([2., 2.])}
    """
    total: State = {}
    for state in states:
        for name, value in state.items():
            if name not in total:
                total[name] = value.clone()
                continue
            shape = torch.Size(map(max, zip(total[name].shape, value.shape, strict=True)))
            total[name] = pad_to(total[name], shape) + pad_to(value, shape).to(total[name].device)
    return total


def copy_state(state: State, device: torch.device | None = None) -> State:
    """An independent copy, by default on the device each tensor is on."""
    return {name: value.detach().to(device or value.device, copy=True) for name, value in state.items()}


def add_at(state: State, name: str, positions: Tensor, values: Tensor, length: int) -> None:
    """Add ``values`` into the curve ``state[name]`` at ``positions``, growing the curve to ``length`` first."""
    if state[name].shape[0] < length:
        state[name] = pad_to(state[name], torch.Size([length]))
    state[name].index_add_(0, positions.flatten(), values.flatten().to(state[name].dtype))
