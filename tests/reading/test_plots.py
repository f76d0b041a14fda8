"""The figures of a reading and of a comparison, as matplotlib holds them."""

import math
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from geomprobe import GeomprobeError, Reading
from geomprobe.metrics.base import Curve

SITES = ("embed", "layer_00", "layer_01", "final_norm")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")


def reading(tokens: int = 18, **changes: float) -> Reading:
    values = {f"tokens/{site}": float(tokens) for site in SITES} | {f"texts/{site}": 2.0 for site in SITES}
    for i, site in enumerate(SITES):
        values |= {f"effective_rank/{site}": 12.0 - i, f"rank_ratio/{site}": (12.0 - i) / 64, f"entropy/{site}": 0.5 + i / 100}
        values |= {f"$a_b$/{site}": float(i)}
    curves = {
        "gain/final_norm": Curve((4.6, math.nan, 3.0), (0.0, math.nan, 0.5), (2, 0, 1)),
        "entropy/final_norm": Curve((1.0, 2.0), None, (2, 2)),
        "spectrum/embed": Curve((1.0, 0.1, -1e-9), None, (18,) * 3),
        "lost/embed": Curve((math.nan,), None, (0,)),
    }
    keys = {key.replace("__", "/"): value for key, value in changes.items()}
    return Reading("eval", SITES, values | keys, curves=curves, widths=dict.fromkeys(SITES, 64))


def heights(line: Line2D) -> list[float]:
    """The values that a line is drawn through; NaN in its gaps."""
    values: list[float] = np.ma.filled(np.ma.asarray(line.get_ydata(), dtype=float), np.nan).tolist()
    return values


def legend(ax: Axes) -> str:
    found = ax.get_legend()
    assert found is not None
    return found.get_texts()[0].get_text()


def test_a_metric_over_the_sites_with_the_line_that_bounds_it() -> None:
    ax = reading().plot("effective_rank")
    line, bound = ax.get_lines()
    assert heights(line) == [12.0, 11.0, 10.0, 9.0]
    assert set(heights(bound)) == {18.0}
    assert ax.get_title() == "Effective rank\n18 tokens in 2 texts · d = 64 · eval"
    assert ax.get_ylabel() == "directions"
    assert [label.get_text() for label in ax.get_xticklabels()] == list(SITES)
    assert legend(ax) == "min(n, d) = 18: no larger value is possible"
    assert ax.get_ylim()[0] == 0
    assert ax.get_ylim()[1] > 18


def test_a_bound_far_above_is_said_and_a_metric_without_one_has_none() -> None:
    ax = reading(tokens=1000).plot("effective_rank")
    assert legend(ax) == "min(n, d) = 64 is above this figure"
    assert ax.get_ylim()[1] < 64
    ratio = reading().plot("rank_ratio")
    assert heights(ratio.get_lines()[1])[0] == 18 / 64
    assert reading().plot("entropy").get_legend() is None


def test_what_is_not_known_is_a_gap_and_is_said() -> None:
    ax = reading(effective_rank__layer_00=math.nan, effective_rank__layer_01=math.inf).plot("effective_rank")
    assert [math.isnan(y) for y in heights(ax.get_lines()[0])] == [False, True, True, False]
    assert ax.get_title().endswith("· no value at layer_00, layer_01")
    nothing = Reading("eval", SITES, {f"entropy/{site}": math.nan for site in SITES}).plot("entropy")
    assert "there is no finite value to draw" in [text.get_text() for text in nothing.texts]
    lost = reading().plot("lost", site="embed")
    assert "there is no finite value to draw" in [text.get_text() for text in lost.texts]


def test_a_curve_has_its_deviation_and_the_counts_below() -> None:
    ax = reading().plot("gain", site="final_norm")
    (line,) = ax.get_lines()
    assert heights(line)[::2] == [4.6, 3.0]
    assert math.isnan(heights(line)[1])
    (band,) = (each for each in ax.collections if isinstance(each, PolyCollection))
    vertices = np.concatenate([np.asarray(path.vertices) for path in band.get_paths()]).round(6).tolist()
    assert [2.0, 2.5] in vertices
    assert [2.0, 3.5] in vertices
    assert ax.get_title().startswith("Information gain of each token at final_norm\n18 tokens in 2 texts · d = 64 · eval · ")
    assert ax.get_title().endswith("no value at 1 of 3 places")
    (counts,) = ax.child_axes
    assert counts.get_ylabel() == "texts"
    assert counts.get_xlabel() == "position in the text, in tokens"
    assert counts.get_ylim()[1] > 2


def test_a_spectrum_runs_over_ranks_on_a_logarithmic_axis() -> None:
    ax = reading().plot("spectrum", site="embed")
    assert (ax.get_yscale(), ax.get_xlabel()) == ("log", "rank of the eigenvalue, the largest first")
    assert np.asarray(ax.get_lines()[0].get_xdata()).tolist() == [1, 2, 3]
    ax.figure.canvas.draw()


def test_a_name_can_be_a_number_and_a_curve() -> None:
    assert "at final_norm" in reading().plot("entropy", site="final_norm").get_title()
    assert "at final_norm" not in reading().plot("entropy").get_title()


