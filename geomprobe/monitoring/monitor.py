"""The monitor, which checks the readings of a training against rules."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from geomprobe.errors import GeomprobeError, is_whole
from geomprobe.files import Format, check_shape
from geomprobe.monitoring.alarm import Alarm
from geomprobe.monitoring.rules import DEFAULT_RULES, Rule
from geomprobe.reading import Reading

__all__ = ["Monitor"]

FORMAT = 1
"""Number of the format of :meth:`Monitor.state_dict`."""

_TRACK = {"step": int, "readings": [{"step": int, "sites": {str: float}}], "streak": int, "began": int | None}
_SHAPE = {"format": Format(FORMAT), "rules": [{"name": str, str: object}], "event": str | None, "tracks": {str: {str: _TRACK}}}


@dataclass
class _Track:
    """What is remembered of one rule in one mode.

    Attributes:
        step: the latest step.
        readings: step and finite values by site of the latest readings, at most ``window``.
        streak: how many of the latest readings in a row were hits; negative if they were not hits.
        began: the step at which the current alarm rang, or ``None`` if no alarm is on.
    """

    step: int = -1
    readings: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    streak: int = 0
    began: int | None = None

    def rewind(self, step: int) -> None:
        """Forget the readings from ``step`` on, because that step is measured again."""
        if step <= self.step:
            self.readings = [(at, values) for at, values in self.readings if at < step]
            self.streak = 0
            self.began = None if self.began is None or self.began >= step else self.began
        self.step = step

    def forget(self) -> None:
        self.readings, self.streak, self.began = [], 0, None

    def count(self, hit: bool, hits: int) -> bool:
        """Count a reading, and return whether the alarm rings. It is on until as many readings in a row are no hits."""
        self.streak = max(self.streak, 0) + 1 if hit else min(self.streak, 0) - 1
        if self.began is None and self.streak >= hits:
            self.began = self.step
            return True
        if self.streak <= -hits:
            self.began = None
        return False


class Monitor:
    """Check the numbers of a training against rules, and return alarms.

        monitor = Monitor()
        for step, batch in enumerate(loader):
            ...                                                        # a step of training under a probe
            if step % 20 == 0:
                for alarm in monitor.update(step, probe.read(reset=True), loss=loss.item()):
                    print(alarm)

    Each rule compares a signal with its baseline, the median of its own latest readings in the same mode (see :class:`Rule`). A
    reading whose signal has moved as far as the limit is a *hit*. After ``hits`` hits in a row the rule rings once, and its
    alarm is *on*. The alarm ends, and the rule can ring again, after the same number of readings in a row that are not hits.
    This happens when the signal has returned, or when it has stayed at its new value until the baseline followed, which takes
    about half of the window.

    If readings are taken at fixed steps (``every(20)``) and :meth:`state_dict` is saved with each checkpoint, a resumed run has
    the same alarms as one that never stopped. With ``budget``, alarms depend on timing. With several ranks, each reading covers
    all of them, so all ranks have the same alarms if ``loss`` and the other numbers are the same on all ranks.

    If a number is missing, the state of its rule does not change. Sites are compared only if they have a finite value in the
    reading and in all readings of the baseline. If the ``loss``, or another number without a site, is not finite, it is a hit
    for rules whose direction is ``"up"``, and is not part of any baseline.

    Args:
        rules: the rules. Default: ``geomprobe.monitoring.rules.DEFAULT_RULES``, whose limits were set from trainings of small
            models.

    Attributes:
        rules: the rules.
        changes: for each rule that could be evaluated in the latest update, how far its signal had moved, as ``Rule.change``
            returns it, by the name of the rule. The largest changes in healthy runs tell where to set a limit.

    Raises:
        GeomprobeError: if an entry is not a rule, or two rules have the same name.

    >>> monitor = Monitor([Rule(signal="loss", direction="up", difference=0.5)])
    >>> alarms = [alarm for step in range(20) for alarm in monitor.update(step, loss=2.0 if step < 15 else 3.0)]
    >>> [(alarm.step, alarm.name, alarm.change) for alarm in alarms]
    [(16, 'loss_up', 1.0)]
    """

    def __init__(self, rules: Sequence[Rule] = DEFAULT_RULES) -> None:
        if not isinstance(rules, Sequence):
            raise GeomprobeError(f"Monitor({rules!r}): expected a list of Rule")
        self.rules = tuple(rules)
        if other := [rule for rule in self.rules if not isinstance(rule, Rule)]:
            raise GeomprobeError(f"Monitor(): expected a list of Rule, but it has {other[0]!r}")
        names = [rule.name for rule in self.rules]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise GeomprobeError(
                f"Monitor(): several rules are named {', '.join(twice)}; give each a name of its own: Rule(name=…)"
            )
        self.changes: dict[str, float] = {}
        self._tracks: dict[str, dict[str, _Track]] = {rule.name: {} for rule in self.rules}
        self._event: str | None = None

    @property
    def active(self) -> tuple[tuple[str, str], ...]:
        """The alarms that are on, as (name of the rule, mode)."""
        return tuple(
            (name, mode) for name, modes in self._tracks.items() for mode, track in modes.items() if track.began is not None
        )

    @property
    def without_data(self) -> tuple[str, ...]:
        """The names of the rules that never had a value in any mode, and so could not ring."""
        return tuple(name for name, modes in self._tracks.items() if not modes)

    def update(
        self,
        step: int,
        reading: Reading | None = None,
        *,
        mode: str | None = None,
        loss: float | None = None,
        gradient_norm: float | None = None,
        numbers: Mapping[str, float] | None = None,
    ) -> list[Alarm]:
        """Check the numbers of a step against the rules, and return the alarms that ring now.

        If ``step`` is not above the latest step of a rule and mode, their readings from ``step`` on are discarded, as is right
        when a training starts again at a checkpoint. Load the state that was saved there (:meth:`load_state_dict`) to continue
        exactly.

        Args:
            step: the optimizer step.
            reading: the reading of a probe, if there is one at this step.
            mode: the kind of texts that were read: ``"train"``, ``"eval"``, or ``"fixed"`` for texts that are the same each
                time. Each mode is compared only with its own past. Default: the mode of the reading, or ``"train"``.
            loss: the loss in nats.
            gradient_norm: the norm of the gradient before clipping.
            numbers: other numbers by the name of a signal or ``signal/site``, such as ``{"repeated_batch": 0.0}``.

        Raises:
            GeomprobeError: if ``step`` is not a whole number, ``mode`` is not a string, or a number is not a number of Python
                or NumPy. A tensor is refused, because this would have to wait for its device.
        """
        if not is_whole(step, least=0):
            raise GeomprobeError(f"Monitor.update(step={step!r}): expected a whole number, 0 or more")
        if mode is None:
            mode = "train" if reading is None else reading.mode
        if not isinstance(mode, str):
            raise GeomprobeError(f"Monitor.update(mode={mode!r}): expected a name, such as 'train' or 'fixed'")
        named = {"loss": loss, "gradient_norm": gradient_norm}
        given = dict(numbers or {}) | {name: value for name, value in named.items() if value is not None}
        signals = self._signals(reading)
        for key, value in given.items():
            if value is not None:
                signal, _, site = key.partition("/")
                signals.setdefault(signal, {})[site] = _plain(key, value)
        self.changes = {}
        alarms = (self._judge(rule, step, mode, signals.get(rule.signal, {})) for rule in self.rules)
        return [alarm for alarm in alarms if alarm is not None]

    def compared(self, alarm: Alarm) -> Alarm:
        """Return an alarm that rang in the latest update of its mode, with ``moved`` and ``unmoved`` updated. Call it after
        another mode was read at the same step."""
        rule = next(rule for rule in self.rules if rule.name == alarm.name)
        moved, unmoved = self._others(rule, alarm.mode)
        return replace(alarm, moved=(alarm.mode, *moved), unmoved=unmoved)

    def notify(self, event: str) -> None:
        """Tell the monitor of an event that changes the numbers from now on, such as ``"the learning rate is divided by 10"``.

        All baselines start again, alarms that are on end silently, and no rule rings until its window is full again. Later
        alarms name the event.
        """
        if not isinstance(event, str) or not event:
            raise GeomprobeError(f"Monitor.notify({event!r}): expected what happens in words, such as 'another dataset'")
        self._event = event
        for modes in self._tracks.values():
            for track in modes.values():
                track.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, as a dict that can be written as JSON."""
        tracks = {
            name: {
                mode: {
                    "step": track.step,
                    "readings": [{"step": step, "sites": dict(values)} for step, values in track.readings],
                    "streak": track.streak,
                    "began": track.began,
                }
                for mode, track in modes.items()
            }
            for name, modes in self._tracks.items()
        }
        rules = [rule.identity() for rule in self.rules]
        return {"format": FORMAT, "rules": rules, "event": self._event, "tracks": tracks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned.

        Raises:
            GeomprobeError: if ``state`` is not such a dict, or belongs to other rules. The monitor is then unchanged.
        """
        what, advice = "this is not the state of these alarms", "give what Monitor.state_dict() returned"
        check_shape(state, _SHAPE, what, advice=advice)
        own = {rule.name: rule.identity() for rule in self.rules}
        saved = {rule["name"]: rule for rule in state["rules"]}
        if other := sorted(name for name in own.keys() | saved.keys() if own.get(name) != saved.get(name)):
            raise GeomprobeError(
                f"{what}: the rules {', '.join(other)} are not those it was saved with; give the monitor the same rules, or do "
                "not load the state, and the baselines start again"
            )
        if state["tracks"].keys() != own.keys():
            raise GeomprobeError(f"{what}: its tracks are not those of its rules; {advice}")
        self._event, self.changes = state["event"], {}
        self._tracks = {
            name: {
                mode: _Track(
                    track["step"],
                    [(old["step"], dict(old["sites"])) for old in track["readings"]],
                    track["streak"],
                    track["began"],
                )
                for mode, track in modes.items()
            }
            for name, modes in state["tracks"].items()
        }

    # -- implementation -----------------------------------------------------------------------------------------------------

    def _signals(self, reading: Reading | None) -> dict[str, dict[str, float]]:
        """The values of a reading by signal and site, with the medians of those curves that a rule asks for."""
        signals: dict[str, dict[str, float]] = {}
        if reading is None:
            return signals
        wanted = {rule.signal for rule in self.rules}
        for key, value in reading.items():
            signal, _, site = key.partition("/")
            signals.setdefault(signal, {})[site] = value
        if "tokens" in signals:  # a reading has the number of rows that were left out only where there are any
            signals["nonfinite"] = dict.fromkeys(signals["tokens"], 0.0) | signals.get("nonfinite", {})
        wanted -= signals.keys()
        for key, curve in reading.curves.items():
            signal, _, site = key.partition("/")
            if signal in wanted and (entries := [x for x in curve.mean if math.isfinite(x)]):
                signals.setdefault(signal, {})[site] = statistics.median(entries)
        return signals

    def _judge(self, rule: Rule, step: int, mode: str, found: Mapping[str, float]) -> Alarm | None:
        """Compare the values of one rule with its track, and return the alarm if it rings."""
        sites = found if rule.sites is None else [site for site in rule.sites if site in found]
        values = {site: found[site] for site in sites if math.isfinite(found[site])}
        if not values and ("" not in sites or rule.direction == "down"):
            return None
        track = self._tracks[rule.name].setdefault(mode, _Track())
        track.rewind(step)
        past = [old for _, old in track.readings]
        if values:
            track.readings = [*track.readings, (step, values)][-rule.window :]
            moved = _compare(rule, values, past)
        else:  # the loss, or another number without a site, is not finite
            known = [old[""] for old in past if "" in old]
            moved = _Move(found[""], statistics.median(known) if known else math.nan, math.inf, "")
        if math.isnan(moved.change):
            track.streak = 0
            return None
        self.changes[rule.name] = moved.change
        if not track.count(moved.change >= rule.limit, rule.hits):
            return None
        moved_too, unmoved = self._others(rule, mode)
        return Alarm(
            name=rule.name,
            step=step,
            mode=mode,
            signal=rule.signal,
            direction=rule.direction,
            site=moved.site or None,
            value=moved.value,
            baseline=moved.baseline,
            change=moved.change,
            is_ratio=rule.ratio is not None,
            moved=(mode, *moved_too),
            unmoved=unmoved,
            event=self._event,
            meaning=rule.meaning,
            look_at=rule.look_at,
        )

    def _others(self, rule: Rule, mode: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The other modes that have moved, and those that have not. Their latest reading must be as new as the hits, and must
        not be of an earlier training, whose steps were higher."""
        modes = self._tracks[rule.name]
        track = modes[mode]
        since = min([track.step, *(step for step, _ in track.readings[-rule.hits :])])
        others = [(name, one) for name, one in modes.items() if name != mode and since <= one.step <= track.step]
        moved = tuple(name for name, one in others if one.streak > 0 or one.began is not None)
        return moved, tuple(name for name, one in others if one.streak < 0 and one.began is None)


@dataclass(frozen=True)
class _Move:
    """A value and its baseline, how far apart they are (NaN if that is not known), and the site that moved furthest."""

    value: float
    baseline: float
    change: float
    site: str


def _compare(rule: Rule, values: Mapping[str, float], past: Sequence[Mapping[str, float]]) -> _Move:
    """Compare the finite values of a reading with those before, at the sites that all of them have."""
    common = [site for site in values if all(site in old for old in past)]
    common = {"first": common[:1], "last": common[-1:]}.get(rule.over, common)  # only that site counts
    if len(past) < rule.window or not common:
        return _Move(math.nan, math.nan, math.nan, "")
    value = rule.combine([values[site] for site in common])
    baseline = statistics.median(rule.combine([old[site] for site in common]) for old in past)
    own = {site: rule.change(values[site], statistics.median(old[site] for old in past)) for site in common}
    furthest = max(common, key=lambda site: -math.inf if math.isnan(own[site]) else own[site])
    return _Move(value, baseline, rule.change(value, baseline), furthest)


def _plain(name: str, value: object) -> float:
    """The number that a caller gave."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise GeomprobeError(
            f"Monitor.update() was given {name} = {type(value).__name__}: expected a plain number; for a tensor give .item(), "
            "at steps at which you can wait for it"
        )
    return float(value)
