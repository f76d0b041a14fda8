"""A reading: the numbers that a probe measured, which can be printed, saved, loaded and converted to pandas."""

import difflib
import html
import json
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from geomprobe.accumulators.state import Accumulator, State, TokenCount
from geomprobe.errors import GeomprobeError, MissingKeyError
from geomprobe.files import Format, check_shape, parse_json
from geomprobe.metrics.base import Curve, Metric

if TYPE_CHECKING:
    import pandas

__all__ = ["Cost", "Reading", "compute_reading"]

T = TypeVar("T")

FORMAT = 1
"""Number of the format of :meth:`Reading.to_dict`."""

_ADVICE = "give what Reading.to_dict() or to_json() returned"
_CURVE = {"mean": [float | None], "std": (NoneType, [float | None]), "count": [int]}
_SHAPE = {
    "format": Format(FORMAT),
    "mode": str,
    "sites": {str: {str: float | None}},
    "curves": {str: {str: _CURVE}},
    "notes": [str],
    str: object,  # a step, or the tokens of an inspected text
}

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
    "router_load_entropy": ("load entropy", "{:.3f}"),
    "router_entropy": ("router ent.", "{:.3f}"),
    "router_dead_experts": ("dead", "{:.2f}"),
    "router_largest_share": ("largest", "{:.3f}"),
    "lasso_attention_jaccard": ("jaccard", "{:.3f}"),
    "eq5_r2": ("Eq.5 R²", "{:.3f}"),
}
_NO_COST = {"cost": None}
_BAR = 10
_GENERATED = "contains generation"


@dataclass(frozen=True)
class Cost:
    """What a probe has cost one process since it was attached, in measured forwards, in readings and (with a callback) in
    logging.

    Attributes:
        seconds: the time spent: on the host, or on the device if that is longer.
        share: this time divided by the time since the probe was attached.
        interval: with ``when=budget(…)`` every how many steps the model is measured at present, else ``None``.
    """

    seconds: float
    share: float
    interval: int | None = None


