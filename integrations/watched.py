"""What both callbacks show of a training: its alarms, and its readings as a picture."""

from typing import TYPE_CHECKING

from geomprobe import Alarm, Monitor
from geomprobe.files import StepFile
from geomprobe.integrations.alarms import Alarms
from geomprobe.integrations.training_plot import plot_training

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Watched"]


class Watched:
    """The part of a callback that is read during a training and after it."""

    _alarms: Alarms | None
    _file: StepFile | None

    @property
    def alarms(self) -> list[Alarm]:
        """The alarms that rang, in order."""
        return [] if self._alarms is None else list(self._alarms.rung)

    @property
    def monitor(self) -> Monitor | None:
        """The monitor of the alarms."""
        return None if self._alarms is None else self._alarms.monitor

    def plot(self, metric: str = "effective_rank", *, mode: str = "train", ax: "Axes | None" = None) -> "Axes":
        """Draw a metric at every site over the steps so far, below the loss, from the file of readings.

        Args:
            metric: the name of a number of the readings.
            mode: the mode of the readings and of the loss, such as ``"train"`` or ``"eval"``.
            ax: the matplotlib axes to draw on. Default: those of a new figure of ``matplotlib.pyplot``.

        Returns:
            The axes of the map of sites and steps.

        Raises:
            GeomprobeError: if there is no reading of this mode (with several processes, only the main process writes the file),
                or if there is no such metric.
        """
        axes: Axes = plot_training(self._file, metric, mode=mode, ax=ax)
        return axes
