"""A callback that runs a probe inside a Trainer of Lightning, and logs its readings where the loss is logged."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from geomprobe import Alarm, Decoder, EmptyReadingError, GeomprobeError, Metric, Monitor, Probe, Reading, Rule
from geomprobe.files import StepFile
from geomprobe.integrations.alarms import Alarms, OnAlarm, attached
from geomprobe.integrations.names import Log, check_log, flat
from geomprobe.integrations.outlets import Outlets
from geomprobe.integrations.ranks import on_any_rank
from geomprobe.integrations.records import interval_of, loss_record, record_of
from geomprobe.integrations.steps import Steps
from geomprobe.integrations.watched import Watched
from geomprobe.schedule import Budget, Schedule, as_schedule, budget

if TYPE_CHECKING:
    pass

try:
    from lightning.pytorch import Callback
except ImportError:
    Callback = object

__all__ = ["LightningCallback"]


class LightningCallback(Watched, Callback):  # type: ignore[misc]
    """Measure the geometry of a model while Lightning trains it.

        lightning.Trainer(logger=logger, callbacks=[LightningCallback(when=50)]).fit(module, data)

    A measured step is one optimizer step, including all batches of ``accumulate_grad_batches``. Validations are measured
    completely, and their readings are kept apart from those of the training. The numbers go to the loggers of the Trainer at
    the step of the loss (Lightning counts from 0, so the first optimizer step is logged at 0). Complete readings are lines of
    ``geomprobe.jsonl`` in the folder of the logger, with the ``loss`` of the step on the main process if optimization is
    automatic. ``geomprobe report FILE`` draws them. The results of training do not change.

    Alarms are as in ``ProbeCallback``, but the steps of a warm-up are read, too. Their state is part of each checkpoint of
    Lightning. Their rules get ``loss`` if optimization is automatic, ``token_entropy`` and ``repeated_batch`` if batches are
    dicts with ``input_ids``, and ``gradient_norm`` if each process has the whole gradient.

    Lightning does not change whether a model is in training mode, so call ``model.train()`` after ``from_pretrained``.

    Args:
        metrics: the metrics to compute, as for ``Probe``.
        sites: the sites to measure, as for ``Probe``. Default: all.
        decoder: a function that returns the ``Decoder`` of the ``LightningModule``, if it is not found automatically.
        when: which optimizer steps to measure, counted from 1: a schedule, or ``50`` for ``every(50)``. Default:
            ``budget(0.01)``, as many as can be measured, read and logged in 1% of the time of the training steps. All processes
            measure the same steps.
        precision: how Gram matrices are computed, as for ``Probe``.
        log: ``"overview"`` for at most 24 numbers of a reading, or ``"all"``, as for :func:`flat`.
        jsonl: the file of readings. Default: ``geomprobe.jsonl`` in ``trainer.log_dir``, or else in ``default_root_dir``.
        on_error: ``"warn"``: an error in measuring issues one warning and ends the measurement. An error of a logger or of the
            file issues one warning, and nothing more is written there. In both cases, training continues. ``"raise"``: the
            error is raised.
        alarms: ``True``, a list of rules, or a ``Monitor``, as for ``ProbeCallback``.
        texts: fixed texts for the alarms: tensors, such as ``{"input_ids": …, "attention_mask": …}``. They run through the
            outermost model in the ``LightningModule``, such as its ``self.model``, in batches of at most 8.
        alarms_when: which optimizer steps are read for alarms. Default: ``every(20)``.
        texts_when: after which optimizer steps the fixed texts are measured, besides those at which an alarm rings. Default:
            ``every(100)``.
        on_alarm: as for ``ProbeCallback``. ``"save"`` writes ``geomprobe-alarm-step<step>.ckpt`` beside the file of readings.

    Attributes:
        probe: the probe while training runs, else ``None``.
        alarms: the alarms that rang, in order.

    Raises:
        GeomprobeError: if ``lightning`` is not installed, ``when`` is not a schedule, ``log`` is neither of its two values, or
            an argument of the alarms is not as described; and when training starts, as for ``Probe``, or if ``texts`` do not
            fit the model.
    """

    def __init__(
        self,
        metrics: Sequence[Metric] | None = None,
        *,
        sites: Sequence[int | str] | None = None,
        decoder: Callable[[Any], Decoder] | None = None,
        when: Schedule | int | None = None,
        precision: Literal["auto", "float64", "split"] = "auto",
        log: Log = "overview",
        jsonl: str | os.PathLike[str] | None = None,
        on_error: Literal["warn", "raise"] = "warn",
        alarms: bool | Sequence[Rule] | Monitor = False,
        texts: Mapping[str, Tensor] | None = None,
        alarms_when: Schedule | int | None = None,
        texts_when: Schedule | int | None = None,
        on_alarm: OnAlarm | Sequence[OnAlarm] = "log",
    ) -> None:
        if Callback is object:
            raise GeomprobeError("LightningCallback needs the package lightning: pip install 'geomprobe[lightning]'")
        check_log(log)
        self.probe: Probe | None = None
        self._metrics = metrics
        self._options: dict[str, Any] = {"sites": sites, "on_error": on_error, "precision": precision}
        self._decoder = decoder
        self._alarms = Alarms.of(alarms, texts, alarms_when, texts_when, on_alarm)
        self._restored: dict[str, Any] | None = None  # the state of the alarms in the checkpoint that training resumes from
        self._when: Schedule = as_schedule(when) or (budget() if self._alarms is None else self._alarms.when)
        self._steps: Steps
        self._log: Log = log
        self._jsonl = jsonl
        self._raise = on_error == "raise"
        self._file: StepFile | None = None
        self._outlets: Outlets
        self._losses: list[Tensor] = []  # of the batches of a measured step
        self._step = 0  # the optimizer step that runs, counted from 1
        self._measured = self._within = self._warned = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """:meta private:"""
        self._step, self._measured, self._warned = 0, False, False
        self.probe = probe = self._attached(pl_module)
        folder = trainer.log_dir or trainer.default_root_dir  # on every rank: the first one tells the others
        self._file = StepFile(self._jsonl or Path(folder) / "geomprobe.jsonl")
        if trainer.is_global_zero:
            self._file.rewind(trainer.global_step)
        resumes = isinstance(self._when, Budget) and trainer.is_global_zero
        self._steps = Steps(self._when, probe, interval_of(self._file.records()) if resumes else None)
        self._outlets = Outlets(raises=self._raise)
        if self._alarms is not None:
            self._begin_alarms(self._alarms, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """:meta private:"""
        if self.probe is None or self._step == trainer.global_step + 1:
            return
        self._step = trainer.global_step + 1
        self.probe.reset("train")
        self._losses = []
        try:
            due = self._alarms is not None and self._alarms.begin_step(self._step)
            self._measured = self._steps.begin(self._step, also=due)
        except Exception as error:
            if self._raise:
                raise
            self._warn(f"measuring ended at step {self._step}, and training continues: {type(error).__name__}: {error}")
            self.close()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """:meta private:"""
        if self._measured and pl_module.automatic_optimization and isinstance(outputs, Mapping) and "loss" in outputs:
            self._losses.append(outputs["loss"].detach())
        if (alarms := self._alarms) is not None and alarms.due:
            known = pl_module.automatic_optimization and isinstance(outputs, Mapping)
            alarms.numbers.add(outputs.get("loss") if known else None, batch)
            # Lightning has divided each loss by the batches of a whole step. The last step of an epoch may have fewer.
            alarms.numbers.scale = trainer.accumulate_grad_batches / max(1, len(self._losses))
        if trainer.global_step >= self._step:
            reading = self._report(trainer, "train", self._step) if self._measured else None
            if self._measured and self.probe is not None:
                self._steps.update()
            self._measured = False
            self._watch(trainer, pl_module, reading)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """:meta private:"""
        if (alarms := self._alarms) is not None and alarms.due:
            gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
            if gradients and not any(hasattr(gradient, "placements") for gradient in gradients) and not _is_sharded(trainer):
                alarms.numbers.gradient_norm = torch.nn.utils.get_total_norm(gradients)

    def state_dict(self) -> dict[str, Any]:
        """:meta private:"""
        return {} if self._alarms is None else self._alarms.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """:meta private:"""
        self._restored = state_dict

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """:meta private:"""
        if self.probe is not None:  # there is none yet in the sanity check
            self.probe.reset("eval")
            self._within, self._measured = self._measured, True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """:meta private:"""
        if self.probe is not None:
            self._measured = self._within
            self._report(trainer, "eval", trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """:meta private:"""
        if self.probe is not None and trainer.is_global_zero and (few := self._steps.few("LightningCallback")):
            self._warn(few)
        self.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """:meta private:"""
        self.close()

    def close(self) -> None:
        """Remove the probe from the model. Calling this twice is safe."""
        if self.probe is not None:
            self.probe.close()
            self.probe = None

    def _attached(self, pl_module: Any) -> Probe:
        decoder = None if self._decoder is None else self._decoder(pl_module)
        modes: list[Literal["train", "eval", "fixed"]] = (
            ["train", "eval"] if self._alarms is None else ["train", "eval", "fixed"]
        )
        make: Callable[[Sequence[Metric] | None], Probe] = partial(
            Probe, pl_module, decoder=decoder, when=lambda forward: self._measured, modes=modes, **self._options
        )
        if self._metrics is None and self._alarms is not None:
            probe: Probe = attached(make)
        else:
            probe = make(self._metrics).attach()
        return probe

    def _begin_alarms(self, alarms: Alarms, pl_module: Any) -> None:
        try:
            alarms.begin(_outermost(pl_module), None, most=8)
        except GeomprobeError:  # the texts do not fit: training does not begin
            self.close()
            raise
        restored, self._restored = self._restored, None
        if restored:
            try:
                alarms.load_state_dict(restored, what="the state of the alarms in this checkpoint")
            except GeomprobeError as error:
                if self._raise:
                    raise
                self._warn(f"the alarms start again, and are silent until they have seen enough readings: {error}")

    def _watch(self, trainer: Any, pl_module: Any, reading: Reading | None) -> None:
        """Check what was read in this step against the rules, measure the fixed texts if it is time, and report the alarms. All
        processes do so together."""
        if (alarms := self._alarms) is None or (probe := self.probe) is None:
            return
        step, due = self._step, alarms.due
        try:
            rings = alarms.judge(step, reading) if due else []
            if (reads := alarms.wants_texts(step, rings)) and alarms.texts is not None:
                with trainer.precision_plugin.forward_context():
                    loss = alarms.texts.run(_outermost(pl_module), probe, pl_module.device)
                fixed = self._report(trainer, "fixed", step, loss)
                rings = alarms.judge_texts(step, fixed, loss, rings)
            if due or reads:
                self._tell(trainer, alarms, rings, step)
        except Exception as error:
            if self._raise:
                raise
            self._warn(f"the alarms of step {step} were not judged, and training continues: {type(error).__name__}: {error}")

    def _tell(self, trainer: Any, alarms: Alarms, rings: Sequence[Alarm], step: int) -> None:
        for alarm in rings:
            alarms.tell(alarm, self._outlets, main=trainer.is_global_zero)
            if trainer.is_global_zero:
                self._append(step, {"alarm": alarm.to_dict()})
                runs: list[Any] = [getattr(logger, "experiment", None) for logger in trainer.loggers]
                for run in runs:
                    if hasattr(run, "define_metric") and hasattr(run, "alert"):  # a run of W&B
                        alert = partial(run.alert, title=f"geomprobe: {alarm.name}", text=str(alarm), level="WARN")
                        self._outlets.write(run, "W&B", alert)
        if alarms.series and trainer.is_global_zero:
            self._log_numbers(trainer, alarms.series, step)
        if rings and "save" in alarms.actions and self._file is not None:
            trainer.save_checkpoint(self._file.path.parent / f"geomprobe-alarm-step{step}.ckpt")
        trainer.should_stop = trainer.should_stop or (bool(rings) and "stop" in alarms.actions)

    def _report(
        self, trainer: Any, mode: Literal["train", "eval", "fixed"], step: int, loss: float | None = None
    ) -> Reading | None:
        """Read the numbers, which is a collective operation, and write them on the main process."""
        if self.probe is None:
            return None
        try:
            if on_any_rank(self.probe.fault is not None):  # a rank without a probe would be waited for
                self.close()
                return None
            with self.probe.timed():
                reading = self.probe.read(mode, reset=True)
                reading.cost = self._steps.cost
                if trainer.is_global_zero:
                    self._write(trainer, reading, step, loss)
                return reading
        except EmptyReadingError:
            if mode == "train":
                self._warn(
                    f"nothing was measured in step {step}, because no forward in training mode with gradients ran: Lightning "
                    "leaves a model in the mode in which it was given, so call model.train() after from_pretrained"
                )
        except Exception as error:  # the probe stays, because the other ranks wait for this one in the next report
            if self._raise:
                raise
            self._warn(f"the reading of step {step} was not logged, and training continues: {type(error).__name__}: {error}")
        return None

    def _write(self, trainer: Any, reading: Reading, step: int, fixed: float | None) -> None:
        line = record_of(reading) | loss_record(fixed)
        if reading.mode == "train" and self._losses:
            # Lightning has divided each loss by the batches of a whole step. The last step of an epoch may have fewer.
            line |= loss_record(torch.stack(self._losses).mean() * trainer.accumulate_grad_batches)
        self._append(step, line)
        self._log_numbers(trainer, flat(reading, self._log), step)

    def _append(self, step: int, line: dict[str, Any]) -> None:
        if (file := self._file) is not None:
            self._outlets.write(file, f"the file {file.path}", lambda: file.append(step, line))

    def _log_numbers(self, trainer: Any, numbers: dict[str, float], step: int) -> None:
        for logger in trainer.loggers:
            log = partial(logger.log_metrics, metrics=numbers, step=max(step - 1, 0))
            self._outlets.write(logger, type(logger).__name__, log)

    def _warn(self, text: str) -> None:
        """Issue a warning, once in a training."""
        if not self._warned:
            self._warned = True
            warnings.warn(f"geomprobe: {text}", RuntimeWarning, stacklevel=2)


def _outermost(pl_module: Any) -> Any:
    """The outermost model in a module of Lightning, which is called with texts."""
    probe = Probe.on(pl_module)
    return next((one for one in pl_module.modules() if one is not pl_module and Probe.on(one) is probe), pl_module)


def _is_sharded(trainer: Any) -> bool:
    """Whether each process has a part of the gradient only."""
    return any(name in type(trainer.strategy).__name__ for name in ("FSDP", "DeepSpeed", "ModelParallel"))
