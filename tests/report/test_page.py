"""The report of a sweep: its figures hold the readings' numbers, and its page is drawn wherever it is opened."""

import html
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page

from geomprobe import GeomprobeError
from geomprobe.cli import main as cli
from geomprobe.metrics.base import Curve
from geomprobe.metrics.descriptions import VIEWS, describe
from geomprobe.reading import Reading
from geomprobe.report import figures
from geomprobe.report.page import report_page
from geomprobe.sweeps.records import Record, Run
from tests.browser import Viewer
from tests.cli.test_main import geomprobe
from tests.report.synthetic import SIZES, STEPS, suite, training, write_run

SCRIPT = "</script><script>alert(1)</script>"
WEIGHTS = {"power": 0.6, "log-linear": 0.3, "constant": 0.1}
HOSTILE = (
    SCRIPT,
    "<img src=x onerror=alert(2)>",
    "<a href='http://example.invalid/'>x</a>",
    "{{data}} %{y} $x$ &lt;",
    "\u202e\x00\n",
)


@dataclass(frozen=True)
class Law:
    """What the fit of a power law gives, with numbers that a test chooses."""

    weights: dict[str, float]
    exponent: float = -0.25
    exponent_interval: tuple[float, float] = (-0.5, 0.125)
    r2: float = 0.75

    @property
    def best(self) -> str:
        return max(self.weights, key=self.weights.__getitem__)

    def __call__(self, x: Any) -> np.ndarray[Any, Any]:
        return np.asarray(x, float) ** self.exponent


