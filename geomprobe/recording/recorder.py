"""The recorder: it listens to a capture, gathers the sites of a forward, and adds them to the states."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from geomprobe.capture.forward_context import ForwardContext
from geomprobe.capture.generation import CachedSequence
from geomprobe.core.attention_summary import AttentionRows
from geomprobe.core.rows import full_precision
from geomprobe.recording.live_gain import GainUpdate, LiveGain
from geomprobe.recording.state_store import GROUP, StateStore
from geomprobe.schedule import Schedule

__all__ = ["Recorder"]

_ENTRIES = 1 << 24
"""Numbers that the largest tensor of a gathered group may hold: 128 MiB in float64."""


class Recorder:
    """What a capture reports to: it decides which forwards are measured, and adds what they show to a :class:`StateStore`.

    Args:
        store: where the states are.
        sites: the sites there may be, in the model's order.
        when: which forwards to measure, as a function of how many came before; ``None`` for all.
        on_error: ``"warn"``: a fault warns once and ends the measuring. ``"raise"``: it raises.
        on_gain: told the information gain of new tokens after every forward on a KV cache.
        sigma: the noise of that information gain.
        on_fault: called once the forward in which a fault ended the measuring has returned, to take the hooks off.

    Attributes:
        paused: whether forwards pass unmeasured.
        fault: the exception that ended the measuring, or ``None``.
        forwards: how many forwards were offered to ``when``.
    """

    def __init__(
        self,
        store: StateStore,
        sites: Sequence[str],
        *,
        when: Schedule | None,
        on_error: Literal["warn", "raise"],
        on_gain: Callable[[GainUpdate], object] | None,
        sigma: float | None,
        on_fault: Callable[[], object],
    ) -> None:
        self.store = store
        self.when = when
        self.on_error = on_error
        self.paused = False
        self.fault: Exception | None = None
        self.forwards = 0
        self._on_gain = on_gain
        self._on_fault = on_fault
        self._live = None if sigma is None else LiveGain(sigma)
        self._group = _Group(store, sites)
        self._remarks: list[str] = []

    # -- what a capture reports ---------------------------------------------------------------------------------------------

    def wants(self, continues: bool) -> bool:
        """Whether the forward that is about to run is to be captured; ``continues``: it adds to texts that are."""
        if self.paused or self.fault is not None:
            return False
        if continues:  # texts that are measured are measured to their end
            return True
        step, self.forwards = self.forwards, self.forwards + 1
        return self.when is None or self.when(step)

    def captured(self, context: ForwardContext, site: str, hidden: Tensor, attention: AttentionRows | None = None) -> None:
        """One site's hidden states ``(batch, length, width)``, and what its layer attended to."""
        if self.fault is not None:
            return
        try:
            if context.sequence is not None:
                context.sequence.add(site, hidden, attention)
            else:
                self._group.put(context, site, hidden, attention)
        except Exception as error:
            self.failed(error)

    def ended(self, sequence: CachedSequence) -> None:
        """Nothing can come after what this sequence holds."""
        if self.fault is None:
            try:
                if self._holds_texts(sequence):
                    self.store.add_sequence(sequence)
            except Exception as error:
                self.failed(error)

    def closed(self, context: ForwardContext | None, completed: bool) -> None:
        """The decoder returned (``completed``) or raised; ``context`` only for captured forwards."""
        sequence = None if context is None else context.sequence
        if completed and self.fault is None:
            try:
                self._group.flush()
            except Exception as error:
                self.failed(error)
        else:
            self.drop()
            if self.fault is None and context is not None and sequence is None:
                self._note("a forward broke off: some of the sites that it had passed may count its tokens", warn=False)
        if self.fault is not None:
            if completed:  # not while the model's own exception walks through the hooks
                self._on_fault()
        elif completed and sequence is not None:
            self._tell_gains(sequence)

    def failed(self, error: Exception) -> None:
        """Something went wrong inside: raise it, or warn and let the model go on."""
        if self.on_error == "raise":
            self.fault = error
            raise error
        self.fault = error.with_traceback(None)  # its stack holds activations
        warnings.warn(
            f"geomprobe stopped watching, the model goes on: {type(error).__name__}: {error}. What was measured so far "
            "is kept; use Probe(on_error='raise') to see where it happened",
            RuntimeWarning,
            stacklevel=2,
        )

    # -- what a probe asks --------------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """Forget the sites that are gathered and not yet measured."""
        self._group.drop()

    def with_sequences(self, sequences: Iterable[CachedSequence]) -> StateStore:
        """What was seen, with the texts that are still arriving."""
        return self.store.with_sequences([sequence for sequence in sequences if self._holds_texts(sequence)])

    def notes(self, is_open: bool) -> list[str]:
        """What a reader must know; ``is_open``: a forward has begun and not ended."""
        if self.fault is None:
            unfinished = ["a forward has begun and not ended: some sites may count its tokens"] * is_open
            return [*self._remarks, *unfinished]
        stopped = f"the probe stopped in forward {self.forwards}: {type(self.fault).__name__}: {self.fault}"
        return [*self._remarks, f"{stopped} (some of the sites that this forward had passed may count it)"]

    def _holds_texts(self, sequence: CachedSequence) -> bool:
        """Whether a sequence holds texts; what beam search and assisted decoding leave in it is none."""
        if sequence.rearranged:
            self._note(
                "texts of beam search or assisted decoding were left out: rows move, drafts are dropped. Generate with "
                "num_beams=1 and no assistant, or run the finished text through the model under the probe"
            )
        return not sequence.rearranged

    def _tell_gains(self, sequence: CachedSequence) -> None:
        if self._live is None or self._on_gain is None:
            return
        try:
            with full_precision(sequence.device.type):
                update = self._live.step(sequence)
        except Exception as error:
            self.failed(error)
        else:
            self._on_gain(update)

    def _note(self, text: str, *, warn: bool = True) -> None:
        """Say it in every reading, and once in a warning, unless the model has raised something worse."""
        if text in self._remarks:
            return
        self._remarks.append(text)
        if warn:
            warnings.warn(f"geomprobe: {text}", RuntimeWarning, stacklevel=2)


