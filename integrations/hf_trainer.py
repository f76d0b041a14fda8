"""A probe inside Hugging Face Trainer, its readings beside the loss."""

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

__all__ = ["ProbeCallback"]

_probes: "weakref.WeakSet[Probe]" = weakref.WeakSet()  # those that callbacks put on models


class _Gate:
    """Which forwards a probe measures: those of a wanted step, and those of an evaluation.

    Trainer says that it will evaluate, in ``control``, but callbacks may say so after ours was asked: look when it matters.
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
    """Measure a model's geometry while Trainer trains it, and log it to the run that holds the loss.

        Trainer(model, args, train_dataset=data, callbacks=[ProbeCallback(when=every(50))]).train()

    A measured step is a whole optimizer step: every micro-batch of its gradient accumulation counts, and nothing before it. Its
    numbers stand at the ``global_step`` at which Trainer logs its loss, as ``geomprobe/<metric>/<site>``. Evaluations that
    Trainer starts during training are measured whole, as ``geomprobe/eval/<metric>/<site>`` (``geomprobe/eval_<name>/…`` for
    each of several evaluation sets). What training computes does not change: losses are bit-identical. After
    ``train(resume_from_checkpoint=…)`` with the same ``output_dir`` the series goes on as if never stopped: readings lie in
    each checkpoint as ``geomprobe.jsonl``, and no sum crosses an optimizer step, so there is no other state to save.

    Where readings go: into the active W&B run (Trainer's own with ``report_to="wandb"``), over ``train/global_step``; as whole
    readings with curves into ``jsonl``; and always into ``history``. With several processes each measures what it runs, and the
    main one writes. For another reporter, override :meth:`write`. No W&B run is started and no login asked for here.

    Not measured: evaluation outside training (use a ``Probe``), ``predict``, and what other callbacks run on the model.

    Args:
        metrics: what to measure; ``RepresentationEntropy()`` and ``InformationGain()`` by default.
        sites: which sites, as for ``Probe``; all by default.
        when: which optimizer steps to measure, counted from 1; by default those at which Trainer logs.
        evaluate: whether to measure evaluations.
        jsonl: file to which each reading is appended as one line: ``to_dict()`` and its ``step``.
        on_error: ``"warn"``: a fault in measuring or logging warns once, takes the probe off, logs ``geomprobe/stopped`` = 1,
            drops the unfinished reading and lets training go on. ``"raise"``: it raises.

    Attributes:
        history: ``(step, reading)`` in order. Of each mode only the latest reading keeps its curves: they are large.
        probe: the probe while training runs, else None.
        fault: the exception that stopped the measuring, or None.

    Raises:
        GeomprobeError: when training begins: no decoder found, an unknown site, or a probe of yours on the model.
    """

    def __init__(
        self,
        metrics: Sequence[Metric] | None = None,
        *,
        sites: Sequence[int | str] | None = None,
        when: Callable[[int], bool] | None = None,
        evaluate: bool = True,
        jsonl: str | os.PathLike[str] | None = None,
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        if on_error not in ("warn", "raise"):
            raise GeomprobeError(f"ProbeCallback(on_error={on_error!r}): expected 'warn' or 'raise'")
        self.metrics = metrics
        self.sites = sites
        self.when = when
        self.evaluate = evaluate
        self.on_error: Literal["warn", "raise"] = on_error
        self.history: list[tuple[int, Reading]] = []
        self.probe: Probe | None = None
        self.fault: Exception | None = None
        self._gate = _Gate()
        self._stopped = False  # on all ranks, and all know
        self._writes = True
        self._file = None if jsonl is None else StepFile(jsonl)
        self._axis: StepAxis | None = None
        self._finalizer: Callable[[], object] = lambda: None

    def close(self) -> None:
        """Take the probe off the model; ``history`` stays. Safe to call twice.

        Trainer does this at the end of training. It tells callbacks nothing of an exception: after one, the probe stays until
        the next training with a ``ProbeCallback``, the end of this object, or this call.
        """
        self._finalizer()
        self.probe = None

    def write(self, step: int, values: Mapping[str, float], *, commit: bool = True) -> None:
        """Log numbers by name at an optimizer step. Override it to send them elsewhere; only the main process calls it.

        Args:
            step: ``global_step``.
            values: ``geomprobe/entropy/layer_00`` and the like.
            commit: False when Trainer is about to log its loss at this step, so that both can share one row.
        """
        run = active_run()
        if run is None:
            return
        if self._axis is None or self._axis.run is not run:
            self._axis = StepAxis(run, "train/global_step")
        self._axis.log(values, step, commit=commit)

    # -- what Trainer calls -------------------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module | None = None, **_: Any
    ) -> None:
        """:meta private:"""
        if model is None:
            raise GeomprobeError("ProbeCallback was told of no model by its Trainer")
        self.close()
        self.fault, self._stopped = None, False
        self._writes = bool(state.is_world_process_zero)
        if (left := Probe.on(model)) is not None and left in _probes:  # by a training that an exception ended
            left.close()
        self._gate = _Gate()
        self._gate.evaluating = self.evaluate and bool(args.eval_on_start)
        probe = Probe(model, self.metrics, sites=self.sites, when=self._gate, on_error=self.on_error).attach()
        _probes.add(probe)
        # Closes once: here, or when this callback is gone.
        self._finalizer = weakref.finalize(self, probe.close)
        self.probe = probe
        self._rewind(state.global_step)
        if state.global_step and not self.history:  # another process measured them
            self.history = self._earlier(_saved(args, state))

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """:meta private:"""
        if not self._takes_part():
            return
        with self._guarded(state):
            self._gate.control, self._gate.evaluating = None, False
            self._gate.in_step = self._wanted(state.global_step + 1, args, state)
            if self.probe is not None:
                self.probe.reset("train")  # nothing but this step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """:meta private:"""
        measured, self._gate.in_step = self._gate.in_step, False
        if measured:
            # Trainer logs the loss next, if it does: then its W&B row can hold both.
            self._report("train", "train", state, commit=not (control.should_log and "wandb" in (args.report_to or ())))
        self._await_evaluation(control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """:meta private:"""
        self._await_evaluation(control)

    def on_prediction_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """:meta private:"""
        if self.fault is not None:
            self._gate(0)  # no probe asks it any more, and the other ranks count on a report

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
        self._gate.evaluating = name != "eval"  # of several evaluation sets, the next one follows

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
                if saved.path.parent.is_dir():  # not where a hyperparameter search keeps its checkpoints
                    saved.replace({"step": step, **reading.to_dict()} for step, reading in self.history)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """:meta private:"""
        self.close()

    # -- how ----------------------------------------------------------------------------------------------------------------

    def _takes_part(self) -> bool:
        """Whether this rank comes to the next report: also after a fault of its own, which it tells the others there."""
        return not self._stopped and (self.probe is not None or self.fault is not None)

    def _wanted(self, step: int, args: TrainingArguments, state: TrainerState) -> bool:
        if self.when is not None:
            return self.when(step)
        return bool(step % state.logging_steps == 0 or (step == 1 and args.logging_first_step))

    def _await_evaluation(self, control: TrainerControl) -> None:
        if self._takes_part() and self.evaluate:
            self._gate.control = control
            if self.probe is not None:
                self.probe.reset("eval")  # what a training step ran in evaluation mode is none

    def _report(self, mode: Literal["train", "eval"], name: str, state: TrainerState, *, commit: bool = True) -> None:
        """Read what was measured, keep it, write it. Reading is for every process, writing for the main one.

        Reading is a collective: a rank on which measuring stopped must not leave the others waiting, so all stop together.
        """
        if not self._takes_part():
            return
        with self._guarded(state):
            fault = self.fault if self.probe is None else self.probe.fault
            self._stopped = _on_any_rank(fault is not None)
            if self.probe is None:
                return
            if self._stopped:
                raise fault or GeomprobeError("measuring stopped on another rank, which says why")
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
        """The readings of a checkpoint. Without them the series begins here, and says so."""
        try:
            records = saved.records()
            if not records:
                warnings.warn(f"geomprobe: no earlier readings in {saved.path}: the history begins at this step", stacklevel=2)
            return [(record["step"], Reading.from_dict(record)) for record in records]
        except (OSError, ValueError, GeomprobeError) as error:
            if self.on_error == "raise":
                raise
            warnings.warn(f"geomprobe: the earlier readings in {saved.path} cannot be read: {error}", stacklevel=2)
            return []

    @contextmanager
    def _guarded(self, state: TrainerState) -> Iterator[None]:
        """What goes wrong inside ends the measuring, not the training."""
        try:
            yield
        except Exception as error:
            if self.on_error == "raise":
                raise
            if self.fault is not None:  # said before
                return
            warned = self.probe is not None and self.probe.fault is error
            self.fault = error.with_traceback(None)  # its frames hold tensors
            self.close()
            what = f"{type(error).__name__}: {error}"
            if not warned:
                warnings.warn(
                    f"geomprobe stopped watching at step {state.global_step}, training goes on: {what}. "
                    "Use ProbeCallback(on_error='raise') to see where it happened",
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
        except Exception as error:  # likely the one that stopped it
            warnings.warn(f"geomprobe could not log that it stopped: {type(error).__name__}: {error}", stacklevel=2)

    def _rewind(self, step: int) -> None:
        """Forget what an earlier training measured after ``step``, from which this one starts: it will be measured again."""
        self.history = [(at, reading) for at, reading in self.history if step and at <= step]
        if self._file is not None and self._writes:
            self._file.rewind(step)


def _saved(args: TrainingArguments, state: TrainerState) -> StepFile:
    """Where the readings lie in a checkpoint."""
    return StepFile(os.path.join(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", "geomprobe.jsonl"))


def _evaluated(metrics: dict[str, float]) -> str:
    """``eval``, or ``eval_<name>`` of several sets: the prefix of what Trainer measured, which ends with the runtime."""
    prefix = next((key.removesuffix("_runtime") for key in reversed(metrics) if key.endswith("_runtime")), "eval")
    return prefix if prefix.startswith("eval") else f"eval_{prefix}"


def _on_any_rank(flag: bool) -> bool:
    """Whether ``flag`` is true in some process, a collective."""
    if not (dist.is_available() and dist.is_initialized()):
        return flag
    flags = [flag] * dist.get_world_size()
    dist.all_gather_object(flags, flag)
    return any(flags)
