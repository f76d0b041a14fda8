"""The tables of a reading: in a terminal of 80 columns, whatever its metrics, and in a notebook."""

import math
import re

import pytest
import torch

from geomprobe import (
    AttentionProfile,
    ContextLasso,
    Curvature,
    InformationGain,
    MassiveActivations,
    MeanRepresentation,
    Probe,
    Reading,
    RepresentationEntropy,
    ResidualGrowth,
)
from tests.browser import Viewer
from tests.tiny_models import tiny, token_batch

SITES = ("embed", "layer_00", "final_norm")


def ranked(tokens: int = 18, width: int | None = 576, ranks: tuple[float, ...] = (9.0, 18.0, 4.5)) -> Reading:
    values = {f"tokens/{site}": float(tokens) for site in SITES} | {f"texts/{site}": 1.0 for site in SITES}
    values |= {f"effective_rank/{site}": rank for site, rank in zip(SITES, ranks, strict=True)}
    return Reading("eval", SITES, values, widths=dict.fromkeys(SITES, width) if width else None)


@pytest.fixture(scope="module")
def full() -> Reading:
    """A reading of nearly all metrics."""
    metrics = [
        RepresentationEntropy(text_spectrum=True),
        InformationGain(),
        ContextLasso(attention=True),
        AttentionProfile(),
        Curvature(),
        MassiveActivations(),
        ResidualGrowth(),
        MeanRepresentation(),
    ]
    model = tiny()
    with Probe(model, metrics, on_error="raise") as probe, torch.no_grad():
        model(token_batch(2, 9))
    return probe.read()


def bars(reading: Reading) -> dict[str, str]:
    """The bar of each site."""
    rows = [line.split() for line in str(reading).splitlines()]
    return {row[0]: "".join(re.findall("[█▏▎▍▌▋▊▉]", " ".join(row))) for row in rows if row and row[0] in reading.sites}


def test_all_metrics_take_80_columns_and_none_is_lost(full: Reading) -> None:
    lines = str(full).splitlines()
    assert max(map(len, lines)) <= 80
    titles = {"entropy": "entropy", "eff.rank": "effective_rank", "anisotropy": "anisotropy", "gain/text": "information_gain"}
    titles |= {"gain/token": "gain_per_token"}
    assert {titles[title] for title in lines[2].split()[1:]} | set(
        re.findall(r"\w+", " ".join(lines[lines.index(next(x for x in lines if x.startswith("also:"))) :]))
    ) >= set(full.metrics) - {"tokens", "texts"}
    for site in full.sites:
        (line,) = (line for line in lines if line.split()[:1] == [site])
        assert f"{full[f'entropy/{site}']:.3f}" in line


def test_the_bar_of_the_effective_rank_ends_at_the_smaller_of_n_and_d() -> None:
    assert bars(ranked()) == {"embed": "█" * 5, "layer_00": "█" * 10, "final_norm": "██▌"}
    assert bars(ranked(tokens=1000, width=36)) == {"embed": "██▌", "layer_00": "█" * 5, "final_norm": "█▎"}
    assert "bars: effective rank from 0 to 18 = min(n, d)" in str(ranked())
    assert "bars: effective rank from 0 to 18.0, the largest" in str(ranked(width=None))
    assert bars(ranked(width=None))["layer_00"] == "█" * 10


def test_few_tokens_are_said_with_the_width() -> None:
    few = "18 tokens < d = 576: rank cannot exceed 18; compare readings of equally many tokens"
    assert " ".join(str(ranked()).split()).endswith("! " + few)
    assert str(ranked()).startswith("geomprobe · 18 tokens in 1 text · d = 576 · eval\n")
    assert few.replace("<", "&lt;") in ranked()._repr_html_()
    for enough in (ranked(tokens=576), ranked(width=None), Reading("eval", SITES, widths={"embed": 3})):
        assert "cannot exceed" not in str(enough) + enough._repr_html_()


def test_sites_of_other_widths_have_their_own_ends() -> None:
    reading = ranked(tokens=1000)
    reading.widths |= {"embed": 18}
    assert "d = 18 or 576" in str(reading)
    assert "from 0 to 18 or 576 = min(n, d)" in str(reading)
    assert bars(reading)["embed"] == "█" * 5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e-300, 0.0])
