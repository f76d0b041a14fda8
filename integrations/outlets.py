"""The places where readings are written. A place that raises an exception is dropped, and the others are kept."""

import warnings
from collections.abc import Callable

__all__ = ["Outlets"]


class Outlets:
    """Calls that write somewhere. A place whose call raises an exception, such as a tracker without a network or a closed run,
    is dropped with one warning, because neither the training nor the other places should end with it.

    Args:
        raises: whether the exception is raised instead.
    """

    def __init__(self, *, raises: bool) -> None:
        self._raises = raises
        self._dropped: list[object] = []

    def write(self, place: object, name: str, write: Callable[[], object]) -> None:
        """Call ``write``, unless ``place`` was dropped. ``name`` is what the warning calls the place."""
        if any(place is dropped for dropped in self._dropped):
            return
        try:
            write()
        except Exception as error:
            if self._raises:
                raise
            self._dropped.append(place)
            warnings.warn(
                f"geomprobe: no more readings are logged to {name}, and training continues: {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