def test_names_are_no_formulas() -> None:
    ax = reading().plot("$a_b$")
    ax.figure.canvas.draw()
    assert ax.get_title().startswith(r"\$a b\$")


def test_it_draws_on_the_axes_of_the_user() -> None:
    figure, (left, right) = pyplot.subplots(1, 2)
    assert reading().plot("effective_rank", ax=left) is left
    assert reading().plot("gain", site="final_norm", ax=right) is right
    assert pyplot.get_fignums() == [figure.number]
    nested = pyplot.figure().subfigures(1, 2)[0].add_subplot()
    assert reading().plot("gain", site="final_norm", ax=nested) is nested


@pytest.mark.parametrize(
    ("metric", "site", "message"),
    [
        ("effective_rnk", None, "no number 'effective_rnk' .*; the nearest: 'effective_rank/"),
        ("gain", None, r"'gain' is a curve, .*: reading.plot\('gain', site='final_norm'\); it is known at final_norm"),
        ("gain", "final_nrm", "no curve 'gain/final_nrm' .*; the nearest: 'gain/final_norm'"),
        ("effective_rank", "embed", "'effective_rank' is one number at each site, 12 at embed: leave out 'site'"),
        ("effective_rank/embed", None, "'effective_rank/embed' is one number, 12: give the metric without the site"),
    ],
)
def test_what_a_reading_does_not_have(metric: str, site: str | None, message: str) -> None:
    with pytest.raises(GeomprobeError, match=message):
        reading().plot(metric, site=site)
    assert pyplot.get_fignums() == []  # no empty figure is left


def test_ax_is_one_axes() -> None:
    with pytest.raises(GeomprobeError, match=r"plot\(ax=ndarray\): expected one axes of matplotlib"):
        reading().plot("entropy", ax=pyplot.subplots(1, 2)[1])


# -- comparisons ------------------------------------------------------------------------------------------------------------


def test_differences_by_key_printed_and_drawn() -> None:
    first, second = reading(), reading(effective_rank__embed=14.5, effective_rank__layer_00=10.0, entropy__embed=math.nan)
    compared = first.compare(second)
    assert compared["effective_rank"] == {"embed": 2.5, "layer_00": -1.0, "layer_01": 0.0, "final_norm": 0.0}
    assert compared["effective_rank/embed"] == 2.5
    assert math.isnan(compared["entropy/embed"])
    assert "tokens/embed" not in compared
    assert "+2.5" in str(compared)
    assert str(compared).startswith("geomprobe · second − first reading · 18 tokens in 2 texts · d = 64 · eval\n")
    assert max(map(len, str(compared).splitlines())) <= 80
    assert "<td" in compared._repr_html_()
    ax = compared.plot("effective_rank")
    assert [bar.get_height() for bar in ax.patches if isinstance(bar, Rectangle)] == [2.5, -1.0, 0.0, 0.0]
    assert ax.get_ylabel() == "directions: second − first"
    assert "no value at 1 of 4 sites" in compared.plot("entropy").get_title()
    with pytest.raises(GeomprobeError, match="the nearest: 'effective_rank/"):
        compared.plot("effective_rnk")


def test_other_sites_or_other_numbers_of_tokens_are_refused() -> None:
    with pytest.raises(GeomprobeError, match="measured on 18 and 25 tokens at embed: ranks and entropies grow with the number"):
        reading().compare(reading(tokens=25))
    with pytest.raises(GeomprobeError, match=r"different sites \('layer_00' is in one of them only\)"):
        reading().compare(Reading("eval", ("embed", "final_norm"), {"entropy/embed": 1.0}))
    counts = {key: value for key, value in reading().items() if key.startswith("tokens")}
    mine = Reading("eval", SITES, counts | {"mine/embed": 1.0})
    with pytest.raises(GeomprobeError, match=r"no metric in common: the first has effective_rank, .*, the second mine"):
        reading().compare(mine)
    with pytest.raises(GeomprobeError, match=r"Reading.compare\(3\): expected another Reading"):
        reading().compare(3)  # type: ignore[arg-type]


def test_what_differs_besides_the_numbers_is_said() -> None:
    first, second = reading(), reading(texts__embed=3.0, mine__embed=1.0)
    second.mode, second.widths, second.notes = "train", dict.fromkeys(SITES, 128), ["<b>mind</b>"]
    compared = first.compare(second)
    notes = " ".join(compared.notes)
    assert "the modes differ: eval and train" in notes
    assert "the tokens are in 2 texts in the first reading and in 3 in the second" in notes
    assert "the widths differ, d = 64 and 128" in notes
    assert "only the second reading has mine" in notes
    assert "second reading: <b>mind</b>" in notes
    assert "&lt;b&gt;mind&lt;/b&gt;" in compared._repr_html_()
    assert "! second reading: <b>mind</b>" in str(compared)


@pytest.mark.slow
def test_matplotlib_is_imported_when_something_is_drawn() -> None:
    code = "import sys; from geomprobe import Reading; str(Reading('eval', ())); assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
