"""The one exception type of geomprobe."""

__all__ = ["GeomprobeError"]


class GeomprobeError(Exception):
    """Something a user can act on: the message names the thing, what was expected, and what to do."""
