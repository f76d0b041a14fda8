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
from geomprobe.bench.sweep import bench_sweep
from geomprobe.bench.timing import Ratio, table
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
    ratio = Ratio.of([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (ratio.median, ratio.low, ratio.high, ratio.seconds) == pytest.approx((2, 2, 2, 4))


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

    def timed(variants: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
        """Each once, and which tokens go into the model meanwhile."""
        for name, variant in variants.items():
            passed: list[tuple[int, ...]] = []
            hook = register_module_forward_pre_hook(lambda module, args, passed=passed: _keep_ids(module, args, passed))
            variant()
            hook.remove()
            seen[name] = passed
        return {"bare": [2.0] * rounds, "sweep": [2.1] * rounds}

    monkeypatch.setattr("geomprobe.bench.sweep.timed", timed)
    results = bench_sweep(str(stories_model), tokens=512, length=64, rounds=3, device="cpu")
    assert results["checkpoints"]["sweep"]["median"] == pytest.approx(1.05)
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
