"""The protocol of accumulators, and the functions that create, add, merge and copy their states.

An accumulator is a frozen dataclass that describes which sums to compute. Two accumulators with the same options are equal, so
two metrics that need the same sums share them. The sums themselves are stored outside the accumulator, in a *state*: a dict of
float64 tensors. Two states are merged by adding them, after their curves have been padded to the same length. Because of this
one rule, micro-batches, gradient accumulation, several ranks (one all-reduce), saving and resuming need no further code.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from geomprobe.core.attention_summary import AttentionRequest
from geomprobe.core.rows import Rows
from geomprobe.errors import GeomprobeError

__all__ = ["Accumulator", "Key", "ReadsAttention", "ReadsRouting", "State", "TokenCount", "add", "copy_state", "identity"]
__all__ += ["merge", "pad_to", "wanted_attention", "wants_routing", "zeros"]

State = dict[str, Tensor]


@runtime_checkable
class Accumulator(Protocol):
    """A hashable description of sums over rows of hidden states. Implementations are frozen dataclasses.

    Attributes:
        name: the name under which the sums are saved, which stays the same when the class is renamed.
        version: number of the definition of the sums. It is raised when they change, so that old and new sums are never added.
    """

    name: ClassVar[str]
    version: ClassVar[int]

    def new_state(self, width: int, device: torch.device) -> State:
        """Return the initial state of one site, in which all sums are zero, for rows of ``width`` numbers."""
        ...

    def contribution(self, rows: Rows) -> State:
        """Return the sums over ``rows``, which are then added to the state.

        The dict has the names of :meth:`new_state`. If ``rows`` has a leading dimension of sites, each tensor has it too. A sum
        over one forward can have any floating dtype; it is added in float64.
        """
        ...


@runtime_checkable
class ReadsAttention(Protocol):
    """An accumulator that needs ``rows.attention``, which is computed only if an accumulator asks for it."""

    @property
    def attention(self) -> AttentionRequest | None:
        """What is to be computed of the attention weights; ``None`` if nothing is."""
        ...


@runtime_checkable
class ReadsRouting(Protocol):
    """An accumulator that needs ``rows.routing``, which is observed only if an accumulator asks for it."""

    routing: ClassVar[bool]


def wants_routing(needs: Iterable[object]) -> bool:
    """Return whether an accumulator, or other reader of rows, needs the choices of routers."""
    return any(isinstance(need, ReadsRouting) for need in needs)


def wanted_attention(needs: Iterable[object]) -> AttentionRequest | None:
    """Return what is to be computed of the attention weights so that each accumulator, or other reader of rows, has what it
    needs; ``None`` if nothing is."""
    requests = [need.attention for need in needs if isinstance(need, ReadsAttention)]
    wanted = [request for request in requests if request is not None]
    if not wanted:
        return None
    flags = ("maps", "logits", "heads")
    return AttentionRequest(max(r.first for r in wanted), **{flag: any(getattr(r, flag) for r in wanted) for flag in flags})


@dataclass(frozen=True)
class TokenCount:
    """The number of tokens and texts that every other number was computed from.

    State: ``tokens`` (rows that were used), ``texts`` (texts with at least one such row), ``generated`` (those of the texts
    that the model generated, token by token), ``nonfinite`` (rows that were left out because they contained NaN or Inf).
    """

    name: ClassVar[str] = "token_count"
    version: ClassVar[int] = 1

    def new_state(self, width: int, device: torch.device) -> State:
        return zeros({"tokens": (), "texts": (), "generated": (), "nonfinite": ()}, device)

    def contribution(self, rows: Rows) -> State:
        counts = {"tokens": rows.used, "texts": rows.seen, "generated": rows.seen * rows.generated}
        return counts | {"nonfinite": rows.mask.sum() - rows.used}


class Key(NamedTuple):
    """The name of one sum of a probe: ``str(key)`` is ``mode/site/accumulator/sum``.

    >>> Key.parse("eval/layer_00/covariance.1(center=true)/outer").accumulator
    'covariance.1(center=true)'
    """

    mode: str
    site: str
    accumulator: str
    sum: str

    def __str__(self) -> str:
        return "/".join(self)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key of a name.

        Raises:
            GeomprobeError: if ``text`` is not such a name.
        """
        start, _, name = text.rpartition("/")
        parts = start.split("/", 2)
        if len(parts) < 3:
            raise GeomprobeError(f"{text!r} is not the name of a sum of a probe: expected mode/site/accumulator/sum")
        mode, site, accumulator = parts
        return cls(mode, site, accumulator, name)


def identity(accumulator: Accumulator) -> str:
    """Return the name, the version, and the options that differ from their defaults. It is the same in every process and in
    files, and stays the same when an option is added.

    >>> identity(TokenCount())
    'token_count.1'

    Raises:
        GeomprobeError: if the accumulator has no name or version, or an option that is neither text, number, truth value nor
            ``None``, or a sequence of these.
    """
    try:
        start = f"{accumulator.name}.{accumulator.version}"
        changed = [f"{name}={json.dumps(value)}" for name, value in _changed_options(accumulator).items()]
    except (AttributeError, TypeError, ValueError) as error:
        raise GeomprobeError(
            f"{type(accumulator).__name__} cannot be an accumulator ({error}): expected a frozen dataclass with a name, a "
            "version and options that are text, numbers or truth values"
        ) from error
    return start + f"({','.join(changed)})" * bool(changed)


def _changed_options(accumulator: Accumulator) -> dict[str, Any]:
    options = {field: getattr(accumulator, field.name) for field in fields(accumulator) if field.compare}  # type: ignore[arg-type]
    floats = {f: float(value) if isinstance(f.default, float) else value for f, value in options.items()}  # 1 is 1.0
    return {f.name: value for f, value in floats.items() if f.default is MISSING or value != f.default}


def zeros(shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> State:
    """Return a state of float64 zeros, one tensor for each name in ``shapes``. A curve starts with the shape ``(0,)``."""
    return {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}


def pad_to(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return ``tensor`` with zeros appended until it has ``shape``, or ``tensor`` itself if it has that shape already.

    >>> pad_to(torch.tensor([1.0, 2.0]), torch.Size([3]))
    tensor([1., 2., 0.])
    """
    if tensor.shape == shape:
        return tensor
    padded = tensor.new_zeros(shape)
    padded[tuple(slice(n) for n in tensor.shape)] = tensor
    return padded


def add(state: State, more: State, sites: slice | None = None) -> None:
    """Add ``more`` to ``state`` in place. Curves are made longer where needed.

    With ``sites``, ``state`` holds the stacked states of several sites, and ``more`` is added to those sites only.

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
    """Return the sum of states with the same keys, with curves padded by zeros to the longest. The inputs are not changed.

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


def copy_state(state: State) -> State:
    """Return an independent copy of ``state``."""
    return {name: value.detach().clone() for name, value in state.items()}
