"""A reading: looked up, saved and loaded, printed."""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from geomprobe import Curvature, GeomprobeError, MeanRepresentation, Probe, Reading
from geomprobe.accumulators.state import Accumulator, State, TokenCount
from geomprobe.metrics.base import Curve, Metric
from geomprobe.reading import compute_reading
from geomprobe.recording.state_store import Bank
from tests.tiny_models import tiny, token_batch


@dataclass(frozen=True)
class Given(Metric):
    numbers: dict[str, float]
    named: dict[str, Curve] = field(default_factory=dict)
    accumulators = ()

    def scalars(self, states: Mapping[Accumulator, State]) -> dict[str, float]:
        return self.numbers

    def curves(self, states: Mapping[Accumulator, State]) -> dict[str, Curve]:
        return self.named


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
    values = {"tokens/embed": 1234567, "texts/embed": 1, "entropy/embed": 0.25, "anisotropy/embed": math.nan}
    return Reading(
        "train",
        ("embed", "layer_00", "final_norm"),
        values | {"<script>/final_norm": math.inf},
        ['<b>mind</b> the gap & "quotes"'],
        {
            "gain/embed": Curve((1.5, math.nan, 0.5), (0.0, math.nan, 0.1), (2, 0, 1)),
            "information_gain/final_norm": Curve((1.5, 2.0), None, (2, 1)),
        },
    )


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


def test_a_reading_is_a_mapping_of_full_keys(measured: Reading) -> None:
    assert isinstance(measured, Mapping)
    numbers = dict(measured)
    assert numbers == {**measured} == dict(measured.items()) == {key: measured[key] for key in measured}
    assert list(measured.keys()) == list(numbers)
    assert list(measured.values()) == list(numbers.values())
    assert all(type(value) is float for value in numbers.values())
    assert measured == numbers
    assert measured != numbers | {"entropy/embed": 2.0}
    assert measured.get("entropy/embed") == numbers["entropy/embed"]
    assert measured.get("entropy/layer_99") is None
    assert measured.get("entropy/layer_99", 3.0) == 3.0


def test_readings_are_equal_if_everything_in_them_is(made: Reading) -> None:
    parts = made.mode, made.sites, dict(made), made.notes, made.curves
    assert Reading(*parts) == made
    for i, other in enumerate(["eval", ("embed",), {"tokens/embed": 1.0}, [], {}]):
        changed: Any = (*parts[:i], other, *parts[i + 1 :])
        assert Reading(*changed) != made


def test_a_metric_without_a_site_gives_its_numbers_in_the_order_of_sites(measured: Reading, made: Reading) -> None:
    ranks = measured["effective_rank"]
    assert list(ranks) == list(measured.sites)
    assert ranks["layer_01"] == measured["effective_rank/layer_01"]
    assert made["entropy"] == {"embed": 0.25}
    turned = Reading("eval", ("embed", "final_norm"), {"entropy/final_norm": 2.0, "entropy/embed": 1.0})
    assert list(turned["entropy"].items()) == [("embed", 1.0), ("final_norm", 2.0)]
    for key in ("effective_rank", 3, None):
        assert key not in measured
    assert measured.get("effective_rank") is None


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("entropy/layer_99", "'entropy/layer_0"),
        ("entrop/embed", "'entropy/embed'"),
        ("effectiverank/final_norm", "'effective_rank/final_norm'"),
        ("entropy_nat", "entropy_nats"),
        ("", "in this reading"),
        (3, "no number 3"),
    ],
)
def test_a_key_that_is_missing(measured: Reading, key: Any, nearest: str) -> None:
    with pytest.raises(KeyError) as caught:
        measured[key]
    assert isinstance(caught.value, GeomprobeError)
    message = str(caught.value)
    assert message.startswith(f"no number {key!r} in this reading, which has {len(measured)} (see its metrics and sites)")
    assert nearest in message
    assert len(message) < 300


