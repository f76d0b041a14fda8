"""The probe, which attaches hooks to a model, accumulates sums during forward passes, and returns a reading."""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Literal, Self

import torch
from torch import Tensor, nn

from geomprobe.accumulators.state import Accumulator, TokenCount, wanted_attention, wants_routing
from geomprobe.capture.clock import Clock
from geomprobe.capture.decoder import Decoder, find_decoder
from geomprobe.capture.generation import MODES, StopTokens
from geomprobe.capture.hooks import CALLED_DIRECTLY, Capture
from geomprobe.core.precision import PRECISIONS, Precision
from geomprobe.errors import EmptyReadingError, GeomprobeError, is_whole
from geomprobe.metrics.base import Metric
from geomprobe.metrics.entropy import RepresentationEntropy
from geomprobe.metrics.information_gain import InformationGain
from geomprobe.reading import Cost, Reading, compute_reading
from geomprobe.recording.all_reduce import on_all_ranks, replicas
from geomprobe.recording.fixed_texts import counts_here, undisturbed
from geomprobe.recording.live_gain import GainUpdate
from geomprobe.recording.recorder import Consumer, Recorder
from geomprobe.recording.state_store import Bank, Mode
from geomprobe.schedule import Budget, Schedule, as_schedule

__all__ = ["Mode", "Probe", "add_consumer", "sums_of"]

_attached: "weakref.WeakSet[Probe]" = weakref.WeakSet()  # weak, so that a model that is dropped with its probe is freed


