"""The probe: hooks on a model, states that add, a reading at the end."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self

import torch
from torch import Tensor, nn

from geomprobe.accumulators.state import ReadsAttention, TokenCount
from geomprobe.capture.decoder import Decoder, find_decoder
from geomprobe.capture.generation import StopTokens
from geomprobe.capture.hooks import Capture
from geomprobe.errors import GeomprobeError
from geomprobe.metrics.base import Metric
from geomprobe.metrics.entropy import RepresentationEntropy
from geomprobe.metrics.information_gain import InformationGain
from geomprobe.reading import Reading
from geomprobe.recording.all_reduce import replicas
from geomprobe.recording.live_gain import GainUpdate
from geomprobe.recording.recorder import Recorder
from geomprobe.recording.state_store import Mode, StateStore
from geomprobe.schedule import Schedule

__all__ = ["Mode", "Probe"]

_attached: "weakref.WeakSet[Probe]" = weakref.WeakSet()  # weak: a model dropped with its probe on is freed with it


class Probe:
    """Watch the geometry of a model's representations while it runs.

    Hidden states are reduced to sums inside the forward pass. No activations are stored, except for texts that are still being
    generated, and nothing the model computes changes. Training and evaluation are kept apart.

        with Probe(model) as probe:
            model(**batch)
        print(probe.read())

    Args:
        model: any model that holds one Hugging Face decoder, wrapped or not.
        metrics: what to measure; ``RepresentationEntropy()`` and ``InformationGain()`` by default.
        sites: which sites: indices of layers, ``"layer_05"``, ``"embed"``, ``"final_norm"``; all by default.
        decoder: the decoder and its layers, where they cannot be found: ``Decoder(base=model, layers=model.blocks)``.
        when: which forwards to measure, as a function of how many came before (``every(20)``); all by default.
        on_error: ``"warn"``: a fault inside the probe warns once, takes the probe off the model, and lets the model go on, what
            was measured being kept. ``"raise"``: it raises, for tests and research.
        on_gain: called after every forward on a KV cache with the information gain of the new tokens at every site, while
            ``generate`` runs. What it raises goes to the caller of ``generate``.

    Raises:
        GeomprobeError: no decoder found, an unknown site, or something that is not a metric.
    """

    def __init__(
        self,
        model: nn.Module,
        metrics: Sequence[Metric] | None = None,
        *,
        sites: Sequence[int | str] | None = None,
        decoder: Decoder | None = None,
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
        decoder = decoder or find_decoder(model)
        self.sites = decoder.select(sites)
        self._model = model
        self._decoder = decoder
        self._status: Literal["new", "attached", "closed"] = "new"
        # dict.fromkeys keeps order and drops equal ones: that is all the sharing there is.
        accumulators = dict.fromkeys([TokenCount(), *(need for metric in self.metrics for need in metric.accumulators)])
        reads = {need.attention for need in accumulators if isinstance(need, ReadsAttention)}
        attention: Literal["rows", "maps"] | None = "maps" if "maps" in reads else "rows" if "rows" in reads else None
        self._recorder = Recorder(
            StateStore(tuple(accumulators), self.sites),
            self.sites,
            when=when,
            on_error=on_error,
            on_gain=on_gain,
            sigma=None if on_gain is None else self._sigma(),
            on_fault=self.close,
        )
        self._capture = Capture(model, decoder, self.sites, self._recorder, StopTokens.of(model), attention)

    @property
    def paused(self) -> bool:
        """Whether forwards pass unmeasured; set it to True and back. They do not count for ``when``."""
        return self._recorder.paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._recorder.paused = paused

    @property
    def fault(self) -> Exception | None:
        """The exception that took this probe off its model, or ``None``."""
        return self._recorder.fault

    # -- life ---------------------------------------------------------------------------------------------------------------

    def attach(self) -> Self:
        """Put the hooks on. ``with Probe(model)`` does this. A probe that was closed goes on from its numbers.

        Raises:
            GeomprobeError: this probe is attached, or another is on the model; it stopped at a fault.
        """
        if self.fault is not None:
            raise GeomprobeError(
                f"this probe stopped at {type(self.fault).__name__}: {self.fault}. What it measured stays readable; to watch "
                "again make a new Probe(model)"
            )
        base = self._decoder.base
        if (other := _on(base)) is not None:
            who = "this probe" if other is self else "another probe"
            raise GeomprobeError(
                f"{who} is already attached to this {type(base).__name__}. Give one probe all the metrics; "
                "to remove a probe you lost hold of: Probe.on(model).close()"
            )
        self._capture.attach()
        _attached.add(self)
        self._status = "attached"
        return self

    def close(self) -> None:
        """Take every hook off; numbers stay readable. Safe to call twice."""
        self._capture.detach()
        self._recorder.drop()
        _attached.discard(self)
        self._status = "closed"

    @staticmethod
    def on(model: nn.Module) -> "Probe | None":
        """The probe attached to ``model``, if any."""
        return _on(find_decoder(model).base)

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
        self._capture.end_dead_sequences()
        banks = self._recorder.with_sequences(self._capture.sequences).over_ranks(replicas(self._model)).banks
        seen = [name for name, sites in banks.items() if sites]
        if mode is None and len(seen) == 2:
            raise GeomprobeError("this probe saw the model in training and in evaluation: read('train') or read('eval')")
        mode = mode or (seen[0] if seen else "eval")
        if mode not in banks:
            raise GeomprobeError(f"read({mode!r}): expected 'train' or 'eval'")
        if not banks[mode]:
            raise GeomprobeError(f"nothing to read: {self._why_empty(seen)}")
        reading = Reading(mode=mode, sites=self.sites, notes=self._recorder.notes(self._capture.is_open))
        with torch.inference_mode(False), torch.no_grad():
            for site, states in banks[mode].items():
                reading.measure(site, self.metrics, states)
        if reset:
            self.reset(mode)
        return reading

    def reset(self, mode: Mode | None = None) -> None:
        """Forget what was seen in ``mode``, or in both."""
        self._recorder.store.reset(mode)
        for sequence in self._capture.sequences:
            if mode in (None, sequence.mode):
                sequence.mark_counted()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything seen, as flat named tensors on the CPU: ``mode/site/accumulator/sum``. Two of them add.

        >>> # safetensors.torch.save_file(probe.state_dict(), "probe.safetensors")
        """
        return self._recorder.with_sequences(self._capture.sequences).to_tensors()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`state_dict`, in place of what was seen so far.

        Raises:
            GeomprobeError: it comes from a probe with other metrics or sites.
        """
        self._recorder.store.load_tensors(tensors)
        for sequence in self._capture.sequences:  # what they hold so far is in the saved state, or belongs to no one
            sequence.mark_counted()

    def _why_empty(self, seen: list[Mode]) -> str:
        if self.fault is not None:
            return f"the probe met {type(self.fault).__name__}: {self.fault}"
        if seen:
            return f"the model ran in {seen[0]} mode only"
        if self._status == "new":
            return "the probe was never attached; use it as 'with Probe(model) as probe:' around the forward"
        if self.paused:
            return "the probe is paused"
        if self._recorder.forwards and self._recorder.when is None:
            return f"none of {self._recorder.forwards} forwards reached a watched layer with a token"
        if self._recorder.forwards:
            return f"the schedule measured none of {self._recorder.forwards} forwards"
        return (
            "the model has not run since the probe was attached; call the model inside 'with Probe(model) as probe:' (and if "
            "it runs inside a compiled function, call that for the first time there)"
        )


def _on(base: nn.Module) -> Probe | None:
    """The probe attached to a decoder, if any."""
    return next((probe for probe in _attached if probe._decoder.base is base), None)
