"""The recorder: it listens to a capture, collects the hidden states of a forward, and adds them to the states."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from geomprobe.accumulators.covariance import Covariance
from geomprobe.accumulators.covariance_sketch import CovarianceSketch
from geomprobe.accumulators.state import Accumulator
from geomprobe.capture.forward_context import ForwardContext
from geomprobe.capture.generation import REARRANGED, CachedSequence, Mode
from geomprobe.core.layer_rows import NOTHING, LayerRows
from geomprobe.core.precision import Precision, precision, splits
from geomprobe.core.rows import Rows, full_precision
from geomprobe.errors import GeomprobeError
from geomprobe.recording.live_gain import GainUpdate, LiveGain
from geomprobe.recording.state_store import GROUP, StateStore
from geomprobe.schedule import Schedule

__all__ = ["Consumer", "Recorder"]

_RECOMPUTED = (
    "texts were generated without a cache, so their last and mean rows were computed anew in every forward: rankme and "
    "alpha_req of centred, last or mean rows contain the rounding of the model. Generate with use_cache=True to measure them "
    "exactly"
)

_SPLIT = (
    "precision='split': Gram matrices and their factors were computed by products in float32 of parts of the rows, which moves "
    "the gain of a token by about 1e-7 nats at σ = 0.01, and by (0.01/σ)² times as much at another σ"
)

_ENTRIES = 1 << 24
"""Largest number of entries of a tensor when several sites are measured together: 128 MiB in float64."""


class Consumer(Protocol):
    """A reader of the rows of each measured forward, for what is not a sum over rows, such as a Gram matrix."""

    def consume(self, mode: Mode, sites: Sequence[str], rows: Rows) -> Callable[[], object]:
        """Read the rows ``(sites, batch, length, width)`` of successive sites, and return a function that keeps the result. It
        is called when the forward has ended, and is not called if the forward is left out. Texts on a KV cache are not passed,
        and rows that ``generate`` runs again without a cache are passed again."""
        ...


class Recorder:
    """The listener of a capture: it decides which forwards are measured, and owns the states to which their rows are added.

    Args:
        accumulators: the accumulators, without duplicates. The first one is a ``TokenCount``.
        sites: all sites that may be reported, in the order of the model.
        when: which forwards to measure, as a function of the number of earlier forwards; ``None`` for all.
        on_error: ``"warn"``: an error issues one warning and ends the measurement. ``"raise"``: the error is raised.
        on_gain: a function that is called with the information gain of new tokens after every forward on a KV cache.
        sigma: noise σ of that information gain.
        precision: how Gram matrices are computed.
        on_fault: a function that is called after an error has ended the measurement, when the forward has returned, to remove
            the hooks.

    Attributes:
        store: the states.
        paused: whether forwards are not measured.
        fixed: whether forwards are those of fixed texts, to which ``paused`` and ``when`` do not apply; ``None`` if not, and
            ``False`` if another rank counts them.
        fault: the exception that ended the measurement, or ``None``.
        consumers: what else reads the rows.
        forwards: number of forwards for which ``when`` was called.
    """

    def __init__(
        self,
        accumulators: Sequence[Accumulator],
        sites: Sequence[str],
        *,
        when: Schedule | None,
        on_error: Literal["warn", "raise"],
        on_gain: Callable[[GainUpdate], object] | None,
        sigma: float | None,
        precision: Precision,
        on_fault: Callable[[], object],
    ) -> None:
        self.store = StateStore(accumulators, sites)
        self.when = when
        self.on_error = on_error
        self.paused = False
        self.fixed: bool | None = None
        self.fault: Exception | None = None
        self.forwards = 0
        self._precision = precision
        self._on_gain = on_gain
        self._on_fault = on_fault
        self._live = None if sigma is None else LiveGain(sigma)
        self.consumers: list[Consumer] = []
        self._group = _Group(self.store, sites, self.consumers)
        self._remarks: list[str] = []

    # -- called by the capture ----------------------------------------------------------------------------------------------

    def wants(self, continues: bool) -> bool:
        """Return whether to capture the forward that is about to run. ``continues`` tells that it continues texts that are
        being captured."""
        if self.fault is not None:
            return False
        if self.fixed is not None:
            return self.fixed
        if self.paused:
            return False
        if continues:  # texts are measured to their end
            return True
        step, self.forwards = self.forwards, self.forwards + 1
        return self.when is None or self.when(step)

    def captured(self, context: ForwardContext, site: str, hidden: Tensor, beside: LayerRows = NOTHING) -> None:
        """Record the hidden states ``(batch, length, width)`` of one site, and what its layer computed beside them."""
        if self.fault is not None:
            return
        try:
            with precision(self._precision):
                if splits(hidden.device):
                    self.noted(_SPLIT, warn=False)
                if context.sequence is not None:
                    context.sequence.add(site, hidden, beside)
                else:
                    self._group.put(context, site, hidden, beside)
        except Exception as error:
            self.failed(error)

    def ended(self, sequence: CachedSequence) -> None:
        """Add a sequence to the states, when no further tokens can arrive in it. After a fault too: what was measured is
        kept."""
        try:
            if self._holds_texts(sequence):
                with precision(self._precision):
                    self.store.add_sequence(sequence)
        except Exception as error:
            if self.fault is None:
                self.failed(error)
            else:
                self.noted(f"texts on a KV cache were left out, because of {type(error).__name__}: {error}")

    def closed(self, context: ForwardContext | None, completed: bool) -> None:
        """Add what was collected to the states, after the decoder returned (``completed``). If it raised, nothing is added.
        ``context`` is given only for captured forwards."""
        sequence = None if context is None else context.sequence
        if completed and self.fault is None:
            try:
                with precision(self._precision):
                    self._group.commit()
                if context is not None and self._is_recomputed(context):
                    self.noted(_RECOMPUTED, warn=False)
            except Exception as error:
                self.failed(error)
        else:
            self.drop()
            if self.fault is None and context is not None:
                self.noted("a forward raised an exception and was left out", warn=False)
        if self.fault is not None:
            if completed:  # not while an exception of the model passes through the hooks
                self._on_fault()
        elif completed and sequence is not None:
            self._tell_gains(sequence)

    def drop(self) -> None:
        """Discard what was collected of the present forward."""
        self._group.drop()

    def left_out(self, why: str) -> None:
        """Say that a forward was left out of every number; with ``on_error="raise"`` raise an error."""
        if self.on_error == "raise":
            raise GeomprobeError(why)
        self.noted(why)

    def noted(self, remark: str, *, warn: bool = True) -> None:
        """Add a remark to every later reading, and issue it once as a warning unless ``warn`` is false."""
        if remark in self._remarks:
            return
        self._remarks.append(remark)
        if warn:
            warnings.warn(f"geomprobe: {remark}", RuntimeWarning, stacklevel=2)

    def failed(self, error: Exception) -> None:
        """Raise an error that occurred inside the probe, or issue a warning and let the model continue."""
        if self.on_error == "raise":
            self.fault = error
            raise error
        self.fault = error.with_traceback(None)  # its stack holds activations
        warnings.warn(
            f"geomprobe stopped measuring, and the model continues: {type(error).__name__}: {error}. The numbers measured so "
            "far are kept; use Probe(on_error='raise') to get a traceback",
            RuntimeWarning,
            stacklevel=2,
        )

    # -- called by the probe ------------------------------------------------------------------------------------------------

    def with_sequences(self, sequences: Iterable[CachedSequence]) -> StateStore:
        """Return a store with everything recorded so far, including texts that are still being generated."""
        with precision(self._precision):
            return self.store.with_sequences([sequence for sequence in sequences if self._holds_texts(sequence)])

    @property
    def notes(self) -> list[str]:
        """The remarks of a reading."""
        if self.fault is None:
            return list(self._remarks)
        stopped = f"the probe stopped in forward {self.forwards}: {type(self.fault).__name__}: {self.fault}"
        return [*self._remarks, f"{stopped} (this forward is not counted)"]

    def _holds_texts(self, sequence: CachedSequence) -> bool:
        """Whether the rows of a sequence are those of texts, which is not so after beam search or assisted decoding."""
        if sequence.rearranged:
            self.noted(REARRANGED)
        return not sequence.rearranged

    def _is_recomputed(self, context: ForwardContext) -> bool:
        """Whether sums that an earlier forward added are subtracted as a later forward computed them, so that rounding errors
        remain. This is true for what depends on a whole text; rows of single tokens are added and subtracted in one forward."""
        return context.refed is not None and any(
            isinstance(each, Covariance | CovarianceSketch) and (each.center or each.rows != "all")
            for each in self.store.accumulators
        )

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


class _Group:
    """Hidden states of successive sites of one forward, collected until there are enough of them to measure together.

    They are copied, because the model may later change them in place, and discarded after they were measured. The sums are
    added to the states when the forward has ended, so that a forward counts at every site or at none.
    """

    def __init__(self, store: StateStore, sites: Sequence[str], consumers: Sequence[Consumer]) -> None:
        self._store = store
        self._sites = tuple(sites)
        self._consumers = consumers
        self._context: ForwardContext | None = None
        self._buffer = torch.empty(0)
        self._beside: list[LayerRows] = []
        self._start = self._held = 0
        self._norms: dict[tuple[int, int], Tensor] = {}  # of the rows of the site measured last, by context and index
        self._pending: list[Callable[[], object]] = []

    def put(self, context: ForwardContext, site: str, hidden: Tensor, beside: LayerRows) -> None:
        """Add the hidden states ``(batch, length, width)`` of one site, and measure the group when it is full."""
        i = self._sites.index(site)
        follows = context is self._context and i == self._start + self._held and i % GROUP
        device = torch.device("cpu") if hidden.device.type == "mps" else hidden.device  # MPS has no float64
        beside = beside.to(device)
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        if (
            not follows
            or not LayerRows.can_stack([*self._beside, beside])
            or (hidden.shape, device, dtype) != (self._buffer.shape[1:], self._buffer.device, self._buffer.dtype)
        ):
            self.flush()
            batch, length, width = hidden.shape
            room = max(1, _ENTRIES // max(1, batch * length * max(length, width)))
            ahead = min(GROUP - i % GROUP, len(self._sites) - i, room)
            with torch.inference_mode(False):
                self._buffer = torch.empty((ahead, *hidden.shape), dtype=dtype, device=device)
            self._context, self._start = context, i
        with torch.inference_mode(False), torch.no_grad():
            self._buffer[self._held].copy_(hidden)
        self._beside.append(beside)
        self._held += 1
        if self._held == len(self._buffer):
            self.flush()

    def flush(self) -> None:
        """Measure the collected hidden states, and discard them."""
        if self._context is None:  # nothing was collected, as in all forwards that are not measured
            return
        context, hidden, beside = self._context, self._buffer[: self._held], LayerRows.stacked(self._beside)
        sites = slice(self._start, self._start + self._held)
        self._discard()
        with full_precision(hidden.device.type):
            rows, refed = context.rows(hidden, beside), context.refed_rows(hidden, beside)
            before = self._norms.get((id(context), sites.start - 1))
            self._norms = {(id(context), sites.stop - 1): rows.norms[-1]}
            self._pending.append(self._store.measure(context.mode, sites, rows, before=before))
            if refed is not None:
                self._pending.append(self._store.measure(context.mode, sites, refed, before=before, sign=-1))
            self._pending += [each.consume(context.mode, self._sites[sites], rows) for each in self._consumers]

    def commit(self) -> None:
        """Add everything that was measured since the last call to the states."""
        self.flush()
        self._norms = {}
        pending, self._pending = self._pending, []
        for keep in pending:
            keep()

    def drop(self) -> None:
        """Discard the collected hidden states, and what was measured since the last commit."""
        self._discard()
        self._norms, self._pending = {}, []

    def _discard(self) -> None:
        self._context, self._buffer, self._beside, self._held = None, torch.empty(0), [], 0