class Probe:
    """Measure the geometry of a model's representations while the model runs.

    Hidden states are reduced to sums inside the forward pass. No activations are stored, except for texts that are still being
    generated, and the results of the model do not change. Four modes are measured separately: ``train``, ``eval``, ``no_grad``
    (forwards in training mode without gradients, such as those of a reference model), and ``fixed`` (texts that run inside
    :meth:`fixed`). A forward is counted at every site or at none.

        with Probe(model) as probe:
            model(**batch)
        print(probe.read())

    Args:
        model: a model that contains one Hugging Face decoder, inside any wrapper; or any other model, if ``decoder`` is given.
        metrics: the metrics to compute. Default: ``RepresentationEntropy()`` and ``InformationGain()``.
        sites: the sites to measure, as indices of layers or as names (``"layer_05"``, ``"embed"``, ``"final_norm"``). Default:
            all.
        decoder: the decoder and its layers, for a model in which they cannot be found automatically, such as
            ``Decoder(base=model, layers=model.blocks, final_norm=model.norm)``.
        when: which forwards to measure: ``every(20)``, or another function that gets the number of earlier forwards and returns
            a bool; a whole number n, which means ``every(n)``; or ``budget(0.01)`` for as many as take 1% of the time of the
            run. Default: all.
        on_error: ``"warn"``: an error inside the probe issues one warning and removes the probe from the model. The model
            continues, and the numbers measured so far are kept. A forward that the probe does not understand is left out, with
            a warning and a note in the reading. ``"raise"``: in both cases an error is raised in the program that runs the
            model, for tests and research.
        on_gain: a function that is called after every forward on a KV cache, while ``generate`` runs, with the information gain
            of the new tokens at every site. Exceptions that it raises reach the caller of ``generate``.
        pad_token_id: the id of the padding token, for programs that pass padded batches without a mask. Runs of this token at
            the beginning and at the end of a row are treated as padding. If the same token also ends texts, the first one of a
            run at the end is counted as a part of the text.
        precision: how to compute Gram matrices and their Cholesky factors, which need the accuracy of float64. ``"float64"``:
            with products in float64. ``"split"``: with float32 products of rows that are split into parts, which differs from
            float64 by about 1e-7 nats per token. This is for devices on which float64 has 1/32 or 1/64 of the rate of float32,
            as on most GPUs, and a note in the reading says that it was used. ``"auto"``: ``"split"`` on such devices, and
            ``"float64"`` on others and whenever a σ or ε below 1e-3 would magnify the errors. Except with ``"float64"``,
            covariances are computed in TF32 on GPUs that have it. Covariances of centred rows,
            ``InformationGain(stream=True)``, ``on_gain`` and the solver of ``ContextLasso`` always use float64.
        modes: the modes to measure, such as ``["train"]``. Forwards of other modes cost nothing. Default: all.

    Raises:
        GeomprobeError: if no decoder is found, a site is unknown, or ``metrics`` contains something that is not a metric.
    """

    def __init__(
        self,
        model: nn.Module,
        metrics: Sequence[Metric] | None = None,
        *,
        sites: Sequence[int | str] | None = None,
        decoder: Decoder | None = None,
        when: Schedule | int | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        on_gain: Callable[[GainUpdate], object] | None = None,
        pad_token_id: int | None = None,
        precision: Precision = "auto",
        modes: Sequence[Mode] | None = None,
    ) -> None:
        if on_error not in ("warn", "raise"):
            raise GeomprobeError(f"Probe(on_error={on_error!r}): expected 'warn' or 'raise'")
        if precision not in PRECISIONS:
            raise GeomprobeError(f"Probe(precision={precision!r}): expected 'auto', 'float64' or 'split'")
        if isinstance(metrics, Metric):
            raise GeomprobeError(f"Probe(model, {metrics!r}): expected a list of metrics, such as [{metrics!r}]")
        self.metrics = tuple(metrics) if metrics is not None else (RepresentationEntropy(), InformationGain())
        for metric in self.metrics:
            if not isinstance(metric, Metric):
                raise GeomprobeError(f"{metric!r} is not a Metric: give instances, such as RepresentationEntropy()")
        self.modes = MODES if modes is None else tuple(modes)
        if isinstance(modes, str) or not self.modes or not set(self.modes) <= set(MODES):
            raise GeomprobeError(f"Probe(modes={modes!r}): expected a list of some of {', '.join(map(repr, MODES))}")
        if pad_token_id is not None and not is_whole(pad_token_id):
            raise GeomprobeError(f"Probe(pad_token_id={pad_token_id!r}): expected the id of a token, such as 0")
        decoder = decoder or find_decoder(model)
        self.sites = decoder.select(sites)
        self._model = model
        self._decoder = decoder
        self._status: Literal["new", "attached", "closed"] = "new"
        # Metrics share equal accumulators: dict.fromkeys keeps the order and drops duplicates.
        self._clock = clock = Clock()
        schedule = as_schedule(when)
        schedule = schedule.bound(lambda: clock.seconds) if isinstance(schedule, Budget) else schedule
        accumulators = dict.fromkeys([TokenCount(), *(need for metric in self.metrics for need in metric.accumulators)])
        if precision == "auto" and any(map(_magnifies_errors, accumulators)):
            precision = "float64"
        self._recorder = Recorder(
            tuple(accumulators),
            self.sites,
            when=schedule,
            on_error=on_error,
            on_gain=on_gain,
            sigma=None if on_gain is None else self._sigma(),
            precision=precision,
            on_fault=self.close,
        )
        self._capture = Capture(
            model,
            decoder,
            self.sites,
            self._recorder,
            StopTokens.of(model),
            wanted_attention(accumulators),
            pad_token_id,
            self.modes,
            wants_routing(accumulators),
            self._clock,
        )

    def __repr__(self) -> str:
        return (
            f"<Probe on {type(self._decoder.base).__name__[:50]}: {self._status}, {len(self.metrics)} metrics at "
            f"{len(self.sites)} sites, modes {', '.join(self.modes)}>"
        )

    @property
    def paused(self) -> bool:
        """Whether measuring is paused. It can be set. Forwards that run while it is set are not counted by ``when``."""
        return self._recorder.paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self._recorder.paused = paused

    @property
    def fault(self) -> Exception | None:
        """The exception that removed this probe from its model, or ``None``."""
        return self._recorder.fault

    # -- attach and close ---------------------------------------------------------------------------------------------------

    def attach(self) -> Self:
        """Register the hooks, as ``with Probe(model)`` does. A probe that was closed can be attached again, and then continues
        from its numbers.

        Raises:
            GeomprobeError: if a probe is already attached to the model, or if this probe stopped at an error.
        """
        if self.fault is not None:
            raise GeomprobeError(
                f"this probe stopped at {type(self.fault).__name__}: {self.fault}. The numbers measured before stay readable; "
                "to measure again, make a new Probe(model)"
            )
        base = self._decoder.base
        if (other := _on(base)) is not None:
            who = "this probe" if other is self else "another probe"
            raise GeomprobeError(
                f"{who} is already attached to this {type(base).__name__}. Pass all metrics to one probe, or remove the "
                "attached one with Probe.on(model).close()"
            )
        self._capture.attach()
        self._clock.run()
        _attached.add(self)
        self._status = "attached"
        return self

    def close(self) -> None:
        """Remove all hooks. The numbers stay readable. Calling this twice is safe."""
        self._capture.detach()
        self._recorder.drop()
        self._clock.halt()
        _attached.discard(self)
        self._status = "closed"

    @staticmethod
    def on(model: nn.Module) -> "Probe | None":
        """Return the probe that is attached to ``model``, or ``None``."""
        inside = set(model.modules())
        return next((probe for probe in _attached if probe._decoder.base in inside), None)

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Return a context in which a training runs the same texts again and again, to tell whether the model has changed or
        only the training texts.

            with probe.fixed():
                model(**texts)
            reading = probe.read("fixed", reset=True)

        All forwards inside are measured, in the mode ``fixed``, even those that ``when`` would not select, and even if the
        probe is paused; ``when`` does not count them. The model runs in evaluation mode without gradients. Afterwards the
        training continues as if these forwards had not run: the ``training`` flag and the buffers of each module, and the
        state of torch's random number generators, are restored (a buffer of more than 65,536 elements only if it was
        replaced). Autocast is as it was where the context begins. The time of everything that runs
        inside is part of the cost.

        With several processes, run the same texts on all of them, through the model inside ``DistributedDataParallel`` or the
        one that FSDP wraps. The texts are counted once.

        Raises:
            GeomprobeError: if ``fixed`` is not among the modes of this probe.
        """
        if "fixed" not in self.modes:
            raise GeomprobeError(
                f"this probe measures the modes {', '.join(self.modes)}: make it with 'fixed' among its modes=[…]"
            )
        device = next((parameter.device for parameter in self._decoder.base.parameters()), None)
        before = self._capture.fixed, self._recorder.fixed
        with self._clock.span(device), undisturbed(self._model):
            self._capture.fixed, self._recorder.fixed = True, counts_here(self._model)
            try:
                yield
            finally:
                self._capture.fixed, self._recorder.fixed = before

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _sigma(self) -> float:
        """The noise σ of the :class:`InformationGain` metric whose gains are passed to ``on_gain``."""
        sigmas = [metric.sigma for metric in self.metrics if isinstance(metric, InformationGain)]
        if not sigmas:
            raise GeomprobeError("on_gain needs the metric InformationGain: add it to the metrics of this probe")
        return sigmas[0]

    # -- numbers ------------------------------------------------------------------------------------------------------------

    def read(self, mode: Mode | None = None, *, reset: bool = False) -> Reading:
        """Return the numbers measured so far, as plain floats. The probe continues to measure.

        With several processes (``accelerate launch``, ``torchrun``) the numbers are those of all processes together. This is a
        collective operation: call it on every rank, including ranks that measured nothing. All ranks get the same reading.

        Args:
            mode: the mode in which the numbers were measured: ``"train"`` (training mode with gradients), ``"eval"``,
                ``"no_grad"`` (training mode without gradients), or ``"fixed"`` (inside :meth:`fixed`). Can be omitted if the
                model ran in one mode only.
            reset: whether to discard the sums of this mode afterwards, so that the next reading starts from zero.

        Raises:
            EmptyReadingError: if nothing was measured.
            GeomprobeError: if several modes were measured and ``mode`` is not given, or if two metrics have a number of the
                same name.
        """
        with self._clock.span():
            reading = self._read(mode)
            if reset:
                self.reset(reading.mode)  # type: ignore[arg-type]
        reading.cost = self.cost
        return reading

    @property
    def cost(self) -> Cost:
        """What this probe has cost this process so far (:class:`~geomprobe.reading.Cost`)."""
        seconds, elapsed, when = self._clock.seconds, self._clock.elapsed, self._recorder.when
        return Cost(seconds, seconds / elapsed if elapsed else 0.0, when.interval if isinstance(when, Budget) else None)

    def timed(self) -> AbstractContextManager[None]:
        """Return a context whose time is counted as a part of the cost, for what a loop does with a reading, such as logging
        it."""
        return self._clock.span()

    def _read(self, mode: Mode | None) -> Reading:
        mode, bank, notes = self._sums(mode)
        with torch.inference_mode(False), torch.no_grad():
            return compute_reading(mode, self.sites, self.metrics, bank, notes)

    def _sums(self, mode: Mode | None) -> tuple[Mode, Bank, list[str]]:
        """The mode to read, its sums over all processes, and the notes of a reading."""
        self._capture.end_dead_sequences()
        store = on_all_ranks(lambda: self._recorder.with_sequences(self._capture.sequences))
        banks = store.over_ranks(replicas(self._model)).banks
        seen = [name for name, sites in banks.items() if sites]
        if mode is None and len(seen) > 1:
            calls = " or ".join(f"read({name!r})" for name in seen)
            raise GeomprobeError(f"this probe measured the model in the modes {', '.join(seen)}: call {calls}")
        mode = mode or (seen[0] if seen else "eval")
        if mode not in banks:
            raise GeomprobeError(f"read({mode!r}): expected {', '.join(map(repr, MODES))}")
        if not banks[mode]:
            raise EmptyReadingError(f"nothing to read: {self._why_empty(seen)}")
        return mode, banks[mode], [*self._recorder.notes, *self._capture.notes(mode)]

    def reset(self, mode: Mode | None = None) -> None:
        """Discard the sums of ``mode``, or of all modes if it is ``None``."""
        self._recorder.store.reset(mode)
        self._capture.forget(mode)
        for sequence in self._capture.sequences:
            if mode in (None, sequence.mode):
                sequence.mark_counted()

    def state_dict(self) -> dict[str, Tensor]:
        """Return all sums as tensors on the CPU, named ``mode/site/accumulator/sum``.

        ``safetensors.torch.save_file`` writes them. Those of probes with the same metrics and sites are merged by
        :func:`geomprobe.accumulators.state.merge`.
        """
        return self._recorder.with_sequences(self._capture.sequences).to_tensors()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace all sums with those that :meth:`state_dict` returned, to continue from them.

        Raises:
            GeomprobeError: if ``tensors`` comes from a probe with other metrics or sites.
        """
        self._recorder.store.load_tensors(tensors)
        for sequence in self._capture.sequences:  # their tokens so far are in the loaded state, or are to be left out
            sequence.mark_counted()

    def _why_empty(self, seen: list[Mode]) -> str:
        if self.fault is not None:
            return f"the probe stopped at {type(self.fault).__name__}: {self.fault}"
        if seen:
            calls = " or ".join(f"read({name!r})" for name in seen)
            return f"the model ran in {' and '.join(seen)} mode only: call {calls}"
        if self._status == "new":
            return "the probe was never attached; run the model inside 'with Probe(model) as probe:'"
        if self.paused:
            return "the probe is paused: set probe.paused = False"
        if self._capture.called_directly:
            return CALLED_DIRECTLY
        if self._recorder.notes:
            return "; ".join(self._recorder.notes)
        if self._recorder.forwards and self._recorder.when is None:
            return f"in none of {self._recorder.forwards} forwards did a token reach a measured site"
        if self._recorder.forwards:
            return f"the schedule 'when' selected none of {self._recorder.forwards} forwards"
        if set(self.modes) < set(MODES):
            return f"the model has not run in the modes of the probe ({', '.join(self.modes)}) since it was attached"
        return (
            "the model has not run since the probe was attached; call the model inside 'with Probe(model) as probe:' (if it "
            "runs inside a compiled function, the first call of that function must be there too)"
        )


