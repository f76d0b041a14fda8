"""A callback that runs a probe inside a Trainer of Lightning, and logs its readings where the loss is logged."""

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from geomprobe import Decoder, EmptyReadingError, GeomprobeError, Metric, Probe, Reading
from geomprobe.files import StepFile
from geomprobe.integrations.names import Log, check_log, flat
from geomprobe.integrations.outlets import Outlets
from geomprobe.integrations.ranks import on_any_rank
from geomprobe.integrations.records import interval_of, record_of
from geomprobe.integrations.steps import Steps
from geomprobe.integrations.training_plot import plot_training
from geomprobe.schedule import Budget, Schedule, as_schedule, budget

if TYPE_CHECKING:
    from matplotlib.axes import Axes

try:
    from lightning.pytorch import Callback
except ImportError:
    Callback = object

__all__ = ["LightningCallback"]


class LightningCallback(Callback):  # type: ignore[misc]
    """Measure the geometry of a model while Lightning trains it.

        lightning.Trainer(logger=logger, callbacks=[LightningCallback(when=50)]).fit(module, data)

    A measured step is one optimizer step, including all batches of ``accumulate_grad_batches``. Validations are measured
    completely, apart from the training. The numbers go to the loggers of the Trainer at the step of the loss (Lightning counts
    from 0, so the first optimizer step is logged at 0). Complete readings are lines of ``geomprobe.jsonl`` in the folder of the
    logger, with the ``loss`` of the step on the main process if optimization is automatic. ``geomprobe report FILE`` draws
    them. The results of training do not change.

    Lightning leaves a model in the mode in which it was given: call ``model.train()`` after ``from_pretrained``.

    Args:
        metrics: the metrics to compute, as for ``Probe``.
        sites: the sites to measure, as for ``Probe``. Default: all.
        decoder: a function that returns the ``Decoder`` of the ``LightningModule``, if it is not found.
        when: which optimizer steps to measure, counted from 1: a schedule, or ``50`` for ``every(50)``. Default:
            ``budget(0.01)``, as many as can be measured, read and logged in 1% of the time of the training steps. All processes
            measure the same steps.
        precision: how Gram matrices are computed, as for ``Probe``.
        log: ``"overview"`` for at most 24 numbers of a reading, or ``"all"``, as for :func:`flat`.
        jsonl: the file of readings. Default: ``geomprobe.jsonl`` in ``trainer.log_dir``, or else in ``default_root_dir``.
        on_error: ``"warn"``: an error in measuring issues one warning and ends the measurement. An error of a logger or of the
            file issues one warning, and no more is written there. Training continues. ``"raise"``: the error is raised.

    Attributes:
        probe: the probe while training runs, else ``None``.

    Raises:
        GeomprobeError: if ``lightning`` is not installed, or ``when`` or ``log`` is unknown; and when training starts, as for
            ``Probe``.
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
    ) -> None:
        if Callback is object:
            raise GeomprobeError("LightningCallback needs the package lightning: pip install 'geomprobe[lightning]'")
        check_log(log)
        self.probe: Probe | None = None
        self._options: dict[str, Any] = {"metrics": metrics, "sites": sites, "on_error": on_error, "precision": precision}
        self._decoder = decoder
        self._when: Schedule = as_schedule(when) or budget()
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
        decoder = None if self._decoder is None else self._decoder(pl_module)
        probe = Probe(pl_module, decoder=decoder, when=lambda forward: self._measured, modes=["train", "eval"], **self._options)
        folder = trainer.log_dir or trainer.default_root_dir  # on every rank: the first one tells the others
        self._file = StepFile(self._jsonl or Path(folder) / "geomprobe.jsonl")
        if trainer.is_global_zero:
            self._file.rewind(trainer.global_step)
        resumes = isinstance(self._when, Budget) and trainer.is_global_zero
        self._steps = Steps(self._when, probe, interval_of(self._file.records()) if resumes else None)
        self._outlets = Outlets(raises=self._raise)
        self._step, self._measured, self._warned = 0, False, False
        self.probe = probe.attach()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """:meta private:"""
        if self.probe is None or self._step == trainer.global_step + 1:
            return
        self._step = trainer.global_step + 1
        self.probe.reset("train")
        self._losses = []
        try:
            self._measured = self._steps.begin(self._step)
        except Exception as error:
            if self._raise:
                raise
            self._warn(f"measuring ended at step {self._step}, and training continues: {type(error).__name__}: {error}")
            self.close()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """:meta private:"""
        if self._measured and pl_module.automatic_optimization and isinstance(outputs, Mapping) and "loss" in outputs:
            self._losses.append(outputs["loss"].detach())
        if self._measured and trainer.global_step >= self._step:
            self._report(trainer, "train", self._step)
            if self.probe is not None:
                self._steps.update()
        if trainer.global_step >= self._step:
            self._measured = False

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

    def plot(self, metric: str = "effective_rank", *, mode: str = "train", ax: "Axes | None" = None) -> "Axes":
        """Draw a metric at every site over the steps so far, below the loss, from the file of readings.

        Args:
            metric: the name of a number of the readings.
            mode: the mode of the readings and of the loss, such as ``"train"`` or ``"eval"``.
            ax: the matplotlib axes to draw on. Default: those of a new figure of ``matplotlib.pyplot``.

        Returns:
            The axes of the map of sites and steps.

        Raises:
            GeomprobeError: if there is no reading of this mode (with several processes only the main one writes the file), or
                no such metric.
        """
        axes: Axes = plot_training(self._file, metric, mode=mode, ax=ax)
        return axes

    def _report(self, trainer: Any, mode: Literal["train", "eval"], step: int) -> None:
        """Read the numbers, which is a collective operation, and write them on the main process."""
        if self.probe is None:
            return
        try:
            if on_any_rank(self.probe.fault is not None):  # a rank without a probe would be waited for
                self.close()
                return
            with self.probe.timed():
                reading = self.probe.read(mode, reset=True)
                reading.cost = self._steps.cost
                if trainer.is_global_zero:
                    self._write(trainer, reading, step)
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

    def _write(self, trainer: Any, reading: Reading, step: int) -> None:
        line = record_of(reading)
        if reading.mode == "train" and self._losses:
            # Lightning has divided each loss by the batches of a whole step. The last step of an epoch may have fewer.
            loss = float(torch.stack(self._losses).mean()) * trainer.accumulate_grad_batches
            line |= {"loss": loss} if math.isfinite(loss) else {}
        if (file := self._file) is not None:
            self._outlets.write(file, f"the file {file.path}", lambda: file.append(step, line))
        log = {"metrics": flat(reading, self._log), "step": max(step - 1, 0)}
        for logger in trainer.loggers:
            self._outlets.write(logger, type(logger).__name__, partial(logger.log_metrics, **log))

    def _warn(self, text: str) -> None:
        """Issue a warning, once in a training."""
        if not self._warned:
            self._warned = True
            warnings.warn(f"geomprobe: {text}", RuntimeWarning, stacklevel=2)