class Reading(Mapping[str, float]):
    """Numbers named ``metric/site``, and curves over positions in the text, with the number of tokens and texts behind them.

    A reading is a mapping of its numbers: ``reading["entropy/layer_05"]``, ``reading.items()``, ``dict(reading)``.
    ``reading["entropy"]`` returns the numbers of one metric at all sites. Two readings are equal if everything in them but the
    cost is; a reading and a dict are equal if the numbers are.

    Args:
        mode: ``"train"``, ``"eval"``, ``"no_grad"`` or ``"fixed"``; for one of several evaluation sets of Trainer
            ``"eval_<name>"``.
        sites: the measured sites, in order from ``embed`` to ``final_norm``.
        values: the numbers by ``"metric/site"``. ``tokens/<site>`` and ``texts/<site>`` are the numbers of rows and texts that
            the other numbers were computed from.
        notes: remarks that a reader must know, such as rows that were left out or a probe that stopped early.
        curves: the curves by ``"metric/site"``.

    Attributes:
        cost: what the measurement has cost (:class:`Cost`), if a probe returned this reading. It is not part of ``to_dict()``,
            because it differs between two runs of the same training.
    """

    def __init__(
        self,
        mode: str,
        sites: Sequence[str],
        values: Mapping[str, float] | None = None,
        notes: Iterable[str] = (),
        curves: Mapping[str, Curve] | None = None,
    ) -> None:
        self.mode = mode
        self.sites = tuple(sites)
        self.notes = list(notes)
        self.curves = dict(curves or {})
        self._values = dict(values or {})
        self.cost: Cost | None = None

    # -- look up ------------------------------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        """Return one number by its key, ``reading["entropy/layer_05"]``, or the numbers of one metric by site,
        ``reading["entropy"]``.

        Raises:
            MissingKeyError: if there is no such number. The message names the nearest keys.
        """
        if key in self._values:
            return self._values[key]
        if by_site := {site: self._values[f"{key}/{site}"] for site in self.sites if f"{key}/{site}" in self._values}:
            return by_site
        raise MissingKeyError(_no_such("number", key, self._values))

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        return vars(self) | _NO_COST == vars(other) | _NO_COST if isinstance(other, Reading) else super().__eq__(other)

    def get(self, key: str, default: Any = None, /) -> Any:
        """Return the number of a full key, or ``default`` if there is none."""
        return self._values.get(key, default)

    def curve(self, metric: str, site: str) -> Curve:
        """Return one curve, ``reading.curve("information_gain", "final_norm")``: mean, std and count by position.

        Raises:
            MissingKeyError: if there is no such curve. The message names the nearest ones.
        """
        if (key := f"{metric}/{site}") not in self.curves:
            raise MissingKeyError(_no_such("curve", key, self.curves))
        return self.curves[key]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the numbers without their sites, in the order in which the metrics return them."""
        return tuple(dict.fromkeys(key.split("/")[0] for key in self._values))

    def site(self, site: str) -> dict[str, float]:
        """Return all numbers of one site by metric name."""
        return {key.split("/")[0]: value for key, value in self._values.items() if key.split("/")[1] == site}

    # -- save and load ------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return a dict that can be written as JSON, with NaN as ``None``:
        ``{"format": 1, "mode": …, "sites": {site: {metric: value}}, "curves": {site: {metric: …}}, "notes": […]}``."""
        curves: dict[str, dict[str, Any]] = {}
        for key, curve in self.curves.items():
            metric, site = key.split("/")
            std = None if curve.std is None else [_finite(x) for x in curve.std]
            mean = [_finite(x) for x in curve.mean]
            curves.setdefault(site, {})[metric] = {"mean": mean, "std": std, "count": list(curve.count)}
        sites = {site: {name: _finite(value) for name, value in self.site(site).items()} for site in self.sites}
        return {"format": FORMAT, "mode": self.mode, "sites": sites, "curves": curves, "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, what: str = "this is not a reading", advice: str = _ADVICE) -> Self:
        """Return the reading from the dict that :meth:`to_dict` returned.

        Args:
            data: the dict, in which other names than those of :meth:`to_dict` are ignored.
            what: where it comes from, with which the message of an error begins.
            advice: what to do, with which it ends.

        Raises:
            GeomprobeError: if ``data`` is not such a dict.
        """
        check_shape(data, _SHAPE, what, advice=advice)
        curves: dict[str, Curve] = {}
        for site, named in data["curves"].items():
            for metric, c in named.items():
                std = None if c["std"] is None else tuple(map(_number, c["std"]))
                curve = curves[f"{metric}/{site}"] = Curve(tuple(map(_number, c["mean"])), std, tuple(c["count"]))
                if len({len(part) for part in (curve.mean, curve.count, curve.std or curve.mean)}) > 1:
                    raise GeomprobeError(f"{what}: the lists of curves.{site}.{metric} have different lengths; {advice}")
        sites = data["sites"].items()
        values = {f"{metric}/{site}": _number(value) for site, named in sites for metric, value in named.items()}
        if slashed := [name for key in (*values, *curves) if len(name := key.split("/")) != 2]:
            raise GeomprobeError(f"{what}: {'/'.join(slashed[0])!r} has a slash in the name of a metric or a site; {advice}")
        return cls(data["mode"], tuple(data["sites"]), values, data["notes"], curves)

    def to_json(self) -> str:
        """Return :meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the reading from the text that :meth:`to_json` returned.

        Raises:
            GeomprobeError: if ``text`` is not such a text.
        """
        return cls.from_dict(parse_json(text, "this is not a reading", advice=_ADVICE))

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
        titles = {name: f"{_COLUMNS.get(name, (name, ''))[0]:>7}" for name in shown}
        head = f"{'site':<{width}}"
        for name, title in titles.items():
            head += f"  {title}" + " " * (_BAR + 1) * (name == "entropy")
        highest = max((self.get(f"entropy/{site}", 0.0) for site in self.sites), default=0.0) or 1.0
        lines = [self._headline(), "", head]
        for site in self.sites:
            line = f"{site:<{width}}"
            for name, title in titles.items():
                line += f"  {self._cell(name, site):>{len(title)}}"
                if name == "entropy":
                    line += " " + _bar(self.get(f"entropy/{site}", math.nan) / highest)
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

    def __repr__(self) -> str:
        shape = f"{len(self.metrics)} metrics at {len(self.sites)} sites, {len(self.curves)} curves, {len(self.notes)} notes"
        return f"<Reading {self._headline()!r:.150}: {shape}>"

    def _headline(self) -> str:
        tokens, texts = (max((self.get(f"{what}/{site}", 0) for site in self.sites), default=0) for what in ("tokens", "texts"))
        return f"geomprobe · {tokens:,.0f} tokens in {texts:,.0f} text{'s' * (texts != 1)} · {self.mode}"

    def _cell(self, name: str, site: str) -> str:
        value = self.get(f"{name}/{site}", math.nan)
        return "–" if math.isnan(value) else _COLUMNS.get(name, ("", "{:.4g}"))[1].format(value)


def compute_reading(
    mode: str,
    sites: Sequence[str],
    metrics: Sequence[Metric],
    bank: Mapping[str, Mapping[Accumulator, State]],
    notes: Iterable[str] = (),
) -> Reading:
    """Return the reading of ``metrics``, computed from the states of each site in ``bank``, with the token counts.

    Raises:
        GeomprobeError: if two metrics have a number or a curve of the same name.
    """
    reading = Reading(mode, sites, notes=notes)
    counts: dict[str, float] = {}
    for site, states in bank.items():
        tally = {name: float(value) for name, value in states[TokenCount()].items()}
        counts[site] = tally["tokens"] + tally["nonfinite"]
        reading._values |= {f"{name}/{site}": tally[name] for name in ("tokens", "texts")}
        if tally["nonfinite"]:
            reading._values[f"nonfinite/{site}"] = tally["nonfinite"]
            reading.notes.append(
                f"{site}: {tally['nonfinite']:.0f} rows contained NaN or Inf and were left out of every number"
            )
        if 0 < tally["generated"] < tally["texts"] and not any(note.startswith(_GENERATED) for note in reading.notes):
            reading.notes.append(
                f"{_GENERATED}: {tally['generated']:.0f} of the {tally['texts']:.0f} texts were generated by the model, token "
                "by token; the others were given to it whole"
            )
        for metric in metrics if tally["tokens"] else ():
            scalars, curves = metric.measure(states)
            for name, value in scalars.items():
                _put(reading._values, name, site, float(value), "number")
            for name, curve in curves.items():
                _put(reading.curves, name, site, curve, "curve")
    reading.notes += _uneven_sites(counts)
    return reading


def _uneven_sites(counts: Mapping[str, float]) -> list[str]:
    """A note if the sites, by their numbers of tokens, were not measured on the same ones."""
    if len(set(counts.values())) < 2:
        return []
    most = max(counts.values())
    fewer = ", ".join(f"{site} ({count:.0f})" for site, count in counts.items() if count < most)
    return [f"the sites were not measured on the same tokens: {most:.0f}, but {fewer}"]


def _put(table: dict[str, T], name: str, site: str, value: T, what: str) -> None:
    if (key := f"{name}/{site}") in table:
        raise GeomprobeError(f"two metrics of this probe have a {what} named {name!r}: use one of them, or rename yours")
    table[key] = value


def _no_such(what: str, key: str, table: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(str(key), table, n=3)
    nearest = f"; the nearest: {', '.join(map(repr, near))}" * bool(near)
    return f"no {what} {key!r} in this reading, which has {len(table)} (see its metrics and sites), as 'metric/site'{nearest}"


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
