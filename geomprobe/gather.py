"""Sites of one forward, gathered until there are enough of them to measure at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from geomprobe.capture.frame import Frame
from geomprobe.core.attention import AttentionRows
from geomprobe.core.rows import exact_arithmetic
from geomprobe.ledger import GROUP, Ledger

__all__ = ["Gather"]

_ENTRIES = 1 << 24
"""Numbers that the largest tensor of a gathered group may hold: 128 MiB in float64."""


class Gather:
    """A buffer of hidden states between the hooks and the ledger.

    Copied, because the model may go on to change them in place; dropped with the group, so that no activation is kept.
    """

    def __init__(self, ledger: Ledger, sites: Sequence[str]) -> None:
        self._ledger = ledger
        self._index = {site: i for i, site in enumerate(sites)}
        self._frame: Frame | None = None
        self._buffer = torch.empty(0)
        self._attention: list[AttentionRows | None] = []
        self._start = self._held = 0

    def put(self, frame: Frame, site: str, hidden: Tensor, attention: AttentionRows | None = None) -> None:
        """Take one site's hidden states ``(batch, length, width)``; measures the group when it is full."""
        i = self._index[site]
        follows = frame is self._frame and i == self._start + self._held and i % GROUP
        device = torch.device("cpu") if hidden.device.type == "mps" else hidden.device  # MPS has no float64
        if attention is not None and attention.picks.device != device:
            attention = attention.map(lambda name, value: value.to(device))
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        heads = {rows.entropy.shape[-2] for rows in (*self._attention, attention) if rows is not None}
        if (
            not follows
            or len(heads) > 1
            or (hidden.shape, device, dtype) != (self._buffer.shape[1:], self._buffer.device, self._buffer.dtype)
        ):
            self.flush()
            batch, length, width = hidden.shape
            room = max(1, _ENTRIES // max(1, batch * length * max(length, width)))
            ahead = min(GROUP - i % GROUP, len(self._index) - i, room)
            with torch.inference_mode(False):
                self._buffer = torch.empty((ahead, *hidden.shape), dtype=dtype, device=device)
            self._frame, self._start = frame, i
        with torch.inference_mode(False), torch.no_grad():
            self._buffer[self._held].copy_(hidden)
        self._attention.append(attention)
        self._held += 1
        if self._held == len(self._buffer):
            self.flush()

    def flush(self) -> None:
        """Measure what is here."""
        frame, hidden, attention = self._frame, self._buffer[: self._held], AttentionRows.stacked(self._attention)
        sites = slice(self._start, self._start + self._held)
        self.drop()
        if frame is not None:
            with exact_arithmetic(hidden.device.type):
                self._ledger.add(frame.mode, sites, frame.rows(hidden, attention))
                if (counted := frame.counted_rows(hidden, attention)) is not None:
                    self._ledger.add(frame.mode, sites, counted, sign=-1)

    def drop(self) -> None:
        """Forget what is here."""
        self._frame, self._buffer, self._attention, self._held = None, torch.empty(0), [], 0
