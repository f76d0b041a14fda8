"""The benchmarks run and add up. What they measure is not asserted here: a figure belongs to a machine."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from geomprobe import GeomprobeError
from geomprobe.bench.lasso import bench_lasso
from geomprobe.bench.lasso import table as lasso_table
from geomprobe.bench.overhead import bench_attention, bench_decode, bench_memory, bench_overhead
from geomprobe.bench.precision import bench_precision
from geomprobe.bench.precision import table as precision_table
from geomprobe.bench.schedules import bench_budget, bench_every, bench_shapes
from geomprobe.bench.sweep import bench_sweep
from geomprobe.bench.timing import Ratio, Seconds, spread, table
from geomprobe.probe import Probe
from tests.tiny_models import snapshot, tiny

pytestmark = pytest.mark.slow  # it runs benchmarks


def test_overhead_gives_every_variant_and_leaves_nothing() -> None:
    model = tiny()
    before = snapshot(model)
    results = bench_overhead(model, batch=2, length=16, rounds=3)
    assert set(results["forward"]) == {"bare", "probe", "off", "numpy", "store"}
    assert set(results["training_step"]) == {"bare", "probe"}
    assert results["forward"]["bare"]["median"] == 1
    assert results["arithmetic_floor"] > 1
    assert json.loads(json.dumps(results)) == results
    assert "forward probe" in table(results)
    assert max(map(len, table(results).splitlines())) <= 80
    assert Probe.on(model) is None
    assert snapshot(model).keys() == before.keys()


def test_decode_hands_over_every_token() -> None:
    results = bench_decode(tiny(), tokens=8, rounds=3)
    assert set(results["generate"]) == {"bare", "live", "probe"}


def test_attention_is_measured_beside_its_peer_and_its_memory() -> None:
    model = tiny()
    before = snapshot(model)
    results = bench_attention(model, batch=2, length=16, rounds=3, long=64)
    assert set(results["forward"]) == {"bare", "probe", "maps"}
    assert results["peak_at_tokens"] == 64
    assert isinstance(results["added_peak_bytes"], int)
    assert snapshot(model).keys() == before.keys()
    assert model.config._attn_implementation == "sdpa"
    assert max(map(len, table(results).splitlines())) <= 80


def test_memory_counts_tokens() -> None:
    results = bench_memory(tiny(), batch=4, length=16, few=200, many=1000)
    assert results["many"] >= 1000
    assert results["growth_bytes"] >= 0


def test_ratios_are_taken_round_by_round() -> None:
    bare = [Seconds(1.0, 1.0), Seconds(2.0, 1.0), Seconds(3.0, 1.0)]
    ratio = Ratio.of([Seconds(2.0, 1.1), Seconds(4.0, 1.2), Seconds(6.0, 1.3)], bare)
    assert (ratio.median, ratio.low, ratio.high, ratio.seconds) == pytest.approx((2, 2, 2, 4))
    assert (ratio.cpu_median, ratio.cpu_low, ratio.cpu_high, ratio.cpu_seconds) == pytest.approx((1.2, 1.1, 1.3, 1.2))
    assert spread(ratio) == pytest.approx(0.2 / 1.2)
    slow = Ratio.of([Seconds(234.5, 234.5)] * 2, bare[:1] * 2)
    assert max(map(len, table({"forward": {"bare": vars(ratio), "probe": vars(slow)}}).splitlines())) <= 80


def test_a_schedule_is_measured_by_difference_and_by_its_own_clock() -> None:
    model = tiny()
    results = bench_every(model, every_nth=4, batch=2, length=16, rounds=3)
    assert set(results["every(4)"]) == {"bare", "probe"}
    assert 0 < results["cost_by_own_clock"] < 1
    assert 0 < results["hooks_of_off_steps"] < 1
    assert Probe.on(model) is None
    assert max(map(len, table(results).splitlines())) <= 80


def test_a_budget_is_looked_at_in_every_window() -> None:
    results = bench_budget(tiny(), share=0.1, batch=1, length=8, steps=260)
    assert 3 < results["measured_steps"] < 260
    assert 0 < results["largest_cost_of_200_steps"] < 1
    assert results["interval_at_the_end"] > 1
    assert max(map(len, table(results).splitlines())) <= 80
    with pytest.raises(GeomprobeError, match="a budget is measured over 200 steps after the first 50"):
        bench_budget(tiny(), share=0.1, steps=20)


def test_shapes_have_a_floor_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geomprobe.bench.schedules._SHAPES", ((64, 2, 16), (32, 1, 40)))
    results = bench_shapes(device="cpu", dtype="float32", rounds=3)
    assert set(results) == {"64, 2×16", "floor of 64, 2×16", "32, 1×40", "floor of 32, 1×40"}
    assert results["floor of 32, 1×40"] > 1
    assert "32, 1×40" in table(results)
    assert max(map(len, table(results).splitlines())) <= 80


def test_lasso_compares_itself_on_a_trained_model(stories_model: Path) -> None:
    """The gaps are measured alike for all; a peer's weights are as good as it says, ours as good as was asked."""
    results = bench_lasso(str(stories_model), length=40, rounds=1)
    assert {"geomprobe", "scikit-learn", "scikit-learn, precompute"} <= set(results["sparse"]) == set(results["near-dense"])
    assert results["sparse"]["geomprobe"]["largest_gap"] <= 1e-6
    assert results["near-dense"]["geomprobe"]["largest_gap"] <= 1e-4
    assert results["sparse"]["scikit-learn"]["largest_gap"] < 1e-2
    assert json.loads(json.dumps(results)) == results
    assert max(map(len, lasso_table(results).splitlines())) <= 80
    with pytest.raises(GeomprobeError, match="--model"):
        bench_lasso(None)
    with pytest.raises(GeomprobeError, match="does not accept 5000 tokens"):
        bench_lasso(str(stories_model), length=5000)


