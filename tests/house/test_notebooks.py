"""The notebooks of ``examples/`` run, and hold the outputs of a run; and the program that runs them."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.house.test_imports import ROOT, ours
from tests.notebooks import NOTEBOOKS, execute, source

PNG = b"\x89PNG\r\n\x1a\n"


def cell(code: str) -> dict[str, Any]:
    return {"cell_type": "code", "source": code.splitlines(keepends=True)}


def kinds(notebook: dict[str, Any]) -> list[list[tuple[str, ...]]]:
    """The types of the outputs of each cell."""
    return [
        [(output["output_type"], *sorted(output.get("data", {}))) for output in each.get("outputs", [])]
        for each in notebook["cells"]
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_holds_small_outputs_of_this_projects_names(path: Path, tmp_path: Path) -> None:
    notebook = json.loads(text := path.read_text("utf-8"))
    assert path.stat().st_size < 400_000
    assert len({each["id"] for each in notebook["cells"]}) == len(notebook["cells"])
    pictures = [base64.b64decode(png) for png in [*find(notebook, "image/png")]]
    assert len(pictures) >= 3
    assert all(picture.startswith(PNG) for picture in pictures)
    assert not [place for place in ("/home/", "/root/", "/tmp/", str(ROOT)) if place in text]
    code = tmp_path / "cells.py"
    code.write_text("\n".join(source(each) for each in notebook["cells"] if each["cell_type"] == "code"), "utf-8")
    modules = {module for module, _ in ours(code)}
    assert modules <= {"geomprobe", "geomprobe.integrations", "geomprobe.models.toy"}


def find(value: Any, key: str) -> list[str]:
    """All values of a key, at any depth."""
    if isinstance(value, list):
        return [found for each in value for found in find(each, key)]
    if isinstance(value, dict):
        return [value[name] for name in value if name == key] + find(list(value.values()), key)
    return []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_and_shows_what_is_stored(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    stored = json.loads(path.read_text("utf-8"))
    assert kinds(execute(stored)) == kinds(stored)


def test_an_output_is_what_is_printed_the_last_value_and_the_figures() -> None:
    notebook = {
        "cells": [
            {"cell_type": "markdown", "source": ["text"]},
            cell("value = 2\nprint('one')\nvalue"),
            cell("value;"),
            cell("import matplotlib.pyplot as plt\nfigure = plt.figure()"),
            cell("class Html:\n    def _repr_html_(self):\n        return f'<b>{value}</b>'\nHtml()"),
            cell("value = None\nvalue"),
        ]
    }
    done = execute(notebook)
    result = [
        {"output_type": "stream", "name": "stdout", "text": ["one\n"]},
        {"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": {"text/plain": ["2"]}},
    ]
    assert done["cells"][0] == notebook["cells"][0]
    assert done["cells"][1]["outputs"] == result
    assert kinds(done)[2:] == [[], [("display_data", "image/png")], [("execute_result", "text/html", "text/plain")], []]
    assert done["cells"][4]["outputs"][0]["data"]["text/html"] == ["<b>2</b>"]
    assert "outputs" not in notebook["cells"][1]


def test_a_notebook_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError):
        execute({"cells": [cell("1 / 0")]})
    assert Path.cwd() == tmp_path
