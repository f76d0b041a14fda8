"""The alarms of a training: which steps are read for them, what is checked against the rules, and what is done when one
rings."""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from geomprobe import (
    Alarm,
    AttentionProfile,
    GeomprobeError,
    Metric,
    Monitor,
    Probe,
    Reading,
    RepresentationEntropy,
    ResidualGrowth,
    RouterProfile,
    Rule,
    every,
)
from geomprobe.files import Format, check_shape, read_json, write_whole
from geomprobe.integrations.fixed_texts import FixedTexts, Texts
from geomprobe.integrations.names import safe_name
from geomprobe.integrations.outlets import Outlets
from geomprobe.integrations.ranks import gathered
from geomprobe.integrations.step_numbers import StepNumbers
from geomprobe.schedule import Budget, Schedule, as_schedule

__all__ = ["Alarms", "OnAlarm", "attached"]

OnAlarm = Literal["log", "save", "stop"] | Callable[[Alarm], object]
"""What is done when an alarm rings, besides reporting it."""

FILE = "geomprobe-alarms.json"
"""Name of the file in a checkpoint from which the alarms of a resumed training continue."""

_FORMAT = 1
_SHAPE = {"format": Format(_FORMAT), "monitor": {str: object}, "alarms": [{str: object}], "batches": [int]}

_logger = logging.getLogger(__name__)


