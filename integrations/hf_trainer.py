"""A callback that runs a probe inside Hugging Face Trainer and logs its readings together with the loss."""

import logging
import os
import re
import shlex
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from geomprobe import (
    Alarm,
    Decoder,
    EmptyReadingError,
    GeomprobeError,
    InformationGain,
    Metric,
    Monitor,
    Probe,
    Reading,
    RepresentationEntropy,
    Rule,
)
from geomprobe.files import StepFile
from geomprobe.integrations.alarms import Alarms, OnAlarm, attached
from geomprobe.integrations.fixed_texts import Texts
from geomprobe.integrations.histograms import keep_overview, spectra
from geomprobe.integrations.names import Log, check_log, flat
from geomprobe.integrations.outlets import Outlets
from geomprobe.integrations.picture import PICTURE, draw_layers
from geomprobe.integrations.ranks import on_any_rank
from geomprobe.integrations.records import loss_record, reading_of, record_of
from geomprobe.integrations.steps import Steps
from geomprobe.integrations.trainer_loop import micro_batch
from geomprobe.integrations.trainer_trackers import TrainerTrackers
from geomprobe.integrations.watched import Watched
from geomprobe.schedule import Schedule, as_schedule, budget

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ProbeCallback"]

_logger = logging.getLogger(__name__)

_FILE = "geomprobe.jsonl"

_FORWARDS = {
    "train": "in training mode with gradients (no_grad=True measures those without)",
    "eval": "in evaluation mode",
    "fixed": "of the fixed texts",
}
"""Forwards that a reading needs, by its mode. Those of ``no_grad`` are missing in many steps."""

_probes: "weakref.WeakSet[Probe]" = weakref.WeakSet()
"""The probes that callbacks attached."""


class _Gate:
    """The schedule of the probe, which selects the forwards of a chosen optimizer step and those of an evaluation.

    Trainer announces an evaluation in ``control``. Other callbacks can request one after this callback was called, so
    ``control`` is checked when the next forward runs.
    """

    def __init__(self) -> None:
        self.in_step = False
        self.evaluating = False
        self.control: TrainerControl | None = None  # given while an evaluation may begin
        self.forwards = 0  # in the batch that is being evaluated
        self.most_forwards = 0  # in one batch of this evaluation

    def __call__(self, forward: int) -> bool:
        if self.control is not None and self.control.should_evaluate:
            self.evaluating = True
        self.forwards += self.evaluating
        return self.in_step or self.evaluating


