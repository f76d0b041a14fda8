"""States that add: the contract every accumulator keeps.

An accumulator is a frozen description (its options are its identity, so two metrics that ask for the same one share it).
What it has seen lives outside it, in a *state*: a dict of float64 tensors. Merging two states is adding them, after padding
curves to one length. From this one rule follow micro-batches, gradient accumulation, ranks (one all-reduce), saving and
resuming.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from geomprobe.core.rows import Rows

__all__ = ["Accumulator", "ReadsAttention", "State", "TokenCount", "add", "copy_state", "merge", "pad_to", "zeros"]

State = dict[str, Tensor]


@runtime_checkable
class Accumulator(Protocol):
    """A hashable description of sums over rows. Implementations are frozen dataclasses."""

    def new_state(self, width: int, device: torch.device) -> State:
        """The state of one site that has seen nothing, for rows of ``width`` numbers."""
        ...

    def contribution(self, rows: Rows) -> State:
        """What ``rows`` adds to the state: the same names, behind a leading dimension of sites where ``rows`` has one.

        Any floating dtype will do for a sum over one forward; it is added in float64.
        """
        ...


@runtime_checkable
class ReadsAttention(Protocol):
    """An accumulator that needs ``rows.attention``, which is filled only where one asks for it."""

    @property
    def attention(self) -> Literal["rows", "maps"] | None:
        """``"rows"``: summaries of each row; ``"maps"``: head-mean weights besides."""
        ...


@dataclass(frozen=True)
class TokenCount:
    """How much was seen: the count behind every other number.

    State: ``tokens`` (rows used), ``texts`` (texts with at least one row used), ``nonfinite`` (rows left out because they
    held NaN or Inf).
    """

    def new_state(self, width: int, device: torch.device) -> State:
        return zeros({"tokens": (), "texts": (), "nonfinite": ()}, device)

    def contribution(self, rows: Rows) -> State:
        return {"tokens": rows.used, "texts": rows.seen, "nonfinite": rows.mask.sum() - rows.used}


def zeros(shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> State:
    """A state of sums that have seen nothing: float64 zeros by name; ``(0,)`` for a curve."""
    return {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}


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


def add(state: State, more: State, sites: slice | None = None) -> None:
    """Add ``more`` into ``state`` in place, curves growing where they must; with ``sites`` into those rows of a stacked state.

    >>> state = {"n": torch.tensor([1.0])}
    >>> add(state, {"n": torch.tensor([1.0, 2.0])})
    >>> state
    {'n': tensor([2., 2.])}
    """
    for name, value in more.items():
        total = state[name]
        needed = value.shape if sites is None else (total.shape[0], *value.shape[1:])
        total = state[name] = pad_to(total, torch.Size(map(max, zip(total.shape, needed, strict=True))))
        part = total if sites is None else total[sites]
        part[tuple(slice(n) for n in value.shape)] += value


def merge(states: Iterable[State]) -> State:
    """The sum of states with the same keys; curves are padded with zeros to the longest. Changes none of them.

    >>> merge([{"n": torch.tensor([1.0])}, {"n": torch.tensor([1.0, 2.0])}])
    {'n': tensor([2., 2.])}
    """
    total: State = {}
    for state in states:
        if not total:
            total = copy_state(state)
        else:
            add(total, {name: value.to(total[name].device) for name, value in state.items()})
    return total


def copy_state(state: State, device: torch.device | None = None) -> State:
    """An independent copy, by default on the device each tensor is on."""
    return {name: value.detach().to(device or value.device, copy=True) for name, value in state.items()}
