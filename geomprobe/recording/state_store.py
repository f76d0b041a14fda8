"""The store of all states of a probe, one for every mode, site and accumulator."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from geomprobe.accumulators.state import Accumulator, Key, State, TokenCount, add, copy_state, identity, merge
from geomprobe.capture.generation import MODES, CachedSequence, Mode
from geomprobe.core.rows import Rows, full_precision
from geomprobe.errors import GeomprobeError
from geomprobe.recording.all_reduce import is_distributed, sum_over_ranks

__all__ = ["GROUP", "Bank", "Mode", "StateStore", "Sums"]

Bank = dict[str, dict[Accumulator, State]]
"""States by site and accumulator."""

GROUP = 4
"""Number of sites that are measured together: enough to reduce the cost of launching small kernels, and few enough for their
tensors to stay in a cache."""


class StateStore:
    """The sums over everything that was measured, by mode, site and accumulator.

    The states of neighbouring sites are stacked, so that they are updated together. States that were loaded, or measured on
    another device, are stored separately and added when the store is read.

    Args:
        accumulators: the accumulators, without duplicates. The first one is a :class:`TokenCount`.
        sites: all sites that may be added, in the order of the model.
    """

    def __init__(self, accumulators: Sequence[Accumulator], sites: Sequence[str]) -> None:
        self.accumulators = tuple(accumulators)
        self._named_accumulators = {identity(accumulator): accumulator for accumulator in self.accumulators}
        if len(self._named_accumulators) < len(self.accumulators):
            raise GeomprobeError("two accumulators of this probe have the same name and options: rename yours")
        self._sites = tuple(sites)
        self._stacks: dict[_Stack, dict[Accumulator, State]] = {}
        self._seen: dict[_Stack, set[int]] = {}
        self._rest: dict[str, State] = {}

    def measure(self, mode: Mode, sites: slice, rows: Rows, *, sign: int = 1) -> "Sums":
        """Return the sums of rows ``(sites, batch, length, width)`` at ``sites``, or their negatives with ``sign=-1``, for
        :meth:`add`. The states are not changed.

        ``sites`` are indices into the sites of this store, within one group of :data:`GROUP` sites.
        """
        group = sites.start // GROUP
        stack = (mode, group, rows.hidden.device, rows.width)
        within = slice(sites.start - group * GROUP, sites.stop - group * GROUP)
        states = self._states(stack)
        total: dict[Accumulator, State] = {}
        for i, part in enumerate(rows.split()):
            for accumulator in self.accumulators:
                more = accumulator.contribution(part)
                _check_shapes(accumulator, more, states[accumulator], sites.stop - sites.start)
                if i == 0:
                    total[accumulator] = more
                    continue
                if i == 1:  # sums over one part can be in float32, sums of several are in float64, as the states
                    total[accumulator] = {name: value.double() for name, value in total[accumulator].items()}
                add(total[accumulator], more)
        if sign < 0:
            total = {accumulator: {name: -value for name, value in more.items()} for accumulator, more in total.items()}
        return Sums(stack, within, total)

    def add(self, sums: "Sums") -> None:
        """Add what :meth:`measure` returned to the states."""
        start = sums.stack[1] * GROUP
        with torch.inference_mode(False), torch.no_grad():
            states = self._states(sums.stack)
            self._seen[sums.stack].update(range(start + sums.within.start, start + sums.within.stop))
            for accumulator, more in sums.total.items():
                add(states[accumulator], more, sums.within)

    def _states(self, stack: "_Stack") -> dict[Accumulator, State]:
        """The stacked states of a group of sites."""
        if stack not in self._stacks:
            _, group, device, width = stack
            held = len(self._sites[group * GROUP : (group + 1) * GROUP])
            self._seen[stack] = set()
            self._stacks[stack] = {
                a: {name: value.expand(held, *value.shape).clone() for name, value in a.new_state(width, device).items()}
                for a in self.accumulators
            }
        return self._stacks[stack]

    def add_sequence(self, sequence: CachedSequence) -> None:
        """Add the rows of a sequence, without those that were marked as counted before."""
        sums: list[Sums] = []
        for name in sequence.sites:
            i = self._sites.index(name)
            with full_precision(sequence.device.type):
                sums.append(self.measure(sequence.mode, slice(i, i + 1), sequence.rows(name)))
                if sequence.is_counted:
                    sums.append(self.measure(sequence.mode, slice(i, i + 1), sequence.counted_rows(name), sign=-1))
        for each in sums:  # after all succeeded: a text is counted at every site or at none
            self.add(each)

    def with_sequences(self, sequences: Iterable[CachedSequence]) -> Self:
        """Return a store that also contains the texts of ``sequences``, which are still being generated. This store is not
        changed."""
        arriving = self._empty()
        for sequence in sequences:
            arriving.add_sequence(sequence)
        return self._of(self._named(), arriving._named())

    @property
    def banks(self) -> dict[Mode, Bank]:
        """The states of each mode by site. A site is missing until rows of it were added."""
        banks: dict[Mode, Bank] = {mode: {} for mode in MODES}
        named = self._named()
        for mode, bank in banks.items():
            for site in self._sites:
                if _place(mode, site, identity(TokenCount())) in named:
                    bank[site] = {a: named[_place(mode, site, name)] for name, a in self._named_accumulators.items()}
        return banks

    def over_ranks(self, replicas: int) -> Self:
        """Return the sum of the stores of all processes (a collective operation), or this store if there is one process only.

        ``replicas`` is the number of ranks that measured the same rows.
        """
        if not is_distributed():
            return self
        total = sum_over_ranks(self._named(), replicas=replicas)
        self._check(total)
        return self._of(total)

    def reset(self, mode: Mode | None) -> None:
        """Discard the states of ``mode``, or of all modes if it is ``None``."""
        for stack in [stack for stack in self._stacks if mode in (None, stack[0])]:
            del self._stacks[stack], self._seen[stack]
        self._rest = {place: state for place, state in self._rest.items() if mode not in (None, place.split("/")[0])}

    def to_tensors(self) -> dict[str, Tensor]:
        """Return all states as tensors on the CPU, by the text of their :class:`Key`."""
        return {
            f"{place}/{name}": value
            for place, state in self._named().items()
            for name, value in copy_state(state, torch.device("cpu")).items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace all states with those that :meth:`to_tensors` returned.

        Raises:
            GeomprobeError: if ``tensors`` comes from a store with other accumulators or sites.
        """
        named: dict[str, State] = {}
        for key, value in tensors.items():
            mode, site, accumulator, name = Key.parse(key)
            if not isinstance(value, Tensor) or value.dtype != torch.float64:
                raise GeomprobeError(f"{key!r} of this state is {_described(value)}: expected a tensor of float64")
            named.setdefault(_place(mode, site, accumulator), {})[name] = value.clone()
        self._check(named)
        self.reset(None)
        self._rest = named

    def _named(self) -> dict[str, State]:
        """The states by ``mode/site/accumulator``, names that are the same in every process and in files. Do not modify
        them."""
        parts: dict[str, list[State]] = {place: [state] for place, state in self._rest.items()}
        for stack, states in self._stacks.items():
            for i in sorted(self._seen[stack]):
                for name, accumulator in self._named_accumulators.items():
                    state, place = states[accumulator], _place(stack[0], self._sites[i], name)
                    parts.setdefault(place, []).append({what: value[i % GROUP] for what, value in state.items()})
        for place, several in parts.items():
            if len({_width(state) for state in several}) > 1:
                raise GeomprobeError(
                    f"the loaded state belongs to another model: {place} has another width. Load the state of a probe "
                    "on this model"
                )
        return {place: merge(several) if len(several) > 1 else several[0] for place, several in parts.items()}

    def _of(self, *parts: Mapping[str, State]) -> Self:
        """A store with the sum of several :meth:`_named`."""
        store = self._empty()
        for named in parts:
            for place, state in named.items():
                store._rest[place] = merge([store._rest[place], state]) if place in store._rest else state
        return store

    def _check(self, named: Mapping[str, State]) -> None:
        """Check that states from a file or another process belong to a store like this one."""
        ours = self._named_accumulators.items()
        places = {_place(mode, site, name): a for mode in MODES for site in self._sites for name, a in ours}
        advice = "make the probe with the arguments of the probe that saved the state"
        for place in named:
            self._check_version(place.split("/", 2)[2])
        if unknown := set(named) - set(places):
            raise GeomprobeError(f"this state contains {min(unknown)!r}, which this probe does not have: {advice}")
        seen = {place.rsplit("/", 1)[0] for place in named}
        if missing := {place for place in places if place.rsplit("/", 1)[0] in seen} - set(named):
            raise GeomprobeError(f"this state does not contain {min(missing)!r}, which this probe needs: {advice}")
        for place, state in named.items():
            kept = places[place].new_state(_width(state), torch.device("meta"))
            if missing := kept.keys() ^ state.keys():
                raise GeomprobeError(f"{place!r} of this state and of this probe differ by {min(missing)!r}: {advice}")
            if wrong := [name for name, value in state.items() if value.dim() != kept[name].dim()]:
                raise GeomprobeError(f"{place!r} of this state has a sum {wrong[0]!r} of another shape: {advice}")

    def _check_version(self, accumulator: str) -> None:
        """Check that sums with the name of an accumulator of this store have its version."""
        name, _, version = accumulator.partition("(")[0].rpartition(".")
        for ours in self.accumulators:
            if ours.name == name and version.isdecimal() and int(version) != ours.version:
                when = "a newer" if int(version) > ours.version else "an older"
                raise GeomprobeError(
                    f"this state was written by {when} geomprobe: {name} has version {version}, this one reads {ours.version}; "
                    "use that version of geomprobe"
                )

    def _empty(self) -> Self:
        return type(self)(self.accumulators, self._sites)


