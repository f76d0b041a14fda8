"""Readings in a W&B run, at the right place on the right axis, with or without a login."""

import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from geomprobe import GeomprobeError, Reading
from geomprobe.integrations.flat import flat

if TYPE_CHECKING:
    import wandb
    from plotly.graph_objects import Figure

__all__ = ["StepAxis", "WandbSink", "active_run", "offline_without_login", "viewing_hint"]


class WandbSink:
    """Readings in Weights & Biases, from any code at all.

        with WandbSink(project="geometry") as sink:
            sink.log(probe.read(), step=step)

    Joins the W&B run that is active, and leaves it open; starts one if there is none, and finishes that at the end. Without a
    W&B login its run is offline: nothing is asked and nothing sent, and one line at the end says how to look at the run and how
    to upload it. ``WANDB_MODE`` is obeyed where it is set; ``disabled`` is silent.

    Charts of ``geomprobe/…`` stand over ``axis``, one of their own, whatever else the run logs. In a loop that
    gives W&B a ``step=`` itself, ``log_reading(reading, run, step=step)`` puts readings into the rows of that loop. Curves are
    not logged. This is no place to read numbers back from: keep the readings (``reading.to_json()``).

    Args:
        project: W&B project of a run started here; ``WANDB_PROJECT``, then ``geomprobe`` by default.
        name: display name of a run started here.
        config: configuration of a run started here.
        axis: name of the step axis; a sweep over checkpoints has ``checkpoint/step``.
        run_id: the run to start, or to continue where there is one of that id.

    Attributes:
        run: the W&B run while the sink is open.

    Raises:
        GeomprobeError: another run than ``run_id`` is active.
        wandb.Error: W&B cannot start a run (a wrong key, no write access).
    """

    def __init__(
        self,
        project: str | None = None,
        *,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        axis: str = "geomprobe/step",
        run_id: str | None = None,
    ) -> None:
        self.axis = axis
        self._init: dict[str, Any] = {
            "project": project or os.environ.get("WANDB_PROJECT", "geomprobe"),
            "name": name,
            "config": None if config is None else dict(config),
        }
        if run_id is not None:
            self._init |= {"id": run_id, "resume": "allow"}
        self._axis: StepAxis | None = None
        self._owned = False
        self._goodbye = ""

    @property
    def run(self) -> "wandb.Run":
        """The W&B run while the sink is open.

        Raises:
            GeomprobeError: it is not.
        """
        return self._open_axis().run

    def __enter__(self) -> Self:
        import wandb

        run = active_run()
        self._owned = run is None
        if run is None:
            switched = offline_without_login()
            talkative = not wandb.setup().settings.silent
            run = wandb.init(**self._init, settings=wandb.Settings(silent=True) if switched else None)
            self._goodbye = viewing_hint(run) if switched and talkative else ""
        elif run.id != self._init.get("id", run.id):
            raise GeomprobeError(
                f"WandbSink(run_id={self._init['id']!r}): another W&B run, {run.id!r}, is active: finish that one first"
            )
        self._axis = StepAxis(run, self.axis)
        return self

    def log(self, reading: Reading, *, step: int, loss: float | None = None) -> None:
        """Log the scalars of ``reading`` at ``step`` of this sink's axis. Steps may come in any order.

        Args:
            reading: what ``probe.read(...)`` returned.
            step: where on the axis.
            loss: of the same tokens, for the same row, as ``geomprobe/loss``.

        Raises:
            GeomprobeError: the sink is not open.
            wandb.Error: the run was finished elsewhere.
        """
        if loss is not None:
            reading = replace(reading, values=reading.values | {"loss": loss})
        # In a run of others, rows are theirs to close: W&B drops what they then log with a step= that has passed.
        self._open_axis().log(flat(reading), step, commit=self._owned)

    def log_html(self, name: str, page: str) -> None:
        """Log a page of its own as the panel ``geomprobe/<name>``, such as that of ``geomprobe inspect``.

        Raises:
            GeomprobeError: the sink is not open.
            wandb.Error: the run was finished elsewhere.
        """
        import wandb

        self._open_axis().run.log({f"geomprobe/{name}": wandb.Html(page, inject=False)}, commit=self._owned)

    def log_figures(self, figures: Mapping[str, "Figure"]) -> None:
        """Log Plotly figures, each as the panel ``geomprobe/<name>``.

        Raises:
            GeomprobeError: the sink is not open.
            wandb.Error: the run was finished elsewhere.
        """
        import wandb

        panels = {f"geomprobe/{name}": wandb.Plotly(figure) for name, figure in figures.items()}
        self._open_axis().run.log(panels, commit=self._owned)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        axis, self._axis = self._axis, None
        if axis is not None and self._owned:
            axis.run.finish(exit_code=0 if error is None else 1)
            if self._goodbye:
                print(self._goodbye, file=sys.stderr)

    def _open_axis(self) -> "StepAxis":
        if self._axis is None:
            raise GeomprobeError("this WandbSink is not open: use it as 'with WandbSink() as sink:'")
        return self._axis