def test_precision_compares_the_paths(stories_model: Path) -> None:
    results = bench_precision(str(stories_model), batch=2, length=100)
    errors = results["errors"]
    texts, stream = {"gain", "text_entropy"}, {"entropy", "effective_rank"}
    assert {name: set(of_kind) for name, of_kind in errors.items()} == {
        "float64": texts,
        "split": texts,
        "float32": texts | stream,
        "float32 blocks": texts,
        "tf32": stream,
    }
    assert max(errors["float64"]["gain"], errors["split"]["gain"]) < 2e-6 < 1e-4 < errors["float32"]["gain"]
    assert max(errors["float64"]["text_entropy"], errors["split"]["text_entropy"]) < 1e-6
    assert errors["float32"]["entropy"] < 1e-6 < errors["tf32"]["effective_rank"] < 1e-4
    assert results["shape"]["width"] == 64
    assert json.loads(json.dumps(results)) == results
    assert max(map(len, precision_table(results).splitlines())) <= 80
    with pytest.raises(GeomprobeError, match="does not accept 5000 tokens"):
        bench_precision(str(stories_model), length=5000)


def test_a_sweep_is_measured_beside_loading_and_the_same_forwards(stories_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[tuple[int, ...]]] = {}

    def timed(variants: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[Seconds]]:
        """Each once, and which tokens go into the model meanwhile."""
        for name, variant in variants.items():
            passed: list[tuple[int, ...]] = []
            hook = register_module_forward_pre_hook(lambda module, args, passed=passed: _keep_ids(module, args, passed))
            variant()
            hook.remove()
            seen[name] = passed
        return {"bare": [Seconds(2.0, 2.0)] * rounds, "sweep": [Seconds(2.1, 2.2)] * rounds}

    monkeypatch.setattr("geomprobe.bench.sweep.timed", timed)
    results = bench_sweep(str(stories_model), tokens=512, length=64, rounds=3, device="cpu")
    assert results["checkpoints"]["sweep"]["median"] == pytest.approx(1.05)
    assert results["checkpoints"]["sweep"]["cpu_median"] == pytest.approx(1.1)
    assert (results["rounds"], results["quartiles_apart"], "note" in results) == (3, 0, False)
    assert results["shape"]["tokens"] == 512
    assert json.loads(json.dumps(results)) == results
    assert max(map(len, table(results).splitlines())) <= 80
    assert sum(map(len, seen["bare"])) == 2 * 512  # of two checkpoints
    assert sorted(seen["sweep"]) == sorted(seen["bare"])  # the sweep reads the same, once
    with pytest.raises(GeomprobeError, match="--model"):
        bench_sweep(None)


def _keep_ids(module: torch.nn.Module, args: tuple[object, ...], passed: list[tuple[int, ...]]) -> None:
    if isinstance(module, torch.nn.Embedding) and isinstance(args[0], torch.Tensor):
        passed.extend(tuple(row) for row in args[0].tolist())
