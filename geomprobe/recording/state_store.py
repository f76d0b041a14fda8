"""The store of all states of a probe, one for every mode, site and accumulator."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Self

import torch
from torch import Tensor

from geomprobe.accumulators.residual_growth import ResidualGrowthSum
from geomprobe.accumulators.state import Accumulator, Key, State, TokenCount, add, identity, pad_to
from geomprobe.capture.decoder import input_of
from geomprobe.capture.generation import MODES, CachedSequence, Mode
from geomprobe.core.rows import Rows, full_precision
from geomprobe.errors import GeomprobeError
from geomprobe.recording.all_reduce import is_distributed, sum_over_ranks

__all__ = ["GROUP", "Bank", "Mode", "StateStore"]

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
        # Whether each site is a layer whose input is the site before.
        self._follows = tuple(a == input_of(b) for a, b in zip(("", *sites), sites, strict=False))
        self._reads_inputs = any(isinstance(accumulator, ResidualGrowthSum) for accumulator in accumulators)
        if self._reads_inputs and not any(self._follows):
            raise GeomprobeError(
                f"ResidualGrowth compares a layer with its input, but the sites are {', '.join(self._sites)}: choose two that "
                "follow each other, such as 'layer_04' and 'layer_05', or leave it out"
            )
        self._stacks: dict[_Stack, dict[Accumulator, State]] = {}
        self._seen: dict[_Stack, set[int]] = {}
        self._rest: dict[Key, Tensor] = {}

    def measure(
        self, mode: Mode, sites: slice, rows: Rows, *, before: Tensor | None = None, sign: int = 1
    ) -> Callable[[], None]:
        """Compute the sums of rows ``(sites, batch, length, width)`` at ``sites``, or their negatives with ``sign=-1``, and
        return a function that adds them to the states, which are not changed before.

        ``sites`` are indices into the sites of this store, within one group of :data:`GROUP` sites. ``before`` has the norms
        ``(batch, length)`` of the same rows at the site before, if they are known.
        """
        if self._reads_inputs:
            rows.input_norms = self._input_norms(sites, rows.norms, before)
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
        return partial(self._add, stack, sites, within, total)

    def _input_norms(self, sites: slice, norms: Tensor, before: Tensor | None) -> Tensor:
        """The norms of rows before the layers of ``sites``, from those at these sites; NaN where they are not known."""
        unknown = torch.full_like(norms[:1], torch.nan)
        inputs = [unknown if before is None else before[:, : norms.shape[-1]].to(norms).unsqueeze(0), *norms[:-1].unsqueeze(1)]
        return torch.cat([x if known else unknown for x, known in zip(inputs, self._follows[sites], strict=True)])

    def _add(self, stack: "_Stack", sites: slice, within: slice, total: dict[Accumulator, State]) -> None:
        with torch.inference_mode(False), torch.no_grad():
            states = self._states(stack)  # made anew if they were discarded since
            self._seen[stack].update(range(sites.start, sites.stop))
            for accumulator, more in total.items():
                add(states[accumulator], more, within)

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
        pending: list[Callable[[], None]] = []
        norms: dict[int, Tensor] = {}
        for name in sequence.sites:
            i = self._sites.index(name)
            site, before = slice(i, i + 1), norms.pop(i - 1, None)
            with full_precision(sequence.device.type):
                pending.append(self.measure(sequence.mode, site, rows := sequence.rows(name), before=before))
                norms[i] = rows.norms[0]
                if sequence.is_counted:
                    pending.append(self.measure(sequence.mode, site, sequence.counted_rows(name), before=before, sign=-1))
        for add_sums in pending:  # after all succeeded: a text is counted at every site or at none
            add_sums()

    def with_sequences(self, sequences: Iterable[CachedSequence]) -> Self:
        """Return a store that also contains the texts of ``sequences``, which are still being generated. This store is not
        changed."""
        arriving = self._of({})
        for sequence in sequences:
            arriving.add_sequence(sequence)
        return self._of(_total([self._sums(), arriving._sums()]))

    @property
    def banks(self) -> dict[Mode, Bank]:
        """The states of each mode by site. A site is missing until rows of it were added."""
        states, named = _by_place(self._sums()), self._named_accumulators.items()
        return {
            mode: {
                site: {a: states[mode, site, name] for name, a in named}
                for site in self._sites
                if (mode, site, identity(TokenCount())) in states
            }
            for mode in MODES
        }

    def over_ranks(self, replicas: int) -> Self:
        """Return the sum of the stores of all processes (a collective operation), or this store if there is one process only.

        ``replicas`` is the number of ranks that measured the same rows.
        """
        if not is_distributed():
            return self
        total = sum_over_ranks(self._sums(), replicas=replicas)
        self._check(total)
        return self._of(total)

    def reset(self, mode: Mode | None) -> None:
        """Discard the states of ``mode``, or of all modes if it is ``None``."""
        for stack in [stack for stack in self._stacks if mode in (None, stack[0])]:
            del self._stacks[stack], self._seen[stack]
        self._rest = {key: value for key, value in self._rest.items() if mode not in (None, key.mode)}

    def to_tensors(self) -> dict[str, Tensor]:
        """Return all states as tensors on the CPU, by the text of their :class:`Key`."""
        return {str(key): value.detach().to("cpu", copy=True) for key, value in self._sums().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace all states with those that :meth:`to_tensors` returned.

        Raises:
            GeomprobeError: if ``tensors`` comes from a store with other accumulators or sites.
        """
        sums: dict[Key, Tensor] = {}
        for text, value in tensors.items():
            key = Key.parse(text)
            if not isinstance(value, Tensor) or value.dtype != torch.float64:
                kind = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
                raise GeomprobeError(f"{text!r} of this state is {kind}: expected a tensor of float64")
            sums[key] = value.clone()
        self._check(sums)
        self.reset(None)
        self._rest = sums

    def _sums(self) -> dict[Key, Tensor]:
        """All sums by names that are the same in every process. Do not modify them."""
        stacked = [
            {
                Key(stack[0], self._sites[i], name, what): value[i % GROUP]
                for i in sorted(self._seen[stack])
                for name, accumulator in self._named_accumulators.items()
                for what, value in states[accumulator].items()
            }
            for stack, states in self._stacks.items()
        ]
        return _total([self._rest, *stacked])

    def _of(self, sums: dict[Key, Tensor]) -> Self:
        """A store like this one with other sums."""
        store = type(self)(self.accumulators, self._sites)
        store._rest = sums
        return store

    def _check(self, sums: Mapping[Key, Tensor]) -> None:
        """Check that sums from a file or another process belong to a store like this one."""
        ours = self._named_accumulators.items()
        places: dict[_Place, Accumulator] = {(m, site, name): a for m in MODES for site in self._sites for name, a in ours}
        states = _by_place(sums)
        advice = "make the probe with the arguments of the probe that saved the state"
        for _, _, accumulator in states:
            self._check_version(accumulator)
        if unknown := set(states) - set(places):
            raise GeomprobeError(f"this state contains {_shown(min(unknown))!r}, which this probe does not have: {advice}")
        seen = {place[:2] for place in states}
        if missing := {place for place in places if place[:2] in seen} - set(states):
            raise GeomprobeError(f"this state does not contain {_shown(min(missing))!r}, which this probe needs: {advice}")
        for place, state in states.items():
            width = state["sum"].shape[-1] if "sum" in state else 1
            kept = places[place].new_state(width, torch.device("meta"))
            if differ := kept.keys() ^ state.keys():
                raise GeomprobeError(
                    f"{_shown(place)!r} has other sums in this state than in this probe ({min(differ)!r}): {advice}"
                )
            if wrong := [name for name, value in state.items() if value.dim() != kept[name].dim()]:
                raise GeomprobeError(f"{_shown(place)!r} of this state has a sum {wrong[0]!r} of another shape: {advice}")

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


def _total(parts: Iterable[Mapping[Key, Tensor]]) -> dict[Key, Tensor]:
    """The sums of several stores together. What one of them has alone is not copied."""
    total: dict[Key, Tensor] = {}
    for part in parts:
        for key, more in part.items():
            value = total.get(key)
            if value is None:
                total[key] = more
                continue
            if key.sum == "sum" and value.shape != more.shape:
                raise GeomprobeError(
                    f"the loaded state belongs to another model: {_shown(key[:3])} has another width. Load the state of a "
                    "probe on this model"
                )
            shape = torch.Size(map(max, zip(value.shape, more.shape, strict=True)))
            total[key] = pad_to(value, shape) + pad_to(more.to(value.device), shape)
    return total


_Place = tuple[str, str, str]
"""The part of a :class:`Key` that the sums of one state share: mode, site and accumulator."""


def _by_place(sums: Mapping[Key, Tensor]) -> dict[_Place, State]:
    states: dict[_Place, State] = {}
    for key, value in sums.items():
        states.setdefault(key[:3], {})[key.sum] = value
    return states


def _shown(place: _Place) -> str:
    return "/".join(place)


_Stack = tuple[Mode, int, torch.device, int]
"""The key of a stack of states: mode, number of the group of sites, device and width."""
