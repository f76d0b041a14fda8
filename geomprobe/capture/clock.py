"""The time that a probe takes, on the host and on the device."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch

__all__ = ["Clock"]


class Clock:
    """Adds up the time that is spent in spans of code, on the host and on the device, without waiting for the device.

    Two CUDA events are recorded around the work of a span, and their distance is read when both have passed. It includes the
    time for which the device waits for the host within the span.

    Attributes:
        elapsed: seconds during which the clock has run, in and out of spans.
    """

    def __init__(self) -> None:
        self._host = self._device = self._before = 0.0
        self._since: float | None = None
        self._inside = False
        self._events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def run(self) -> None:
        """Begin or continue to count ``elapsed``."""
        self._since = perf_counter() if self._since is None else self._since

    def halt(self) -> None:
        """Stop counting ``elapsed``."""
        self._before, self._since = self.elapsed, None

    @property
    def elapsed(self) -> float:
        return self._before + (0.0 if self._since is None else perf_counter() - self._since)

    @property
    def seconds(self) -> float:
        """Seconds spent in spans: those of the host, or those of the device as far as it has come, whichever are more."""
        while self._events and self._events[0][1].query():  # type: ignore[no-untyped-call]
            first, last = self._events.popleft()
            self._device += first.elapsed_time(last) / 1000
        return max(self._host, self._device)

    def mark(self) -> float:
        """Return a mark for :meth:`add_since`, where it is not known yet whether the time is to be added."""
        return perf_counter() - self._host

    def add_since(self, mark: float) -> None:
        """Add the time of the host since a mark. Spans since then are part of it. Inside a span it adds nothing."""
        if not self._inside:
            self._host = perf_counter() - mark

    @contextmanager
    def span(self, device: torch.device | None = None) -> Iterator[None]:
        """A context whose time is added, including work on ``device``. Inside another span it adds nothing."""
        if self._inside:
            yield
            return
        self._inside = True
        first, began = _event(device), perf_counter()
        try:
            yield
        finally:
            self._inside = False
            self._host += perf_counter() - began
            if first is not None and (last := _event(device)) is not None:
                self._events.append((first, last))


def _event(device: torch.device | None) -> torch.cuda.Event | None:
    """An event at the end of the work that was given to a CUDA device so far. A graph that is being captured can hold none."""
    if device is None or device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return None
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
