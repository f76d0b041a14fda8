"""What a probe has seen: a state for every mode, site and accumulator, and all that states can do because they add."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Self

import torch
from torch import Tensor

from geomprobe.capture.stream import Stream
from geomprobe.core.rows import Rows, exact_arithmetic
from geomprobe.core.state import Accumulator, State, Tally, copy_state, merge
from geomprobe.distributed import is_distributed, sum_over_ranks
from geomprobe.errors import GeomprobeError

__all__ = ["Bank", "Ledger", "Mode"]

Mode = Literal["train", "eval"]
Bank = dict[str, dict[Accumulator, State]]
"""States by site and accumulator."""


class Ledger:
    """Sums over everything that was measured, by mode, site and accumulator.

    Args:
        accumulators: what to sum; equal ones were dropped by the caller. The first is a :class:`Tally`.
        sites: the sites there may be, in the model's order.

    Attributes:
        banks: the states of each mode; a site appears when it is first seen.
    """

    def __init__(self, accumulators: Sequence[Accumulator], sites: Sequence[str]) -> None:
        self._accumulators = tuple(accumulators)
        self._sites = tuple(sites)
        self.banks: dict[Mode, Bank] = {"train": {}, "eval": {}}

    def add(self, mode: Mode, site: str, rows: Rows) -> None:
        """Add rows into the states of one site."""
        bank, device = self.banks[mode], rows.hidden.device
        if site not in bank:
            bank[site] = {a: a.zero(rows.width, device) for a in self._accumulators}
        elif bank[site][Tally()]["tokens"].device != device:  # loaded, or the model has moved
            bank[site] = {a: copy_state(state, device) for a, state in bank[site].items()}
        for part in rows.split():
            for accumulator, state in bank[site].items():
                accumulator.update(state, part)

    def subtract(self, mode: Mode, site: str, rows: Rows) -> None:
        """Take rows out again that were added before."""
        counted = self._empty()
        counted.add(mode, site, rows)
        for state in counted.banks[mode][site].values():
            for value in state.values():
                value.neg_()
        self._merge(counted)

    def add_stream(self, stream: Stream) -> None:
        """Add what a stream holds beyond what was reported and forgotten."""
        mode: Mode = "train" if stream.training else "eval"
        for site in stream.sites:
            with exact_arithmetic(stream.device.type):
                self.add(mode, site, stream.rows(site))
                if stream.reported:
                    self.subtract(mode, site, stream.reported_rows(site))

    def with_streams(self, streams: Iterable[Stream]) -> Self:
        """A ledger that also holds texts that are still arriving. Changes nothing here."""
        total = self._empty()
        total.banks = {mode: dict(bank) for mode, bank in self.banks.items()}
        for stream in streams:
            so_far = self._empty()
            so_far.add_stream(stream)
            total._merge(so_far)
        return total

    def over_ranks(self) -> Self:
        """The sum over all processes that run together, a collective; itself in one alone."""
        return self._of(sum_over_ranks(self._named())) if is_distributed() else self

    def reset(self, mode: Mode | None) -> None:
        """Forget what was seen in ``mode``, or in both."""
        for name, bank in self.banks.items():
            if mode in (None, name):
                bank.clear()

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
        self.banks = self._of(named).banks

    def _named(self) -> dict[str, State]:
        """States by ``mode/site/accumulator``, which means the same in every process and in a file."""
        return {
            f"{mode}/{site}/{accumulator!r}": state
            for mode, bank in self.banks.items()
            for site, states in bank.items()
            for accumulator, state in states.items()
        }

    def _of(self, named: Mapping[str, State]) -> Self:
        """The ledger of :meth:`_named`, with sites in the model's order whoever saw them first."""
        accumulators = {repr(accumulator): accumulator for accumulator in self._accumulators}
        places = {
            (mode, site, name): f"{mode}/{site}/{name}" for mode in self.banks for site in self._sites for name in accumulators
        }
        advice = "make the probe with the arguments of the one that saved it"
        if unknown := set(named) - set(places.values()):
            raise GeomprobeError(f"this state holds {min(unknown)!r}, which a probe like this one does not keep: {advice}")
        ledger = self._empty()
        for (mode, site, name), place in places.items():
            if place in named:
                ledger.banks[mode].setdefault(site, {})[accumulators[name]] = named[place]
            elif f"{mode}/{site}/{Tally()!r}" in named:
                raise GeomprobeError(f"this state holds no {place!r}, which a probe like this one keeps: {advice}")
        return ledger

    def _merge(self, other: Self) -> None:
        for mode, bank in other.banks.items():
            for site, states in bank.items():
                known = self.banks[mode].get(site, {})
                self.banks[mode][site] = {a: merge([known[a], s] if a in known else [s]) for a, s in states.items()}

    def _empty(self) -> Self:
        return type(self)(self._accumulators, self._sites)