def test_a_curve_that_is_missing(measured: Reading) -> None:
    with pytest.raises(KeyError, match=r"^no curve 'gain/embd' in this reading, .*; the nearest: 'gain/embed'") as caught:
        measured.curve("gain", "embd")
    assert isinstance(caught.value, GeomprobeError)
    with pytest.raises(GeomprobeError, match="no curve 'gain/embed' in this reading, which has 0 "):
        Reading("eval", ()).curve("gain", "embed")


def test_a_name_belongs_to_one_metric() -> None:
    bank: Bank = {"embed": {TokenCount(): {name: torch.tensor(1.0) for name in ("tokens", "texts", "generated", "nonfinite")}}}
    curve = Curve((), None, ())
    with pytest.raises(GeomprobeError, match="two metrics of this probe have a number named 'mine'"):
        compute_reading("eval", ("embed",), [Given({"mine": 1.0}), Given({"mine": 1.0})], bank)
    with pytest.raises(GeomprobeError, match="two metrics of this probe have a number named 'tokens'"):
        compute_reading("eval", ("embed",), [Given({"tokens": 1.0})], bank)
    with pytest.raises(GeomprobeError, match="two metrics of this probe have a curve named 'mine'"):
        compute_reading("eval", ("embed",), [Given({}, {"mine": curve}), Given({}, {"mine": curve})], bank)
    both = compute_reading("eval", ("embed",), [Given({"mine": 1.0}, {"mine": curve})], bank)
    assert (both["mine/embed"], both.curve("mine", "embed")) == (1.0, curve)


def test_a_reading_shows_what_is_for_readers(measured: Reading) -> None:
    of_a_mapping = {"get", "items", "keys", "values"}
    own = {"compare", "cost", "curve", "curves", "metrics", "mode", "notes", "plot", "site", "sites", "widths"}
    saved = {"from_dict", "from_json", "to_dict", "to_json", "to_pandas"}
    assert {name for name in dir(measured) if not name.startswith("_")} == of_a_mapping | own | saved


def test_repr_is_one_short_line(measured: Reading, made: Reading) -> None:
    assert repr(measured).startswith("<Reading 'geomprobe · 23 tokens in 3 texts · d = 32 · eval': ")
    made.notes *= 99
    hostile = Reading("eval_" + "\n" * 999, made.sites * 99, dict(made), made.notes)
    for reading in (measured, made, hostile, Reading("eval", ())):
        assert len(repr(reading)) < 300
        assert repr(reading).isprintable()
        assert "0x" not in repr(reading)


# -- out and in -------------------------------------------------------------------------------------------------------------


def test_json_round_trip(measured: Reading) -> None:
    loaded = Reading.from_json(measured.to_json())
    assert loaded == measured
    assert loaded.curve("gain", "embed") == measured.curve("gain", "embed")
    assert list(loaded) == list(measured)


def test_the_width_is_known_and_saved(measured: Reading) -> None:
    assert measured.widths == dict.fromkeys(measured.sites, 32)
    data = measured.to_dict()
    assert data["widths"] == measured.widths
    del data["widths"]  # a file that was written before readings had widths
    old = Reading.from_dict(data)
    assert (old.widths, dict(old)) == ({}, dict(measured))
    for wrong in ({"embed": 0}, {"nowhere": 32}, {"embed": "32"}):
        with pytest.raises(GeomprobeError, match=r"this is not a reading: .*widths"):
            Reading.from_dict(data | {"widths": wrong})


@pytest.mark.parametrize(("metric", "width"), [(MeanRepresentation(), 32), (Curvature(), None)])
def test_the_width_comes_from_a_metric_that_sums_rows(metric: Metric, width: int | None) -> None:
    model = tiny()
    with Probe(model, [metric], on_error="raise") as probe, torch.no_grad():
        model(token_batch(1, 5))
    assert set(probe.read().widths.values()) == ({width} if width else set())


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
    for key, value in measured.items():
        metric, site = key.split("/")
        assert frame.loc[site, metric] == value or math.isnan(value)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(GeomprobeError, match=r"Reading.to_pandas\(\) needs pandas: pip install pandas"):
        measured.to_pandas()
