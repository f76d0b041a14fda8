"""``geomprobe paper …`` as a user types it, and which models it takes where none is named."""

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from typer.testing import CliRunner

from geomprobe.cli.main import app
from geomprobe.cli.paper import EXPERIMENTS
from geomprobe.paper import models as family
from geomprobe.paper.experiment import Experiment, Request
from tests.browser import Viewer, chromium
from tests.sweeps.conftest import save_checkpoint

pytestmark = pytest.mark.slow  # it runs everything


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_command_has_its_piece(name: str) -> None:
    experiment = getattr(import_module(f"geomprobe.paper.{EXPERIMENTS[name][0]}"), name.upper())
    assert isinstance(experiment, Experiment)
    assert experiment.name == name
    assert experiment.of in ("sizes", "texts", "nothing")


def test_everything_at_once(tmp_path: Path) -> None:
    """On random models, so that no claim has to hold: every experiment runs, has a verdict, and is on the page."""
    models = [save_checkpoint(tmp_path / f"width-{width}", 2, width=width) for width in (32, 48)]
    (tmp_path / "text.txt").write_text("It was the best of times, it was the worst of times. " * 30)
    out = tmp_path / "out"
    arguments = ["paper", "all", "--out", str(out), "--data", str(tmp_path / "text.txt"), "--tokens", "400"]
    arguments += [word for model in models for word in ("--models", str(model))]
    result = CliRunner().invoke(app, arguments, terminal_width=80)
    assert result.exit_code == 0, result.output
    assert f"open the results:  {out}/index.html" in result.output
    summary = result.output[result.output.rindex("What the paper says") :]
    assert max(len(line) for line in summary.splitlines() if str(out) not in line) <= 80
    assert summary.index("Figure 1") < summary.index("Figure 3") < summary.index("Section 4.2") < summary.index("Errata")
    for name in EXPERIMENTS:
        assert {(out / f"{name}.{form}").exists() for form in ("png", "html", "json")} == {True}
        assert json.loads((out / f"{name}.json").read_text("utf-8"))["verdicts"]
    with chromium() as browser:
        (tmp_path / "pages").mkdir()
        viewer = Viewer(browser, tmp_path / "pages")
        page = viewer.open((out / "index.html").read_text("utf-8"), width=390, dark=True)
        assert page.locator("section.experiment").count() == len(EXPERIMENTS)
        targets = [str(link.get_attribute("href")) for link in page.locator("a").all()]
        assert {*targets} >= {"#paper", "#erratum", "#concordance", *(f"#{name}" for name in EXPERIMENTS)}
        assert all(page.locator(target).count() == 1 for target in {*targets})
        assert page.locator("section .picture svg").count() == len(EXPERIMENTS)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        viewer.close()
    assert viewer.faults == []
    again = CliRunner().invoke(app, arguments, terminal_width=80)
    assert again.exit_code == 0, again.output
    assert again.output.count("numbers of an earlier run") == len(EXPERIMENTS)


def test_a_piece_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    arguments = ["paper", "all", "--out", str(tmp_path / "out"), "--models", str(tmp_path / "nothing")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert str(result.exception).count("failed: ") == 7  # all but what needs no model
    assert "tokens failed: " in str(result.exception)
    page = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert 'id="theory"' in page
    assert 'id="fig2"' in page


def test_a_fault_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["paper", "tokens", "--models", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "no such directory" in str(result.exception)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    family._on_hub.cache_clear()
    monkeypatch.setattr(family, "_trained", lambda folder, width, layers, steps: folder / f"width-{width}")


def test_the_family_is_what_is_at_hand_offline(no_training: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))  # a cache without the weights
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=refuse))
    request = Request(out=tmp_path)
    folders = [str(tmp_path / "family" / f"width-{width}") for width, _ in family.SIZES]
    assert family.default_models("sizes", request) == tuple(folders)
    assert family.default_models("texts", request) == (folders[-1],)
    assert family.default_models("nothing", request) == ()


def test_a_model_that_reads_english_comes_from_the_cache_or_the_hub(
    no_training: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=lambda model, **_: asked.append(model)))
    request = Request(out=tmp_path)
    assert family.default_models("texts", request) == (family.ENGLISH,)
    assert family.default_models("texts", request) == (family.ENGLISH,)
    assert asked == [family.ENGLISH]  # once
    save_checkpoint(tmp_path, 1)
    family._on_hub.cache_clear()
    assert family.default_models("texts", request) == (family.ENGLISH,)
    assert len(asked) == 1  # it is in the cache
    ((name, loaded),) = family.load_readers(Request(out=tmp_path, models=(family.ENGLISH,)))
    assert name == "SmolLM2-135M-Instruct"
    assert loaded.model.config.vocab_size == 256
