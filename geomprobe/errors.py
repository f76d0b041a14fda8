"""The one exception type that geomprobe raises."""

__all__ = ["GeomprobeError"]


class GeomprobeError(Exception):
    """An error that the user can act on. Its message names what is wrong, what was expected, and what to do."""
