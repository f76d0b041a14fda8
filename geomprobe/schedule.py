"""Schedules decide when to measure. A schedule is any function that takes a step number and returns a bool."""

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from statistics import median_low
from time import perf_counter

from geomprobe.errors import GeomprobeError, is_whole

__all__ = ["Budget", "Schedule", "as_schedule", "budget", "every"]

Schedule = Callable[[int], bool]


def every(n: int) -> Schedule:
    """Return a schedule that selects every step divisible by ``n``.

    For a :class:`~geomprobe.Probe` these are the forwards 0, n, 2n and so on; for a Trainer they are the optimizer steps n, 2n
    and so on. Any function from an int to a bool can be used instead, such as ``when={1, 10, 100}.__contains__``.

    >>> [step for step in range(7) if every(3)(step)]
    [0, 3, 6]

    Raises:
        GeomprobeError: if ``n`` is not a positive whole number.
    """
    if not is_whole(n, least=1):
        raise GeomprobeError(f"every({n!r}): expected a whole number of steps, 1 or more")
    return partial(_divides, n)  # and no lambda, because processes that are spawned get their callbacks pickled


def _divides(n: int, step: int) -> bool:
    return step % n == 0


def budget(share: float = 0.01, *, interval: int = 1) -> "Budget":
    """Return a schedule that selects as many steps as can be measured in a share of the time of the run.

    The cost of a measured step is the time spent in hooks, in reading and (in a callback) in logging: on the host, or on the
    device if that is longer. The steps divisible by ``interval`` are measured. The interval is the smallest power of two that
    is at least ``cost / (0.9 · share · time of a step without a probe)``, computed from medians over the latest steps. It grows
    as soon as it is too small, and shrinks when half of it would be enough with a margin of 20%. The first three steps are
    measured before the interval grows, because the first steps are slower than later ones.

    Which steps are measured depends on timing, so it differs between two runs. Use :func:`every` for fixed steps. Processes
    that train together under a callback measure the same steps. In your own loop each process has an interval of its own.
    Because all intervals are powers of two, the steps of a longer interval are also steps of a shorter one.

    Evaluations that a callback measures are measured completely, whatever they cost. So is the rest of a generated text after
    its first measured step.

    >>> budget(0.01)
    budget(0.01, interval=1)

    Args:
        share: the share of the time of the run, such as 0.01 for 1%.
        interval: the interval at the start, a power of two, such as ``reading.cost.interval`` of an earlier part of the run.

    Raises:
        GeomprobeError: if ``share`` is not between 0 and 1, or ``interval`` is not a power of two.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise GeomprobeError(f"budget({share!r}): expected a share of the time of the run, such as 0.01 for 1%")
    if not is_whole(interval, least=1) or interval & (interval - 1):
        raise GeomprobeError(f"budget(interval={interval!r}): expected a power of two, such as 1 or 64")
    return Budget(share, interval)


class Budget:
    """The schedule that :func:`budget` returns. A probe or callback binds it to its clock.

    Attributes:
        share: the share of the time of the run.
        interval: the current interval.
    """

    def __init__(self, share: float, interval: int, spent: Callable[[], float] | None = None, *, waits: bool = False) -> None:
        self.share = share
        self.interval = interval
        self._total = spent  # seconds spent so far
        self._waits = waits
        self._steps: deque[float] = deque(maxlen=_LATEST)  # seconds of the latest steps, without the probe
        self._costs: deque[float] = deque(maxlen=4)  # seconds of the measurements before the latest
        self._now = self._spent = 0.0  # when the latest step began, and what had been spent by then
        self._began: float | None = None  # what had been spent when the latest measurement began

    def bound(self, spent: Callable[[], float], *, waits: bool = False) -> "Budget":
        """Return a budget of the same share, which calls ``spent`` to learn how many seconds were spent so far. With ``waits``,
        the interval changes only in :meth:`update`."""
        return Budget(self.share, self.interval, spent, waits=waits)

    def __repr__(self) -> str:
        return f"budget({self.share!r}, interval={self.interval})"

    def __call__(self, step: int) -> bool:
        """Return whether to measure the step that begins now."""
        if self._total is None:
            raise GeomprobeError("a budget measures time, so it cannot be called alone: pass it as when=budget(…)")
        now, spent = perf_counter(), self._total()
        if self._now:
            self._steps.append(now - self._now - (spent - self._spent))
        self._now, self._spent = now, spent
        if not self._waits and step % max(1, self.interval // 2) == 0:
            self.update()
        if step % self.interval:
            return False
        if self._began is not None and not self._waits:
            self._costs.append(spent - self._began)
        self._began = spent
        return True

    def update(self, agreed: Callable[[float], float] = lambda needed: needed) -> None:
        """Set the interval to what the latest steps and measurements ask for. With ``waits``, this ends a measurement.

        Args:
            agreed: a function from the least number of steps between measurements to that of all processes.
        """
        needed = agreed(self._needed())
        if needed > self.interval:
            self.interval = _power_of_two(needed)
        elif needed and needed < _CLEAR * self.interval / 2:
            self.interval = _power_of_two(needed / _CLEAR)
        if self._waits and self._total is not None and self._began is not None:
            self._costs.append(self._total() - self._began)
            self._began = None

    def _needed(self) -> float:
        """The least number of steps from one measurement to the next; 0 if it is not known yet."""
        if self._total is None or self._began is None or not self._steps or (step := median_low(self._steps)) <= 0:
            return 0.0  # nor is it where a device lags behind, which tells of more time than has passed
        if self.interval == 1 and len(self._costs) < 2:  # the first step and measurement are slower than others
            return 0.0
        latest = self._total() - self._began
        cost = max(latest, median_low([*self._costs, latest]))
        return cost / (_MARGIN * self.share * step)


def as_schedule(when: Schedule | int | None) -> Schedule | None:
    """Return the schedule that the argument ``when`` means: ``when=50`` is ``every(50)``.

    >>> [step for step in range(7) if as_schedule(3)(step)]
    [0, 3, 6]

    Raises:
        GeomprobeError: if ``when`` is neither a function nor a positive whole number.
    """
    if when is None or callable(when):
        return when
    if not is_whole(when, least=1):
        raise GeomprobeError(
            f"when={when!r}: expected a whole number of steps, 1 or more, or a function from a step number to a bool, such as "
            "every(50), budget(0.01) or {1, 10, 100}.__contains__"
        )
    return every(when)


_LATEST = 31
_MARGIN = 0.9
"""Part of the share that is used for planning. The rest is a reserve, because a period of time need not contain a whole number
of intervals."""
_CLEAR = 0.8


def _power_of_two(least: float) -> int:
    return 1 << max(0, math.ceil(math.log2(least))) if least > 1 else 1
