"""The differences of two readings."""

import html
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from geomprobe.errors import GeomprobeError
from geomprobe.metrics.descriptions import describe
from geomprobe.reading.data import ReadingData
from geomprobe.reading.plots import INK, axes_for, draw_sites, plain
from geomprobe.reading.table import headline, notebook_table, terminal_table, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Comparison"]

_COUNTS = ("tokens", "texts", "nonfinite", "sample_tokens")


class Comparison(Mapping[str, float]):
    """The differences ``second − first`` of two readings, by ``metric/site``; NaN if one of the two numbers is not known.

    It is returned by :meth:`Reading.compare <geomprobe.Reading.compare>`, and is looked up like a reading:
    ``comparison["entropy/layer_05"]``, ``comparison["entropy"]``. It can be printed and plotted, and notebooks show it.

    Args:
        first: a reading.
        second: another reading of the same sites and on equally many tokens.

    Attributes:
        notes: what a reader must know of the two readings: the notes of each, and the differences between them besides their
            numbers.

    Raises:
        GeomprobeError: if they differ in their sites or in their numbers of tokens, or have no number in common.
    """

    def __init__(self, first: ReadingData, second: ReadingData) -> None:
        _check(first, second)
        self.first, self.second = first, second
        values = {
            key: second[key] - first[key] for key in first if key in second and key.split("/")[0] not in _COUNTS
        }  # inf − inf is NaN
        if not values:
            raise GeomprobeError(
                f"these readings have no metric in common: the first has {_names(first)}, the second {_names(second)}; measure "
                "both with the same metrics"
            )
        self._differences = ReadingData(second.mode, second.sites, values)
        self.notes = _notes(first, second)

    def __getitem__(self, key: str) -> Any:
        return self._differences[key]

    def __contains__(self, key: object) -> bool:
        return key in self._differences

    def __iter__(self) -> Iterator[str]:
        return iter(self._differences)

    def __len__(self) -> int:
        return len(self._differences)

    def get(self, key: str, default: Any = None, /) -> Any:
        """Return the difference of a full key, or ``default`` if there is none."""
        return self._differences.get(key, default)

    def plot(self, metric: str, *, ax: "Axes | None" = None) -> "Axes":
        """Draw the differences of one metric as a bar for each site.

        Args:
            metric: the name of a number that both readings have.
            ax: the matplotlib axes to draw on. Default: those of a new figure of ``matplotlib.pyplot``.

        Returns:
            The axes.

        Raises:
            MissingKeyError: if there is no such number in both readings. The message names the nearest ones.
        """
        values = self._differences[metric]
        if not isinstance(values, dict):
            raise GeomprobeError(f"{metric!r} is one number: give the metric without the site, {metric.split('/')[0]!r}")
        ax = axes_for(ax)
        numbers = [values.get(site, math.nan) for site in self._differences.sites]
        colours = [INK["below"] if number < 0 else INK["line"] for number in numbers]
        ax.bar(range(len(numbers)), [x if math.isfinite(x) else math.nan for x in numbers], color=colours, width=0.7)
        ax.axhline(0, color=INK["quiet"], lw=0.8)
        draw_sites(ax, self._differences.sites)
        about = describe(metric)
        ax.set_ylabel(plain(f"{about.axis or metric}: second − first"))
        unknown = sum(not math.isfinite(number) for number in numbers)
        more = f" · no value at {unknown} of {len(numbers)} sites" * bool(unknown)
        ax.set_title(plain(f"Difference: {html.unescape(about.title)}\n{self._about()}{more}"), fontsize=10)
        return ax

    def __str__(self) -> str:
        """Return a table for 80 columns with one line per site."""
        table = terminal_table(self._differences, head=f"geomprobe · {self._head()}", sign="+", bars=False)
        return "\n".join([table, *(line for note in self.notes for line in wrap("! " + note))])

    def _repr_html_(self) -> str:
        """Return an HTML table for notebooks: blue where the second reading is larger, orange where it is smaller."""
        return notebook_table(self._differences, head=f"geomprobe · {self._head()}", sign="+", notes=self.notes)

    def __repr__(self) -> str:
        return f"<Comparison {self._head()!r:.150}: {len(self._differences.metrics)} metrics>"

    def _about(self) -> str:
        return headline(self.second).removeprefix("geomprobe · ")

    def _head(self) -> str:
        return f"second − first reading · {self._about()}"


def _check(first: ReadingData, second: ReadingData) -> None:
    if first.sites != second.sites:
        odd = [site for site in (*first.sites, *second.sites) if (site in first.sites) != (site in second.sites)]
        why = f"{odd[0]!r} is in one of them only" if odd else "their order differs"
        raise GeomprobeError(f"these readings have different sites ({why}): measure both at the same ones, Probe(sites=…)")
    for site in first.sites:
        n, m = (reading.get(f"tokens/{site}", 0) for reading in (first, second))
        if n != m:
            raise GeomprobeError(
                f"these readings were measured on {n:,.0f} and {m:,.0f} tokens at {site}: ranks and entropies grow with the "
                "number of tokens, so their difference would say nothing about the models; measure both on equally many tokens"
            )


def _notes(first: ReadingData, second: ReadingData) -> list[str]:
    notes = []
    texts = [max((reading.get(f"texts/{site}", 0) for site in reading.sites), default=0) for reading in (first, second)]
    widths = [", ".join(map(str, sorted(set(reading.widths.values())))) for reading in (first, second)]
    if first.mode != second.mode:
        notes.append(f"the modes differ: {first.mode} and {second.mode}")
    if texts[0] != texts[1]:
        notes.append(
            f"the tokens are in {texts[0]:,.0f} texts in the first reading and in {texts[1]:,.0f} in the second, so means over "
            "texts are over other lengths"
        )
    if widths[0] != widths[1] and all(widths):
        notes.append(f"the widths differ, d = {widths[0]} and {widths[1]}: a wider model has room for larger ranks")
    for which, here, there in (("first", first, second), ("second", second, first)):
        if alone := [name for name in here.metrics if name not in there.metrics and name not in _COUNTS]:
            notes.append(f"only the {which} reading has {', '.join(alone)}")
        notes += [f"{which} reading: {note}" for note in here.notes]
    return notes


def _names(reading: ReadingData) -> str:
    names = [name for name in reading.metrics if name not in _COUNTS]
    return ", ".join(names[:4]) + ", …" * (len(names) > 4) or "none"
