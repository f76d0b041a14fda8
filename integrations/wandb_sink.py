"""Logs readings to a W&B run over a separate step axis, with or without a login."""

import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from inspect import signature
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from geomprobe import GeomprobeError, Reading
from geomprobe.integrations.names import Log, flat, prefix

if TYPE_CHECKING:
    import wandb
    from plotly.graph_objects import Figure

__all__ = ["StepAxis", "WandbSink", "active_run", "logged_in", "offline_without_login", "viewer", "viewing_hint"]


class WandbSink:
    """Log readings to Weights & Biases from any program.

        with WandbSink(project="geometry") as sink:
            sink.log(probe.read(), step=step)

    If a W&B run is active, it is used and left open. Otherwise a run is started, and finished at the end. Without a W&B login
    the new run is offline: no login is requested, nothing is sent, and a line at the end says how to view the run and how to
    upload it. The environment variable ``WANDB_MODE`` is respected; with ``disabled`` nothing is printed.

    The numbers ``geomprobe/…`` are logged over ``axis``, independent of the other numbers of the run. In a loop that passes
    ``step=`` to W&B itself, use ``log_reading(reading, run, step=step)`` to log to the rows of that loop. Curves are not
    logged; to keep complete readings, save ``reading.to_json()``.

    Args:
        project: W&B project of a run started here. Default: ``WANDB_PROJECT``, or else ``geomprobe``.
        name: display name of a run started here.
        config: configuration of a run started here.
        axis: name of the step axis. A sweep over checkpoints uses ``checkpoint/step``.
        run_id: id of the run to start, or to continue if it exists.

    Attributes:
        run: the W&B run while the sink is open.

    Raises:
        GeomprobeError: if a run other than ``run_id`` is active.
        wandb.Error: if W&B cannot start a run (because of a wrong key or missing write access).
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
            GeomprobeError: if the sink is not open.
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

    def log(self, reading: Reading, *, step: int, loss: float | None = None, log: Log = "overview") -> None:
        """Log the scalars of ``reading`` at ``step`` of this sink's axis. Steps may come in any order.

        Args:
            reading: the reading that ``probe.read(...)`` returned.
            step: position on the axis.
            loss: loss on the same tokens, which is logged as ``geomprobe/loss``.
            log: ``"overview"`` for at most 24 numbers, or ``"all"``, as for :func:`flat`.

        Raises:
            GeomprobeError: if the sink is not open, or ``log`` is neither of these.
            wandb.Error: if the run was finished elsewhere.
        """
        values = flat(reading, log)
        if loss is not None and math.isfinite(loss):
            values[f"{prefix(reading.mode)}/loss"] = loss
        # In a run of another owner, leave the row open: if it were closed, W&B would drop numbers logged with a passed step=.
        self._open_axis().log(values, step, commit=self._owned)

    def log_html(self, name: str, page: str) -> None:
        """Log a self-contained HTML page, such as that of ``geomprobe inspect``, as the panel ``geomprobe/<name>``.

        Raises:
            GeomprobeError: if the sink is not open.
            wandb.Error: if the run was finished elsewhere.
        """
        import wandb

        self._open_axis().run.log({f"geomprobe/{name}": wandb.Html(page, inject=False)}, commit=self._owned)

    def log_figures(self, figures: Mapping[str, "Figure"]) -> None:
        """Log Plotly figures, each as the panel ``geomprobe/<name>``.

        Raises:
            GeomprobeError: if the sink is not open.
            wandb.Error: if the run was finished elsewhere.
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
    """Logs numbers to a W&B run over a separate step axis, without passing ``step=``.

    Every metric is defined by its exact name, because a glob (``geomprobe/*``) is overridden at random by another glob
    (Trainer's ``*``).
    """

    def __init__(self, run: "wandb.Run", axis: str) -> None:
        self.run = run
        self.axis = axis
        self._defined: set[str] = set()
        self._open: tuple[int, int] | None = None  # the row of W&B that was left open, and our step in it

    def log(self, values: Mapping[str, Any], step: int, *, commit: bool = True) -> None:
        """Log ``values`` at ``step``. Without ``commit`` the row stays open until the next log of the run, or its finish.

        Raises:
            wandb.Error: if the run is finished.
        """
        self._define(values)
        if self._open is not None and self._open[1] != step and self._open[0] == self.run.step:
            self.run.log({}, commit=True)  # close the open row, in which the values of another step would be overwritten
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
    """Return the active W&B run of this process, or ``None``. This does not import wandb."""
    return getattr(sys.modules.get("wandb"), "run", None)


def offline_without_login() -> bool:
    """Switch W&B to offline mode in this process if there is no login, without prompting for one.

    Without a login, W&B prompts in a terminal, and raises an exception elsewhere. Call this function before ``wandb.init`` is
    called, which Trainer does itself. It does nothing if ``WANDB_MODE`` is set, after ``wandb offline``, or if a run is active.

    Returns:
        Whether W&B was switched to offline mode.

    Raises:
        wandb.errors.AuthenticationError: if the configured key is malformed.
    """
    import wandb

    settings = wandb.setup().settings
    if os.environ.get("WANDB_MODE") or settings.mode != "online" or active_run() is not None:
        return False
    if logged_in():
        return False
    settings.mode = "offline"
    return True


def logged_in() -> bool:
    """Return whether W&B has a login, without prompting for one.

    Raises:
        wandb.errors.AuthenticationError: if the configured key is malformed.
    """
    import wandb

    if "prompt" in signature(wandb.login).parameters:  # since W&B 0.30; before, login() prompts in every terminal
        return wandb.login(prompt=False, verify=False)
    settings = wandb.setup().settings
    return settings.mode == "online" and bool(settings.api_key or settings.identity_token_file or wandb.api.api_key)


def viewer() -> str:
    """Return the command that views offline runs in the terminal, by the version of W&B that is installed."""
    import wandb

    version = tuple(int(number) for number in wandb.__version__.split(".")[:2])
    return "wandb leet" if version >= (0, 28) else "wandb beta leet"


def viewing_hint(run: "wandb.Run") -> str:
    """Return one line that tells how to view an offline run in the terminal and how to upload it; empty for other runs."""
    if not run.offline:
        return ""
    folder = os.path.relpath(os.path.dirname(run.dir))
    folder = shlex.quote(os.path.abspath(folder) if folder.startswith(os.pardir) else folder)
    upload = f"wandb login && wandb sync {folder}"
    return f"The W&B run is offline: view it with `{viewer()} {folder}`, upload it with `{upload}`"