def test_any_number_fits(value: float) -> None:
    reading = ranked(ranks=(value, 1.0, value))
    reading._values |= {f"{name}/embed": value for name in ("entropy", "information_gain", "x" * 300, "a")}
    lines = str(reading).splitlines()
    assert max(map(len, lines)) <= 80
    assert "nan" not in str(reading)
    assert reading._repr_html_().count("<tr>") == 1 + len(SITES)


def test_strange_sites_and_long_notes_fit() -> None:
    sites = ("s" * 300, "模\n型", "")
    lines = str(
        Reading("eval", sites, {f"effective_rank/{site}": 1.0 for site in sites}, ["word " * 50, "y" * 200])
    ).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.count("word") for line in lines) == 50


def test_a_reading_of_a_metric_of_ones_own_is_printed() -> None:
    reading = Reading("eval", ("embed", "final_norm"), {"mean_norm/embed": 1.5, "mean_norm/final_norm": 1234.5})
    lines = str(reading).splitlines()
    assert any("mean_norm" in line for line in lines)
    shown = [float(line.split()[1]) for line in lines if line.startswith(("embed", "final_norm"))]
    assert shown == pytest.approx([1.5, 1234.5], rel=1e-3)
    assert "bars" not in str(reading)


def test_notes_and_numbers_that_are_missing() -> None:
    values = {"tokens/embed": 1234567.0, "texts/embed": 1.0, "entropy/embed": 0.25, "anisotropy/embed": math.nan}
    lines = str(Reading("train", SITES, values, ["mind the gap"])).splitlines()
    assert lines[0] == "geomprobe · 1,234,567 tokens in 1 text · train"
    assert set(SITES) <= {line.split()[0] for line in lines if line}
    assert lines[-1] == "! mind the gap"
    assert "nan" not in "\n".join(lines)


# -- in a notebook ----------------------------------------------------------------------------------------------------------


def test_html_escapes_what_it_shows() -> None:
    reading = Reading("<i>", ("<b>x</b>",), {"<script>/<b>x</b>": 1.0}, ['<b>mind</b> the gap & "quotes"'])
    page = reading._repr_html_()
    assert not re.findall("<script|<b>|<i>", page)
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;mind&lt;/b&gt; the gap &amp; &quot;quotes&quot;" in page
    for tag in ("table", "thead", "tbody", "tr", "p", "div", "th", "td"):
        assert len(re.findall(f"<{tag}[ >]", page)) == page.count(f"</{tag}>")


def test_five_metrics_are_open_and_the_rest_is_folded(full: Reading, viewer: Viewer) -> None:
    page = viewer.open(full._repr_html_())
    heads = page.locator("thead th").all_text_contents()
    assert heads[:6] == ["site", "entropy", "effective_rank", "anisotropy", "information_gain", "gain_per_token"]
    assert set(heads) == {"site"} | set(full.metrics) - {"tokens", "texts"}
    assert page.locator("thead").nth(0).is_visible()
    assert not page.locator("thead").nth(1).is_visible()
    page.locator("summary").click()
    assert page.locator("thead").nth(1).is_visible()
    assert f"{full['entropy/layer_01']:.3f}" in page.locator("tbody td").all_text_contents()


@pytest.mark.parametrize("dark", [False, True])
def test_colours_go_from_the_smallest_to_the_largest_and_text_stays_legible(viewer: Viewer, dark: bool) -> None:
    scheme = "<body style='color-scheme:dark;background:#111;color:#ddd'>" if dark else "<body style='background:#fff'>"
    page = viewer.open(scheme + ranked(ranks=(2.0, 4.0, math.nan))._repr_html_(), dark=dark)
    low, high, none = page.evaluate("[...document.querySelectorAll('td')].map(e => getComputedStyle(e).backgroundColor)")
    assert [float(colour.rstrip(")").split(",")[-1]) for colour in (low, high)] == [0.04, 0.45]
    assert none == "rgba(0, 0, 0, 0)"
    r, g, b = (
        0.45 * tint + 0.55 * ground for tint, ground in zip((74, 124, 214), (17,) * 3 if dark else (255,) * 3, strict=True)
    )

    def light(*parts: float) -> float:
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in (part / 255 for part in parts)]
        return sum(p * q for p, q in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))

    ink = 0xDD if dark else 0
    pale, deep = sorted((light(r, g, b), light(ink, ink, ink)), reverse=True)
    assert (pale + 0.05) / (deep + 0.05) >= 4.5  # WCAG AA
