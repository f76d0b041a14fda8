"""The demo: what it prints, what it leaves, and that the probe changes nothing of its training."""

import math
from pathlib import Path

import pytest

from geomprobe.demo import log_spaced, train
from tests.conftest import DemoRun
from tests.integrations.wandb_file import read_run

SITES = ["embed", "layer_00", "layer_01", "layer_02", "layer_03", "final_norm"]


def test_it_says_what_happened(demo_run: DemoRun) -> None:
    lines = demo_run.printed.splitlines()
    assert max(map(len, lines[:-3])) <= 80  # all but the commands, which hold a path
    tables = [i for i, line in enumerate(lines) if line.split()[:2] == ["step", "loss"]]
    assert len(tables) == 3
    steps = [0, *log_spaced(demo_run.steps)]
    for start in tables:
        rows = [line.split() for line in lines[start + 1 : start + 1 + len(steps)]]
        assert [int(row[0]) for row in rows] == steps
        losses = [float(row[1]) for row in rows]
        assert losses[0] == pytest.approx(math.log(256), abs=0.1)
        assert losses[-1] < losses[0] - 1  # it learns
        assert all(len(row) == 2 + len(SITES) for row in rows)
    assert "Look for the turn in the last column" in demo_run.printed
    assert "wandb leet" in demo_run.printed
    assert "wandb sync" in demo_run.printed


def test_checkpoints_are_kept(demo_run: DemoRun) -> None:
    kept = sorted(int(path.name.split("-")[1]) for path in demo_run.out.glob("checkpoint-*"))
    assert kept == log_spaced(demo_run.steps)
    assert all((path / "model.safetensors").exists() for path in demo_run.out.glob("checkpoint-*"))


def test_its_offline_run_holds_every_metric_beside_the_loss(demo_run: DemoRun) -> None:
    run = read_run(demo_run.out)
    steps = log_spaced(demo_run.steps)
    losses = run.series("train/loss")
    assert sorted(losses) == list(range(1, demo_run.steps + 1))
    for metric in ("entropy", "effective_rank", "anisotropy", "information_gain", "gain_per_token", "tokens"):
        for site in SITES:
            assert sorted(run.series(f"geomprobe/{metric}/{site}")) == steps
            held_out = run.series(f"geomprobe/eval/{metric}/{site}")
            assert sorted(held_out) == [0, *steps]
            assert set(held_out) == set(run.series("eval/loss"))
    assert set(run.series("geomprobe/eval/tokens/embed").values()) == {64 * 128}


def test_losses_are_the_same_without_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with_probe = train(tmp_path / "with", steps=6, quiet=True)
    without = train(tmp_path / "without", steps=6, probe=False, quiet=True)
    assert with_probe.losses == without.losses
    assert with_probe.held_out == without.held_out
    assert len(set(with_probe.losses)) == 6
    assert sorted(with_probe.readings) == [0, 1, 2, 4, 6]
    assert without.readings == {}
