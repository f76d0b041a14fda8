"""The optimizer steps of a training: which of them a callback measures, and how many were measured."""

from dataclasses import replace

from geomprobe import Cost, Probe
from geomprobe.integrations.ranks import largest
from geomprobe.schedule import Budget, Schedule

__all__ = ["Steps"]

_FEW = 10
"""If there are fewer readings than this, a warning at the end of a training says that the budget left time for few."""


class Steps:
    """The optimizer steps of one training. Under a budget, creating and updating it are collective operations.

    A budget follows the clock of the probe. It changes after readings only, to what all processes agree on, so that they
    measure the same steps.

    Args:
        when: which steps are measured.
        probe: the probe.
        interval: the interval of the budget at the latest reading of an earlier part of the training.

    Attributes:
        schedule: the schedule of this training.
        ran: number of optimizer steps.
        measured: number of those that the schedule selected.
    """

    def __init__(self, when: Schedule, probe: Probe, interval: int | None) -> None:
        self.schedule = when
        self.ran = self.measured = 0
        self._probe = probe
        if isinstance(when, Budget):
            self.schedule = when.bound(lambda: probe.cost.seconds, waits=True)
            self.schedule.interval = int(largest(interval or when.interval))

    def begin(self, step: int, *, also: bool = False) -> bool:
        """Return whether to measure the step that begins, because the schedule selects it, or because ``also`` is true."""
        measured = bool(self.schedule(step)) or also
        self.ran, self.measured = self.ran + 1, self.measured + measured
        return measured

    def update(self) -> None:
        """Follow the cost of the step that was read and logged."""
        if isinstance(self.schedule, Budget):
            self.schedule.update(largest)

    @property
    def cost(self) -> Cost:
        """What the probe has cost, with the interval of the budget."""
        interval = self.schedule.interval if isinstance(self.schedule, Budget) else None
        return replace(self._probe.cost, interval=interval)

    def few(self, callback: str) -> str | None:
        """Return a warning for a training whose budget left time for only a few readings, else ``None``."""
        if not isinstance(self.schedule, Budget) or not self.measured < _FEW < self.ran:
            return None
        return (
            f"{self.measured} of {self.ran} optimizer steps were measured, because more would have taken more than "
            f"{self.schedule.share:.2g} of the time: {callback}(when={max(1, self.ran // _FEW)}) measures at least {_FEW}"
        )
