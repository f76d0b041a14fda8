"""When to measure. A schedule is any function from a step to yes or no."""

from collections.abc import Callable

from geomprobe.errors import GeomprobeError

__all__ = ["Schedule", "every"]

Schedule = Callable[[int], bool]


def every(n: int) -> Schedule:
    """Steps that n divides: forwards 0, n, 2n … of a :class:`~geomprobe.Probe`, optimizer steps n, 2n … of a Trainer.

    Any function will do in its place: ``when={1, 10, 100}.__contains__``.

    >>> [step for step in range(7) if every(3)(step)]
    [0, 3, 6]

    Raises:
        GeomprobeError: n is not a positive whole number.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise GeomprobeError(f"every({n!r}): expected a whole number of steps, 1 or more")
    return lambda step: step % n == 0