class Alarms:
    """The alarms of a training under a callback.

    Args:
        alarms: ``True`` for the default rules, a list of rules, or a monitor.
        texts: fixed texts, which are read as well.
        when: which optimizer steps are read for alarms, counted from 1. Default: ``every(20)``.
        texts_when: after which optimizer steps the fixed texts are measured. Default: ``every(100)``.
        on_alarm: what is done when an alarm rings.

    Attributes:
        when: the schedule.
        due: whether the step that runs is read for alarms.
        monitor: the monitor.
        texts: the fixed texts, or ``None``.
        rung: the alarms that rang, in order, including those before the training was resumed.
        numbers: the numbers of a step.

    Raises:
        GeomprobeError: if an argument is none of these, or a schedule is a budget.
    """

    def __init__(
        self,
        alarms: Literal[True] | Sequence[Rule] | Monitor,
        texts: Texts | None,
        when: Schedule | int | None,
        texts_when: Schedule | int | None,
        on_alarm: OnAlarm | Sequence[OnAlarm],
    ) -> None:
        for name, schedule in {"alarms_when": when, "texts_when": texts_when}.items():
            if isinstance(schedule, Budget):
                raise GeomprobeError(
                    f"{name}={schedule!r}: expected fixed steps, such as every(20): a budget depends on timing, and a "
                    "resumed training would not have the alarms of one that never stopped"
                )
        self.when: Schedule = as_schedule(when) or every(20)
        self.texts_when: Schedule = as_schedule(texts_when) or every(100)
        self.due = False
        self.actions = _actions(on_alarm)
        self._given = alarms
        self.monitor = self._monitor()
        self.texts = None if texts is None else FixedTexts(texts)
        self.rung: list[Alarm] = []
        self.numbers = StepNumbers()
        self._after = 0
        self._read = False  # whether any step was read for alarms

    @classmethod
    def of(
        cls,
        alarms: bool | Sequence[Rule] | Monitor,
        texts: Texts | None,
        when: Schedule | int | None,
        texts_when: Schedule | int | None,
        on_alarm: OnAlarm | Sequence[OnAlarm],
    ) -> "Alarms | None":
        """Return the alarms that the arguments of a callback describe, or ``None`` if there are none.

        Raises:
            GeomprobeError: also if there are no alarms, but another argument is about alarms.
        """
        if alarms is not False:
            return cls(alarms, texts, when, texts_when, on_alarm)
        if texts is not None or when is not None or texts_when is not None or on_alarm != "log":
            raise GeomprobeError("texts=, alarms_when=, texts_when= and on_alarm= are about alarms: give alarms=True as well")
        return None

    def _monitor(self) -> Monitor:
        if isinstance(self._given, Monitor):
            return self._given
        return Monitor() if self._given is True else Monitor(self._given)

    def begin(self, model: nn.Module, tokenizer: Any, *, most: int, after: int = 0) -> None:
        """Begin a training. If a monitor was given, it keeps its state from earlier steps.

        Args:
            model: the model.
            tokenizer: the tokenizer of the fixed texts, or ``None``.
            most: largest number of fixed texts in a forward.
            after: the last step that is not read for alarms.

        Raises:
            GeomprobeError: if the fixed texts do not fit the model.
        """
        self.monitor, self.rung, self.numbers = self._monitor(), [], StepNumbers()
        self._after, self._read = after, False
        if self.texts is not None:
            self.texts.prepare(model, tokenizer, most=most)
        else:
            _logger.info(
                "geomprobe: the alarms have no fixed texts (texts=…), so they cannot tell a change of the model from one of "
                "the training texts"
            )

    def begin_step(self, step: int) -> bool:
        """Return whether to read the step that begins."""
        self.numbers.begin()
        self.due = step > self._after and bool(self.when(step))
        return self.due

    def judge(self, step: int, reading: Reading | None) -> list[Alarm]:
        """Check the numbers of the training texts of a step against the rules, and return the alarms that ring. This is a
        collective operation, and all processes get the same alarms."""
        self.due, self._read = False, True
        return self.monitor.update(step, reading, mode="train", numbers=self.numbers.end())

    def wants_texts(self, step: int, rings: Sequence[Alarm]) -> bool:
        """Return whether to read the fixed texts: at their own steps, and when an alarm rings, to compare them."""
        return self.texts is not None and step > self._after and (bool(rings) or bool(self.texts_when(step)))

    def judge_texts(self, step: int, reading: Reading | None, loss: float | None, rings: Sequence[Alarm]) -> list[Alarm]:
        """Check the numbers of the fixed texts and their loss against the rules, and return the alarms that ring. Those of the
        training texts (``rings``) are among them, and now say whether the fixed texts have moved, too. This is a collective
        operation."""
        own = self.monitor.update(step, reading, mode="fixed", loss=gathered(loss)[0])
        return [*map(self.monitor.compared, rings), *own]

    def tell(self, alarm: Alarm, outlets: Outlets, *, main: bool) -> None:
        """Keep an alarm, report it on the main process, and call the given functions on all processes."""
        self.rung.append(alarm)
        if main:
            _logger.warning("geomprobe: an alarm rings. %s", alarm)
        for action in self.actions:
            if callable(action):
                outlets.write(action, f"on_alarm={action!r:.80}", partial(action, alarm))

    @property
    def silent(self) -> str | None:
        """A message at the end of a training about the rules that could not ring, or ``None``."""
        tracks = self.monitor.state_dict()["tracks"]
        counts = {
            rule: max((len(track["readings"]) for track in tracks[rule.name].values()), default=0)
            for rule in self.monitor.rules
        }
        if not any(counts.values()) and not self._read:
            after = f" after step {self._after}, twice the number of warm-up steps" if self._after else ""
            return f"no alarm could ring: alarms_when= selected none of the steps{after}"
        if counts and not self.rung and all(count < rule.window for rule, count in counts.items()):
            return (
                f"the alarms had too few numbers to compare: {max(counts.values())} steps were read for them, and a rule needs "
                f"{min(rule.window for rule in counts)} before the one that rings. Give a smaller alarms_when="
            )
        signals = {rule.name: rule.signal for rule in self.monitor.rules}
        # Most models have no router, and need not be told so.
        names = [name for name in self.monitor.without_data if not signals[name].startswith("router_")]
        if not names:
            return None
        return (
            f"these rules of the alarms never had a number, so they could not ring: {', '.join(names)}. Their metric is not "
            "measured (metrics=…), or this trainer does not provide their number"
        )

    @property
    def series(self) -> dict[str, float]:
        """What trackers get at each reading: 1 for each rule that has rung and is on in any mode, else 0."""
        on = {name for name, _ in self.monitor.active}
        return {f"geomprobe/alarm/{safe_name(name)}": float(name in on) for name in dict.fromkeys(a.name for a in self.rung)}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs, as a dict that can be written as JSON."""
        return {
            "format": _FORMAT,
            "monitor": self.monitor.state_dict(),
            "alarms": [alarm.to_dict() for alarm in self.rung],
            "batches": self.numbers.seen,
        }

    def load_state_dict(self, state: dict[str, Any], *, what: str) -> None:
        """Continue from what :meth:`state_dict` returned.

        Raises:
            GeomprobeError: if it is not such a state, or belongs to other rules. The message begins with ``what``, and the
                alarms start again.
        """
        check_shape(state, _SHAPE, what)
        rung = [Alarm.from_dict(one, what=f"{what}: this is not an alarm") for one in state["alarms"]]
        self.monitor.load_state_dict(state["monitor"])
        self.rung, self.numbers.seen = rung, state["batches"]

    def save(self, folder: Path) -> None:
        """Write the state to a checkpoint.

        Raises:
            GeomprobeError: if the file cannot be written.
        """
        write_whole(folder / FILE, json.dumps(self.state_dict(), allow_nan=False))

    def restore(self, folder: Path) -> None:
        """Continue from the file that :meth:`save` wrote. This is a collective operation: the main process reads it.

        Raises:
            GeomprobeError: if there is no such file, or it belongs to other rules. The alarms then start again.
        """
        found: dict[str, Any] | GeomprobeError
        try:
            found = _read(folder / FILE)
        except GeomprobeError as error:
            found = error
        found = gathered(found)[0]
        if isinstance(found, GeomprobeError):
            raise found
        self.load_state_dict(found, what=str(folder / FILE))


def _read(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = read_json(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise GeomprobeError(f"{path} does not exist: this checkpoint was saved without alarms") from error
    return state


def _actions(on_alarm: OnAlarm | Sequence[OnAlarm]) -> tuple[OnAlarm, ...]:
    several = isinstance(on_alarm, list | tuple)
    actions: tuple[OnAlarm, ...] = tuple(on_alarm) if several else (on_alarm,)  # type: ignore[assignment, arg-type]
    for action in actions:
        if not callable(action) and action not in ("log", "save", "stop"):
            raise GeomprobeError(
                f"on_alarm={action!r}: expected 'log', 'save' (a checkpoint), 'stop' (the training), a function of the alarm, "
                "or a list of these"
            )
    return actions


def attached(make: Callable[[Sequence[Metric]], Probe]) -> Probe:
    """Attach the probe that ``make`` returns with the metrics of the default rules. Attention and routers are left out of them
    for a model that has none.

    Raises:
        GeomprobeError: if the probe cannot be attached.
    """
    always = [RepresentationEntropy(spectrum=True), ResidualGrowth()]
    optional: list[list[Metric]] = [[AttentionProfile(), RouterProfile()], [AttentionProfile()], [RouterProfile()]]
    for more in optional:
        with suppress(GeomprobeError):
            return make([*always, *more]).attach()
    return make(always).attach()
