"""Rules: what they compare, and what they refuse."""

import math
from typing import Any

import pytest
import torch

from geomprobe import (
    AttentionProfile,
    GeomprobeError,
    Monitor,
    Probe,
    RepresentationEntropy,
    ResidualGrowth,
    RouterProfile,
    Rule,
)
from geomprobe.monitoring.rules import DEFAULT_RULES
from tests.tiny_models import tiny, token_batch

PLAIN: dict[str, Any] = {"signal": "x", "direction": "up", "ratio": 2.0}


@pytest.mark.parametrize(
    ("limit", "direction", "value", "baseline", "change"),
    [
        ({"ratio": 2.0}, "up", 6.0, 2.0, 3.0),
        ({"ratio": 2.0}, "down", 2.0, 6.0, 3.0),
        ({"ratio": 2.0}, "down", 0.0, 6.0, math.inf),
        ({"ratio": 2.0}, "up", 6.0, 0.0, math.nan),  # a ratio of what is not positive means nothing
        ({"ratio": 2.0}, "up", -6.0, 2.0, math.nan),
        ({"ratio": 2.0}, "down", -6.0, 2.0, math.nan),
        ({"ratio": 2.0}, "up", -6.0, -2.0, math.nan),
        ({"difference": 2.0}, "up", 1.0, -2.0, 3.0),
        ({"difference": 2.0}, "down", -2.0, 1.0, 3.0),
        ({"difference": 2.0}, "down", 1.0, -2.0, -3.0),
    ],
)
def test_change_is_in_the_direction_of_the_rule(
    limit: dict[str, float], direction: Any, value: float, baseline: float, change: float
) -> None:
    found = Rule(signal="x", direction=direction, **limit).change(value, baseline)  # type: ignore[arg-type]
    assert found == change or (math.isnan(found) and math.isnan(change))


@pytest.mark.parametrize(
    ("over", "expected"), [("mean", 4.0), ("median", 3.0), ("min", 1.0), ("max", 9.0), ("first", 3.0), ("last", 1.0)]
)
def test_sites_are_combined(over: Any, expected: float) -> None:
    assert Rule(signal="x", direction="up", ratio=2, over=over).combine([3.0, 9.0, 3.0, 1.0]) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"signal": "entropy/layer_03"}, "give sites as sites="),
        ({"signal": ""}, "expected a name"),
        ({"direction": "both"}, "expected 'up' or 'down'"),
        ({"over": "sum"}, "expected one of 'mean', 'median'"),
        ({"sites": "layer_03"}, r"expected a tuple such as \('layer_03',\)"),
        ({"sites": ()}, "expected a tuple"),
        ({"ratio": None}, "needs either ratio= .* or difference="),
        ({"difference": 1.0}, "needs either ratio= .* or difference="),
        ({"ratio": 1.0}, "a ratio above 1"),
        ({"ratio": math.inf}, "a ratio above 1"),
        ({"ratio": math.nan}, "a ratio above 1"),
        ({"ratio": None, "difference": 0.0}, "a difference above 0"),
        ({"hits": 0}, "hits at most half"),
        ({"hits": 6}, "hits at most half"),
        ({"window": 1, "hits": 1}, "hits at most half"),
        ({"window": 10.0}, "hits at most half"),
    ],
)
def test_a_rule_that_cannot_ring_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(GeomprobeError, match=message):
        Rule(**(PLAIN | arguments))


def test_every_default_rule_has_data_and_words() -> None:
    """The names of the default rules are those that a probe gives, or that the caller gives by these names."""
    model, ids = tiny("mixtral").eval(), token_batch()
    metrics = [RepresentationEntropy(), AttentionProfile(), ResidualGrowth(), RouterProfile()]
    with torch.no_grad(), Probe(model, metrics, on_error="raise") as probe:
        model(ids)
    monitor = Monitor()
    assert monitor.without_data == tuple(rule.name for rule in DEFAULT_RULES)
    monitor.update(0, probe.read())
    assert set(monitor.without_data) == {
        "loss_up",
        "loss_down",
        "gradient_norm_up",
        "repeated_batch_up",
        "token_entropy_down",
    }
    monitor.update(0, loss=1.0, gradient_norm=1.0, numbers={"repeated_batch": 0.0, "token_entropy": 5.0})
    assert monitor.without_data == ()
    for rule in DEFAULT_RULES:
        assert rule.meaning.endswith(".")
        assert rule.look_at.endswith(".")