def add_consumer(probe: Probe, consumer: Consumer) -> Probe:
    """Also pass the rows of each forward that ``probe`` measures to ``consumer``. Other parts of this package use it. Call it
    before the probe is attached."""
    probe._recorder.consumers.append(consumer)
    probe._capture.attention = wanted_attention([*probe._recorder.store.accumulators, *probe._recorder.consumers])
    return probe


def sums_of(probe: Probe, mode: Mode) -> tuple[Bank, list[str]]:
    """Return the sums from which ``probe.read(mode)`` computes its numbers, and the notes of that reading. Other parts of this
    package use it. Like ``read``, this is a collective operation, and it raises an error if nothing was measured."""
    return probe._sums(mode)[1:]


def _magnifies_errors(accumulator: Accumulator) -> bool:
    """Whether an accumulator multiplies Gram matrices by so much that the errors of split products, which are 1e-7 nats at σ =
    0.01 and grow with σ⁻² or ε⁻², are no longer small."""
    return min(getattr(accumulator, "sigma", 1.0), getattr(accumulator, "epsilon", 1.0)) < 1e-3


def _on(base: nn.Module) -> Probe | None:
    """The probe that is attached to a decoder, or ``None``."""
    return next((probe for probe in _attached if probe._decoder.base is base), None)
