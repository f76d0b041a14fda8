"""A reading: the numbers that a probe measured, which can be printed, saved, loaded and converted to pandas."""

import html
import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar

from geomprobe.accumulators.state import Accumulator, State, TokenCount
from geomprobe.errors import GeomprobeError
from geomprobe.metrics.base import Curve, Metric

if TYPE_CHECKING:
    import pandas

__all__ = ["Reading"]

T = TypeVar("T")

# The columns of the printed table, in order. All other numbers are listed by name under it.
_COLUMNS = {
    "entropy": ("entropy", "{:.3f}"),
    "effective_rank": ("eff.rank", "{:.1f}"),
    "anisotropy": ("anisotropy", "{:.3f}"),
    "information_gain": ("gain/text", "{:.1f}"),
    "gain_per_token": ("gain/token", "{:.3f}"),
    "lasso_picks": ("picks", "{:.1f}"),
    "lasso_r2": ("Lasso R²", "{:.3f}"),
    "attention_entropy": ("att.entropy", "{:.3f}"),
    "attention_sink": ("att.sink", "{:.3f}"),
    "attention_distance": ("att.dist", "{:.1f}"),
    "lasso_attention_jaccard": ("jaccard", "{:.3f}"),
    "eq5_r2": ("Eq.5 R²", "{:.3f}"),
}
_BAR = 10


