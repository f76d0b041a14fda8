"""A figure or table of the paper as something that runs: numbers, a picture of them, and what they say of its claims."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

from geomprobe.paper.style import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["HEADINGS", "Experiment", "Kind", "Outcome", "Request", "Table", "Verdict", "cell", "plain", "restore", "span"]

N = TypeVar("N")
"""The class of what an experiment measured, a dataclass: all that its picture and its verdicts are made from."""

Kind = Literal["paper", "erratum", "ours"]
"""Whose statement a verdict is about."""

HEADINGS: Mapping[Kind, str] = {
    "paper": "What the paper says",
    "ours": "Controls and measures that are ours",
    "erratum": "Errata",
}
"""The title of each kind of verdict, in the order in which they are shown."""


@dataclass(frozen=True)
class Verdict:
    """What the numbers say of one statement.

    Attributes:
        claim: the statement, in one line.
        holds: whether these numbers bear it out; ``None`` where they do not decide.
        evidence: the numbers, in one or two lines.
        kind: ``"paper"`` for a claim of the paper; ``"ours"`` for a control or a measure that the paper does not have;
            ``"erratum"`` for a statement whose print is wrong, or its correction.
    """

    claim: str
    holds: bool | None
    evidence: str
    kind: Kind = "paper"

    @property
    def word(self) -> str:
        """``holds``, ``does not hold`` or ``undecided``."""
        return "undecided" if self.holds is None else "holds" if self.holds else "does not hold"

    def __str__(self) -> str:
        lines = textwrap.wrap(f"{self.claim}: {self.evidence}", 66)
        return "\n".join(f"{self.word if i == 0 else '':<14}{line}" for i, line in enumerate(lines))


@dataclass(frozen=True)
class Table:
    """Numbers to read: cells are text already. The first column is what a row is called.

    Attributes:
        words: how many columns, from the left, are words.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1

    def __str__(self) -> str:
        """Columns as wide as they must be; words on the left, numbers on the right."""
        widths = [max(len(row[i]) for row in (self.columns, *self.rows)) for i in range(len(self.columns))]

        def line(cells: Sequence[str]) -> str:
            sides = "<" * self.words + ">" * len(cells)
            return "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=False)).rstrip()

        title = [part for whole in self.title.splitlines() for part in textwrap.wrap(whole, 80)]
        return "\n".join([*title, "", *map(line, (self.columns, *self.rows))])


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a command was asked for.

    Attributes:
        out: the folder of the results.
        models: hub ids or directories; before an experiment is measured, those that it takes by default are filled in.
        data: a file or a data set's id, as :func:`geomprobe.sweep` reads them; ``None`` for the default.
        field: where the text of a document stands.
        tokens: how many tokens of ``data`` each model reads.
        steps: optimizer steps of the models that are trained where none is given.
        seed: of every random draw.
        dtype: of models that are loaded.
        device: where to; CUDA when there is one.
        fresh: measure what an earlier run left in the folder anew.
    """

    out: Path
    models: tuple[str, ...] = ()
    data: str | None = None
    field: str = "text"
    tokens: int = 8192
    steps: int = 150
    seed: int = 0
    dtype: str = "float32"
    device: str | None = None
    fresh: bool = False

    def key(self, of: str) -> dict[str, Any]:
        """What the numbers of an experiment depend on that is ``of`` sizes, texts or nothing; equal keys, equal numbers."""
        asked: dict[str, Any] = {"version": version("geomprobe"), "seed": self.seed}
        if of != "nothing":
            names = ("steps", "dtype", "device") if of == "texts" else ("steps", "dtype", "device", "field", "tokens")
            asked |= {name: getattr(self, name) for name in names}
            asked |= {"models": [[model, _fingerprint(model)] for model in self.models]}
        if of == "sizes":
            asked |= {"data": self.data and {self.data: _fingerprint(self.data)}}
        return asked


@dataclass(frozen=True, kw_only=True)
class Experiment(Generic[N]):
    """One figure or table.

    Attributes:
        name: of the command and of the files.
        title: over the picture.
        place: where it stands in the paper.
        read: one or two sentences on how to read it.
        caveat: a sentence on what it is not.
        of: what its numbers depend on: models of several ``sizes`` and a data set, a model and the paper's ``texts``, or
            ``nothing``.
        numbers: the class of the numbers.
        measure: the numbers.
        draw: their picture.
        tables: their tables, each at most 80 columns wide.
        judge: what they say of the paper's claims.
    """

    name: str
    title: str
    place: str
    read: str
    caveat: str
    of: str
    numbers: type[N]
    measure: Callable[[Request], N]
    draw: Callable[[N], "Figure"]
    tables: Callable[[N], list[Table]]
    judge: Callable[[N], list[Verdict]]


@dataclass(frozen=True)
class Outcome(Generic[N]):
    """An experiment that ran.

    Attributes:
        kept: whether its numbers were there from an earlier run.
    """

    experiment: Experiment[N]
    numbers: N
    kept: bool

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """What the numbers say of the paper's claims."""
        return self.experiment.judge(self.numbers)

    @cached_property
    def figure(self) -> "Figure":
        """The picture; drawn once, for the PNG and for every page."""
        with styled():
            return self.experiment.draw(self.numbers)

    def of_kind(self, kind: Kind) -> list[Verdict]:
        """The verdicts of one kind."""
        return [verdict for verdict in self.verdicts if verdict.kind == kind]

    def __str__(self) -> str:
        """For a terminal of 80 columns."""
        parts = [f"{self.experiment.title} ({self.experiment.place})", *map(str, self.experiment.tables(self.numbers))]
        found = [(heading, self.of_kind(kind)) for kind, heading in HEADINGS.items()]
        return "\n\n".join([*parts, *("\n".join([heading, "", *map(str, some)]) for heading, some in found if some)]).rstrip()


