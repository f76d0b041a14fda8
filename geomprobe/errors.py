"""The exception type that geomprobe raises, and its form for a key that does not exist."""

__all__ = ["GeomprobeError", "MissingKeyError"]


class GeomprobeError(Exception):
    """An error that the user can act on. Its message names what is wrong, what was expected, and what to do."""


class MissingKeyError(GeomprobeError, KeyError):
    """There is nothing under a key. It is a ``KeyError`` too, as that of a dict."""

    __str__ = Exception.__str__  # that of KeyError puts the message in quotation marks
