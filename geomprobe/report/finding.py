"""The first sentence of a report and of the demo: how a number changed over the checkpoints, where, and by how much.

A change of a number counts if it is at least

- a fifth of the larger of both values (:data:`LEAST`): five untrained models of the demo's shape differ by up to 10% in their
  effective rank, and one of them on three texts of 8,192 tokens by up to 19%;
- as large as the difference between two untrained models, where a run has two: its null baseline, and a checkpoint of step 0;
- a quarter (:data:`PART`) of the whole range of its series, so that noise in a long series does not count as a turn.

A turn is a minimum or maximum with a change that counts on both sides. These are conventions for wording a sentence, and not a
test of significance.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

__all__ = ["LEAST", "PART", "Finding", "Series", "compare_runs", "describe_models", "describe_run", "spoken_number"]

LEAST = 0.2
"""Smallest change that counts, as a share of the larger of both values."""
PART = 0.25
"""Smallest change that counts, as a share of the range of a series."""
_MOST = 3
"""Largest number of turns that a sentence names one by one."""


class Finding(NamedTuple):
    """A finding: the words it begins with, the sentences after their colon, and the site that they are about."""

    lead: str
    text: str
    site: str

    def __str__(self) -> str:
        return f"{self.lead}: {self.text}"


@dataclass(frozen=True)
class Series:
    """A number at one site over checkpoints.

    Attributes:
        name: what it is, such as ``"effective rank"``.
        site: where it was measured.
        places: the checkpoints, such as ``"step 16"``.
        values: its value at each of them; not finite if it is not known.
        width: its upper bound, for a count of directions; ``None`` for other numbers.
        untrained: its value for the untrained model; ``None`` if it was not measured.
        spread: the difference between two untrained models; 0 if there is only one.
    """

    name: str
    site: str
    places: Sequence[str]
    values: Sequence[float]
    width: int | None = None
    untrained: float | None = None
    spread: float = 0.0

    @property
    def where(self) -> str:
        """The number with its site, such as ``"the effective rank at layer_05"``."""
        return f"the {self.name} " + ("after the last layer (final_norm)" if self.site == "final_norm" else f"at {self.site}")

    @property
    def bound(self) -> str:
        """The upper bound as the end of a number, such as ``" of 128"``."""
        return "" if self.width is None else f" of {self.width:,}"

    @property
    def baseline(self) -> str:
        """The value for the untrained model, in parentheses."""
        known = self.untrained is not None and math.isfinite(self.untrained)
        return f" (untrained {spoken_number(self.untrained or 0.0)})" if known else ""

    def finite(self) -> "Series":
        """Return the series without the checkpoints whose value is not finite."""
        kept = [i for i, value in enumerate(self.values) if math.isfinite(value)]
        return replace(self, places=[self.places[i] for i in kept], values=[self.values[i] for i in kept])


def describe_run(courses: Sequence[Series], loss: tuple[float, float] | None = None) -> Finding:
    """Return how one number changes over the checkpoints of a run, compared with the untrained model.

    The sentence is about the last site if it has a turn, because the model predicts from its rows; or else about the site with
    the largest turn; or else about the last site.

    Args:
        courses: the number at every site, in the order of the layers; at least one.
        loss: the loss at the first and at the last checkpoint, if it is known.
    """
    paths = [_Path.of(course.finite()) for course in courses]
    turned = [path for path in paths if path.turns]
    most = max(turned, key=lambda path: path.prominence, default=paths[-1])
    told = paths[-1] if paths[-1].turns else most
    lead, text = _told(told)
    sentences = [f"{text}{_of_loss(loss, single=len(told.series.values) == 1)}."]
    if turned and len(paths) > 1:
        where = f"all {len(paths)}" if len(turned) == len(paths) else f"{len(turned)} of {len(paths)}"
        depth = "" if most is told else f", and most at {most.series.site} ({' to '.join(map(spoken_number, most.deepest))})"
        sentences.append(f"It changed direction at {where} sites{depth}.")
    every = courses[paths.index(told)].values
    if missing := len(every) - len(told.series.values):
        sentences.append(f"{missing} of {len(every)} readings have no finite number there.")
    if not told.series.values:
        sentences = [f"{text}."]
    return Finding(lead, " ".join(sentences), told.series.site)


def compare_runs(runs: Mapping[str, tuple[Series, float | None]]) -> Finding:
    """Return where the runs differ most, and where they end.

    Args:
        runs: for each of at least two runs the number at its last site, and its last loss if it is known.
    """
    series = {name: course.finite() for name, (course, _) in runs.items()}
    losses = {name: loss for name, (_, loss) in runs.items()}
    first = next(iter(series.values()))
    if empty := [name for name, course in series.items() if not course.values]:
        return Finding("No comparison", f"{first.where} is not finite at any checkpoint of {_listed(empty)}.", first.site)
    by_place = {name: dict(zip(course.places, course.values, strict=True)) for name, course in series.items()}
    common = [place for place in first.places if all(place in values for values in by_place.values())]
    last = {name: course.places[-1] for name, course in series.items()}
    if not common:
        ends = _listed([f"{spoken_number(c.values[-1])}{c.bound} in {name} at {last[name]}" for name, c in series.items()])
        return Finding("No checkpoint in common", f"the last values of {first.where} are {ends}{_losses(losses)}.", first.site)

    def at(place: str) -> dict[str, float]:
        return {name: values[place] for name, values in by_place.items()}

    scale = {name: course.width or 1 for name, course in series.items()} if len({c.width for c in series.values()}) > 1 else {}

    def apart(place: str) -> float:
        found = [value / scale.get(name, 1) for name, value in at(place).items()]
        return _relative(min(found), max(found))

    where = max(common, key=apart)
    text = f"{first.where} {_each(at(where), series)}{first.baseline}"
    spread = max(course.spread for course in series.values())
    if apart(where) < LEAST or (not scale and max(at(where).values()) - min(at(where).values()) < spread):
        lead, text = "No difference", f"{first.where} differs by at most {apart(where):.0%}, at {where}"
    else:
        lead = f"They differ most at {where}"
    end = common[-1]
    ended = f" At {end} it {_each(at(end), series)}" if end != where or lead == "No difference" else ""
    same = set(last.values()) == {end}
    return Finding(lead, f"{text}{'.' * bool(ended)}{ended}{_losses(losses) if same else ''}.", first.site)


def describe_models(models: Sequence[Series], losses: Sequence[float | None], *, by_size: bool) -> Finding:
    """Return how two of several models differ.

    Args:
        models: the number at the last site of each model, as a series of one value, with its own width.
        losses: their losses, if they are known.
        by_size: whether they are sorted by size. If they are, the smallest and the largest model are named, and otherwise those
            with the lowest and the highest number.
    """
    order = range(len(models)) if by_size else sorted(range(len(models)), key=lambda i: models[i].values[0])
    ends = (order[0], order[-1])

    def told(model: Series) -> str:
        return f"{spoken_number(model.values[0])}{model.bound} in {model.places[0]}{model.baseline}"

    names = ("smallest", "largest") if by_size else ("lowest", "highest")
    lost = _losses({models[i].places[0]: losses[i] for i in ends})
    text = f"{models[0].where} is {told(models[ends[0]])} and {told(models[ends[1]])}{lost}."
    return Finding(f"The {names[0]} and the {names[1]} of {len(models)} models", text, models[0].site)


# -- the course of a series -------------------------------------------------------------------------------------------------


class _Path(NamedTuple):
    """A series by its turns.

    Attributes:
        series: the series, all of whose values are finite.
        turns: the positions of its minima and maxima that count.
        extreme: the position of the minimum or maximum after the last turn, which can be its end; ``None`` if it is flat.
    """

    series: Series
    turns: list[int]
    extreme: int | None

    @classmethod
    def of(cls, series: Series) -> "_Path":
        values, least = series.values, _counts(series)
        high = low = 0
        rising: bool | None = None
        turns: list[int] = []
        for i, value in enumerate(values):
            high = i if value > values[high] else high
            low = i if value < values[low] else low
            if rising is not False and least(values[high], value):
                turns.append(high)
                rising, low = False, i
            elif rising is not True and least(values[low], value):
                turns.append(low)
                rising, high = True, i
        while turns and not least(values[0], values[turns[0]]):
            turns.pop(0)  # what comes before it is not a change that counts
        extreme = {True: high, False: low, None: None}[rising]
        if extreme is not None and not turns and not least(values[0], values[extreme]):
            extreme = None
        return cls(series, turns, extreme)

    @property
    def prominence(self) -> float:
        """How much the largest turn stands out on both sides, as a share of the larger value."""
        return max((self._height(i) for i in range(len(self.turns))), default=0.0)

    @property
    def deepest(self) -> tuple[float, float]:
        """The values before and at the largest turn."""
        values = self._values()
        i = max(range(len(self.turns)), key=self._height)
        return values[i], values[i + 1]

    def _values(self) -> list[float]:
        """The values at the start, at the turns, and at the extreme after them."""
        values = self.series.values
        return [values[0], *(values[i] for i in self.turns), *([] if self.extreme is None else [values[self.extreme]])]

    def _height(self, turn: int) -> float:
        before, at, after = self._values()[turn : turn + 3]
        return min(_relative(before, at), _relative(at, after))


class _Counts(NamedTuple):
    least: float

    def __call__(self, a: float, b: float) -> bool:
        return abs(a - b) >= self.least and _relative(a, b) >= LEAST


def _counts(series: Series) -> _Counts:
    """Whether a change from one value to another one counts."""
    size = max(series.values, default=0.0) - min(series.values, default=0.0)
    return _Counts(max(series.spread, PART * size))


def _relative(a: float, b: float) -> float:
    """The difference of two values as a share of the larger one."""
    return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0


# -- words ------------------------------------------------------------------------------------------------------------------


def _told(path: _Path) -> tuple[str, str]:
    """The words that a sentence about a series begins with, and the rest of it up to the loss."""
    series, values = path.series, path.series.values
    if not values:
        return "No number", f"{series.where} is not finite in any reading"
    end = f"{spoken_number(values[-1])}{series.bound}"
    if len(values) == 1:
        return "One reading", f"{series.where} is {end} at {series.places[-1]}{series.baseline}"
    if len(values) == 2:
        course = f"went from {spoken_number(values[0])} to {end} at {series.places[-1]}{series.baseline}"
        return "Only two readings", f"{series.where} {course}"
    if path.extreme is None:
        return "No clear change", f"{series.where} {_flat(series)}"
    low, high = min(values), max(values)
    if len(path.turns) > _MOST:
        between = f"between {spoken_number(low)} and {spoken_number(high)}{series.bound}{series.baseline}"
        ends = f"from {spoken_number(values[0])} at {series.places[0]} to {spoken_number(values[-1])} at {series.places[-1]}"
        return "No clear trend", f"{series.where} changed direction {len(path.turns)} times {between}, {ends}"
    return _course(path, path.extreme)


def _flat(series: Series) -> str:
    low, high = min(series.values), max(series.values)
    same = spoken_number(low) == spoken_number(high)
    stayed = (
        f"stayed {'at' if same else f'between {spoken_number(low)} and'} {spoken_number(high)}{series.bound}{series.baseline}"
    )
    within = series.spread > 0 and _relative(low, high) >= LEAST
    return stayed + f"; two untrained models differ by {spoken_number(series.spread)}" * within


def _course(path: _Path, extreme: int) -> tuple[str, str]:
    """The same for a series with few turns or none, from its start through its turns to its end."""
    series, values = path.series, path.series.values
    last = len(values) - 1
    stays = _relative(values[extreme], values[last]) < LEAST  # then it ends where it went
    nodes = [0, *path.turns, last if stays else extreme]
    words, parts = list[str](), list[str]()
    for i, (a, b) in enumerate(pairwise(nodes)):
        before = values[nodes[i - 1]] if i else None
        words.append(_word(values[a], values[b], values[0], before))
        verb = "rose" if values[b] > values[a] else "fell"
        start = f"{verb} from {spoken_number(values[a])} to " if i == 0 else f"then {verb} to "
        end = series.bound if b == last else ""
        parts.append(f"{start}{spoken_number(values[b])}{end}" + f" at {series.places[b]}" * bool(path.turns or b != last))
    course = ", ".join(parts)
    if not stays:
        course += f", and is {spoken_number(values[last])}{series.bound} at {series.places[last]}"
    lead = ", then ".join(words).capitalize()
    if not path.turns:
        lead += " without recovery" * (not stays and values[extreme] < values[0])
        return lead, f"{series.where} {course}{series.baseline}" + ", without changing direction" * stays
    return lead, f"{series.where} {course}{series.baseline}"


def _word(a: float, b: float, first: float, before: float | None) -> str:
    """A name for a change from ``a`` to ``b``. Of the whole series ``first`` is the first value; ``before`` is the value before
    the previous change."""
    if b < a:
        return "collapse" if 0 < b <= min(a, first) / 2 else "fall"
    if before is None:
        return "rise"
    return "recovery" if b >= before or _relative(b, before) < LEAST else "partial recovery"


def _of_loss(loss: tuple[float, float] | None, *, single: bool) -> str:
    if loss is None:
        return ""
    first, last = map(spoken_number, loss)
    return f", and the loss is {last}" if single else f", while the loss went from {first} to {last}"


def _each(values: Mapping[str, float], series: Mapping[str, Series]) -> str:
    """The values of runs as a predicate: both of two, and the lowest and the highest of more."""
    alike = len({course.width for course in series.values()}) == 1
    told = {name: f"{spoken_number(value)}{series[name].bound} in {name}" for name, value in values.items()}
    if len(values) > 2:
        low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
        return f"ranges from {told[low]} to {told[high]}"
    (a, value), (b, _) = values.items()
    return f"is {spoken_number(value)} in {a} and {told[b]}" if alike else f"is {told[a]} and {told[b]}"


def _losses(losses: Mapping[str, float | None]) -> str:
    """The losses of all runs in their order, if all are known."""
    known = [spoken_number(loss) for loss in losses.values() if loss is not None]
    return f", with losses of {_listed(known)}" if len(known) == len(losses) else ""


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def spoken_number(value: float) -> str:
    """Return a number as it stands in a sentence: with three digits, or whole from a thousand on.

    >>> [spoken_number(value) for value in (2.1629, 18.37, -0.5, 49152.3, float("nan"))]
    ['2.16', '18.4', '−0.5', '49,152', 'NaN']
    """
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}").replace("-", "−")
