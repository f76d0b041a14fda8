"""The README files: each folder's names its files and its imports, and a newcomer finds the way from the top-level one."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from geomprobe import (
    AttentionProfile,
    ContextLasso,
    Curvature,
    InformationGain,
    MassiveActivations,
    MeanRepresentation,
    Metric,
    Probe,
    RepresentationEntropy,
    ResidualGrowth,
    RouterProfile,
)
from geomprobe.sweeps.comparisons import COMPARISONS
from tests.house.test_imports import COMMON, MAY_IMPORT, ROOT, SOURCES, home
from tests.tiny_models import tiny, token_batch

TOP = ROOT / "README.md"
FOLDERS = sorted({path.parent for path in SOURCES})


def name(folder: Path) -> str:
    return str(folder.relative_to(ROOT))


def links(page: Path) -> Iterator[Path]:
    """The files and folders that a page links to, with GitHub's own: a folder shows its README."""
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        if "://" not in target:
            path = (page.parent / target).resolve()
            yield path / "README.md" if (path / "README.md").is_file() else path


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_a_readme_names_every_file_of_its_folder(folder: Path) -> None:
    told = (folder / "README.md").read_text("utf-8")
    files = {path.name for kind in ("*.py", "*.html") for path in folder.glob(kind)}
    assert {file for file in files if f"[`{file}`]({file})" not in told} == set()


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder != ROOT / "geomprobe"], ids=name)
def test_a_readme_tells_what_its_folder_may_import(folder: Path) -> None:
    (line,) = re.findall(r"^\*\*May import:\*\* (.*)$", (folder / "README.md").read_text("utf-8"), re.MULTILINE)
    here = home(folder / "__init__.py")
    expected = MAY_IMPORT[here] if here != "integrations" else {"geomprobe", "core"}
    assert set(re.findall(r"`(\w+)`", line)) - COMMON == expected
    assert expected or line == "nothing of the package."


@pytest.mark.parametrize(
    "page", [TOP, ROOT / ".github/CONTRIBUTING.md", *(folder / "README.md" for folder in FOLDERS)], ids=name
)
def test_every_link_leads_somewhere(page: Path) -> None:
    found = list(links(page))
    assert found
    assert [str(path) for path in found if not path.exists()] == []


def test_the_top_level_readme_is_short_and_links_every_folder() -> None:
    assert len(TOP.read_text("utf-8").splitlines()) <= 127
    assert {folder / "README.md" for folder in FOLDERS} <= set(links(TOP))


@pytest.mark.parametrize(
    "sought",
    [
        "geomprobe/capture/hooks.py",  # where hooks are registered
        "geomprobe/accumulators/covariance.py",  # where Σzzᵀ is summed
        "geomprobe/core/spectrum.py",  # where e^H is computed
        "integrations/README.md",  # where a tracker would be added
        "geomprobe/paper/README.md",  # where a figure of the paper would be added
    ],
)
def test_within_three_clicks_from_the_repositorys_page(sought: str) -> None:
    pages, clicks = {TOP}, 0
    while ROOT / sought not in pages:
        clicks += 1
        assert clicks <= 3
        pages |= {link for page in pages if page.suffix == ".md" for link in links(page)}


def test_the_workflow_runs_the_readmes_own_test_command() -> None:
    workflow, script = ((ROOT / path).read_text("utf-8") for path in (".github/workflows/test.yml", ".ci/run"))
    assert "run: .ci/run" in workflow
    (pattern,) = re.findall(r"sed -n 's/\^\\\((.*)\\\)\$/\\1/p' README\.md", script)
    commands = [line for line in TOP.read_text("utf-8").splitlines() if re.fullmatch(pattern, line)]
    assert commands == [
        "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[test]' && .venv/bin/python -m tests.check"
    ]


def test_every_name_of_every_metric_is_in_the_reference() -> None:
    told = (ROOT / "geomprobe/metrics/README.md").read_text("utf-8")
    groups: list[list[Metric]] = [
        [
            RepresentationEntropy(text_spectrum=True, spectrum=True, sketch=4),
            InformationGain(stream=True),
            ContextLasso(attention=True),
        ],
        [RepresentationEntropy(center="text", text_spectrum=True), AttentionProfile(), Curvature(), MassiveActivations()],
        [
            RepresentationEntropy(text_spectrum=True, clipped=True),
            RepresentationEntropy(rows="last", unit=False, center="stream"),
        ],
        [AttentionProfile(sink_tokens=1, logits=True), ResidualGrowth(), MeanRepresentation()],
        [RouterProfile()],
    ]
    names = {"nonfinite", "sample_tokens", *COMPARISONS}
    for metrics in groups:
        model = tiny("mixtral")
        with torch.no_grad(), Probe(model, metrics, on_error="raise") as probe:
            model(token_batch())
        reading = probe.read()
        names |= {key.split("/")[0] for key in (*reading, *reading.curves)}
    assert len(names) > 60
    prefixes = re.compile("(last_|mean_)?(raw_)?(stream_centered_|centered_)?")
    assert {name for name in names if f"`{prefixes.sub('', name, count=1)}`" not in told} == set()