def plain(value: Any) -> Any:
    """Plain JSON of numbers: dataclasses as objects, arrays and tensors as lists, NaN and infinities as ``None``.

    >>> plain({"a": (1.0, math.nan)})
    {'a': [1.0, None]}
    """
    if is_dataclass(value):
        return plain(vars(value))
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def restore(shape: Any, value: Any) -> Any:
    """The numbers of which :func:`plain` made ``value``: their dataclasses, and NaN where a ``float`` is ``None``.

    Raises:
        TypeError, AttributeError, KeyError: if ``value`` is not of this shape.

    >>> restore(list[float], [1.0, None])
    [1.0, nan]
    """
    parts = get_args(shape)
    if isinstance(shape, UnionType):
        return None if value is None else restore(next(kind for kind in parts if kind is not NoneType), value)
    if isinstance(shape, type) and is_dataclass(shape):
        kinds = get_type_hints(shape)
        return shape(**{name: restore(kinds[name], part) for name, part in value.items()})
    if get_origin(shape) in (dict, Mapping):
        return {name: restore(parts[1], part) for name, part in value.items()}
    if parts:
        return [restore(parts[0], part) for part in value]
    return math.nan if value is None and shape is float else value


def cell(value: float | None, spec: str) -> str:
    """A cell of a table: a dash where there is no number."""
    return "–" if value is None or math.isnan(value) else f"{value:{spec}}"


def span(values: Sequence[float], spec: str) -> str:
    """Both ends of values, or the one that there is."""
    low, high = f"{min(values):{spec}}", f"{max(values):{spec}}"
    return low if low == high else f"{low} to {high}"


def _fingerprint(name: str) -> str | None:
    """Tells whether a model's or a data set's files changed; ``None`` for an id on a hub."""
    path = Path(name)
    try:
        inside = [file for pattern in ("*", "checkpoint-*/*") for file in path.glob(pattern) if file.is_file()]
        files = [path] if path.is_file() else sorted(inside)
        stats = [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError:  # a name that no file can have
        return None
    return sha256(repr(stats).encode()).hexdigest()[:12] if files else None
