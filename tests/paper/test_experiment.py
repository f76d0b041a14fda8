"""The frame of the paper's experiments: numbers that are kept, files that are whole, pages that stand alone."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geomprobe import GeomprobeError
from geomprobe.paper.experiment import Experiment, Outcome, Request, Table, Verdict, cell, plain, restore
from geomprobe.paper.page import page
from geomprobe.paper.run import run_experiment
from geomprobe.paper.style import canvas, shades, styled, to_png, to_svg
from tests.browser import Viewer, chromium

pytestmark = pytest.mark.slow  # it draws figures

EVIL = "<script>alert(1)</script> & “quotes”"


@dataclass(frozen=True)
class Part:
    name: str
    value: float
    unknown: float | None


@dataclass(frozen=True)
class Whole(Part):
    parts: Mapping[str, list[Part]]
    other: Part | None


@dataclass(frozen=True)
class Numbers:
    y: list[float]
    nan: float
    tensor: list[list[float]]


def of(*y: float) -> Numbers:
    return Numbers(list(y), math.nan, [[1.0]])


def draw(numbers: Numbers) -> Any:
    figure, (lines, area) = canvas(1, 2)
    for colour in shades(3):
        lines.plot(numbers.y, color=colour, label=EVIL)
    lines.set_title(EVIL)
    lines.legend()
    area.imshow(np.outer(numbers.y, numbers.y))
    return figure


def experiment(measured: list[Request], of: str = "nothing", name: str = "fig9") -> Experiment[Numbers]:
    def measure(request: Request) -> Numbers:
        measured.append(request)
        return Numbers((np.arange(5.0) * request.seed).tolist(), math.nan, torch.eye(2).tolist())

    return Experiment(
        name=name,
        title=EVIL,
        place=EVIL,
        read=EVIL,
        caveat=EVIL,
        of=of,
        numbers=Numbers,
        measure=measure,
        draw=draw,
        tables=lambda numbers: [Table(EVIL, (EVIL, "y"), [[EVIL, str(y)] for y in numbers.y])],
        judge=lambda numbers: [Verdict(EVIL, holds, EVIL) for holds in (True, False, None)],
    )


def test_numbers_are_kept_while_what_they_depend_on_stays(tmp_path: Path) -> None:
    measured: list[Request] = []
    data = tmp_path / "data.txt"
    data.write_text("some text")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    request = Request(out=tmp_path / "out", seed=1, models=(str(model),), data=str(data))
    sized = experiment(measured, of="sizes")
    first = run_experiment(sized, request)
    assert not first.kept
    files = {path.name: path.read_bytes() for path in request.out.iterdir()}
    assert sorted(files) == ["fig9.html", "fig9.json", "fig9.png"]
    again = run_experiment(sized, request)
    assert again.kept
    for found in (again.numbers, first.numbers):
        assert plain(found) == {"y": [0, 1, 2, 3, 4], "nan": None, "tensor": [[1, 0], [0, 1]]}
        assert math.isnan(found.nan)
    assert {path.name: path.read_bytes() for path in request.out.iterdir()} == files  # the same picture is the same file
    assert len(measured) == 1

    assert not run_experiment(sized, replace(request, fresh=True)).kept
    assert not run_experiment(sized, replace(request, seed=2)).kept
    assert run_experiment(sized, replace(request, seed=2)).kept
    assert not run_experiment(sized, replace(request, tokens=999)).kept
    data.write_text("another text")
    assert not run_experiment(sized, request).kept
    (model / "config.json").write_text('{"hidden_size": 1}')
    assert not run_experiment(sized, request).kept
    assert run_experiment(sized, request).kept
    for broken in ("", "{", "[]", '{"of": 1}', '{"numbers": 3, "of": {}}'):
        (request.out / "fig9.json").write_text(broken)
        assert not run_experiment(sized, request).kept
    whole = json.loads((request.out / "fig9.json").read_text("utf-8"))
    others: list[Any] = [[], {}, {"y": [1.0]}, {**whole["numbers"], "z": 1}]  # another version's
    for numbers in others:
        (request.out / "fig9.json").write_text(json.dumps({**whole, "numbers": numbers}))
        assert not run_experiment(sized, request).kept


def test_what_a_piece_does_not_depend_on_measures_nothing_anew(tmp_path: Path) -> None:
    measured: list[Request] = []
    request = Request(out=tmp_path, models=("z",))
    run_experiment(experiment(measured), request)
    assert run_experiment(experiment(measured), replace(request, models=("x",), data="y", tokens=3, steps=4)).kept
    run_experiment(experiment(measured, of="texts", name="fig8"), request)
    assert run_experiment(experiment(measured, of="texts", name="fig8"), replace(request, data="y", tokens=3)).kept
    assert not run_experiment(experiment(measured, of="texts", name="fig8"), replace(request, models=("x",))).kept


def test_its_json_says_what_it_is(tmp_path: Path) -> None:
    outcome = run_experiment(experiment([]), Request(out=tmp_path, seed=1))
    content = json.loads((tmp_path / "fig9.json").read_text("utf-8"))
    assert content["experiment"] == "fig9"
    assert content["of"]["seed"] == 1
    assert content["numbers"] == plain(outcome.numbers)
    assert [verdict["holds"] for verdict in content["verdicts"]] == [True, False, None]


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GeomprobeError, match="cannot write"):
        run_experiment(experiment([]), Request(out=tmp_path / "file" / "out"))


def test_it_prints_in_eighty_columns() -> None:
    table = Table("title", ("name", "a number", "words"), [["short", "1", "x"], ["a longer one", "123.4", "y"]])
    assert str(table).splitlines()[2:] == [
        "name          a number  words",
        "short                1      x",
        "a longer one     123.4      y",
    ]
    verdict = Verdict("A claim of some length that has to be broken", False, "evidence " * 30)
    lines = str(verdict).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("does not hold A claim")
    assert all(line.startswith(" " * 14) for line in lines[1:])


def test_the_paper_stands_apart_from_errata_and_from_what_is_ours() -> None:
    verdicts = [Verdict("one", False, "1", "erratum"), Verdict("two", None, "2", kind="ours"), Verdict("three", True, "3")]
    outcome = Outcome(replace(experiment([]), tables=lambda _: [], judge=lambda _: verdicts), of(), kept=False)
    assert str(outcome).splitlines()[2:] == [
        "What the paper says",
        "",
        "holds         three: 3",
        "",
        "Controls and measures that are ours",
        "",
        "undecided     two: 2",
        "",
        "Errata",
        "",
        "does not hold one: 1",
    ]


def test_plain_leaves_nothing_json_cannot_hold() -> None:
    value = {1: (np.float32(0.5), math.inf), "a": torch.tensor([1, 2]), "b": [None, True, "x"], "c": np.int64(3)}
    assert plain(value) == {"1": [0.5, None], "a": [1, 2], "b": [None, True, "x"], "c": 3}
    json.dumps(plain(value), allow_nan=False)


def test_numbers_come_back_as_what_they_were() -> None:
    part = Part("a", 0.1, None)
    for whole in (Whole("w", 1e-300, 2.0, {"some": [part, part], "none": []}, part), Whole("w", 1.0, None, {}, None)):
        assert restore(Whole, json.loads(json.dumps(plain(whole)))) == whole
    found = restore(Whole, plain(Whole("w", math.inf, None, {"some": [Part("a", math.nan, None)]}, None)))
    assert math.isnan(found.value)
    assert math.isnan(found.parts["some"][0].value)
    assert found.unknown is found.parts["some"][0].unknown is None
    assert cell(found.value, ".1f") == cell(found.unknown, ".1f") == "–"


def test_drawings_are_whole_in_both_schemes() -> None:
    with styled():
        figure, again = (draw(of(0.0, 1.0, 4.0)) for _ in range(2))
    png, svg = to_png(figure), to_svg(figure)
    assert to_svg(again) == svg
    assert png.startswith(b"\x89PNG")
    assert png.rstrip().endswith(b"IEND\xaeB`\x82")
    assert "<script>" not in svg
    colours = set(re.findall(r"light-dark\((#\w{6}), (#\w{6})\)", svg))
    assert {light for light, _ in colours} >= {*shades(3), "#24262d"}
    assert all(light != dark for light, dark in colours)
    assert not re.search(r"(?<!light-dark\()#[0-9a-f]{6}(?!\))(?=;)", svg.replace("#000000", ""))  # none without a partner
    assert "DejaVu" not in svg


def test_pages_in_a_browser(tmp_path: Path) -> None:
    outcomes = [Outcome(replace(experiment([]), name=name), of(0.0, 1.0, 4.0), kept=False) for name in ("fig8", "fig9")]
    documents = page(EVIL, outcomes[:1]), page(EVIL, outcomes)
    (tmp_path / "pages").mkdir()
    with chromium() as browser:
        viewer = Viewer(browser, tmp_path / "pages")
        for document in documents:
            assert "alert(1)</script>" not in document
            for dark in (False, True):
                opened = viewer.open(document, width=390, dark=dark, script=False)
                assert opened.evaluate("document.documentElement.scrollWidth") <= 390
                assert opened.locator("svg").first.bounding_box()["width"] > 300  # type: ignore[index]  # it is drawn
                fill = opened.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
                assert (int(re.findall(r"\d+", fill)[0]) > 128) is dark
                assert EVIL in opened.locator("body").inner_text()
        links = viewer.open(documents[1]).locator("nav a")
        assert [link.get_attribute("href") for link in links.all()] == ["#paper", "#concordance", "#fig8", "#fig9"]
        viewer.close()
    assert viewer.faults == []
