"""Schedules decide when to measure. A schedule is any function that takes a step number and returns a bool."""

from collections.abc import Callable
from functools import partial

from geomprobe.errors import GeomprobeError, is_whole

__all__ = ["Schedule", "as_schedule", "every"]

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


def as_schedule(when: Schedule | int | None) -> Schedule | None:
    """Return the schedule that an argument ``when`` stands for: ``when=50`` means ``every(50)``.

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
            "every(50) or {1, 10, 100}.__contains__"
        )
    return every(when)
