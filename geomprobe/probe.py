"""The probe: hooks on a model, states that add, a reading at the end."""

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self

import torch
from torch import Tensor, nn

from geomprobe.capture.anatomy import find_anatomy
from geomprobe.capture.frame import Frame
from geomprobe.capture.hooks import Capture
from geomprobe.capture.stream import Endings, Stream
from geomprobe.core.attention import AttentionRows
from geomprobe.core.rows import exact_arithmetic
from geomprobe.core.state import ReadsAttention, Tally
from geomprobe.distributed import replicas
from geomprobe.errors import GeomprobeError
from geomprobe.gather import Gather
from geomprobe.ledger import Ledger, Mode
from geomprobe.live import GainUpdate, LiveGains
from geomprobe.metrics.entropy import RepresentationEntropy
from geomprobe.metrics.gain import InformationGain
from geomprobe.metrics.metric import Metric
from geomprobe.reading import Reading
from geomprobe.schedule import Schedule

__all__ = ["Mode", "Probe"]

_attached: "weakref.WeakSet[Probe]" = weakref.WeakSet()  # weak: a model dropped with its probe on is freed with it


class Probe:
    """Watch the geometry of a model's representations while it runs.

    Hidden states are reduced to sums inside the forward pass; no activation is kept, and nothing the model computes changes.
    What is seen while the model trains and while it evaluates is kept apart.

        with Probe(model) as probe:
            model(**batch)
        print(probe.read())

    Args:
        model: any model that holds one Hugging Face decoder, wrapped or not.
        metrics: what to measure; ``RepresentationEntropy()`` and ``InformationGain()`` by default.
        layers: which sites: indices, ``"layer_05"``, ``"embed"``, ``"final_norm"``; all by default.
        when: which forwards to measure, as a function of how many came before (``every(20)``); all by default.
        on_error: ``"warn"``: a fault inside the probe warns once, takes the probe off the model, and lets the model go on, what
            was measured being kept. ``"raise"``: it raises, for tests and research.
        on_gain: called after every forward on a KV cache with the information gain of the new tokens at every site, while
            ``generate`` runs. What it raises goes to the caller of ``generate``.

    Attributes:
        paused: set to True to let forwards pass unmeasured (they do not count for ``when``).
        fault: the exception that took this probe off its model, or None.

    Raises:
        GeomprobeError: no decoder found, an unknown layer, or something that is not a metric.
    """

    def __init__(
        self,
        model: nn.Module,
        metrics: Sequence[Metric] | None = None,
        *,
        layers: Sequence[int | str] | None = None,
        when: Schedule | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        on_gain: Callable[[GainUpdate], object] | None = None,
    ) -> None:
        if on_error not in ("warn", "raise"):
            raise GeomprobeError(f"Probe(on_error={on_error!r}): expected 'warn' or 'raise'")
        if isinstance(metrics, Metric):
            raise GeomprobeError(f"Probe(model, {metrics!r}): expected a list of metrics, such as [{metrics!r}]")
        self.metrics = tuple(metrics) if metrics is not None else (RepresentationEntropy(), InformationGain())
        for metric in self.metrics:
            if not isinstance(metric, Metric):
                raise GeomprobeError(f"{metric!r} is not a Metric: give instances, such as RepresentationEntropy()")
        anatomy = find_anatomy(model)
        self.sites = anatomy.select(layers)
        self.when = when
        self.on_error = on_error
        self.on_gain = on_gain
        self.paused = False
        self.fault: Exception | None = None
        self._model = model
        self._base = anatomy.base
        self._remarks: list[str] = []
        self._live = None if on_gain is None else LiveGains(self._sigma())
        self._status: Literal["new", "attached", "closed"] = "new"
        self._forwards = 0
        # dict.fromkeys keeps order and drops equal ones: that is all the sharing there is.
        accumulators = dict.fromkeys([Tally(), *(need for metric in self.metrics for need in metric.needs)])
        reads = {need.attention for need in accumulators if isinstance(need, ReadsAttention)}
        attention: Literal["rows", "maps"] | None = "maps" if "maps" in reads else "rows" if "rows" in reads else None
        self._capture = Capture(model, anatomy, self.sites, self, Endings.of(model), attention)
        self._ledger = Ledger(tuple(accumulators), self.sites)
        self._gather = Gather(self._ledger, self.sites)

    # -- life ---------------------------------------------------------------------------------------------------------------

    def attach(self) -> Self:
        """Put the hooks on. ``with Probe(model)`` does this.

        Raises:
            GeomprobeError: this probe is attached or closed, or another is on the model.
        """
        if self._status == "closed":
            raise GeomprobeError("this probe is closed: its readings stay, but to watch again make a new Probe(model)")
        if (other := Probe.on(self._base)) is not None:
            who = "this probe" if other is self else "another probe"
            raise GeomprobeError(
                f"{who} is already attached to this {type(self._base).__name__}. Give one probe all the metrics; "
                "to remove a probe you lost hold of: Probe.on(model).close()"
            )
        self._capture.attach()
        _attached.add(self)
        self._status = "attached"
        return self

    def close(self) -> None:
        """Take every hook off; numbers stay readable. Safe to call twice."""
        self._capture.detach()
        self._gather.drop()
        _attached.discard(self)
        self._status = "closed"

    @staticmethod
    def on(model: nn.Module) -> "Probe | None":
        """The probe attached to ``model``, if any."""
        base = find_anatomy(model).base
        return next((probe for probe in _attached if probe._base is base), None)

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _sigma(self) -> float:
        """The noise of the metric that ``on_gain`` follows."""
        sigmas = [metric.sigma for metric in self.metrics if isinstance(metric, InformationGain)]
        if not sigmas:
            raise GeomprobeError("on_gain follows InformationGain, and it is not among the metrics of this probe: add it")
        return sigmas[0]

    # -- numbers ------------------------------------------------------------------------------------------------------------

    def read(self, mode: Mode | None = None, *, reset: bool = False) -> Reading:
        """The numbers so far, as plain floats. Measuring goes on.

        With several processes (``accelerate launch``, ``torchrun``) the numbers are those of all together, and this is a
        collective: call it on every rank, also on one that saw nothing; each gets the same reading.

        Args:
            mode: what was seen while the model was in training or in evaluation mode. Not needed when only one was seen.
            reset: forget what was seen in this mode afterwards, so that the next reading starts anew.

        Raises:
            GeomprobeError: nothing was seen, or both modes were and ``mode`` does not say which; two metrics claim one name.
        """
        self._capture.end_dead_streams()
        banks = self._with_streams().over_ranks(replicas(self._model)).banks
        seen = [name for name, sites in banks.items() if sites]
        if mode is None and len(seen) == 2:
            raise GeomprobeError("this probe saw the model in training and in evaluation: read('train') or read('eval')")
        mode = mode or (seen[0] if seen else "eval")
        if mode not in banks:
            raise GeomprobeError(f"read({mode!r}): expected 'train' or 'eval'")
        if not banks[mode]:
            raise GeomprobeError(f"nothing to read: {self._why_empty(seen)}")
        reading = Reading(mode=mode, sites=self.sites, notes=self._notes())
        with torch.inference_mode(False), torch.no_grad():
            for site, states in banks[mode].items():
                reading.measure(site, self.metrics, states)
        if reset:
            self.reset(mode)
        return reading

    def reset(self, mode: Mode | None = None) -> None:
        """Forget what was seen in ``mode``, or in both."""
        self._ledger.reset(mode)
        for stream in self._capture.streams:
            if mode in (None, stream.mode):
                stream.report()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything seen, as flat named tensors on the CPU: ``mode/site/accumulator/sum``. Two of them add.

        >>> # safetensors.torch.save_file(probe.state_dict(), "probe.safetensors")
        """
        return self._with_streams().to_tensors()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`state_dict`, in place of what was seen so far.

        Raises:
            GeomprobeError: it comes from a probe with other metrics or sites.
        """
        self._ledger.load_tensors(tensors)
        for stream in self._capture.streams:  # what they hold so far is in the saved state, or belongs to no one
            stream.report()

    def _with_streams(self) -> Ledger:
        """What was seen, with the texts that are still arriving."""
        return self._ledger.with_streams([stream for stream in self._capture.streams if self._can_be_told(stream)])

    def _can_be_told(self, stream: Stream) -> bool:
        """Whether a stream holds texts; what beam search and assisted decoding leave in it is none."""
        if stream.rearranged:
            self._note(
                "texts of beam search or assisted decoding were left out: rows move, drafts are dropped. Generate with "
                "num_beams=1 and no assistant, or run the finished text through the model under the probe"
            )
        return not stream.rearranged

    def _notes(self) -> list[str]:
        if self.fault is None:
            unfinished = ["a forward has begun and not ended: some sites may count its tokens"] * self._capture.is_open
            return [*self._remarks, *unfinished]
        stopped = f"the probe stopped in forward {self._forwards}: {type(self.fault).__name__}: {self.fault}"
        return [*self._remarks, f"{stopped} (some of the sites that this forward had passed may count it)"]

    def _why_empty(self, seen: list[Mode]) -> str:
        if self.fault is not None:
            return f"the probe met {type(self.fault).__name__}: {self.fault}"
        if seen:
            return f"the model ran in {seen[0]} mode only"
        if self._status == "new":
            return "the probe was never attached; use it as 'with Probe(model) as probe:' around the forward"
        if self.paused:
            return "the probe is paused"
        if self._forwards and self.when is None:
            return f"none of {self._forwards} forwards reached a watched layer with a token"
        if self._forwards:
            return f"the schedule measured none of {self._forwards} forwards"
        return (
            "the model has not run since the probe was attached; call the model inside 'with Probe(model) as probe:' (and if "
            "it runs inside a compiled function, call that for the first time there)"
        )

    # -- what the capture reports -------------------------------------------------------------------------------------------

    def wants(self, continues: bool) -> bool:
        """:meta private:"""
        if self.paused or self.fault is not None:
            return False
        if continues:  # texts that are measured are measured to their end
            return True
        step, self._forwards = self._forwards, self._forwards + 1
        return self.when is None or self.when(step)

    def captured(self, frame: Frame, site: str, hidden: Tensor, attention: AttentionRows | None = None) -> None:
        """:meta private:"""
        if self.fault is not None:
            return
        try:
            if frame.stream is not None:
                frame.stream.add(site, hidden, attention)
                return
            self._gather.put(frame, site, hidden, attention)
        except Exception as error:
            self.failed(error)

    def ended(self, stream: Stream) -> None:
        """:meta private:"""
        if self.fault is None:
            try:
                if self._can_be_told(stream):
                    self._ledger.add_stream(stream)
            except Exception as error:
                self.failed(error)

    def closed(self, frame: Frame | None, completed: bool) -> None:
        """:meta private:"""
        if not completed or self.fault is not None:
            self._gather.drop()
            if self.fault is None and frame is not None and frame.stream is None:
                self._note("a forward broke off: some of the sites that it had passed may count its tokens", warn=False)
        else:
            try:
                self._gather.flush()
            except Exception as error:
                self.failed(error)
        if self.fault is not None:
            if completed:  # not while the model's own exception walks through the hooks
                self.close()
        elif (
            self._live is not None and self.on_gain is not None and frame is not None and frame.stream is not None and completed
        ):
            try:
                with exact_arithmetic(frame.stream.device.type):
                    update = self._live.step(frame.stream)
            except Exception as error:
                self.failed(error)
            else:
                self.on_gain(update)

    def failed(self, error: Exception) -> None:
        """:meta private:"""
        if self.on_error == "raise":
            self.fault = error
            raise error
        self.fault = error.with_traceback(None)  # its frames hold activations
        warnings.warn(
            f"geomprobe stopped watching, the model goes on: {type(error).__name__}: {error}. What was measured so far "
            "is kept; use Probe(on_error='raise') to see where it happened",
            RuntimeWarning,
            stacklevel=2,
        )

    def _note(self, text: str, *, warn: bool = True) -> None:
        """Say it in every reading, and once in a warning, unless the model has raised something worse."""
        if text in self._remarks:
            return
        self._remarks.append(text)
        if warn:
            warnings.warn(f"geomprobe: {text}", RuntimeWarning, stacklevel=2)
