"""The exception type that geomprobe raises, its special forms, and the check of a whole number that many arguments need."""

from typing import TypeGuard

__all__ = ["EmptyReadingError", "GeomprobeError", "MissingKeyError", "is_whole"]


class GeomprobeError(Exception):
    """An error that the user can act on. Its message names what is wrong, what was expected, and what to do."""


class MissingKeyError(GeomprobeError, KeyError):
    """A reading or comparison has nothing under a key. It is also a ``KeyError``, like that of a dict."""

    __str__ = Exception.__str__  # that of KeyError puts the message in quotation marks


class EmptyReadingError(GeomprobeError):
    """A probe has measured nothing that can be read."""


def is_whole(value: object, least: int | None = None) -> TypeGuard[int]:
    """Return whether an argument is a whole number, of at least ``least``. True and False are not.

    >>> is_whole(3, least=1), is_whole(0, least=1), is_whole(True), is_whole(3.0)
    (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)
