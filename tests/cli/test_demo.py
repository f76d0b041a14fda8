"""The demo: what it prints, what it leaves, and that the probe changes nothing of its training."""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from geomprobe import GeomprobeError
from geomprobe.cli.demo import REPORT, SWEEP, TEXT, log_spaced, run, train
from geomprobe.integrations.wandb_sink import viewer
from geomprobe.report.lead import leading_text
from geomprobe.sweeps.records import Run
from tests.conftest import DemoRun
from tests.integrations.wandb_file import read_run, run_files

SITES = ["embed", "layer_00", "layer_01", "layer_02", "layer_03", "final_norm"]


def test_it_prints_one_table_and_the_finding_of_its_report(demo_run: DemoRun) -> None:
    lines = demo_run.printed.splitlines()
    said = lines[: lines.index(f"open the report:      {demo_run.out / REPORT}")]  # what follows holds paths
    assert max(map(len, said)) <= 80
    (start,) = [i for i, line in enumerate(lines) if line.split()[:2] == ["step", "loss"]]
    assert lines[start].split()[2:] == SITES
    steps = log_spaced(demo_run.steps)
    rows = [line.split() for line in lines[start + 1 : start + 2 + len(steps)]]
    assert [row[0] for row in rows] == ["untrained", *map(str, steps)]
    losses = [float(row[1]) for row in rows]
    assert losses[0] == pytest.approx(math.log(256), abs=0.1)
    assert losses[-1] < losses[0] - 1  # it learns
    swept = Run.open(demo_run.out / SWEEP)
    for row, record in zip(rows[1:], swept.checkpoints, strict=True):
        assert record.reading is not None
        expected = [record.reading[f"effective_rank/{site}"] for site in SITES]
        assert [float(cell) for cell in row[2:]] == pytest.approx(expected, abs=0.051)
    finding = leading_text([swept])
    assert finding is not None
    assert finding.lead.startswith("Collapse")
    assert str(finding) in " ".join(" ".join(said).split())
    document = (demo_run.out / REPORT).read_text("utf-8")
    assert f"<b>{finding.lead}:</b> {finding.text}</p>" in document
    for path in run_files(demo_run.out):
        assert f"{viewer()} {os.path.relpath(path.parent)}\n" in demo_run.printed
    assert "wandb sync" in demo_run.printed


def test_checkpoints_are_kept(demo_run: DemoRun) -> None:
    kept = sorted(int(path.name.split("-")[1]) for path in demo_run.out.glob("checkpoint-*"))
    assert kept == log_spaced(demo_run.steps)
    assert all((path / "model.safetensors").exists() for path in demo_run.out.glob("checkpoint-*"))


def test_its_offline_run_holds_every_metric_beside_the_loss(demo_run: DemoRun) -> None:
    training, _ = run_files(demo_run.out)
    run = read_run(training.parent)
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


def test_its_sweep_has_the_numbers_of_its_training(demo_run: DemoRun) -> None:
    """Of every checkpoint, on the same text in the same pieces: a quarter of it for what costs more than a forward."""
    swept = Run.open(demo_run.out / SWEEP)
    assert swept.failed == []
    assert [(r.kind, r.step) for r in swept.records[:2]] == [("untrained", None), ("gaussian", None)]
    assert [r.step for r in swept.checkpoints] == log_spaced(demo_run.steps)
    watched = read_run(run_files(demo_run.out)[0].parent)
    losses = watched.series("eval/loss")
    for record in swept.checkpoints:
        assert record.reading is not None
        assert record.loss == pytest.approx(losses[record.step or 0], abs=1e-4)
        assert record.reading["sample_tokens/final_norm"] == 16 * 128
        for metric in ("entropy", "effective_rank", "anisotropy", "tokens"):
            for site in SITES:
                expected = watched.series(f"geomprobe/eval/{metric}/{site}")[record.step or 0]
                assert record.reading[f"{metric}/{site}"] == pytest.approx(expected, rel=1e-4), (record.name, metric, site)
    for metric in ("entropy", "gain_per_token"):  # they move, and not by rounding
        values = [r.reading[f"{metric}/final_norm"] for r in swept.checkpoints if r.reading]
        assert max(values) > 1.3 * min(values)


def test_the_sweeps_offline_run_holds_one_series_per_metric_and_site(demo_run: DemoRun) -> None:
    swept = Run.open(demo_run.out / SWEEP)
    file = read_run(run_files(demo_run.out)[1].parent)
    expected: dict[str, dict[int, float]] = {}
    for record in swept.checkpoints:
        assert record.reading is not None
        assert record.step is not None
        for name, value in record.reading.items():
            if math.isfinite(value):
                expected.setdefault(f"geomprobe/{name}", {})[record.step] = value
    for name, series in expected.items():
        assert file.axes[name] == "checkpoint/step"
        assert file.series(name, "checkpoint/step") == series
    assert len(expected) > 40 * len(SITES)
    assert sorted(file.series("geomprobe/loss", "checkpoint/step")) == log_spaced(demo_run.steps)
    of_sites = {name for name in file.names("geomprobe/") if name.rsplit("/", 1)[-1] in SITES}
    assert of_sites == expected.keys()
    assert file.globs == {}


def test_another_demo_takes_away_what_would_be_stale(
    demo_run: DemoRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(demo_run.out, tmp_path / "out")

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("geomprobe.cli.demo.train", stopped)
    for name in ("MODE", "DIR", "PROJECT", "SILENT"):
        monkeypatch.setenv(f"WANDB_{name}", "disabled" if name == "MODE" else "")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", steps=2)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"wandb", TEXT}  # runs of W&B are told apart by their names


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    with pytest.raises(GeomprobeError, match=r"contains other files.*--out"):
        run(tmp_path)
    assert (tmp_path / "checkpoint-1").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(GeomprobeError, match="cannot write"):
        run(tmp_path / "file" / "out")


@pytest.fixture
def wandb_session() -> Iterator[None]:
    """W&B reads its environment once per session: this one ends with the test, so that later tests get their own."""
    yield
    wandb.finish()
    wandb.teardown()


@pytest.mark.slow
@pytest.mark.usefixtures("wandb_session")
def test_losses_are_the_same_without_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with_probe = train(tmp_path / "with", steps=6, quiet=True)
    without = train(tmp_path / "without", steps=6, probe=False, quiet=True)
    assert with_probe.losses == without.losses
    assert with_probe.held_out == without.held_out
    assert len(set(with_probe.losses)) == 6
    assert sorted(with_probe.readings) == [0, 1, 2, 4, 6]
    assert without.readings == {}
