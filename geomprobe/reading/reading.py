"""``Reading``: the numbers that a probe measured.

The code that prints and draws them is imported where it is used, because every program that has a probe imports this module.
"""

from typing import TYPE_CHECKING

from geomprobe.errors import GeomprobeError
from geomprobe.reading.data import ReadingData

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from geomprobe.reading.comparison import Comparison

__all__ = ["Reading"]


class Reading(ReadingData):
    """Numbers named ``metric/site``, and curves over positions in the text, with the number of tokens and texts behind them.

    A reading is a mapping of its numbers: ``reading["entropy/layer_05"]``, ``reading.items()``, ``dict(reading)``.
    ``reading["entropy"]`` returns the numbers of one metric at all sites. Two readings are equal if everything in them except
    the cost is equal. A reading and a dict are equal if their numbers are equal. ``print(reading)`` prints a table, and a
    notebook shows one.

    Args:
        mode: ``"train"``, ``"eval"``, ``"no_grad"`` or ``"fixed"``; or ``"eval_<name>"`` for one of several evaluation sets of
            Trainer.
        sites: the measured sites, in order from ``embed`` to ``final_norm``.
        values: the numbers by ``"metric/site"``. ``tokens/<site>`` and ``texts/<site>`` are the numbers of rows and texts that
            the other numbers were computed from.
        notes: remarks that a reader must know, such as rows that were left out or a probe that stopped early.
        curves: the curves by ``"metric/site"``.
        widths: the width d of the hidden states by site, where it is known. A probe knows it if one of its metrics needs the
            sum of the rows, as :class:`~geomprobe.RepresentationEntropy` does.

    Attributes:
        cost: what the measurement has cost (:class:`Cost`), if a probe returned this reading. It is not part of ``to_dict()``,
            because it differs between two runs of the same training.
    """

    def plot(self, metric: str, *, site: str | None = None, ax: "Axes | None" = None) -> "Axes":
        """Draw one metric at all sites, as ``reading.plot("effective_rank")`` does, or, if ``site`` is given, a curve of that
        site, as ``reading.plot("gain", site="final_norm")`` does.

        For a rank, a line shows ``min(n, d)``, the largest rank that n rows of width d can have. A curve over positions in the
        text is the mean over the texts, with a band of one standard deviation on either side and the number of texts below.
        Unknown values leave gaps, which the title mentions.

        Args:
            metric: the name of a number, or of a curve.
            site: the site of a curve.
            ax: the matplotlib axes to draw on. Default: those of a new figure of ``matplotlib.pyplot``.

        Returns:
            The axes.

        Raises:
            MissingKeyError: if the reading has no such number or curve. The message names the nearest ones.
            GeomprobeError: if a curve is requested without its site, or ``ax`` is not an axes.
        """
        from geomprobe.reading.plots import plot_reading

        return plot_reading(self, metric, site=site, ax=ax)

    def compare(self, other: "Reading") -> "Comparison":
        """Return the differences ``other − self`` of all numbers that both readings have, as a mapping that can be printed
        and plotted.

        Args:
            other: a reading of the same sites on equally many tokens.

        Raises:
            GeomprobeError: if the readings have different sites or different numbers of tokens, because ranks and entropies
                grow with the number of tokens; or if they have no number in common.
        """
        if not isinstance(other, Reading):
            raise GeomprobeError(f"Reading.compare({other!r:.60}): expected another Reading")
        from geomprobe.reading.comparison import Comparison

        return Comparison(self, other)

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

    def __str__(self) -> str:
        """Return a table for 80 columns with one line per site. A bar shows each effective rank from 0 to ``min(n, d)``."""
        from geomprobe.reading.table import terminal_notes, terminal_table

        return "\n".join([terminal_table(self), *terminal_notes(self)])

    def _repr_html_(self) -> str:
        """Return an HTML table for notebooks."""
        from geomprobe.reading.table import notebook_table

        return notebook_table(self)

    def __repr__(self) -> str:
        from geomprobe.reading.table import headline

        shape = f"{len(self.metrics)} metrics at {len(self.sites)} sites, {len(self.curves)} curves, {len(self.notes)} notes"
        return f"<Reading {headline(self)!r:.150}: {shape}>"
