"""Schedules decide when to measure. A schedule is any function that takes a step number and returns a bool."""

from collections.abc import Callable

from geomprobe.errors import GeomprobeError

__all__ = ["Schedule", "every"]

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
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise GeomprobeError(f"every({n!r}): expected a whole number of steps, 1 or more")
    return lambda step: step % n == 0