def _check_shapes(accumulator: Accumulator, more: State, state: State, sites: int) -> None:
    """Check the shapes of a contribution: a sum over all sites would otherwise be broadcast to each of them."""
    shapes = {name: tuple(value.shape) for name, value in more.items()}
    if more.keys() != state.keys() or any(
        value.shape[:1] != (sites,) or value.dim() != state[name].dim() for name, value in more.items()
    ):
        raise GeomprobeError(
            f"{accumulator!r}.contribution() returned {shapes}: expected the names and shapes of new_state(), with a leading "
            f"dimension of {sites} sites as in rows.hidden (sum over the last dimensions only)"
        )


def _place(mode: str, site: str, accumulator: str) -> str:
    """The part of a :class:`Key` that the sums of one state share."""
    return f"{mode}/{site}/{accumulator}"


def _described(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _width(state: State) -> int:
    """The number of values per row, if the state has a sum of rows; else 1."""
    return state["sum"].shape[-1] if "sum" in state else 1


_Stack = tuple[Mode, int, torch.device, int]
"""The key of a stack of states: mode, number of the group of sites, device and width."""


@dataclass(frozen=True)
class Sums:
    """The sums over some rows, which have not been added to the states yet.

    Attributes:
        stack: the stack of states they belong to.
        within: the sites within that stack.
        total: the sums by accumulator.
    """

    stack: _Stack
    within: slice
    total: dict[Accumulator, State]