class ProbeCallback(Watched, TrainerCallback):  # type: ignore[misc]
    """Measure the geometry of a model while Trainer trains it, and log the numbers next to the loss.

        Trainer(model, args, train_dataset=data, callbacks=[ProbeCallback(when=50)]).train()

    A measured step is one whole optimizer step, including all micro-batches of gradient accumulation. Its numbers are those of
    the forwards of the loss, which run in training mode with gradients. They are logged as ``geomprobe/<metric>/<site>`` at the
    ``global_step`` at which Trainer logs the loss. Forwards in training mode without gradients, such as the rollouts and
    reference models of RL trainers, are kept apart, and logged as ``geomprobe/no_grad/<metric>/<site>`` on request.

    Evaluations that Trainer runs during training are measured completely, and logged as ``geomprobe/eval/<metric>/<site>``
    (``geomprobe/eval_<name>/…`` for each of several evaluation sets). They run without gradients, so the forwards of the loss
    cannot be distinguished from others: if a trainer generates texts in an evaluation, or runs several forwards for a batch,
    the reading has a note about it. Notes are kept in ``history`` and in the file, and each one is also issued once as a
    warning.

    The results of training do not change: losses are bit-identical. After ``train(resume_from_checkpoint=…)`` with the same
    ``output_dir`` the series continues as if training had not been stopped: the readings are saved in each checkpoint as
    ``geomprobe.jsonl``, and without alarms there is no other state to save, because every reading belongs to one optimizer
    step.

    Numbers are logged to the trackers of the Trainer (``report_to``) and to the active W&B run, at the steps of the loss: at
    most 24 numbers a step, the picture ``geomprobe/effective_rank_layers`` of all sites over the steps so far, and histograms
    of the eigenvalue spectrum at up to four sites, ``geomprobe/spectrum_log10/<site>``. Complete readings, with their curves,
    are lines of the file ``geomprobe.jsonl`` in ``output_dir``, and are kept in ``history``. Each ``loss`` that Trainer logs is
    also a line, because its step may not be a measured one; the loss of an evaluation is part of the line of its reading.
    ``geomprobe report OUTPUT_DIR`` draws the file. The file is continued after ``resume_from_checkpoint``, and starts again
    with a new training. With several processes a reading covers the texts of all processes, and the main process writes it.
    This callback does not start a run, and does not ask for a login.

    With ``alarms=True`` readings are also checked against rules (:class:`~geomprobe.Monitor`), which detect when a number has
    moved away from its own recent past. An alarm is a warning of the logger ``geomprobe.integrations.alarms``, an alert of W&B
    or Trackio, a series ``geomprobe/alarm/<rule>`` in every tracker (1 while it is on), a line of the file, a mark in the
    report, and an entry of ``alarms``. Give ``texts`` as well: they are measured at steps of their own and whenever an alarm
    rings, in evaluation mode and without an effect on the training, and show whether the model has changed or only the training
    texts. The rules get the ``loss`` of the step, the ``gradient_norm`` before clipping, the ``token_entropy`` of the batch,
    and whether the same batch was read before (``repeated_batch``), where Trainer knows them. The state of the alarms is saved
    in each checkpoint (``geomprobe-alarms.json``), so a resumed training has the same alarms as one that never stopped.

    Evaluations outside of training (use a ``Probe`` for them), ``predict``, and forwards that other callbacks run are not
    measured.

    Args:
        metrics: the metrics to compute. Default: ``RepresentationEntropy(spectrum=True)``, whose spectra are kept at the sites
            of the histograms, and ``InformationGain()``. With alarms, the default is what the default rules need:
            ``ResidualGrowth()`` instead of ``InformationGain()``, and ``AttentionProfile()`` and ``RouterProfile()`` if the
            model has attention and routers.
        sites: the sites to measure, as for ``Probe``. Default: all.
        decoder: a function that returns the ``Decoder`` of the model, for a model in which it is not found automatically, such
            as ``lambda model: Decoder(base=model, layers=model.transformer.h, final_norm=model.transformer.ln_f)``.
        when: which optimizer steps to measure, counted from 1: a schedule, or ``50`` for ``every(50)``. Default:
            ``budget(0.01)``, as many as can be measured, read and logged in 1% of the time of the training steps; with alarms,
            only the steps that are read for alarms. All processes measure the same steps.
        evaluate: whether to measure evaluations. They are measured completely, whatever they cost.
        no_grad: whether to measure and log also the forwards of a step that run in training mode without gradients. Steps
            without such forwards have no such reading.
        pad_token_id: the id of the padding token, as for ``Probe``, if batches are padded and have no mask.
        to: where numbers are logged: a ``SummaryWriter``, a W&B run, anything else that :func:`log_reading` takes, or a
            function of ``(numbers, step)``. Default: the trackers of the Trainer, and the active W&B run.
        precision: how Gram matrices are computed, as for ``Probe``.
        log: ``"overview"`` for at most 24 numbers of a reading, or ``"all"``, as for :func:`flat`.
        jsonl: the file to which each reading is appended as one line of JSON: ``to_dict()`` and its ``step``. Default:
            ``geomprobe.jsonl`` in ``output_dir``.
        on_error: ``"warn"``: an error in measuring issues one warning, removes the probe, logs ``geomprobe/stopped`` = 1 and
            discards the unfinished reading. An error of a tracker or of the file issues one warning, and nothing more is
            written there. In both cases, training continues. ``"raise"``: the error is raised.
        alarms: ``True`` for the default rules, a list of rules, or a ``Monitor``.
        texts: fixed texts for the alarms: a list of texts, for the ``processing_class`` of the Trainer, or tensors, such as
            ``{"input_ids": …, "attention_mask": …}``. They run in batches of at most ``per_device_eval_batch_size``. Every
            process runs all of them, and they are counted once.
        alarms_when: which optimizer steps are read for alarms: a schedule other than a budget, or ``20`` for ``every(20)``,
            which is the default. They are measured even if ``when`` does not select them. In the first steps, up to twice the
            warm-up of the learning rate, nothing is read for alarms, not even the fixed texts, because it is normal that these
            numbers change most at the start of a training.
        texts_when: after which optimizer steps the fixed texts are measured, besides those at which an alarm rings: a schedule
            as for ``alarms_when``. Default: ``every(100)``.
        on_alarm: what to do when an alarm rings, besides reporting it: ``"log"`` for nothing else, ``"save"`` to save a
            checkpoint at that step, ``"stop"`` to end the training after it, a function that is called with the
            :class:`~geomprobe.Alarm` on every process, or a list of these.

    Attributes:
        history: the readings as ``(step, reading)`` in order. Only the latest reading of each mode keeps its curves, which are
            large.
        probe: the probe while training runs, else ``None``.
        fault: the exception that ended the measurement, or ``None``.
        alarms: the alarms that rang, in order.
        monitor: the :class:`~geomprobe.Monitor`, or ``None`` without alarms. Use its ``notify`` to tell it of a change that you
            know.

    Raises:
        GeomprobeError: if ``when`` is not a schedule, ``to`` is not something to which numbers can be logged, ``log`` is
            neither of its two values, or an argument of the alarms is not as described; and when training starts, if no decoder
            is found, a site is unknown, another probe is attached to the model, the file of readings was written by another
            program, or ``texts`` do not fit the model.
    """

    def __init__(
        self,
        metrics: Sequence[Metric] | None = None,
        *,
        sites: Sequence[int | str] | None = None,
        decoder: Callable[[Any], Decoder] | None = None,
        when: Schedule | int | None = None,
        evaluate: bool = True,
        no_grad: bool = False,
        pad_token_id: int | None = None,
        to: Any = None,
        precision: Literal["auto", "float64", "split"] = "auto",
        log: Log = "overview",
        jsonl: str | os.PathLike[str] | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        alarms: bool | Sequence[Rule] | Monitor = False,
        texts: Texts | None = None,
        alarms_when: Schedule | int | None = None,
        texts_when: Schedule | int | None = None,
        on_alarm: OnAlarm | Sequence[OnAlarm] = "log",
    ) -> None:
        if on_error not in ("warn", "raise"):
            raise GeomprobeError(f"ProbeCallback(on_error={on_error!r}): expected 'warn' or 'raise'")
        check_log(log)
        self.metrics = metrics
        self.sites = sites
        self.decoder = decoder
        self._alarms = Alarms.of(alarms, texts, alarms_when, texts_when, on_alarm)
        self.when: Schedule = as_schedule(when) or (budget() if self._alarms is None else self._alarms.when)
        self.evaluate = evaluate
        self.no_grad = no_grad
        self.pad_token_id = pad_token_id
        self.precision: Literal["auto", "float64", "split"] = precision
        self.on_error: Literal["warn", "raise"] = on_error
        self.history: list[tuple[int, Reading]] = []
        self.probe: Probe | None = None
        self.fault: Exception | None = None
        self._gate = _Gate()
        self._stopped = False  # whether measuring has stopped on all ranks
        self._steps: Steps
        self._said: set[str] = set()
        self._writes = True
        self._jsonl = jsonl
        self._file: StepFile | None = None
        self._log: Log = log
        self._trackers = TrainerTrackers(to)
        self._drawn = 0  # readings in the latest picture
        self._finalizer: Callable[[], object] = _nothing

    def close(self) -> None:
        """Remove the probe from the model. ``history`` is kept. Calling this twice is safe.

        Trainer calls it at the end of training. If training ends with an exception, Trainer does not notify callbacks. The
        probe then stays on the model until the next training with a ``ProbeCallback``, until this object is garbage collected,
        or until you call this.
        """
        self._finalizer()
        self.probe = None

    # -- called by Trainer --------------------------------------------------------------------------------------------------

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        processing_class: Any = None,
        **_: Any,
    ) -> None:
        """:meta private:"""
        if model is None:
            raise GeomprobeError("ProbeCallback.on_train_begin() got no model: pass the callback to a Trainer (callbacks=[…])")
        self.close()
        self.fault, self._stopped = None, False
        self._writes = bool(state.is_world_process_zero)
        if (left := Probe.on(model)) is not None and left in _probes:  # left by a training that ended with an exception
            left.close()
        self._gate = _Gate()
        self._gate.evaluating = self.evaluate and bool(args.eval_on_start)
        if self._alarms is not None:
            warmup = 2 * int(args.get_warmup_steps(state.max_steps))
            self._alarms.begin(model, processing_class, most=int(args.per_device_eval_batch_size), after=warmup)
        probe = self._attached(model)
        _probes.add(probe)
        # Close the probe once: in close(), or when this callback is garbage collected.
        self._finalizer = weakref.finalize(self, probe.close)
        self.probe = probe
        self._drawn, self._said = 0, set()
        self._file = StepFile(self._jsonl or Path(str(args.output_dir)) / _FILE)
        self._outlets = Outlets(raises=self.on_error == "raise")
        if not self._trackers.begin(args, state, control, self._outlets) and self._writes:
            _logger.info(
                "geomprobe: this training has no tracker; its readings are written to %s, and drawn by: geomprobe report %s",
                self._file.path,
                shlex.quote(str(self._file.path)),
            )
        try:
            self._rewind(state.global_step)
        except GeomprobeError:  # the file is not ours, or cannot be written: training does not begin
            self.close()
            raise
        if state.global_step and not self.history:  # the earlier steps were measured by another process
            self.history = self._earlier(_saved(args, state))
        if state.global_step and self._alarms is not None:
            self._restore(self._alarms, _saved(args, state).path.parent)
        costs = [reading.cost for _, reading in self.history if reading.mode == "train" and reading.cost is not None]
        self._steps = Steps(self.when, probe, costs[-1].interval if costs else None)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """:meta private:"""
        if not self._takes_part():
            return
        with self._guarded(state):
            self._gate.control, self._gate.evaluating = None, False
            due = self._alarms is not None and self._alarms.begin_step(state.global_step + 1)
            self._gate.in_step = self._steps.begin(state.global_step + 1, also=due)
            if self.probe is not None:
                self.probe.reset()  # measure only this step

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """:meta private:"""
        if (alarms := self._alarms) is not None and alarms.due and self._takes_part():
            with self._guarded(state):
                alarms.numbers.add(*micro_batch(state)[:2])

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """:meta private:"""
        measured, self._gate.in_step = self._gate.in_step, False
        # If Trainer logs the loss next, both can be in one W&B row.
        commit = not (control.should_log and "wandb" in (args.report_to or ()))
        readings = [self._report(mode, mode, state, commit=commit) for mode in self._modes if measured]
        if self._alarms is not None and model is not None:
            self._watch(self._alarms, model, readings, args, state, control, commit)
        if measured and self._takes_part():
            self._steps.update()
        self._await_evaluation(control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """:meta private:"""
        self._await_evaluation(control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """:meta private:"""
        if self._writes and self._takes_part() and (loss := loss_record((logs or {}).get("loss"))):
            self._append(state.global_step, loss)

    def on_prediction_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """:meta private:"""
        if self.fault is not None:
            self._gate(0)  # no probe calls it any more, and the other ranks wait for this rank in the next report
        self._gate.most_forwards = max(self._gate.most_forwards, self._gate.forwards)
        self._gate.forwards = 0

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """:meta private:"""
        if not self._gate.evaluating:
            return
        prefix = _prefix(metrics or {})
        name = prefix if prefix.startswith("eval") else f"eval_{prefix}"
        self._report("eval", name, state, more=loss_record((metrics or {}).get(f"{prefix}_loss")))
        self._gate.most_forwards = 0
        self._gate.evaluating = name != "eval"  # if there are several evaluation sets, the next one follows

    def on_predict(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        """:meta private:"""
        if self.probe is not None:
            self.probe.reset("eval")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """:meta private:"""
        self._gate.control, self._gate.evaluating = None, False
        if self._writes and self.fault is None:
            saved = _saved(args, state)
            if saved.path.parent.is_dir():  # a hyperparameter search saves its checkpoints elsewhere
                lines = [{"step": step, **record_of(reading)} for step, reading in self.history]
                self._outlets.write(self, f"{_FILE} in checkpoints", lambda: saved.replace(lines))
                if (alarms := self._alarms) is not None:
                    self._outlets.write(alarms, "the alarms in checkpoints", lambda: alarms.save(saved.path.parent))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """:meta private:"""
        if self.probe is not None and self._steps.ran and not self._steps.measured:
            self._say(
                f"no training step was measured: none of the {self._steps.ran} optimizer steps up to step {state.global_step} "
                "was selected by 'when'"
            )
        elif self.probe is not None and (few := self._steps.few("ProbeCallback")):
            self._say(few)
        if self.probe is not None and self._alarms is not None and (silent := self._alarms.silent):
            self._say(silent)
        self.close()
        self._trackers.end()

    # -- implementation -----------------------------------------------------------------------------------------------------

    def _takes_part(self) -> bool:
        """Whether this rank takes part in the next report. After an error it still does, to notify the other ranks."""
        return not self._stopped and (self.probe is not None or self.fault is not None)

    @property
    def _modes(self) -> tuple[Literal["train", "no_grad"], ...]:
        """The modes of the readings of a step."""
        return ("train", "no_grad") if self.no_grad else ("train",)

    def _attached(self, model: nn.Module) -> Probe:
        modes: list[Literal["train", "eval", "no_grad", "fixed"]] = ["train"]
        modes += ["eval"] if self.evaluate else []
        modes += ["no_grad"] if self.no_grad else []
        modes += ["fixed"] if self._alarms is not None else []
        make: Callable[[Sequence[Metric]], Probe] = partial(
            Probe,
            model,
            sites=self.sites,
            decoder=None if self.decoder is None else self.decoder(model),
            when=self._gate,
            on_error=self.on_error,
            pad_token_id=self.pad_token_id,
            precision=self.precision,
            modes=modes,
        )
        if self.metrics is None and self._alarms is not None:
            probe: Probe = attached(make)
        else:
            default = [RepresentationEntropy(spectrum=True), InformationGain()]
            probe = make(default if self.metrics is None else self.metrics).attach()
        return probe

    def _watch(
        self,
        alarms: Alarms,
        model: nn.Module,
        readings: Sequence[Reading | None],
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        commit: bool,
    ) -> None:
        """Check what was read in this step against the rules, measure the fixed texts if it is time, and report the alarms. All
        processes do so together."""
        if not self._takes_part():
            return
        rings: list[Alarm] = []
        step, due = state.global_step, alarms.due
        if due and self._goes_on(state):
            with self._guarded(state), self._timed():
                *batch, alarms.numbers.gradient_norm = micro_batch(state)
                alarms.numbers.add(*batch)
                rings = alarms.judge(step, readings[0] if readings else None)
        if (reads := alarms.wants_texts(step, rings)) and self._goes_on(state):
            loss = None
            with self._guarded(state):
                if self.probe is not None and alarms.texts is not None:
                    loss = alarms.texts.run(model, self.probe, args.device)
            fixed = self._report("fixed", "fixed", state, commit=commit, more=loss_record(loss))
            if self._goes_on(state):
                with self._guarded(state):
                    rings = alarms.judge_texts(step, fixed, loss, rings)
        if due or reads:
            with self._guarded(state), self._timed():
                self._tell(alarms, rings, state, control, commit)

    def _timed(self) -> AbstractContextManager[None]:
        return nullcontext() if self.probe is None else self.probe.timed()

    def _tell(self, alarms: Alarms, rings: Sequence[Alarm], state: TrainerState, control: TrainerControl, commit: bool) -> None:
        for alarm in rings:
            alarms.tell(alarm, self._outlets, main=self._writes)
            if self._writes:
                self._append(state.global_step, {"alarm": alarm.to_dict()})
                self._trackers.alert(f"geomprobe: {alarm.name}", str(alarm))
            control.should_save = control.should_save or "save" in alarms.actions
            control.should_training_stop = control.should_training_stop or "stop" in alarms.actions
        if self._writes and (series := alarms.series):
            self._trackers.log(series, state.global_step, commit=commit)

    def _restore(self, alarms: Alarms, checkpoint: Path) -> None:
        try:
            alarms.restore(checkpoint)
        except GeomprobeError as error:
            if self.on_error == "raise":
                self.close()
                raise
            self._say(f"the alarms start again, and are silent until they have seen enough readings: {error}")

    def _await_evaluation(self, control: TrainerControl) -> None:
        if self._takes_part() and self.evaluate:
            self._gate.control = control
            self._gate.forwards = self._gate.most_forwards = 0
            if self.probe is not None:
                self.probe.reset("eval")  # discard forwards that a training step ran in evaluation mode

    def _report(
        self,
        mode: Literal["train", "eval", "no_grad", "fixed"],
        name: str,
        state: TrainerState,
        *,
        commit: bool = True,
        more: Mapping[str, float] | None = None,
    ) -> Reading | None:
        """Read the numbers on every process, keep them, and write them on the main process, in the file with ``more``.

        Reading is a collective operation.
        """
        if self._goes_on(state) and self.probe is not None:
            with self._guarded(state), self.probe.timed():
                return self._read_and_log(self.probe, mode, name, state, commit, more or {})
        return None

    def _goes_on(self, state: TrainerState) -> bool:
        """Whether measuring goes on. This is a collective operation: if measuring has stopped on one rank, it stops on all, so
        that none of them waits."""
        if not self._takes_part():
            return False
        with self._guarded(state):
            fault = self.fault if self.probe is None else self.probe.fault
            self._stopped = on_any_rank(fault is not None)
            if self.probe is not None and self._stopped:
                raise fault or GeomprobeError("measuring stopped on another rank: see the warning on that rank for the cause")
        return self.probe is not None

    def _read_and_log(
        self,
        probe: Probe,
        mode: Literal["train", "eval", "no_grad", "fixed"],
        name: str,
        state: TrainerState,
        commit: bool,
        more: Mapping[str, float],
    ) -> Reading | None:
        where = f" ({name} reading of step {state.global_step})"
        try:
            reading = probe.read(mode, reset=True)
            reading.mode = name
            if self.metrics is None:
                keep_overview(reading)
            reading.cost = self._steps.cost
        except EmptyReadingError:
            if mode in _FORWARDS:
                self._say(f"nothing was measured, because no forward {_FORWARDS[mode]} ran that could be counted", where)
            return None
        if mode == "eval" and self._gate.most_forwards > 1:
            reading.notes.append(
                f"up to {self._gate.most_forwards} forwards ran for one batch of the evaluation, and this reading contains "
                "all of them, not only those of the loss: a reference model may have run, or texts may have been generated"
            )
        for note in reading.notes:
            self._say(note, where)
        self._keep(state.global_step, reading)
        if self._writes:
            self._append(state.global_step, {**record_of(reading), **more})
            self._trackers.log(
                flat(reading, self._log),
                state.global_step,
                pictures=self._pictures(state) if mode == "train" else None,
                histograms=spectra(reading),
                commit=commit,
            )
        return reading

    def _append(self, step: int, record: dict[str, Any]) -> None:
        if (file := self._file) is not None:
            self._outlets.write(file, f"the file {file.path}", lambda: file.append(step, record))

    def _pictures(self, state: TrainerState) -> "dict[str, NDArray[np.uint8]]":
        """The picture of the training so far, if there are enough readings since the latest one: each time one is drawn it is
        5% wider, so that the time and space for all pictures of a long training stay small. The last step always has one."""
        readings = sum(reading.mode == "train" for _, reading in self.history)
        if readings < 1.05 * self._drawn and state.global_step < state.max_steps:
            return {}
        if (picture := draw_layers(self.history)) is None:
            return {}
        self._drawn = readings
        return {PICTURE: picture}

    def _keep(self, step: int, reading: Reading) -> None:
        for i in reversed(range(len(self.history))):
            when, old = self.history[i]
            if old.mode == reading.mode:
                self.history[i] = (when, Reading(old.mode, old.sites, old, old.notes, widths=old.widths))
                self.history[i][1].cost = old.cost
                break
        self.history.append((step, reading))

    def _earlier(self, saved: StepFile) -> list[tuple[int, Reading]]:
        """The readings that are saved in a checkpoint. If there are none, a warning says that the history starts here."""
        try:
            records = saved.records()
            if not records:
                warnings.warn(f"geomprobe: no earlier readings in {saved.path}: the history starts at this step", stacklevel=2)
            return [(record["step"], reading_of(record)) for record in records]
        except GeomprobeError as error:
            if self.on_error == "raise":
                raise
            warnings.warn(f"geomprobe: the earlier readings in {saved.path} cannot be read: {error}", stacklevel=2)
            return []

    def _say(self, text: str, where: str = "") -> None:
        """Issue a warning, once in a training for all texts that differ only in their numbers."""
        kind = re.sub(r"\d+", "", text)
        if self._writes and kind not in self._said:
            self._said.add(kind)
            warnings.warn(f"geomprobe: {text}{where}", RuntimeWarning, stacklevel=2)

    @contextmanager
    def _guarded(self, state: TrainerState) -> Iterator[None]:
        """A context in which an error ends the measurement and not the training."""
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            if self.fault is not None:  # reported before
                return
            warned = self.probe is not None and self.probe.fault is error
            self.fault = error.with_traceback(None)  # its frames hold tensors
            self.close()
            what = f"{type(error).__name__}: {error}"
            if not warned:
                warnings.warn(
                    f"geomprobe stopped measuring at step {state.global_step}, and training continues: {what}. "
                    "Use ProbeCallback(on_error='raise') to get a traceback",
                    RuntimeWarning,
                    stacklevel=2,
                )
            if self._writes:
                self._mark_stopped(state.global_step, what)

    def _mark_stopped(self, step: int, what: str) -> None:
        self._append(step, {"stopped": what})
        self._trackers.log({"geomprobe/stopped": 1}, step)

    def _rewind(self, step: int) -> None:
        """Discard readings after ``step``, at which this training starts, because these steps will be measured again."""
        self.history = [(at, reading) for at, reading in self.history if step and at <= step]
        if self._file is not None and self._writes:
            self._file.rewind(step)


def _nothing() -> None:
    """Stands for a finalizer until there is one. It is not a lambda, because callbacks are pickled for processes that are
    spawned."""


def _saved(args: TrainingArguments, state: TrainerState) -> StepFile:
    """The file of readings in a checkpoint."""
    return StepFile(os.path.join(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", _FILE))


def _prefix(metrics: dict[str, float]) -> str:
    """The prefix of the names of Trainer's metrics: ``eval``, or ``eval_<name>`` for one of several evaluation sets."""
    return next((key.removesuffix("_runtime") for key in reversed(metrics) if key.endswith("_runtime")), "eval")
