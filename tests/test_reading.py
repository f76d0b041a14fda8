"""A reading: looked up, saved and loaded, printed."""

import json
import math
import sys
from typing import Any

import pytest
import torch

from geomprobe import GeomprobeError, Probe, Reading
from geomprobe.metrics.base import Curve
from tests.tiny_models import tiny, token_batch


@pytest.fixture(scope="module")
def measured() -> Reading:
    model = tiny()
    with Probe(model, on_error="raise") as probe, torch.no_grad():
        model(token_batch(1, 5))
        model(token_batch(2, 9))
    return probe.read()


@pytest.fixture
def made() -> Reading:
    """With everything that is awkward: NaN, infinity, a curve with a gap, a curve without spread, a missing site, notes."""
    reading = Reading("train", ("embed", "layer_00", "final_norm"), notes=['<b>mind</b> the gap & "quotes"'])
    reading.add("embed", "tokens", 1234567)
    reading.add("embed", "texts", 1)
    reading.add("embed", "entropy", 0.25)
    reading.add("embed", "anisotropy", math.nan)
    reading.add("final_norm", "<script>", math.inf)
    reading.add_curve("embed", "gain", Curve((1.5, math.nan, 0.5), (0.0, math.nan, 0.1), (2, 0, 1)))
    reading.add_curve("final_norm", "information_gain", Curve((1.5, 2.0), None, (2, 1)))
    return reading


# -- look up ----------------------------------------------------------------------------------------------------------------


def test_values_by_name(measured: Reading) -> None:
    assert isinstance(measured["entropy/layer_01"], float)
    assert 0 < measured["entropy/layer_01"] < 1
    assert measured["tokens/embed"] == 23
    assert measured["texts/embed"] == 3
    assert measured.site("embed")["tokens"] == 23
    assert "entropy/embed" in measured
    assert "entropy/layer_09" not in measured
    assert len(measured) == len(list(measured)) == len(measured.metrics) * 5
    assert {f"{metric}/{site}" for metric in measured.metrics for site in measured.sites} == set(measured)


def test_curves_by_name(measured: Reading) -> None:
    curve = measured.curve("information_gain", "final_norm")
    assert curve.count == (3,) * 5 + (2,) * 4
    assert len(curve) == 9
    assert list(curve.mean) == sorted(curve.mean)
    assert curve.mean[-1] == pytest.approx(sum(measured.curve("gain", "final_norm").mean))


@pytest.mark.parametrize("key", ["entropy/layer_99", "entrop/embed", "entropy", ""])
def test_an_unknown_value_lists_what_is_there(measured: Reading, key: str) -> None:
    with pytest.raises(GeomprobeError) as caught:
        measured[key]
    message = str(caught.value)
    assert message.startswith(f"no value {key!r} in this reading, expected 'metric/site'. It has: metrics ")
    for name in (*measured.metrics, *measured.sites):
        assert name in message


def test_an_unknown_curve_lists_what_is_there(measured: Reading) -> None:
    expected = "no curve 'entropy/embed' .* metrics gain, information_gain, posterior_variance; sites embed, layer_00, "
    with pytest.raises(GeomprobeError, match=expected):
        measured.curve("entropy", "embed")
    with pytest.raises(GeomprobeError, match=r"no curve 'gain/embed' .* It has: none"):
        Reading("eval", ()).curve("gain", "embed")


def test_a_name_belongs_to_one_metric(made: Reading) -> None:
    with pytest.raises(GeomprobeError, match="two metrics of this probe have a number named 'entropy'"):
        made.add("embed", "entropy", 1.0)
    with pytest.raises(GeomprobeError, match="two metrics of this probe have a curve named 'gain'"):
        made.add_curve("embed", "gain", Curve((), None, ()))
    made.add("final_norm", "entropy", 1.0)
    assert (made["entropy/embed"], made["entropy/final_norm"]) == (0.25, 1.0)


# -- out and in -------------------------------------------------------------------------------------------------------------


def test_json_round_trip(measured: Reading) -> None:
    loaded = Reading.from_json(measured.to_json())
    assert loaded == measured
    assert loaded.curve("gain", "embed") == measured.curve("gain", "embed")
    assert list(loaded) == list(measured)


