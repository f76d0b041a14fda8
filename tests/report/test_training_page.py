"""The page of a training: its figures hold the numbers of the file, and a wrong file is one error."""

import dataclasses
import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from geomprobe import GeomprobeError, Monitor, Reading, Rule
from geomprobe.cli import main as cli
from geomprobe.files import StepFile
from geomprobe.report.training_file import Training, find_training
from geomprobe.report.training_page import training_page
from tests.browser import Viewer
from tests.report.synthetic import reading, training, write_run
from tests.report.test_page import HOSTILE, SCRIPT, draw_all, undrawn, wide

STEPS = range(50, 1001, 50)
SITES = ("embed", "layer_00", "layer_01", "layer_02", "layer_03", "final_norm")

Line = tuple[int, dict[str, Any]]


def line(step: int, mode: str = "train", loss: float | None = None, *, last: int = 1000, **changed: float) -> Line:
    """A line of the file, as ProbeCallback writes it."""
    made = reading(step / last, layers=4, length=4)
    values = dict(made) | {f"{metric}/{site}": value for metric, value in changed.items() for site in made.sites}
    record = Reading(mode, made.sites, values, [f"step {step}: a remark"] if step == 100 else [], made.curves).to_dict()
    return step, record | ({} if loss is None else {"loss": loss})


