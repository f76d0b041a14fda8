"""An alarm, and the sentences that describe it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from geomprobe.files import check_shape

__all__ = ["Alarm"]

_TEXTS = {
    "train": "training texts",
    "fixed": "fixed texts",
    "eval": "evaluation texts",
    "no_grad": "forwards without gradients",
}

_NOT_FINITE = {str(value): value for value in (math.nan, math.inf, -math.inf)}
"""Numbers that JSON does not have, by the text that stands for them."""

_SHAPE = {
    **dict.fromkeys(("name", "mode", "signal", "meaning", "look_at"), str),
    "step": int,
    "direction": {"up", "down"},
    "site": str | None,
    **dict.fromkeys(("value", "baseline", "change"), (float, set(_NOT_FINITE))),
    "is_ratio": bool,
    "moved": [str],
    "unmoved": [str],
    "event": str | None,
}


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """An alarm: a signal has moved away from its own recent past. ``str(alarm)`` describes it in sentences.

    It says that something changed, where, and how far. It does not say that a run is broken: harmless events, such as a lower
    learning rate or other texts, change the same numbers.

    Attributes:
        name: the name of the rule.
        step: the step of the reading at which the alarm rang, which is the last of its hits in a row.
        mode: the mode of that reading.
        signal: the signal.
        direction: the direction in which the signal moved.
        site: of the sites that count, the one that moved furthest in this direction from its own baseline; ``None`` for a
            signal without sites.
        value: the value of that reading, combined over sites.
        baseline: the median of the readings before; NaN if there was none, which can only be if ``value`` is not finite.
        change: how far the value has moved in this direction: a ratio or a difference, as ``Rule.change`` returns it.
        is_ratio: whether ``change`` is a ratio.
        moved: the modes whose latest reading is beyond the limit, this one first.
        unmoved: the modes whose latest reading is within the limit. A mode that has too few readings, or whose latest reading
            is older than the first of the hits, is in neither.
        event: the latest event given to ``Monitor.notify``, or ``None``.
        meaning: what it may mean.
        look_at: what to look at next.
    """

    name: str
    step: int
    mode: str
    signal: str
    direction: Literal["up", "down"]
    site: str | None
    value: float
    baseline: float
    change: float
    is_ratio: bool
    moved: tuple[str, ...]
    unmoved: tuple[str, ...]
    event: str | None
    meaning: str
    look_at: str

    def __str__(self) -> str:
        """Return what changed, where, what it may mean, and what to look at next."""
        said = [f"Step {self.step}: {self._what()}.", self._where()]
        if self.event is not None:
            said.append(f"The latest known change of schedule: {self.event}.")
        if self.meaning:
            said.append(f"What it may mean: {self.meaning}")
        if self.look_at:
            said.append(f"What to look at next: {self.look_at}")
        return " ".join(said)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that can be written as JSON. Numbers that are not finite are texts in it."""
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in (asdict(self) | {"moved": list(self.moved), "unmoved": list(self.unmoved)}).items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, what: str = "this is not an alarm") -> Self:
        """Return the alarm that :meth:`to_dict` was called on.

        Raises:
            GeomprobeError: if ``data`` is not such a dict. The message begins with ``what``.
        """
        check_shape(data, _SHAPE, what, advice="give what Alarm.to_dict() returned")
        numbers = {name: _NOT_FINITE.get(data[name], data[name]) for name in ("value", "baseline", "change")}
        return cls(**{**data, **numbers, "moved": tuple(data["moved"]), "unmoved": tuple(data["unmoved"])})

    def _what(self) -> str:
        head, site = f"{self.signal} on {_named(self.mode)}", f", most at {self.site}" if self.site else ""
        if self.value - self.value != 0:  # NaN or an infinity
            return f"{head} is {self.value}"
        verb = "rose" if self.direction == "up" else "fell"
        by = f"by a factor of {self.change:.3g}" if self.is_ratio else f"by {self.change:.3g}"
        return f"{head} {verb} {by}, from a median of {self.baseline:.4g} to {self.value:.4g}{site}"

    def _where(self) -> str:
        others = [mode for mode in self.moved if mode != self.mode]
        if others:
            return f"It moved on {_joined(others)} too, so the texts alone do not explain it."
        if "fixed" in self.unmoved and self.mode == "train":
            return "It has not moved on fixed texts, so the training texts may have changed rather than the model."
        if self.unmoved:
            return f"It has not moved on {_joined(self.unmoved)}."
        return "No other texts were compared."


def _named(mode: str) -> str:
    return _TEXTS.get(mode, mode)


def _joined(modes: Sequence[str]) -> str:
    return " and ".join(map(_named, modes))