class StepAxis:
    """Numbers of one W&B run over a step axis of their own: never ``step=``, and every metric defined by its exact name.

    By exact name, because a glob (``geomprobe/*``) loses to another glob (Trainer's ``*``) at random.
    """

    def __init__(self, run: "wandb.Run", axis: str) -> None:
        self.run = run
        self.axis = axis
        self._defined: set[str] = set()
        self._open: tuple[int, int] | None = None  # W&B's row left open, and the step of ours that is in it

    def log(self, values: Mapping[str, float], step: int, *, commit: bool = True) -> None:
        """Log ``values`` at ``step``. Without ``commit`` they stand in the row that the run's next log closes, or its finish.

        Raises:
            wandb.Error: the run is finished.
        """
        self._define(values)
        if self._open is not None and self._open[1] != step and self._open[0] == self.run.step:
            self.run.log({}, commit=True)  # nobody closed it, and this step's values would overwrite that one's
        self._open = None if commit else (self.run.step, step)
        self.run.log({**values, self.axis: step}, commit=commit)

    def _define(self, names: Iterable[str]) -> None:
        if not self._defined:
            self.run.define_metric(self.axis)
        for name in names:
            if name not in self._defined:
                self._defined.add(name)
                self.run.define_metric(name, step_metric=self.axis)


def active_run() -> "wandb.Run | None":
    """The W&B run of this process, if there is one. Does not import wandb: without it there is none."""
    return getattr(sys.modules.get("wandb"), "run", None)


def offline_without_login() -> bool:
    """Switch this process's W&B to offline if it would have to ask for a login. Prompts for nothing.

    W&B asks on a terminal, and raises where there is none. Call this before anything calls ``wandb.init``, Trainer included: it
    starts its run itself, and a ``ProbeCallback`` changes no global setting. Where ``WANDB_MODE`` or ``wandb offline`` say
    otherwise, or a run is active, nothing happens.

    Returns:
        whether it switched.

    Raises:
        wandb.errors.AuthenticationError: a key is configured that cannot be one.
    """
    import wandb

    settings = wandb.setup().settings
    if os.environ.get("WANDB_MODE") or settings.mode != "online" or active_run() is not None:
        return False
    if wandb.login(prompt=False, verify=False):
        return False
    settings.mode = "offline"
    return True


def viewing_hint(run: "wandb.Run") -> str:
    """One line: how to look at an offline run in the terminal, and how to upload it. Empty for other runs."""
    if not run.offline:
        return ""
    folder = os.path.relpath(os.path.dirname(run.dir))
    folder = shlex.quote(os.path.abspath(folder) if folder.startswith(os.pardir) else folder)
    return f"W&B run kept offline: look with `wandb leet {folder}`, upload with `wandb login && wandb sync {folder}`"