@pytest.fixture(autouse=True)
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """What was fitted; in the place of the fit stands one whose law a test chooses by :data:`WEIGHTS`."""
    fitted: list[tuple[Any, Any]] = []

    def fit_power_law(x: Any, y: Any) -> Law:
        fitted.append((x, y))
        if len(x) < 4:
            raise GeomprobeError(f"a power law takes at least 4 points, got {len(x)}")
        return Law(WEIGHTS)

    module = ModuleType("power_law")
    vars(module)["fit_power_law"] = fit_power_law
    monkeypatch.setitem(sys.modules, "geomprobe.theory.power_law", module)
    return fitted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of a page of each kind, on the disk."""
    root = tmp_path_factory.mktemp("runs")
    several = {f"pythia-{size / 1e6:.0f}m": (size, *SIZES[size]) for size in list(SIZES)[:4]}
    kinds: dict[str, dict[str, list[Record]]] = {
        "one": {"pythia-160m": training()},
        "sizes": {"suite": suite()},
        "several": {
            name: training(layers=layers, width=width, parameters=int(size), steps=STEPS[::3], model=name)
            for name, (size, layers, width) in several.items()
        },
        "single": {"last": training(layers=6, steps=[143_000])},
    }
    for kind, runs in kinds.items():
        for name, records in runs.items():
            write_run(root / kind / name, records)
    return root


@pytest.fixture
def runs(folder: Path) -> Callable[[str], list[Run]]:
    """The runs of one kind, read anew."""
    return lambda kind: [Run.open(path) for path in sorted((folder / kind).iterdir(), key=lambda path: path.stat().st_ctime_ns)]


@pytest.fixture(scope="module")
def documents() -> dict[str, str]:
    """Pages that were made already."""
    return {}


@pytest.fixture
def document(runs: Callable[[str], list[Run]], documents: dict[str, str]) -> Callable[[str], str]:
    def page(kind: str) -> str:
        if kind not in documents:
            documents[kind] = report_page(runs(kind))
        return documents[kind]

    return page


def draw_all(page: Page) -> None:
    """Open the folded groups, and draw what is on show."""
    page.evaluate("folded.forEach(group => { group.open = true; })")
    page.evaluate("plots.filter(plot => plot.offsetParent && !drawn.has(plot)).forEach(plot => draw(plot))")
    page.wait_for_function("plots.every(plot => !plot.offsetParent || plot.querySelector('.xtick, .ytick'))")


def undrawn(page: Page) -> list[str]:
    """Figures on show that lack a line or map of theirs."""
    missing: list[str] = page.evaluate(
        """() => plots.filter(plot => plot.offsetParent).filter(plot => {
            const traces = data.figures[plot.dataset.figure].data;
            const lines = plot.querySelectorAll(".scatterlayer .trace").length;
            const maps = plot.querySelectorAll(".heatmaplayer image").length;
            return lines + maps !== traces.length;
        }).map(plot => plot.ariaLabel)"""
    )
    return missing


def wide(page: Page) -> int:
    pixels: int = page.evaluate("document.documentElement.scrollWidth")
    return pixels


# -- in a browser -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one", "sizes", "several", "single"])
def test_every_figure_is_drawn_under_every_switch(viewer: Viewer, document: Callable[[str], str], kind: str) -> None:
    made = document(kind)
    assert len(made.encode()) < 6_000_000
    page = viewer.open(made)
    draw_all(page)
    assert undrawn(page) == []
    assert page.locator(".plot:visible").count() >= 20
    for plate in page.locator(".plate", has=page.locator(".switch")).all():
        first, *second = plate.locator(".switch").all()
        for outer in first.locator("input").all():
            outer.check(force=True)
            for inner in second[0].locator("input").all() if second else [outer]:
                inner.check(force=True)
                assert plate.locator(".view:visible").count() == 1
                assert plate.locator(".none").is_hidden()
                draw_all(page)
    assert undrawn(page) == []
    assert page.evaluate("drawn.size === plots.length")


def test_figures_are_drawn_as_they_come_near(viewer: Viewer, document: Callable[[str], str]) -> None:
    page = viewer.open(document("one"), height=400)
    page.wait_for_function("drawn.size > 0")
    assert page.evaluate("drawn.size") < 10
    for group in page.locator("details.small").all():
        assert group.locator(".plate").first.is_hidden()
        group.locator("summary").first.click()
    for plot in page.locator(".plot:visible").all():
        plot.scroll_into_view_if_needed()
    page.wait_for_function("plots.every(plot => !plot.offsetParent || plot.querySelector('.xtick, .ytick'))")
    assert undrawn(page) == []


@pytest.mark.parametrize("kind", ["one", "sizes", "several"])
def test_a_phone_scrolls_down_only(viewer: Viewer, document: Callable[[str], str], kind: str) -> None:
    page = viewer.open(document(kind), width=390, height=844, touch=True)
    draw_all(page)
    assert undrawn(page) == []
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
    assert wide(page) == 390
    bars = page.locator(".modebar")
    assert bars.count() > 0
    assert bars.locator("visible=true").count() == 0  # they would lie on the figures
    assert page.evaluate("plots.filter(plot => plot.offsetParent).every(plot => plot.getBoundingClientRect().right <= 390)")


def test_dark_follows_the_reader(viewer: Viewer, document: Callable[[str], str]) -> None:
    page = viewer.open(document("one"))
    draw_all(page)

    colours = """[[".scatterlayer .trace:last-child .js-line", "stroke"], [".xtick text", "fill"], [".key i", "borderTopColor"]]
        .map(([part, name]) => document.querySelector(part) && getComputedStyle(document.querySelector(part))[name])"""
    light: list[str] = page.evaluate(colours)
    assert len({*light}) == 3
    page.locator(".switch").first.get_by_text("H / log d").click()  # the views that are hidden change too
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"light => {colours}.every((colour, i) => colour && colour !== light[i])", arg=light)
    page.locator(".switch").first.get_by_text("share of its maximum").click()
    draw_all(page)
    assert undrawn(page) == []
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"light => {colours}.every((colour, i) => colour === light[i])", arg=light)


def test_dark_from_the_start(viewer: Viewer, document: Callable[[str], str]) -> None:
    page = viewer.open(document("one"), dark=True)
    draw_all(page)
    assert undrawn(page) == []
    assert page.evaluate("getComputedStyle(document.querySelector('.xtick text')).fill") == "rgb(163, 167, 176)"


def test_without_a_script_the_numbers_are_tables(
    viewer: Viewer, runs: Callable[[str], list[Run]], document: Callable[[str], str]
) -> None:
    page = viewer.open(document("one"), script=False)
    assert page.locator("noscript p").is_visible()
    assert page.locator(".plot:visible, .switch:visible").count() == 0
    for group in page.locator("details.small > summary").all():
        group.click()
    views = page.locator(".view")
    assert views.count() == page.locator(".view:visible").count() > 20
    for summary in page.locator(".view summary").all():
        summary.click()
    assert page.locator("table:visible").count() >= views.count()
    table = page.locator("table", has=page.get_by_text("Matrix entropy over log d", exact=True)).first
    heads = table.locator("thead th").all_inner_texts()
    assert heads == [*(f"step {step:,}" for step in STEPS), "untrained", "Gaussian rows"]
    rows = {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()}
    run = runs("one")[0]
    for site in ("embed", "layer_17", "final_norm"):
        read = [record.reading for record in (*run.checkpoints, run.baseline(run.checkpoints[0], "untrained")) if record]
        expected = [reading[f"matrix_entropy_log_d/{site}"] for reading in read if reading]
        assert [float(cell) for cell in rows[site][:-1]] == pytest.approx(expected, rel=1e-3)
    assert wide(page) <= 1100


def test_hostile_names_are_text(viewer: Viewer, tmp_path: Path) -> None:
    records = [
        replace(record, name=f"{hostile} {i}", model=hostile)
        for i, (record, hostile) in enumerate(
            zip([r for r in suite(length=8) if r.kind == "checkpoint"], HOSTILE, strict=False)
        )
    ]
    for record, hostile in zip(records, HOSTILE, strict=True):
        assert record.reading is not None
        record.reading.notes.append(f"note {hostile}")
    records += [Record(name=f"{hostile} failed", error=hostile) for hostile in HOSTILE]
    data = {"name": SCRIPT, "hash": HOSTILE[1], "texts": SCRIPT, "tokens": 10, "sample_tokens": 10}
    path = write_run(
        tmp_path / "<b onclick=alert(3)>&amp;", records, data=data, versions={"geomprobe": SCRIPT, SCRIPT: HOSTILE[1]}
    )
    document = report_page([Run.open(path)])
    page = viewer.open(document)
    draw_all(page)
    assert undrawn(page) == []
    assert page.locator("h1").inner_text() == "<b onclick=alert(3)>&amp;"
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
    for hostile in HOSTILE[:4]:
        assert page.get_by_text(hostile).count() >= 1
    assert page.locator("main a:not(nav a), main img, main script, main b[onclick]").count() == 0
    page.locator(".plot .point").first.hover(force=True)
    page.wait_for_selector(".hoverlayer text")


def test_hostile_runs_are_text_in_switches(viewer: Viewer, tmp_path: Path) -> None:
    names = ("<img src=x onerror=alert(1)>", "<s>", "&amp;")
    runs = [
        Run.open(write_run(tmp_path / name, training(layers=2, steps=[0, 10, 20], length=8, parameters=10**6 * (i + 1))))
        for i, name in enumerate(names)
    ]
    page = viewer.open(report_page(runs))
    draw_all(page)
    assert page.locator(".switch").first.locator("span").all_inner_texts() == ["<img src…onerror=alert(1)>", *names[1:]]
    assert page.locator("main img, main s").count() == 0
    assert undrawn(page) == []


def test_the_finding_and_a_whole_figure_are_seen_at_once(viewer: Viewer, document: Callable[[str], str]) -> None:
    page = viewer.open(document("one"), width=1280, height=800)
    first = page.locator(".plate").first
    box = first.bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= 800
    assert (
        page.locator(".summary").first.inner_text().startswith("Collapse: the effective rank after the last layer (final_norm)")
    )
    page.wait_for_function("plots[0].querySelector('.textpoint')")
    texts = [text for text in first.locator(".plot").first.locator(".textpoint").all_text_contents() if text]
    assert len(texts) == 2  # the last one is the lowest
    assert page.locator("header dl").is_hidden()


def test_the_contents_lead_to_every_section_and_open_it(viewer: Viewer, document: Callable[[str], str]) -> None:
    page = viewer.open(document("one"), width=1280, height=800)
    links = page.locator(".contents a")
    heads = page.locator("h2").all_inner_texts()
    assert links.all_inner_texts() == heads
    assert heads[-1] == "Other views"
    links.last.click()
    page.wait_for_function("document.getElementById('others').getBoundingClientRect().top < 800")
    group = page.locator("details.small").last
    assert not group.evaluate("group => group.open")
    page.evaluate("id => { location.hash = id; }", group.get_attribute("id"))
    page.wait_for_function("group => group.open", arg=group.element_handle())


def test_before_printing_everything_is_opened_and_drawn_at_the_width_of_a_sheet(
    viewer: Viewer, document: Callable[[str], str]
) -> None:
    page = viewer.open(document("single"), width=1280, height=400)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("folded.length && folded.every(group => group.open)")
    shown = "plots.filter(plot => plot.offsetParent)"
    assert page.evaluate(f"{shown}.every(plot => plot.querySelector('.xtick, .ytick'))")
    assert page.evaluate(
        f"{shown}.every(plot => plot.querySelector('svg').getBoundingClientRect().width <= plot.clientWidth + 1)"
    )
    assert page.evaluate("document.querySelector('main').clientWidth") <= 704
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("folded.every(group => !group.open)")
    assert page.evaluate("document.querySelector('main').clientWidth") > 1000


# -- what the page says -----------------------------------------------------------------------------------------------------


def test_what_was_measured_and_what_failed(document: Callable[[str], str]) -> None:
    body = document("one").partition("<script")[0]
    said = html.unescape(re.sub("<[^>]+>", " ", body))
    for part in (
        "EleutherAI/pythia-160m (162M parameters, d\u00a0=\u00a0576)",
        "hh-rlhf/harmless-base",
        "2,048 texts, 409,600 tokens, 16,384 tokens in the sample for expensive metrics",
        "9f2c41d07be8",
        "20 measured, 2 failed",
        "OutOfMemoryError: tried to allocate 2 GiB <now>",
        "transformers\u00a05.23.0",
        ", while the loss went from 10.8 to 2.6.",
    ):
        assert part in said, part
    for figure in re.findall(r"<figcaption>.*?</figcaption>", body):
        assert re.search(r"<p>[^<].+ <i>.+</i></p>", figure)
    labels = re.findall(r'class="plot" role="img" aria-label="(.*?)"', body)
    assert len(labels) > 50
    assert all(re.search(r"values from −?[\d.e+−]+ to −?[\d.e+−]+\.$", label) for label in labels)


def test_other_tokens_are_pointed_out(tmp_path: Path) -> None:
    records = training(layers=2, steps=[0, 8], length=8)
    assert "measured on different tokens" not in report_page([Run.open(write_run(tmp_path / "same", records))])
    records[1] = replace(records[1], tokens="other")
    assert "measured on different tokens" in report_page([Run.open(write_run(tmp_path / "other", records))])


def test_metrics_that_are_missing_have_no_figure(tmp_path: Path) -> None:
    records = []
    for record in training(layers=3, steps=[0, 8], length=8):
        kept = None
        if record.reading is not None:
            values = {key: value for key, value in record.reading.items() if key.startswith("anisotropy/")}
            values |= {key: math.nan for key in record.reading if key.startswith("curvature/")}
            kept = Reading("eval", record.reading.sites, values)
        records.append(replace(record, reading=kept, loss=None))
    document = report_page([Run.open(write_run(tmp_path / "run", records))])
    assert re.findall("<h[23][^>]*>(.*?)</h", document) == [
        "What changed over training",
        "Other views",
        "Shape of the spectrum",
        "Anisotropy",
    ]
    assert "the anisotropy after the last layer (final_norm)" in document


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [Record(name="step1", error="OSError: <gone>"), Record(name="step2", error="no room")],
            "2 failed, the last one with: no room",
        ),
        ([], "it has no records yet"),
    ],
)
def test_a_run_without_a_checkpoint_is_refused(records: list[Record], message: str, tmp_path: Path) -> None:
    good, bad = write_run(tmp_path / "good", suite(length=4)), write_run(tmp_path / "bad", records)
    with pytest.raises(GeomprobeError, match=f"bad: this run has no measured checkpoint.*{message}"):
        report_page([Run.open(good), Run.open(bad)])
    with pytest.raises(GeomprobeError, match="a report needs a run"):
        report_page([])


# -- figures ----------------------------------------------------------------------------------------------------------------


def lines(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data}


def test_a_map_holds_every_number(runs: Callable[[str], list[Run]]) -> None:
    (run,) = runs("one")
    figure = figures.heatmap(run, "anisotropy")
    assert figure is not None
    (body,) = figure.data
    for x, record in zip(range(len(body.x)), run.checkpoints, strict=True):
        assert record.reading is not None
        for y, site in enumerate(record.reading.sites):
            assert body.z[y][x] == pytest.approx(record.reading[f"anisotropy/{site}"], rel=1e-3, abs=1e-9)
    assert figures.heatmap(run, "no_such_metric") is None
    assert figures.heatmap(runs("single")[0], "anisotropy") is None


def test_lines_across_depth_hold_every_number_and_both_baselines(runs: Callable[[str], list[Run]]) -> None:
    (run,) = runs("one")
    figure = figures.across_depth(run, "effective_rank")
    assert figure is not None
    drawn = lines(figure)
    last = run.checkpoints[-1].reading
    gaussian = run.baseline(run.checkpoints[-1], "gaussian")
    assert last is not None
    assert gaussian is not None
    assert gaussian.reading is not None
    assert drawn["step 143,000"].y == pytest.approx([last[f"effective_rank/{site}"] for site in last.sites], rel=1e-3)
    assert drawn["Gaussian rows"].y == pytest.approx([gaussian.reading["effective_rank/gaussian"]] * 2, rel=1e-3)
    assert (drawn["untrained"].line.dash, drawn["Gaussian rows"].line.dash) == ("dash", "dot")
    shown = [trace.name for trace in figure.data if trace.showlegend]
    assert shown == ["step 0", "step 16", "step 512", "step 8,000", "step 143,000", "untrained", "Gaussian rows"]


def test_numbers_that_are_not_finite_are_gaps(runs: Callable[[str], list[Run]]) -> None:
    (run,) = runs("one")
    reading = run.checkpoints[3].reading
    assert reading is not None
    reading._values["anisotropy/layer_04"] = math.nan
    del reading._values["anisotropy/layer_06"]
    figure = figures.across_depth(run, "anisotropy")
    assert figure is not None
    line = lines(figure)["step 4"]
    gaps = [site for site, y in zip(line.customdata, line.y, strict=True) if y is None]
    assert gaps == ["layer_04", "layer_06"]


def test_step_0_has_a_place_on_a_log_axis(runs: Callable[[str], list[Run]]) -> None:
    figure = figures.over_checkpoints(runs("one"), "loss", most=1)
    assert figure is not None
    trace, axis = figure.data[0], figure.layout.xaxis
    assert axis.type == "log"
    assert list(trace.x) == sorted(trace.x)
    assert list(trace.x)[1:] == list(STEPS)[1:]
    assert 0 < trace.x[0] < 1
    assert trace.customdata[0] == "step 0"
    assert dict(zip(axis.tickvals, axis.ticktext, strict=True))[trace.x[0]] == "0"


def test_even_steps_keep_a_plain_axis(tmp_path: Path) -> None:
    run = Run.open(write_run(tmp_path / "run", training(layers=2, steps=[0, 100, 200, 300], length=8)))
    figure = figures.over_checkpoints([run], "loss", most=1)
    assert figure is not None
    assert list(figure.data[0].x) == [0, 100, 200, 300]
    assert figure.layout.xaxis.type is None


def test_increments_between_the_positions_drawn_add_up_to_the_gain(runs: Callable[[str], list[Run]]) -> None:
    (run,) = runs("one")
    reading = run.checkpoints[-1].reading
    assert reading is not None
    gains = np.linspace(4.0, 1.0, 512)
    reading.curves["gain/final_norm"] = Curve(tuple(gains.tolist()), None, (7,) * 512)
    reading.curves["information_gain/final_norm"] = Curve(tuple(np.cumsum(gains).tolist()), None, (7,) * 512)
    added, total = (figures.gain_curves([run], increments=increments) for increments in (True, False))
    assert added is not None
    assert total is not None
    each, so_far = lines(added)["step 143,000"], lines(total)["step 143,000"]
    widths = np.diff([0, *each.x])
    np.testing.assert_allclose(np.cumsum(widths * np.array(each.y, float)), np.array(so_far.y, float), rtol=2e-3)
    per_dim = figures.gain_curves([run], per_dimension=True)
    assert per_dim is not None
    assert lines(per_dim)["step 143,000"].y[-1] == pytest.approx(so_far.y[-1] / 576, rel=1e-3)


@pytest.mark.parametrize(
    ("weights", "verdict"),
    [
        ({"power": 0.9, "log-linear": 0.08, "constant": 0.02}, "No other law fits as well"),
        ({"power": 0.5, "log-linear": 0.4, "constant": 0.1}, "A logarithm fits as well"),
        ({"power": 0.1, "log-linear": 0.1, "constant": 0.8}, "A constant fits better"),
    ],
)
def test_a_law_is_drawn_with_what_fits_as_well(
    weights: dict[str, float],
    verdict: str,
    runs: Callable[[str], list[Run]],
    fitted: list[tuple[Any, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for law, weight in weights.items():
        monkeypatch.setitem(WEIGHTS, law, weight)
    figure = figures.scaling(runs("sizes")[0], "entropy")
    assert figure is not None
    drawn = lines(figure)
    assert drawn["power law"].y[0] == pytest.approx(70e6**-0.25, rel=1e-3)
    assert list(drawn["models"].x) == [int(size) for size in SIZES] == list(fitted[-1][0])
    assert drawn["untrained"].line.dash == "dash"
    said = figure.layout.annotations[0].text
    assert said.startswith("exponent −0.25, 95% interval −0.5 to 0.125<br>R² 0.750. " + verdict)
    assert f"power {weights['power']:.2f}" in said


def test_the_law_is_theorys(runs: Callable[[str], list[Run]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "geomprobe.theory.power_law")  # the one that stands in for it
    from geomprobe.theory.power_law import fit_power_law

    figure = figures.scaling(runs("sizes")[0], "entropy")
    assert figure is not None
    models = lines(figure)["models"]
    law = fit_power_law(models.x, models.y)
    said = figure.layout.annotations[0].text.replace("\u2212", "-")
    low, high = law.exponent_interval
    assert said.startswith(f"exponent {law.exponent:.3g}, 95% interval {low:.3g} to {high:.3g}<br>")


def test_three_sizes_have_points_and_no_law(tmp_path: Path) -> None:
    run = Run.open(write_run(tmp_path / "run", suite(sizes=list(SIZES)[:3], length=8)))
    figure = figures.scaling(run, "entropy")
    assert figure is not None
    assert "power law" not in lines(figure)
    assert figure.layout.annotations[0].text == "no power law was fitted: a power law takes at least 4 points, got 3"


def test_runs_of_one_checkpoint_are_one_run_over_sizes(tmp_path: Path, fitted: list[tuple[Any, Any]]) -> None:
    records = suite(length=8)
    runs = [Run.open(write_run(tmp_path / f"m{i}", records[3 * i : 3 * i + 3])) for i in range(4)]
    document = report_page(runs)
    assert len(fitted[0][0]) == 4
    assert "What changed by model" in document
    assert (
        "<b>The smallest and the largest of 4 models:</b> the effective rank after the last layer (final_norm) is" in document
    )
    assert "m0 · m1 · m2 · m3" in document


def test_models_of_one_size_stand_under_their_names(viewer: Viewer, tmp_path: Path) -> None:
    runs = [
        Run.open(write_run(tmp_path / f"tuned-{i}", training(layers=2, steps=[8], length=8, parameters=100))) for i in range(3)
    ]
    page = viewer.open(report_page(runs))
    draw_all(page)
    assert undrawn(page) == []
    for axis in (page.locator(".plot").first, page.locator(".map .plot").first):
        assert axis.locator(".xtick").all_text_contents() == ["tuned-0", "tuned-1", "tuned-2"]


def test_a_sweep_over_steps_and_sizes_is_a_run_for_each_size(tmp_path: Path) -> None:
    records = [
        replace(record, name=f"{record.name} {size}")
        for size in (10**6, 10**7)
        for record in training(
            layers=2, steps=[0, 8, 16], length=8, parameters=size, model=f"org/m-{size}", width=size // 10**4
        )
    ]
    document = report_page([Run.open(write_run(tmp_path / "grid", records))])
    assert re.findall(r'name="p\d+-0" value="\d"[^>]*><span>(.*?)<', document)[:2] == ["m-1000000", "m-10000000"]


def test_gaussian_rows_that_would_squash_the_lines_are_named_at_the_edge(runs: Callable[[str], list[Run]]) -> None:
    (run,) = runs("one")
    for record in run.records:
        if record.reading is not None and record.kind != "gaussian":
            for key, value in record.reading.items():
                if key.startswith("effective_rank/"):
                    record.reading._values[key] = value / 20
    figure = figures.across_depth(run, "effective_rank")
    assert figure is not None
    gaussian = lines(figure)["Gaussian rows"].y[0]
    known = [y for trace in figure.data if trace.name != "Gaussian rows" for y in trace.y]
    low, high = figure.layout.yaxis.range
    assert low < min(known) <= max(known) < high < gaussian
    (edge,) = figure.layout.annotations
    assert edge.text == f"↑ Gaussian rows: {gaussian:.4g}"
    assert (edge.y, edge.yanchor) == (1, "top")
    near = figures.across_depth(runs("one")[0], "effective_rank")
    assert near is not None
    assert near.layout.annotations == ()
    assert near.layout.yaxis.range[1] > lines(near)["Gaussian rows"].y[0]


def change(run: Run, metric: str, value: Callable[[int], float]) -> None:
    """Give a metric other numbers, by their place."""
    for record in run.records:
        if record.reading is not None:
            for i, site in enumerate(record.reading.sites):
                if f"{metric}/{site}" in record.reading:
                    record.reading._values[f"{metric}/{site}"] = value(i)


def test_the_axis_of_eq5_ends_at_minus_one_and_says_so(runs: Callable[[str], list[Run]]) -> None:
    (run,) = runs("one")
    change(run, "eq5_r2", lambda i: -373.5 if i == 7 else 0.25 + i / 100)
    figure = figures.across_depth(run, "eq5_r2")
    assert figure is not None
    assert -1.2 < figure.layout.yaxis.range[0] < -1
    assert figure.layout.annotations[0].text == "The axis is clipped at −1. The lowest value is −373.5."
    assert -373.5 in lines(figure)["step 143,000"].y  # the tables have the number as it is
    body = report_page([run]).partition("<script")[0]
    assert '<p class="law">The axis is clipped at −1. The lowest value is −373.5.</p>' in body
    assert ">−373.5" in body
    area = figures.heatmap(run, "eq5_r2")
    assert area is not None
    assert area.data[0].zmin == -1
    assert "clipped at −1" in area.layout.title.text


def test_where_there_is_nothing_to_see_a_line_of_text_stands(runs: Callable[[str], list[Run]]) -> None:
    (run,) = runs("one")
    change(run, "eq5_r2", lambda i: -2000.0 - i)
    change(run, "massive_activations", lambda i: 0.0)
    body = report_page([run]).partition("<script")[0]
    assert '<p class="words">All values are below −1: from −2,0' in body
    assert '<p class="words">0 everywhere.</p>' in body
    assert 'aria-label="Massive activations. ' not in body
    assert "Massive activations, numbers" in body


def test_a_line_over_checkpoints_names_its_first_lowest_and_last_point(runs: Callable[[str], list[Run]]) -> None:
    (run,) = runs("one")
    for record, rank in zip(run.checkpoints, [*range(120, 20, -10), *range(30, 130, 10)], strict=True):
        assert record.reading is not None
        record.reading._values["effective_rank/final_norm"] = float(rank)
    figure = figures.over_checkpoints([run], "effective_rank", most=1)
    assert figure is not None
    texts = [(label, text) for label, text in zip(figure.data[0].customdata, figure.data[0].text, strict=True) if text]
    assert texts == [("step 0", "120"), ("step 256", "30, step 256"), ("step 143,000", "120")]
    across = figures.across_depth(run, "effective_rank")
    assert across is not None
    named = {trace.name for trace in across.data if "text" in trace.mode}
    assert named <= {"step 0", "step 256", "step 143,000"}
    assert {"step 256", "step 143,000"} <= named


def test_steps_that_double_have_a_logarithmic_axis_over_less_than_two_decades(tmp_path: Path) -> None:
    run = Run.open(write_run(tmp_path / "run", training(layers=2, steps=[1, 2, 4, 8, 16, 32, 60], length=8)))
    figure = figures.over_checkpoints([run], "loss", most=1)
    assert figure is not None
    assert figure.layout.xaxis.type == "log"
    assert list(figure.layout.xaxis.ticktext) == ["1", "2", "4", "8", "16", "32", "60"]


def test_every_described_metric_stands_in_one_group() -> None:
    grouped = [name for names in VIEWS.values() for name in names]
    assert len(grouped) == len({*grouped})
    assert all(describe(name).read and describe(name).caveat for name in grouped)


# -- the command ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_the_page_into_the_run(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", training(layers=2, steps=[0, 8], length=8))
    done = geomprobe("report", str(path))
    assert done.returncode == 0, done.stderr
    assert f"wrote {path / 'report.html'}" in done.stderr
    assert (path / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    for arguments, message in (
        ([str(tmp_path)], "is not a run of a sweep"),
        ([str(path), "--out", str(tmp_path / "no" / "page.html")], "in a folder that exists"),
    ):
        done = geomprobe("report", *arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_open_shows_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    path = write_run(tmp_path / "run", training(layers=2, steps=[0, 8], length=8))
    cli.report([path], out=tmp_path / "page.html", show=True)
    assert opened == [(tmp_path / "page.html").as_uri()]
    assert (tmp_path / "page.html").exists()
