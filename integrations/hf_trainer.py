"""A callback that runs a probe inside Hugging Face Trainer, and logs its readings together with the loss."""

import dataclasses
import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch.distributed as dist
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from geomprobe import GeomprobeError, Metric, Probe, Reading
from geomprobe.files import StepFile
from geomprobe.integrations.flat import flat
from geomprobe.integrations.wandb_sink import StepAxis, active_run
from geomprobe.schedule import Schedule, as_schedule

__all__ = ["ProbeCallback"]

_probes: "weakref.WeakSet[Probe]" = weakref.WeakSet()  # the probes that callbacks attached


class _Gate:
    """The schedule of the probe, which selects the forwards of a chosen optimizer step and those of an evaluation.

    Trainer announces an evaluation in ``control``. Other callbacks can request one after this callback was called, so
    ``control`` is checked when the next forward runs.
    """

    def __init__(self) -> None:
        self.in_step = False
        self.evaluating = False
        self.control: TrainerControl | None = None  # given while an evaluation may begin

    def __call__(self, forward: int) -> bool:
        if self.control is not None and self.control.should_evaluate:
            self.evaluating = True
        return self.in_step or self.evaluating


class ProbeCallback(TrainerCallback):  # type: ignore[misc]
    """Measure the geometry of a model while Trainer trains it, and log it to the run of the loss.

        Trainer(model, args, train_dataset=data, callbacks=[ProbeCallback(when=every(50))]).train()

    A measured step is one whole optimizer step, including all micro-batches of gradient accumulation. Its numbers are logged as
    ``geomprobe/<metric>/<site>`` at the ``global_step`` at which Trainer logs the loss. Evaluations that Trainer runs during
    training are measured completely, and logged as ``geomprobe/eval/<metric>/<site>`` (``geomprobe/eval_<name>/…`` for each of
    several evaluation sets). The results of training do not change: losses are bit-identical. After
    ``train(resume_from_checkpoint=…)`` with the same ``output_dir`` the series continues as if training had not been stopped:
    the readings are saved in each checkpoint as ``geomprobe.jsonl``, and there is no other state to save, because every reading
    belongs to one optimizer step.

    Readings are logged to the active W&B run (that of Trainer with ``report_to="wandb"``) over ``train/global_step``, written
    with their curves to ``jsonl``, and kept in ``history``. With several processes a reading covers the texts of all processes,
    and the main process writes it. To log to another tracker, override :meth:`write`. This callback does not start a W&B run
    and does not ask for a login.

    Evaluation outside training (use a ``Probe``), ``predict``, and forwards that other callbacks run are not measured.

    Args:
        metrics: the metrics to compute. Default: ``RepresentationEntropy()`` and ``InformationGain()``.
        sites: the sites to measure, as for ``Probe``. Default: all.
        when: which optimizer steps to measure, counted from 1: a schedule, or ``50`` for ``every(50)``. Default: those at which
            Trainer logs.
        evaluate: whether to measure evaluations.
        jsonl: a file to which each reading is appended as one line of JSON: ``to_dict()`` and its ``step``.
        on_error: ``"warn"``: an error in measuring or logging issues one warning, removes the probe, logs ``geomprobe/stopped``
            = 1 and discards the unfinished reading. Training continues. ``"raise"``: the error is raised.

    Attributes:
        history: the readings as ``(step, reading)`` in order. Only the latest reading of each mode keeps its curves, which are
            large.
        probe: the probe while training runs, else ``None``.
        fault: the exception that ended the measurement, or ``None``.

    Raises:
        GeomprobeError: if ``when`` is no schedule, and when training starts, if no decoder is found, a site is unknown, or
            another probe is on the model.
    """

    def __init__(
        self,
        metrics: Sequence[Metric] | None = None,
        *,
        sites: Sequence[int | str] | None = None,
        when: Schedule | int | None = None,
        evaluate: bool = True,
        jsonl: str | os.PathLike[str] | None = None,
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        if on_error not in ("warn", "raise"):
            raise GeomprobeError(f"ProbeCallback(on_error={on_error!r}): expected 'warn' or 'raise'")
        self.metrics = metrics
        self.sites = sites
        self.when = as_schedule(when)
        self.evaluate = evaluate
        self.on_error: Literal["warn", "raise"] = on_error
        self.history: list[tuple[int, Reading]] = []
        self.probe: Probe | None = None
        self.fault: Exception | None = None
        self._gate = _Gate()
        self._stopped = False  # whether measuring has stopped on all ranks
        self._writes = True
        self._file = None if jsonl is None else StepFile(jsonl)
        self._axis: StepAxis | None = None
        self._finalizer: Callable[[], object] = lambda: None

    def close(self) -> None:
        """Remove the probe from the model. ``history`` is kept. Calling this twice is safe.

        Trainer calls it at the end of training. It does not notify callbacks of an exception: after one, the probe stays on the
        model until the next training with a ``ProbeCallback``, until this object is garbage collected, or until this call.
        """
        self._finalizer()
        self.probe = None

    def write(self, step: int, values: Mapping[str, float], *, commit: bool = True) -> None:
        """Log numbers by name at an optimizer step. Override it to log to another tracker. Only the main process calls it.

        Args:
            step: the ``global_step``.
            values: the numbers by names such as ``geomprobe/entropy/layer_00``.
            commit: ``False`` if Trainer logs its loss at this step next, so that both can be in one row.
        """
        run = active_run()
        if run is None:
            return
        if self._axis is None or self._axis.run is not run:
            self._axis = StepAxis(run, "train/global_step")
        self._axis.log(values, step, commit=commit)

    # -- called by Trainer --------------------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module | None = None, **_: Any
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
        probe = Probe(model, self.metrics, sites=self.sites, when=self._gate, on_error=self.on_error).attach()
        _probes.add(probe)
        # Close the probe once: in close(), or when this callback is garbage collected.
        self._finalizer = weakref.finalize(self, probe.close)
        self.probe = probe
        self._rewind(state.global_step)
        if state.global_step and not self.history:  # the earlier steps were measured by another process
            self.history = self._earlier(_saved(args, state))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """:meta private:"""
        if not self._takes_part():
            return
        with self._guarded(state):
            self._gate.control, self._gate.evaluating = None, False
            self._gate.in_step = self._wanted(state.global_step + 1, args, state)
            if self.probe is not None:
                self.probe.reset("train")  # measure only this step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """:meta private:"""
        measured, self._gate.in_step = self._gate.in_step, False
        if measured:
            # If Trainer logs the loss next, both can be in one W&B row.
            self._report("train", "train", state, commit=not (control.should_log and "wandb" in (args.report_to or ())))
        self._await_evaluation(control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """:meta private:"""
        self._await_evaluation(control)

    def on_prediction_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """:meta private:"""
        if self.fault is not None:
            self._gate(0)  # no probe calls it any more, and the other ranks wait for this rank in the next report

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
        name = _evaluated(metrics or {})
        self._report("eval", name, state)
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
            with self._guarded(state):
                if saved.path.parent.is_dir():  # a hyperparameter search saves its checkpoints elsewhere
                    saved.replace({"step": step, **reading.to_dict()} for step, reading in self.history)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """:meta private:"""
        self.close()

    # -- implementation -----------------------------------------------------------------------------------------------------

    def _takes_part(self) -> bool:
        """Whether this rank takes part in the next report. After an error it still does, to notify the other ranks."""
        return not self._stopped and (self.probe is not None or self.fault is not None)

    def _wanted(self, step: int, args: TrainingArguments, state: TrainerState) -> bool:
        if self.when is not None:
            return self.when(step)
        return bool(step % state.logging_steps == 0 or (step == 1 and args.logging_first_step))

    def _await_evaluation(self, control: TrainerControl) -> None:
        if self._takes_part() and self.evaluate:
            self._gate.control = control
            if self.probe is not None:
                self.probe.reset("eval")  # discard forwards that a training step ran in evaluation mode

    def _report(self, mode: Literal["train", "eval"], name: str, state: TrainerState, *, commit: bool = True) -> None:
        """Read the numbers on every process, keep them, and write them on the main process.

        Reading is a collective operation. If measuring has stopped on one rank, it stops on all, so that none of them waits.
        """
        if not self._takes_part():
            return
        with self._guarded(state):
            fault = self.fault if self.probe is None else self.probe.fault
            self._stopped = _on_any_rank(fault is not None)
            if self.probe is None:
                return
            if self._stopped:
                raise fault or GeomprobeError("measuring stopped on another rank, see the warning there for the cause")
            reading = dataclasses.replace(self.probe.read(mode, reset=True), mode=name)
            self._keep(state.global_step, reading)
            if self._writes:
                if self._file is not None:
                    self._file.append(state.global_step, reading.to_dict())
                self.write(state.global_step, flat(reading), commit=commit)

    def _keep(self, step: int, reading: Reading) -> None:
        for i in reversed(range(len(self.history))):
            when, old = self.history[i]
            if old.mode == reading.mode:
                self.history[i] = (when, Reading(mode=old.mode, sites=old.sites, values=old.values, notes=old.notes))
                break
        self.history.append((step, reading))

    def _earlier(self, saved: StepFile) -> list[tuple[int, Reading]]:
        """The readings that are saved in a checkpoint. If there are none, a warning says that the history starts here."""
        try:
            records = saved.records()
            if not records:
                warnings.warn(f"geomprobe: no earlier readings in {saved.path}: the history starts at this step", stacklevel=2)
            return [(record["step"], Reading.from_dict(record)) for record in records]
        except (OSError, ValueError, GeomprobeError) as error:
            if self.on_error == "raise":
                raise
            warnings.warn(f"geomprobe: the earlier readings in {saved.path} cannot be read: {error}", stacklevel=2)
            return []

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
        try:
            if self._file is not None:
                self._file.append(step, {"stopped": what})
            self.write(step, {"geomprobe/stopped": 1})
        except Exception as error:  # probably the same error that stopped the measurement
            warnings.warn(f"geomprobe could not log that it stopped: {type(error).__name__}: {error}", stacklevel=2)

    def _rewind(self, step: int) -> None:
        """Discard readings after ``step``, at which this training starts, because these steps will be measured again."""
        self.history = [(at, reading) for at, reading in self.history if step and at <= step]
        if self._file is not None and self._writes:
            self._file.rewind(step)


def _saved(args: TrainingArguments, state: TrainerState) -> StepFile:
    """The file of readings in a checkpoint."""
    return StepFile(os.path.join(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", "geomprobe.jsonl"))


def _evaluated(metrics: dict[str, float]) -> str:
    """``eval``, or ``eval_<name>`` for one of several evaluation sets: the prefix of the names of Trainer's metrics."""
    prefix = next((key.removesuffix("_runtime") for key in reversed(metrics) if key.endswith("_runtime")), "eval")
    return prefix if prefix.startswith("eval") else f"eval_{prefix}"


def _on_any_rank(flag: bool) -> bool:
    """Whether ``flag`` is true in any process. This is a collective operation."""
    if not (dist.is_available() and dist.is_initialized()):
        return flag
    flags = [flag] * dist.get_world_size()
    dist.all_gather_object(flags, flag)
    return any(flags)
