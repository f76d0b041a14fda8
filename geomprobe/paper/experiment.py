"""A figure or table of the paper as an experiment that can be run: its numbers, a picture of them, and verdicts on the paper's
claims."""

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
"""The class of the numbers of an experiment, a dataclass, from which its picture and its verdicts are made."""

Kind = Literal["paper", "erratum", "ours"]
"""The kind of statement that a verdict is about."""

HEADINGS: Mapping[Kind, str] = {
    "paper": "What the paper says",
    "ours": "Controls and measures that are ours",
    "erratum": "Errata",
}
"""The title of each kind of verdict, in the order in which they are shown."""


@dataclass(frozen=True)
class Verdict:
    """What the numbers say about one statement.

    Attributes:
        claim: the statement, in one line.
        holds: whether these numbers confirm it; ``None`` if they do not decide.
        evidence: the numbers, in one or two lines.
        kind: ``"paper"`` for a claim of the paper; ``"ours"`` for a control or a measure that the paper does not have;
            ``"erratum"`` for a statement that is wrong as printed, or its correction.
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
    """A table of numbers, whose cells are text already. The first column has the names of the rows.

    Attributes:
        words: number of columns, from the left, that contain words.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1

    def __str__(self) -> str:
        """Return the table as text: words are aligned to the left, and numbers to the right."""
        widths = [max(len(row[i]) for row in (self.columns, *self.rows)) for i in range(len(self.columns))]

        def line(cells: Sequence[str]) -> str:
            sides = "<" * self.words + ">" * len(cells)
            return "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(cells, sides, widths, strict=False)).rstrip()

        title = [part for whole in self.title.splitlines() for part in textwrap.wrap(whole, 80)]
        return "\n".join([*title, "", *map(line, (self.columns, *self.rows))])


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of a command.

    Attributes:
        out: the folder of the results.
        models: hub ids or directories. If there are none, the default ones of an experiment are filled in before it is
            measured.
        data: a file or the id of a dataset, as for :func:`geomprobe.sweep`; ``None`` for the default.
        field: the field with the text of a document.
        tokens: number of tokens of ``data`` that each model reads.
        steps: number of optimizer steps of the models that are trained if none is given.
        seed: the seed of all random numbers.
        dtype: the dtype of the models that are loaded.
        device: the device of the models. Default: CUDA if available, else the CPU.
        fresh: whether to measure again if the folder has numbers of an earlier run.
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
        """Return what the numbers of an experiment depend on, whose kind is ``of`` (see :class:`Experiment`). Equal keys mean
        equal numbers."""
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
        name: the name of the command and of the files.
        title: the title of the picture.
        place: where it stands in the paper.
        read: one or two sentences on how to read it.
        caveat: a sentence on what it does not show.
        of: what its numbers depend on: ``"sizes"`` for models of several sizes and a dataset, ``"texts"`` for a model and the
            paper's texts, or ``"nothing"``.
        numbers: the class of the numbers.
        measure: a function that measures the numbers.
        draw: a function that draws them.
        tables: a function that returns their tables, each at most 80 columns wide.
        judge: a function that returns what they say about the paper's claims.
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
    """An experiment that was run.

    Attributes:
        kept: whether its numbers are those of an earlier run.
    """

    experiment: Experiment[N]
    numbers: N
    kept: bool

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """What the numbers say about the paper's claims."""
        return self.experiment.judge(self.numbers)

    @cached_property
    def figure(self) -> "Figure":
        """The picture. It is drawn once, for the PNG file and for every page."""
        with styled():
            return self.experiment.draw(self.numbers)

    def of_kind(self, kind: Kind) -> list[Verdict]:
        """The verdicts of one kind."""
        return [verdict for verdict in self.verdicts if verdict.kind == kind]

    def __str__(self) -> str:
        """Return title, tables and verdicts as text for a terminal of 80 columns."""
        parts = [f"{self.experiment.title} ({self.experiment.place})", *map(str, self.experiment.tables(self.numbers))]
        found = [(heading, self.of_kind(kind)) for kind, heading in HEADINGS.items()]
        return "\n\n".join([*parts, *("\n".join([heading, "", *map(str, some)]) for heading, some in found if some)]).rstrip()


def plain(value: Any) -> Any:
    """Return numbers as plain JSON: dataclasses as objects, arrays and tensors as lists, NaN and infinities as ``None``.

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
    """Return the numbers from which :func:`plain` made ``value``, as their dataclasses, with NaN where a ``float`` is ``None``.

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
    """Return a cell of a table; a dash if there is no number."""
    return "–" if value is None or math.isnan(value) else f"{value:{spec}}"


def span(values: Sequence[float], spec: str) -> str:
    """Return the smallest and the largest value as text, or only one number if they are equal."""
    low, high = f"{min(values):{spec}}", f"{max(values):{spec}}"
    return low if low == high else f"{low} to {high}"


def _fingerprint(name: str) -> str | None:
    """A hash that changes if the files of a model or a dataset change; ``None`` for an id on a hub."""
    path = Path(name)
    try:
        inside = [file for pattern in ("*", "checkpoint-*/*") for file in path.glob(pattern) if file.is_file()]
        files = [path] if path.is_file() else sorted(inside)
        stats = [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError:  # a name that no file can have
        return None
    return sha256(repr(stats).encode()).hexdigest()[:12] if files else None