def write(path: Path, *lines: Line) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    for step, record in lines:
        StepFile(path).append(step, record)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of twenty readings, and four evaluations."""
    lines = []
    for step in STEPS:
        lines += [line(step), (step, {"loss": 6 - 4 * (step / 1000) ** 0.5})]
        if step % 250 == 0:
            lines.append(line(step, "eval", 6.5 - 4 * (step / 1000) ** 0.5))
    return write(tmp_path_factory.mktemp("training") / "my-model" / "geomprobe.jsonl", *lines)


@pytest.fixture(scope="module")
def document(file: Path) -> str:
    return training_page(Training.open(file))


def drawn(document: str) -> list[dict[str, Any]]:
    """The figures of a page."""
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', document, re.DOTALL)
    figures: list[dict[str, Any]] = json.loads(data)["figures"]
    return figures


def said(document: str) -> str:
    """The text under the heading."""
    return unescape(re.sub(r"<[^>]*>", "", document.partition("<h1>")[2].partition("<section>")[0]))


# -- what the page says -----------------------------------------------------------------------------------------------------


def test_the_finding_is_that_of_the_evaluations_whose_texts_are_the_same(file: Path, document: str) -> None:
    readings = [Reading.from_dict(record) for record in StepFile(file).records() if "sites" in record]
    ranks = [reading["effective_rank/final_norm"] for reading in readings if reading.mode == "eval"]
    text = said(document)
    first, last = f"{ranks[0]:.3g}", f"{ranks[-1]:.3g}"
    assert f" in evaluation: the effective rank after the last layer (final_norm) fell from {first} to {last}" in text
    assert "the loss went from 4.5 to 2.5" in text
    assert "train: 20, steps 50 to 1,000; eval: 4, steps 250 to 1,000" in text
    assert "train, step 100: step 100: a remark" in text


def test_a_turn_is_part_of_the_finding(tmp_path: Path) -> None:
    ranks = {1: 40.0, 2: 7.0, 3: 9.0, 4: 30.0}
    path = write(tmp_path / "geomprobe.jsonl", *(line(step, effective_rank=rank) for step, rank in ranks.items()))
    text = said(training_page(Training.open(path)))
    assert "effective rank after the last layer (final_norm) fell from 40 to 7 at step 2, then rose to 30 at step 4." in text


def test_figures_have_the_numbers_of_the_file(file: Path, document: str) -> None:
    records = StepFile(file).records()
    train, evaluation, logged = ([r for r in records if r.get("mode") == mode] for mode in ("train", "eval", None))
    losses, heatmap = drawn(document)[:2]
    assert {trace["name"]: dict(zip(trace["x"], trace["y"], strict=True)) for trace in losses["data"]} == {
        mode: {r["step"]: pytest.approx(r["loss"], rel=1e-3) for r in lines}
        for mode, lines in (("train", logged), ("eval", evaluation))
    }
    assert losses["layout"]["xaxis"].get("type") is None  # evenly spaced steps on a linear axis
    assert heatmap["data"][0]["y"] == list(SITES)
    assert heatmap["data"][0]["z"] == [
        [pytest.approx(r["sites"][site]["effective_rank"], rel=1e-3) for r in train] for site in SITES
    ]
    curves = [figure for figure in drawn(document) if len(figure["data"]) == 4]
    assert len(curves) == 10  # five metrics of two modes
    for trace in curves[1]["data"]:
        expected = [r["sites"][trace["name"]]["effective_rank"] for r in train]
        assert trace["y"] == pytest.approx(expected, rel=1e-3)
    assert [trace["name"] for trace in curves[1]["data"]] == ["layer_00", "layer_02", "layer_03", "final_norm"]


def test_steps_that_double_have_a_logarithmic_axis(tmp_path: Path) -> None:
    path = write(tmp_path / "geomprobe.jsonl", *(line(2**i, loss=2.0**-i, last=2**9) for i in range(10)))
    assert drawn(training_page(Training.open(path)))[0]["layout"]["xaxis"]["type"] == "log"


def test_a_long_training_draws_some_of_its_readings_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "geomprobe.jsonl", *(line(step, last=700) for step in range(1, 701)))
    document = training_page(Training.open(path))
    assert "train: 300 of 700 readings are drawn, evenly spaced." in said(document)
    assert {trace["mode"] for trace in drawn(document)[-1]["data"]} == {"lines"}  # marks would hide them
    columns = drawn(document)[0]["data"][0]["x"]
    assert (len(columns), columns[0], columns[-1]) == (300, "step 1", "step 700")


def test_metrics_of_ones_own_are_drawn(tmp_path: Path) -> None:
    lines = [(s, Reading("train", SITES, {f"mine/{x}": float(s * i) for i, x in enumerate(SITES)}).to_dict()) for s in (1, 2)]
    document = training_page(Training.open(write(tmp_path / "other.jsonl", *lines)))
    assert "the mine after the last layer (final_norm) went from 5 to 10" in said(document)
    assert drawn(document)[0]["data"][0]["z"][-1] == [5, 10]
    assert f"<h1>{tmp_path.name}/other.jsonl</h1>" in document


def test_one_reading_and_the_end_of_a_measurement_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "geomprobe.jsonl", line(1, loss=3.0, last=2), (2, {"stopped": "MemoryError: full <now>"}))
    text = said(training_page(Training.open(path)))
    assert re.search(r"the effective rank after the last layer \(final_norm\) is \d+ at step 1, and the loss is 3\.", text)
    assert "Measuring stopped at step 2: MemoryError: full <now>" in text
    assert "train: there is only one reading, and a figure needs two." in text


def alarms(count: int) -> list[Line]:
    """Lines of alarms, at steps 210, 220 and so on."""
    monitor = Monitor([Rule(signal="loss", direction="up", difference=0.5, hits=1, meaning="It rose <b>.")])
    for step in range(10):
        monitor.update(step, loss=2.0)
    (alarm,) = monitor.update(210, loss=4.0)
    return [(210 + 10 * i, {"alarm": dataclasses.replace(alarm, step=210 + 10 * i).to_dict()}) for i in range(count)]


def test_alarms_are_told_and_marked_in_every_figure(tmp_path: Path) -> None:
    lines = [line(step, loss=3.0) for step in STEPS]
    path = write(tmp_path / "geomprobe.jsonl", *sorted([*lines, *alarms(25)], key=lambda one: one[0]))
    document = training_page(Training.open(path))
    text = said(document)
    assert "Alarm 1. Step 210: loss on training texts rose by 2, from a median of 2 to 4" in text
    assert "What it may mean: It rose <b>." in text
    assert "Alarm 20. Step 400" in text
    assert "Alarm 21." not in text
    assert "5 more alarms are in the file." in text
    for figure in drawn(document):
        marks = figure["layout"]["shapes"]
        assert [mark["label"]["text"] for mark in marks] == [str(number) for number in range(1, 21)]
        is_map = figure["data"][0]["type"] == "heatmap"
        assert marks[0]["x0"] == marks[0]["x1"] == (figure["data"][0]["x"][3] if is_map else 210)  # the reading of step 200


# -- in a browser -----------------------------------------------------------------------------------------------------------


def test_every_figure_is_drawn_under_every_switch(viewer: Viewer, document: str) -> None:
    page = viewer.open(document, width=1280)
    draw_all(page)
    assert undrawn(page) == []
    first = page.locator(".plate").first
    for outer in first.locator(".switch").nth(0).locator("input").all():
        outer.check(force=True)
        for inner in first.locator(".switch").nth(1).locator("input").all():
            inner.check(force=True)
            assert first.locator(".plot:visible").count() == 2
            draw_all(page)
    assert undrawn(page) == []


def test_a_phone_scrolls_down_only(viewer: Viewer, document: str) -> None:
    page = viewer.open(document, width=390, height=844, touch=True, dark=True)
    draw_all(page)
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
    assert undrawn(page) == []
    assert wide(page) == 390


def test_hostile_names_are_text(viewer: Viewer, tmp_path: Path) -> None:
    names = [name.replace("/", "") for name in HOSTILE]
    values = {f"{metric}/{site}": float(i) for i, metric in enumerate(names) for site in names}
    lines = [
        (step, Reading(SCRIPT, names, {key: step + value for key, value in values.items()}, HOSTILE).to_dict())
        for step in (1, 2, 3)
    ]
    path = write(tmp_path / "<b onclick=alert(3)>" / "geomprobe.jsonl", *lines, (4, {"stopped": SCRIPT}))
    page = viewer.open(training_page(Training.open(path)))
    draw_all(page)
    assert undrawn(page) == []
    assert page.locator("h1").inner_text() == "<b onclick=alert(3)>"
    assert page.locator("main a:not(nav a), main img, main script, main b[onclick]").count() == 0


# -- the command ------------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page_beside_the_file(
    file: Path, document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    page = file.with_name("geomprobe.html")
    for given in (file, file.parent):
        cli.report([given], show=True)
        assert page.read_text("utf-8") == document
        page.unlink()
    assert opened == [page.as_uri()] * 2
    cli.report([file], out=tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text("utf-8") == document


def missing(folder: Path) -> Path:
    return folder / "nothing"


def empty_folder(folder: Path) -> Path:
    return folder


def empty_file(folder: Path) -> Path:
    (folder / "geomprobe.jsonl").touch()
    return folder


def stopped_at_once(folder: Path) -> Path:
    return write(folder / "geomprobe.jsonl", (1, {"stopped": "MemoryError: full"}))


def not_json(folder: Path) -> Path:
    (folder / "geomprobe.jsonl").write_bytes(b"\xff\xfe\n")
    return folder


def of_another_program(folder: Path) -> Path:
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    return folder / "log.jsonl"


def no_reading(folder: Path) -> Path:
    return write(folder / "geomprobe.jsonl", (1, {"lost": 2.0}))


def only_losses(folder: Path) -> Path:
    return write(folder / "geomprobe.jsonl", (1, {"loss": 2.0}))


def wrong_loss(folder: Path) -> Path:
    return write(folder / "geomprobe.jsonl", (1, line(1)[1] | {"loss": "low"}))


def newer(folder: Path) -> Path:
    (folder / "geomprobe.jsonl").write_text('{"format": 99, "step": 1}\n')
    return folder


def file_of_a_sweep(folder: Path) -> Path:
    return write_run(folder / "sweep", training(layers=2, steps=[0, 8], length=4)) / "readings.jsonl"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            missing,
            "nothing is not a run of a sweep or a training: expected a folder that contains manifest.json or geomprobe.jsonl",
        ),
        (empty_folder, "is not a run of a sweep or a training"),
        (empty_file, r"geomprobe.jsonl has no readings, so there is nothing to draw: no step was measured yet"),
        (stopped_at_once, "nothing to draw: measuring stopped at step 1: MemoryError: full"),
        (not_json, "geomprobe.jsonl, line 1: not JSON"),
        (of_another_program, "log.jsonl, line 1: there is no format number, so geomprobe did not write it"),
        (no_reading, "line 1: mode is missing; give the geomprobe.jsonl that ProbeCallback"),
        (only_losses, "nothing to draw: no step was measured yet"),
        (wrong_loss, 'line 1: loss is "low", expected a number'),
        (newer, "written by a newer geomprobe: format 99"),
        (file_of_a_sweep, r"readings.jsonl, line \d: step is null, expected a whole number"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_file_is_one_error(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(GeomprobeError, match=message):
        cli.report([make(tmp_path)], out=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_trainings_are_drawn_one_at_a_time(file: Path) -> None:
    with pytest.raises(GeomprobeError, match=r"geomprobe.jsonl is the file of a training: give it alone"):
        cli.report([file, file])


def test_a_sweep_with_a_file_of_a_training_is_a_sweep(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", training(layers=2, steps=[0, 8], length=4))
    (path / "geomprobe.jsonl").touch()
    assert find_training(path) is None
