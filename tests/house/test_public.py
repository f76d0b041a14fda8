"""What a visitor of the repository finds besides the code: workflows, templates of issues, links and pictures."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from geomprobe import Reading
from geomprobe.models.toy import byte_blocks
from tests.house.test_imports import ROOT
from tests.pictures import draw
from tests.versions import pins

GITHUB = ROOT / ".github"
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
IMAGES = sorted((GITHUB / "images").iterdir())
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))


def load(path: Path) -> Any:
    """What a YAML file holds. PyYAML comes with Transformers."""
    return pytest.importorskip("yaml").safe_load(path.read_text("utf-8"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_jobs_with_few_rights_and_an_end(path: Path) -> None:
    workflow = load(path)
    assert workflow[True]  # when it runs: YAML 1.1 reads the key "on" as a truth value
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])


def test_the_weekly_workflow_runs_every_set_of_versions() -> None:
    (job,) = load(GITHUB / "workflows" / "versions.yml")["jobs"].values()
    sets = job["strategy"]["matrix"]["set"]
    assert sets == ["lowest", "between", "newest", "latest"]
    assert all(pins(name) is not None for name in sets)  # it exits for a name that it does not know
    assert job["steps"][-1]["run"] == ".venv/bin/python -m tests.versions ${{ matrix.set }}"


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_a_form_of_an_issue_is_one_that_github_accepts(path: Path) -> None:
    form = load(path)
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in fields} <= {"input", "textarea", "dropdown", "checkboxes"}
    assert all(field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_the_projects_address_is_one() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    home = urls["Homepage"]
    assert {url.partition("#")[0].removeprefix(home).split("/")[0] for url in urls.values()} == {""}
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *GITHUB.rglob("*.md"), *GITHUB.rglob("*.yml")]
    told = {match for page in pages for match in re.findall(r"https://github\.com/[\w-]+/geomprobe", page.read_text("utf-8"))}
    assert told == {home}


def test_the_changelog_is_in_order() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert "What a version promises" in changelog.partition("\n## ")[0]
    assert re.findall(r"^### (.*)$", changelog, re.MULTILINE)[:3] == ["Added", "Changed", "Fixed"]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_a_picture_is_small_and_shown(path: Path) -> None:
    assert path.stat().st_size < 150_000
    assert f".github/images/{path.name}" in (ROOT / "README.md").read_text("utf-8")


def test_what_the_readme_says_of_byte_frequencies() -> None:
    training, held_out = byte_blocks()
    counts = torch.bincount(training.flatten(), minlength=256).double() + 0.01  # a byte that training lacks is not impossible
    loss = -(counts / counts.sum()).log()[held_out[:, 1:]].mean().item()
    (told,) = re.findall(
        r"the (\d\.\d\d) of a model that ignores the context", (ROOT / "README.md").read_text("utf-8").replace("\n  ", " ")
    )
    assert loss == pytest.approx(float(told), abs=0.05)  # each Python has its own edition of these help pages


def test_a_picture_is_drawn_from_the_file_of_a_training(tmp_path: Path) -> None:
    readings = [(step, Reading("eval", ["embed", "final_norm"], ranks(step))) for step in (0, 5)]
    lines = [json.dumps(reading.to_dict() | {"step": step, "loss": 5.0 - step}) for step, reading in readings]
    (tmp_path / "geomprobe.jsonl").write_text("\n".join([*lines, '{"format": 1, "step": 5, "loss": 2.5}']), "utf-8")
    loss, ranks_by_step = draw(tmp_path).axes
    assert [text.get_text() for text in loss.texts] == ["5.00", "0.00"]
    assert [text.get_text() for text in ranks_by_step.texts] == ["20.0", "15.0", "18.0", "13.0"]
    assert [label.get_text() for label in ranks_by_step.get_xticklabels()] == ["untrained", "5"]


def ranks(step: int) -> dict[str, float]:
    return {"effective_rank/embed": 20.0 - step, "effective_rank/final_norm": 18.0 - step}
