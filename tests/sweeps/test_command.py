"""The commands over a run, and sweeps by several processes."""

import csv
import json
import math
from pathlib import Path

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from geomprobe import GeomprobeError, sweep
from geomprobe.cli.main import app
from geomprobe.sweeps.export import COLUMNS, export
from geomprobe.sweeps.records import Run
from tests.recording.test_all_reduce import torchrun
from tests.sweeps.test_sweep import OPTIONS

pytestmark = pytest.mark.slow  # it starts processes


@pytest.fixture(scope="module")
def run(training: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return sweep(str(training), data=str(texts), out=tmp_path_factory.mktemp("runs") / "run", **OPTIONS)


def test_two_processes_give_the_numbers_of_one(run: Run, training: Path, texts: Path, tmp_path: Path) -> None:
    """Batches are spread over the ranks; one has no part of the sample when that is a single batch."""
    arguments = [str(training), "--data", str(texts), "--out", str(tmp_path / "run")]
    arguments += [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    torchrun("geomprobe", "sweep", *arguments)
    both = Run.open(tmp_path / "run")
    assert [(r.kind, r.name) for r in both.records] == [(r.kind, r.name) for r in run.records]
    assert both.failed == []
    for one, two in zip(run.records, both.records, strict=True):
        assert one.tokens == two.tokens
        assert one.loss == two.loss == None or one.loss == pytest.approx(two.loss, rel=1e-6)  # noqa: E711
        assert one.reading is not None
        assert two.reading is not None
        assert one.reading.sites == two.reading.sites
        assert two.reading.keys() == one.reading.keys()
        for name, value in one.reading.items():
            assert two.reading[name] == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), name
        for site in one.reading.sites:
            assert two.reading.curve("gain", site).count == one.reading.curve("gain", site).count


def test_a_failure_ends_all_processes(training: Path, texts: Path, tmp_path: Path) -> None:
    for step in (1, 4):
        (tmp_path / "training" / f"checkpoint-{step}").mkdir(parents=True)
    arguments = [str(tmp_path / "training"), "--data", str(texts), "--out", str(tmp_path / "run"), "--field", "prose"]
    with pytest.raises(AssertionError, match="2 of 2 records failed"):
        torchrun("geomprobe", "sweep", *arguments)
    assert len(Run.open(tmp_path / "run").failed) == 2


def test_the_command_prints_a_table_that_fits(run: Run, training: Path, texts: Path) -> None:
    arguments = ["sweep", str(training), "--data", str(texts), "--out", str(run.path)]
    arguments += [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if line.startswith("checkpoint-")]
    for line, record in zip(rows, run.checkpoints, strict=True):
        name, loss, *numbers = line.split()
        assert name == record.name
        assert float(loss) == pytest.approx(record.loss, abs=6e-4)
        assert record.reading is not None
        assert float(numbers[0]) == pytest.approx(record.reading["entropy/final_norm"], abs=6e-4)
    lines = [line for line in result.output.splitlines() if str(run.path) not in line]  # a path is as long as it is
    assert max(map(len, lines)) <= 80
    assert "untrained" in result.output
    assert "gaussian" in result.output


def test_a_failure_is_in_the_exit_code_and_the_last_line(training: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    arguments = ["sweep", str(training / "checkpoint-1"), str(tmp_path / "empty"), "--data", str(texts), "--field", "prose"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "run"), "--tokens", "100", "--no-baselines"])
    assert isinstance(result.exception, GeomprobeError)
    assert "1 of 2 records failed" in str(result.exception)
    assert "! empty: " in result.output
    assert "this directory has no config.json" in " ".join(result.output.split())
    assert [r.name for r in Run.open(tmp_path / "run").checkpoints] == ["checkpoint-1"]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_export_holds_every_number(run: Run, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"numbers.{ending}"
    assert CliRunner().invoke(app, ["export", str(run.path), "--to", str(path)]).exit_code == 0
    if ending == "csv":
        with path.open() as file:
            rows = list(csv.DictReader(file))
    else:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    assert tuple(rows[0]) == COLUMNS
    found = {(r["kind"], r["name"], r["site"], r["metric"]): r["value"] for r in rows if r["position"] in ("", None)}
    expected = {
        (record.kind, record.name, key.split("/")[1], key.split("/")[0]): value
        for record in run.records
        if record.reading is not None
        for key, value in record.reading.items()
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        empty = found[key] in ("", None)
        assert empty if math.isnan(value) else float(found[key]) == value
    record = run.checkpoints[0]
    assert record.reading is not None
    curve = record.reading.curve("gain", "layer_00")
    points = [r for r in rows if (r["name"], r["site"], r["metric"]) == (record.name, "layer_00", "gain")]
    at = {int(r["position"]): (float(r["value"]), int(r["count"])) for r in points if r["position"] not in ("", None)}
    assert at == dict(enumerate(zip(curve.mean, curve.count, strict=True)))


def test_export_of_another_ending(run: Run, tmp_path: Path) -> None:
    with pytest.raises(GeomprobeError, match=r"expected a name that ends in \.csv or \.parquet"):
        export(run, tmp_path / "numbers.json")


def test_the_manifest_says_what_was_read(run: Run, texts: Path) -> None:
    manifest = json.loads((run.path / "manifest.json").read_text("utf-8"))
    assert manifest["arguments"]["tokens"] == OPTIONS["tokens"]
    assert manifest["data"] | {"hash": ""} == {
        "name": str(texts),
        "hash": "",
        "documents": 20,
        "skipped": 0,
        "tokens": OPTIONS["tokens"],
        "sample_tokens": OPTIONS["sample"],
    }
    assert set(manifest["versions"]) == {"geomprobe", "torch", "transformers", "python"}
