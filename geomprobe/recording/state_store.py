"""What a probe has seen: a state for every mode, site and accumulator, and all that states can do because they add."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from geomprobe.accumulators.state import Accumulator, State, TokenCount, add, copy_state, merge
from geomprobe.capture.generation import CachedSequence, Mode
from geomprobe.core.rows import Rows, full_precision
from geomprobe.errors import GeomprobeError
from geomprobe.recording.all_reduce import is_distributed, sum_over_ranks

__all__ = ["GROUP", "Bank", "Mode", "StateStore"]

Bank = dict[str, dict[Accumulator, State]]
"""States by site and accumulator."""

GROUP = 4
"""Sites that are measured together: enough to spread the cost of starting small kernels, few enough to stay in a cache."""


class StateStore:
    """Sums over everything that was measured, by mode, site and accumulator.

    The states of neighbouring sites lie stacked, so that they are added to at once. States add, so what was loaded, or was
    measured on another device, lies beside them until it is read.

    Args:
        accumulators: what to sum; equal ones were dropped by the caller. The first is a :class:`TokenCount`.
        sites: the sites there may be, in the model's order.
    """

    def __init__(self, accumulators: Sequence[Accumulator], sites: Sequence[str]) -> None:
        self._accumulators = tuple(accumulators)
        self._sites = tuple(sites)
        self._stacks: dict[_Stack, dict[Accumulator, State]] = {}
        self._seen: dict[_Stack, set[int]] = {}
        self._rest: dict[str, State] = {}

    def add(self, mode: Mode, sites: slice, rows: Rows, *, sign: int = 1) -> None:
        """Add rows ``(sites, batch, length, width)`` into the states of ``sites``, or with ``sign=-1`` take them out again.

        ``sites`` are positions among this store's sites, within one group of :data:`GROUP`.
        """
        group = sites.start // GROUP
        stack = (mode, group, rows.hidden.device, rows.width)
        if stack not in self._stacks:
            held = len(self._sites[group * GROUP : (group + 1) * GROUP])
            self._seen[stack] = set()
            self._stacks[stack] = {
                a: {name: value.expand(held, *value.shape).clone() for name, value in a.new_state(rows.width, stack[2]).items()}
                for a in self._accumulators
            }
        within = slice(sites.start - group * GROUP, sites.stop - group * GROUP)
        for part in rows.split():
            measured = {accumulator: accumulator.contribution(part) for accumulator in self._accumulators}
            for accumulator, more in measured.items():
                _check_shapes(accumulator, more, self._stacks[stack][accumulator], sites.stop - sites.start)
            self._seen[stack].update(range(sites.start, sites.stop))
            for accumulator, more in measured.items():  # only now: a fault in one leaves all as they were
                signed = more if sign > 0 else {name: -value for name, value in more.items()}
                add(self._stacks[stack][accumulator], signed, within)

    def add_sequence(self, sequence: CachedSequence) -> None:
        """Add what a sequence holds beyond what was is_counted and forgotten."""
        for name in sequence.sites:
            i = self._sites.index(name)
            with full_precision(sequence.device.type):
                self.add(sequence.mode, slice(i, i + 1), sequence.rows(name))
                if sequence.is_counted:
                    self.add(sequence.mode, slice(i, i + 1), sequence.counted_rows(name), sign=-1)

    def with_sequences(self, sequences: Iterable[CachedSequence]) -> Self:
        """A store that also holds texts that are still arriving. Changes nothing here."""
        arriving = self._empty()
        for sequence in sequences:
            arriving.add_sequence(sequence)
        return self._of(self._named(), arriving._named())

    @property
    def banks(self) -> dict[Mode, Bank]:
        """The states of each mode; a site appears when it is first seen."""
        accumulators = {repr(accumulator): accumulator for accumulator in self._accumulators}
        banks: dict[Mode, Bank] = {"train": {}, "eval": {}}
        named = self._named()
        for mode, bank in banks.items():
            for site in self._sites:
                if f"{mode}/{site}/{TokenCount()!r}" in named:
                    bank[site] = {a: named[f"{mode}/{site}/{name}"] for name, a in accumulators.items()}
        return banks

    def over_ranks(self, replicas: int) -> Self:
        """The sum over all processes that run together, a collective; itself in one alone. ``replicas`` saw the same rows."""
        if not is_distributed():
            return self
        total = sum_over_ranks(self._named(), replicas=replicas)
        self._check(total)
        return self._of(total)

    def reset(self, mode: Mode | None) -> None:
        """Forget what was seen in ``mode``, or in both."""
        for stack in [stack for stack in self._stacks if mode in (None, stack[0])]:
            del self._stacks[stack], self._seen[stack]
        self._rest = {place: state for place, state in self._rest.items() if mode not in (None, place.split("/")[0])}

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything as flat named tensors on the CPU: ``mode/site/accumulator/sum``."""
        return {
            f"{place}/{name}": value
            for place, state in self._named().items()
            for name, value in copy_state(state, torch.device("cpu")).items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """What :meth:`to_tensors` gave, in place of what is here.

        Raises:
            GeomprobeError: it comes from other accumulators or sites.
        """
        named: dict[str, State] = {}
        for key, value in tensors.items():
            place, _, name = key.rpartition("/")
            named.setdefault(place, {})[name] = value.clone()
        self._check(named)
        self.reset(None)
        self._rest = named

    def _named(self) -> dict[str, State]:
        """States by ``mode/site/accumulator``, which means the same in every process and in a file; to be read only."""
        parts: dict[str, list[State]] = {place: [state] for place, state in self._rest.items()}
        for stack, states in self._stacks.items():
            for i in sorted(self._seen[stack]):
                for accumulator, state in states.items():
                    place = f"{stack[0]}/{self._sites[i]}/{accumulator!r}"
                    parts.setdefault(place, []).append({name: value[i % GROUP] for name, value in state.items()})
        for place, several in parts.items():
            if len({_width(state) for state in several}) > 1:
                raise GeomprobeError(f"the state that was loaded is of another model: {place} has other widths")
        return {place: merge(several) if len(several) > 1 else several[0] for place, several in parts.items()}

    def _of(self, *parts: Mapping[str, State]) -> Self:
        """The store of several :meth:`_named`, added."""
        store = self._empty()
        for named in parts:
            for place, state in named.items():
                store._rest[place] = merge([store._rest[place], state]) if place in store._rest else state
        return store

    def _check(self, named: Mapping[str, State]) -> None:
        """Whether states from elsewhere are of a store like this one."""
        places = {f"{mode}/{site}/{a!r}": a for mode in ("train", "eval") for site in self._sites for a in self._accumulators}
        advice = "make the probe with the arguments of the one that saved it"
        if unknown := set(named) - set(places):
            raise GeomprobeError(f"this state holds {min(unknown)!r}, which a probe like this one does not keep: {advice}")
        seen = {place.rsplit("/", 1)[0] for place in named}
        if missing := {place for place in places if place.rsplit("/", 1)[0] in seen} - set(named):
            raise GeomprobeError(f"this state holds no {min(missing)!r}, which a probe like this one keeps: {advice}")
        for place, state in named.items():
            kept = set(places[place].new_state(_width(state), torch.device("meta")))
            if missing := kept.symmetric_difference(state):
                raise GeomprobeError(f"this state's {place!r} and what a probe like this one keeps differ by {min(missing)!r}")

    def _empty(self) -> Self:
        return type(self)(self._accumulators, self._sites)


def _check_shapes(accumulator: Accumulator, more: State, state: State, sites: int) -> None:
    """A sum over the sites together would pass for the sum of each."""
    shapes = {name: tuple(value.shape) for name, value in more.items()}
    if more.keys() != state.keys() or any(
        value.shape[:1] != (sites,) or value.dim() != state[name].dim() for name, value in more.items()
    ):
        raise GeomprobeError(
            f"{accumulator!r}.measure() gave {shapes}: expected the names of zero(), and before each of its shapes a "
            f"dimension of {sites} sites, as rows.hidden has (sum over the last dimensions only)"
        )


def _width(state: State) -> int:
    """Numbers per row, of a state that shows it."""
    return state["sum"].shape[-1] if "sum" in state else 1


_Stack = tuple[Mode, int, torch.device, int]
"""Where states lie stacked: mode, number of the group, device and width."""