class _Group:
    """Sites of one forward, gathered until there are enough of them to measure at once.

    Copied, because the model may go on to change them in place; dropped once they are measured.
    """

    def __init__(self, store: StateStore, sites: Sequence[str]) -> None:
        self._store = store
        self._index = {site: i for i, site in enumerate(sites)}
        self._context: ForwardContext | None = None
        self._buffer = torch.empty(0)
        self._attention: list[AttentionRows | None] = []
        self._start = self._held = 0

    def put(self, context: ForwardContext, site: str, hidden: Tensor, attention: AttentionRows | None = None) -> None:
        """Take one site's hidden states ``(batch, length, width)``; measures the group when it is full."""
        i = self._index[site]
        follows = context is self._context and i == self._start + self._held and i % GROUP
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
            self._context, self._start = context, i
        with torch.inference_mode(False), torch.no_grad():
            self._buffer[self._held].copy_(hidden)
        self._attention.append(attention)
        self._held += 1
        if self._held == len(self._buffer):
            self.flush()

    def flush(self) -> None:
        """Measure what is here."""
        context, hidden, attention = self._context, self._buffer[: self._held], AttentionRows.stacked(self._attention)
        sites = slice(self._start, self._start + self._held)
        self.drop()
        if context is not None:
            with full_precision(hidden.device.type):
                self._store.add(context.mode, sites, context.rows(hidden, attention))
                if (refed := context.refed_rows(hidden, attention)) is not None:
                    self._store.add(context.mode, sites, refed, sign=-1)

    def drop(self) -> None:
        """Forget what is here."""
        self._context, self._buffer, self._attention, self._held = None, torch.empty(0), [], 0