def test_json_round_trip_of_numbers_json_does_not_have(made: Reading) -> None:
    data = json.loads(made.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["sites"]["embed"] == {"tokens": 1234567, "texts": 1, "entropy": 0.25, "anisotropy": None}
    assert data["curves"]["embed"]["gain"] == {"mean": [1.5, None, 0.5], "std": [0.0, None, 0.1], "count": [2, 0, 1]}
    assert data["curves"]["final_norm"]["information_gain"]["std"] is None
    loaded = Reading.from_json(made.to_json())
    assert (loaded.mode, loaded.sites, loaded.notes) == (made.mode, made.sites, made.notes)
    assert math.isnan(loaded["anisotropy/embed"])
    assert math.isnan(loaded["<script>/final_norm"])  # infinity too has no JSON
    assert math.isnan(loaded.curve("gain", "embed").mean[1])
    assert loaded.to_dict() == made.to_dict()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", "{}", '{"mode": "eval", "sites": [1], "curves": {}, "notes": []}'],
)
def test_what_is_not_a_reading_is_refused(text: str) -> None:
    with pytest.raises(GeomprobeError, match="this is not a reading: "):
        Reading.from_json(text)


def test_to_pandas(measured: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    frame: Any = measured.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert tuple(frame.index) == measured.sites
    assert tuple(frame.columns) == measured.metrics
    for key, value in measured.values.items():
        metric, site = key.split("/")
        assert frame.loc[site, metric] == value or math.isnan(value)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(GeomprobeError, match=r"Reading.to_pandas\(\) needs pandas: pip install pandas"):
        measured.to_pandas()


# -- to look at -------------------------------------------------------------------------------------------------------------


def test_printed_in_80_columns_with_every_site_on_a_line(measured: Reading) -> None:
    lines = str(measured).splitlines()
    assert max(map(len, lines)) <= 80
    assert "23 tokens in 3 texts" in lines[0]
    for site in measured.sites:
        (line,) = (line for line in lines if line.split()[:1] == [site])
        assert f"{measured[f'entropy/{site}']:.3f}" in line


def test_printed_with_notes_and_numbers_that_are_missing(made: Reading) -> None:
    lines = str(made).splitlines()
    assert max(map(len, lines)) <= 80
    assert "1,234,567 tokens in 1 text" in lines[0]
    assert {"embed", "layer_00", "final_norm"} <= {line.split()[0] for line in lines if line}
    assert made.notes[0] in str(made)
    assert "nan" not in str(made)


def test_a_long_note_and_many_metrics_are_wrapped(made: Reading) -> None:
    made.notes.append("word " * 50)
    for i in range(40):
        made.add("embed", f"a_metric_of_ones_own_{i:02d}", i)
    lines = str(made).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.count("word") for line in lines) == 50


def test_a_reading_of_a_metric_of_ones_own_is_printed() -> None:
    reading = Reading("eval", ("embed", "final_norm"), {"mean_norm/embed": 1.5, "mean_norm/final_norm": 1234.5})
    lines = str(reading).splitlines()
    assert any("mean_norm" in line for line in lines)
    shown = [float(line.split()[1]) for line in lines if line.startswith(("embed", "final_norm"))]
    assert shown == pytest.approx([1.5, 1234.5], rel=1e-3)


def test_html_for_notebooks_escapes_what_it_shows(made: Reading) -> None:
    page = made._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<b>mind</b>" not in page
    assert "&lt;b&gt;mind&lt;/b&gt; the gap &amp; &quot;quotes&quot;" in page
    assert page.count("<tr>") == 1 + len(made.sites)
    for tag in ("table", "thead", "tbody", "tr", "p", "div"):
        assert page.count(f"<{tag}>") + page.count(f"<{tag} ") == page.count(f"</{tag}>")


def test_html_holds_every_metric(measured: Reading) -> None:
    page = measured._repr_html_()
    for metric in measured.metrics:
        assert metric in ("tokens", "texts") or f"<th>{metric}</th>" in page
    assert f"<td>{measured['entropy/layer_01']:.3f}</td>" in page
