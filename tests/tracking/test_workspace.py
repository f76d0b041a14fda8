"""The view of a W&B project, against what training runs and sweeps write into one."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb
from typer.testing import CliRunner

from geomprobe import GeomprobeError, sweep
from geomprobe.cli.main import app
from geomprobe.integrations import ProbeCallback
from geomprobe.integrations.picture import PICTURE
from geomprobe.sweeps.records import Record
from geomprobe.tracking.sweep_run import SweepTracker
from geomprobe.tracking.workspace import Panel, save, sections
from tests.integrations.training import trainer
from tests.integrations.wandb_file import RunFile, read_run, run_files
from tests.sweeps.conftest import save_checkpoint
from tests.tiny_models import prose

OVERVIEW, *DETAILS = sections()
PANELS = [panel for section in DETAILS for panel in section.panels]
ALL = [*OVERVIEW.panels, *PANELS]


def track(folder: Path, records: list[Record], **options: Any) -> None:
    with SweepTracker(folder, "p", {}, **options) as tracker:
        for record in records:
            tracker.record(record)


def shown(panel: Panel, run: RunFile) -> set[str]:
    """The lines of a panel: names that its expression finds, in rows that have its axis."""
    rows = [row for row in run.history if panel.x in row]
    return {name for row in rows for name in row if re.search(panel.metrics, name)}


@pytest.mark.slow
def test_every_panel_has_lines_and_every_number_a_panel(wandb_directory: Path) -> None:
    watcher = ProbeCallback(when=2, log="all")
    trainer(wandb_directory, watcher, report_to="wandb", eval_strategy="steps", eval_steps=2).train()
    wandb.finish()
    reading = watcher.history[-1][1]
    assert reading.mode == "eval"
    for step in (1, 2):
        save_checkpoint(wandb_directory / "trained" / f"checkpoint-{step}", step)
    (wandb_directory / "a.txt").write_text(prose(600), "utf-8")
    options: dict[str, Any] = {"data": str(wandb_directory / "a.txt"), "tokens": 200, "length": 40}
    run = sweep(str(wandb_directory / "trained"), out=wandb_directory / "steps", **options)
    track(run.path, run.checkpoints)
    track(wandb_directory / "sizes", [replace(r, parameters=n) for n, r in enumerate(run.checkpoints)], axis="parameters")
    training, steps, sizes = [read_run(path.parent) for path in run_files(wandb_directory)]
    runs = {"train/global_step": training, "checkpoint/step": steps, "checkpoint/parameters": sizes}

    drawn: dict[str, set[str]] = {x: set() for x in runs}
    for panel in PANELS:
        assert panel.x in runs[panel.x].axes
        lines = shown(panel, runs[panel.x])
        metrics = {re.sub(r"^geomprobe/(eval/)?", "", name).split("/")[0] for name in lines}
        assert len(metrics) == 1, panel
        assert 1 <= len(lines) <= len(reading.sites), panel
        assert not lines & drawn[panel.x]
        drawn[panel.x] |= lines
    pictures = {name for name in training.names("geomprobe/") if name.startswith(PICTURE)}
    histograms = {name for name in training.names("geomprobe/") if "/spectrum_log10/" in name}
    drawn["train/global_step"] |= pictures | histograms  # the view leaves histograms to W&B's own workspace
    counts = ("tokens", "texts", "sample_tokens")
    for x, file in runs.items():
        left = {name for name in file.names("geomprobe/") - drawn[x] if name.split("/")[-2] not in counts}
        assert left == set()
    assert {"train/loss", "eval/loss"} <= drawn["train/global_step"]


@pytest.mark.slow
def test_the_overview_is_open_and_full_with_what_a_training_logs_by_default(wandb_directory: Path) -> None:
    trainer(wandb_directory, ProbeCallback(when=2), report_to="wandb").train()
    wandb.finish()
    run = read_run(wandb_directory)
    assert [section.open for section in sections()] == [True] + [False] * len(DETAILS)
    assert len(OVERVIEW.panels) == 6
    lines = [panel for panel in OVERVIEW.panels if not panel.picture]
    assert [len(shown(panel, run)) for panel in lines] == [1, 4, 4, 4, 4]
    (picture,) = [panel for panel in OVERVIEW.panels if panel.picture]
    assert list(run.series(f"{picture.metrics}.path")) == [4, 6]


def test_of_several_evaluation_sets_all_are_shown() -> None:
    names = {"geomprobe/eval_books/entropy/embed", "geomprobe/eval/entropy/embed", "eval/books_loss", "geomprobe/entropy/embed"}
    assert all(any(re.search(panel.metrics, name) for panel in PANELS) for name in names)
    assert not any(re.search(panel.metrics, "geomprobe/mine/entropy/embed") for panel in PANELS)


def test_dry_run_prints_it_without_the_package_or_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setattr(wandb, "Api", None)
    done = CliRunner().invoke(app, ["dashboard", "--project", "p", "--entity", "e", "--name", "n", "--dry-run"])
    view = json.loads(done.stdout)
    assert (view["project"], view["entity"], view["name"]) == ("p", "e", "n")
    assert [Panel(**panel) for section in view["sections"] for panel in section["panels"]] == ALL


# -- saving -----------------------------------------------------------------------------------------------------------------


class Server:
    """A W&B that takes views."""

    default_entity = "me"

    def __init__(self) -> None:
        self._service_api = self.client = self  # the second is where wandb-workspaces before 0.4 asks
        self.app_url = "https://wandb.example"
        self.saved: list[dict[str, Any]] = []
        self.refusal: Exception | None = None

    def execute_graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if self.refusal is not None:
            raise self.refusal
        self.saved.append(variables)
        return {"upsertView": {"view": {"id": "1", "name": variables["name"]}}}

    execute = execute_graphql


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: True)
    monkeypatch.setattr(wandb, "Api", lambda: server)
    return server


def test_the_view_that_is_saved_has_these_panels(server: Server) -> None:
    done = CliRunner().invoke(app, ["dashboard", "--project", "p", "--name", "n"])
    (view,) = server.saved
    assert done.stdout.strip().startswith("https://wandb.example/me/p?nw=")
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("me", "p", "n")
    saved = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in saved] == [section.name for section in sections()]
    assert [section["isOpen"] for section in saved] == [section.open for section in sections()]
    configs = [panel["config"] for section in saved for panel in section["panels"]]
    lines = [config for config in configs if "metricRegex" in config]
    assert [Panel(config["chartTitle"], config["xAxis"], config["metricRegex"]) for config in lines] == [
        panel for panel in ALL if not panel.picture
    ]
    assert all(config["useMetricRegex"] for config in lines)
    assert [config["mediaKeys"] for config in configs if "mediaKeys" in config] == [[PICTURE]]


def test_an_entity_that_is_given_is_the_one(server: Server) -> None:
    assert save("p", "team", "n").startswith("https://wandb.example/team/p?nw=")


def test_what_is_in_the_way_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.refusal = wandb.errors.CommError("permission denied")
    with pytest.raises(GeomprobeError, match="did not save the view 'n' of 'p': CommError: permission denied; expected a proj"):
        save("p", None, "n")
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: False)
    with pytest.raises(GeomprobeError, match=r"run `wandb login`, unset WANDB_MODE, or .* --dry-run"):
        save("p", None, "n")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(GeomprobeError, match=r"pip install 'geomprobe\[dashboard\]'"):
        save("p", None, "n")