@dataclass
class Reading:
    """Scalars named ``metric/site``, and curves over positions in the text, with the number of tokens and texts behind them.

    Attributes:
        mode: ``"train"`` or ``"eval"``; for one of several evaluation sets of Trainer ``"eval_<name>"``.
        sites: the measured sites, in order from ``embed`` to ``final_norm``.
        values: the scalars by ``"metric/site"``. ``tokens/<site>`` and ``texts/<site>`` are the numbers of rows and texts that
            the other numbers were computed from.
        notes: remarks that a reader must know, such as rows that were left out or a probe that stopped early.
    """

    mode: str
    sites: tuple[str, ...]
    values: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _curves: dict[str, Curve] = field(default_factory=dict)

    def add(self, site: str, metric: str, value: float) -> None:
        """Add one scalar.

        Raises:
            GeomprobeError: if there is a scalar of this name already.
        """
        if (key := f"{metric}/{site}") in self.values:
            raise GeomprobeError(f"two metrics of this probe have a number named {metric!r}: use one of them, or rename yours")
        self.values[key] = value

    def add_curve(self, site: str, metric: str, curve: Curve) -> None:
        """Add one curve.

        Raises:
            GeomprobeError: if there is a curve of this name already.
        """
        if (key := f"{metric}/{site}") in self._curves:
            raise GeomprobeError(f"two metrics of this probe have a curve named {metric!r}: use one of them, or rename yours")
        self._curves[key] = curve

    def measure(self, site: str, metrics: Sequence[Metric], states: Mapping[Accumulator, State]) -> None:
        """Compute ``metrics`` from the states of one site, and adds their scalars and curves with the token counts.

        Raises:
            GeomprobeError: if two metrics have a number of the same name.
        """
        tally = {name: float(value) for name, value in states[TokenCount()].items()}
        self.add(site, "tokens", tally["tokens"])
        self.add(site, "texts", tally["texts"])
        if tally["nonfinite"]:
            self.add(site, "nonfinite", tally["nonfinite"])
            self.notes.append(f"{site}: {tally['nonfinite']:.0f} rows contained NaN or Inf and were left out of every number")
        if not tally["tokens"]:
            return
        for metric in metrics:
            for name, value in metric.scalars(states).items():
                self.add(site, name, float(value))
            for name, curve in metric.curves(states).items():
                self.add_curve(site, name, curve)

    # -- look up ------------------------------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> float:
        """Return one scalar by name: ``reading["entropy/layer_05"]``.

        Raises:
            GeomprobeError: if there is no such scalar. The message lists the names that exist.
        """
        return _lookup(self.values, key, "value")

    def __contains__(self, key: object) -> bool:
        return key in self.values

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def curve(self, metric: str, site: str) -> Curve:
        """Return one curve, ``reading.curve("information_gain", "final_norm")``: mean, std and count by position.

        Raises:
            GeomprobeError: if there is no such curve. The message lists the names that exist.
        """
        return _lookup(self._curves, f"{metric}/{site}", "curve")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the scalars without their sites, in the order in which the metrics return them."""
        return tuple(dict.fromkeys(key.split("/")[0] for key in self.values))

    def site(self, site: str) -> dict[str, float]:
        """Return all scalars of one site by metric name."""
        return {key.split("/")[0]: value for key, value in self.values.items() if key.split("/")[1] == site}

    def merge_missing(self, other: "Reading") -> "Reading":
        """Return this reading with the numbers, curves and notes that only ``other`` has. Where both have a name, this one's
        number is kept."""
        return Reading(
            mode=self.mode,
            sites=self.sites,
            values=other.values | self.values,
            notes=list(dict.fromkeys([*self.notes, *other.notes])),
            _curves=other._curves | self._curves,
        )

    # -- save and load ------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that can be written as JSON, with NaN as ``None``:
        ``{"mode": …, "sites": {site: {metric: value}}, "curves": {site: {metric: …}}, "notes": […]}``."""
        curves: dict[str, dict[str, Any]] = {}
        for key, curve in self._curves.items():
            metric, site = key.split("/")
            std = None if curve.std is None else [_finite(x) for x in curve.std]
            entry = {"mean": [_finite(x) for x in curve.mean], "std": std, "count": list(curve.count)}
            curves.setdefault(site, {})[metric] = entry
        sites = {site: {name: _finite(value) for name, value in self.site(site).items()} for site in self.sites}
        return {"mode": self.mode, "sites": sites, "curves": curves, "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the reading from the dict that :meth:`to_dict` returned.

        Raises:
            GeomprobeError: if ``data`` is not such a dict.
        """
        try:
            reading = cls(mode=data["mode"], sites=tuple(data["sites"]), notes=list(data["notes"]))
            for site, scalars in data["sites"].items():
                for metric, value in scalars.items():
                    reading.add(site, metric, _number(value))
            for site, curves in data["curves"].items():
                for metric, c in curves.items():
                    std = None if c["std"] is None else tuple(map(_number, c["std"]))
                    reading.add_curve(site, metric, Curve(tuple(map(_number, c["mean"])), std, tuple(c["count"])))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise GeomprobeError(
                f"this is not a reading: {type(error).__name__}: {error}; expected a dict that Reading.to_dict() returned"
            ) from error
        return reading

    def to_json(self) -> str:
        """Return :meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the reading from the text that :meth:`to_json` returned.

        Raises:
            GeomprobeError: if ``text`` is not such a text.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise GeomprobeError(f"this is not a reading: not JSON ({error})") from error
        return cls.from_dict(data)

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a pandas ``DataFrame`` with one row per site and one column per metric.

        Raises:
            GeomprobeError: if pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise GeomprobeError("Reading.to_pandas() needs pandas: pip install pandas") from error
        return pandas.DataFrame.from_dict({site: self.site(site) for site in self.sites}, orient="index")

    # -- print --------------------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        """Return a table for 80 columns with one line per site. A bar shows each entropy as a fraction of the largest one."""
        shown = [name for name in _COLUMNS if name in self.metrics] or [
            m for m in self.metrics if m not in ("tokens", "texts")
        ][:5]
        width = max(10, *(len(site) for site in self.sites))
        titles = {name: _COLUMNS.get(name, (name, ""))[0] for name in shown}
        head = f"{'site':<{width}}"
        for name in shown:
            head += f"  {titles[name]:>{self._width(titles[name])}}" + " " * (_BAR + 1) * (name == "entropy")
        highest = max((self.values.get(f"entropy/{site}", 0.0) for site in self.sites), default=0.0) or 1.0
        lines = [self._headline(), "", head]
        for site in self.sites:
            line = f"{site:<{width}}"
            for name in shown:
                line += f"  {self._cell(name, site):>{self._width(titles[name])}}"
                if name == "entropy":
                    line += " " + _bar(self.values.get(f"entropy/{site}", math.nan) / highest)
            lines.append(line.rstrip())
        others = [name for name in self.metrics if name not in (*shown, "tokens", "texts")]
        if others:
            lines += ["", *_wrap("also: " + ", ".join(others))]
        return "\n".join(lines + [line for note in self.notes for line in _wrap("! " + note)])

    def _repr_html_(self) -> str:
        """Return an HTML table for notebooks, with one column per metric."""
        names = [name for name in self.metrics if name not in ("tokens", "texts")]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ["site", *names])
        body = "".join(
            f"<tr><th>{html.escape(site)}</th>" + "".join(f"<td>{self._cell(name, site)}</td>" for name in names) + "</tr>"
            for site in self.sites
        )
        notes = "".join(f"<p>⚠ {html.escape(note)}</p>" for note in self.notes)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f"<p>{html.escape(self._headline())}</p><div style='overflow-x:auto'>{table}</div>{notes}"

    def _headline(self) -> str:
        tokens = max((self.values.get(f"tokens/{site}", 0) for site in self.sites), default=0)
        texts = max((self.values.get(f"texts/{site}", 0) for site in self.sites), default=0)
        return f"geomprobe · {tokens:,.0f} tokens in {texts:,.0f} text{'s' * (texts != 1)} · {self.mode}"

    def _cell(self, name: str, site: str) -> str:
        value = self.values.get(f"{name}/{site}", math.nan)
        return "–" if math.isnan(value) else _COLUMNS.get(name, ("", "{:.4g}"))[1].format(value)

    @staticmethod
    def _width(title: str) -> int:
        return max(7, len(title))


def _lookup(table: dict[str, T], key: str, what: str) -> T:
    if key in table:
        return table[key]
    metrics = sorted({name.split("/")[0] for name in table})
    sites = list(dict.fromkeys(name.split("/")[1] for name in table))
    known = f"metrics {', '.join(metrics)}; sites {', '.join(sites)}" if table else "none"
    raise GeomprobeError(f"no {what} {key!r} in this reading, expected 'metric/site'. It has: {known}")


def _bar(value: float) -> str:
    """A bar of ten characters for a value from 0 to 1, in steps of an eighth of a character."""
    eighths = 0 if math.isnan(value) else round(min(max(value, 0.0), 1.0) * _BAR * 8)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()).ljust(_BAR)


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 80, subsequent_indent="  ")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
