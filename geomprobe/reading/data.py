"""The numbers of a reading, and how they are looked up, saved and loaded."""

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Self

from geomprobe.errors import GeomprobeError, MissingKeyError
from geomprobe.files import Format, check_shape, parse_json
from geomprobe.metrics.base import Curve

__all__ = ["Cost", "ReadingData"]

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
    "widths?": {str: int},
    str: object,  # a step, or the tokens of an inspected text
}

_NO_COST = {"cost": None}


@dataclass(frozen=True)
class Cost:
    """What a probe has cost in one process since it was attached: in measured forwards, in reading and (with a callback) in
    logging.

    Attributes:
        seconds: the time spent: on the host, or on the device if that is longer.
        share: this time divided by the time since the probe was attached.
        interval: with ``when=budget(…)``, the current number of steps from one measurement to the next; otherwise ``None``.
    """

    seconds: float
    share: float
    interval: int | None = None


class ReadingData(Mapping[str, float]):
    """What :class:`~geomprobe.Reading` contains, and how it is looked up and saved."""

    def __init__(
        self,
        mode: str,
        sites: Sequence[str],
        values: Mapping[str, float] | None = None,
        notes: Iterable[str] = (),
        curves: Mapping[str, Curve] | None = None,
        widths: Mapping[str, int] | None = None,
    ) -> None:
        self.mode = mode
        self.sites = tuple(sites)
        self.notes = list(notes)
        self.curves = dict(curves or {})
        self.widths = dict(widths or {})
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
        return vars(self) | _NO_COST == vars(other) | _NO_COST if isinstance(other, ReadingData) else super().__eq__(other)

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
        ``{"format": 1, "mode": …, "sites": {site: {metric: value}}, "curves": {site: {metric: …}}, "notes": […], "widths":
        {site: d}}``."""
        curves: dict[str, dict[str, Any]] = {}
        for key, curve in self.curves.items():
            metric, site = key.split("/")
            std = None if curve.std is None else [_finite(x) for x in curve.std]
            mean = [_finite(x) for x in curve.mean]
            curves.setdefault(site, {})[metric] = {"mean": mean, "std": std, "count": list(curve.count)}
        sites = {site: {name: _finite(value) for name, value in self.site(site).items()} for site in self.sites}
        start = {"format": FORMAT, "mode": self.mode, "sites": sites, "curves": curves, "notes": list(self.notes)}
        return start | {"widths": dict(self.widths)}

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, what: str = "this is not a reading", advice: str = _ADVICE) -> Self:
        """Return the reading from the dict that :meth:`to_dict` returned.

        Args:
            data: the dict. Names that :meth:`to_dict` does not write are ignored.
            what: the beginning of an error message, which says where the dict comes from.
            advice: the end of an error message, which says what to do.

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
        widths = data.get("widths", {})
        if wrong := [site for site, width in widths.items() if width < 1 or site not in data["sites"]]:
            raise GeomprobeError(f"{what}: widths has {wrong[0]!r}, which is not a site, or has a width below 1; {advice}")
        return cls(data["mode"], tuple(data["sites"]), values, data["notes"], curves, widths)

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


def _no_such(what: str, key: str, table: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(str(key), table, n=3)
    nearest = f"; the nearest: {', '.join(map(repr, near))}" * bool(near)
    return f"no {what} {key!r} in this reading, which has {len(table)} (see its metrics and sites), as 'metric/site'{nearest}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
