"""The concordance: what it names is there, and nothing of the paper is missing.

``python -m tests.paper.test_concordance`` writes the table in the README of ``geomprobe/paper`` anew.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from geomprobe.cli.main import app
from geomprobe.cli.paper import EXPERIMENTS
from geomprobe.paper.concordance import to_html, to_markdown, to_text
from geomprobe.paper.items import ITEMS, Item
from tests.readme_block import ROOT, ReadmeBlock

README = ROOT / "geomprobe" / "paper" / "README.md"
_PAPER = ROOT.parent / "shared" / "paper.txt"

_STATEMENT = re.compile(r"^\W*(Definition|Assumption|Lemma|Theorem) (\d+\.\d+|[A-Z]\.\d+)\W", re.MULTILINE)
_EQUATION = re.compile(r"\\quad \((\d+)\)")
_FIGURE = re.compile(r"^Figure (\d+):", re.MULTILINE)
_BLOCK = ReadmeBlock(README, "concordance")
_TABLE = re.compile(r"^Table (\d+):", re.MULTILINE)


@pytest.fixture(scope="module")
def paper() -> str:
    if not _PAPER.exists():
        pytest.skip("../shared/paper.txt is not beside this checkout")
    return _PAPER.read_text("utf-8")


def found(name: str) -> Any:
    """What a dotted name is."""
    module, *rest = name.split(".")
    thing: Any = import_module(module)
    for part in rest:
        module = f"{module}.{part}"
        try:
            thing = getattr(thing, part)
        except AttributeError:
            thing = import_module(module)
    return thing


@cache
def names_of_tests(path: Path) -> frozenset[str]:
    body = ast.parse(path.read_text("utf-8")).body
    return frozenset(node.name for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.name)
def test_every_row_names_a_function_and_a_test_that_exist(item: Item) -> None:
    assert item.functions
    for name in item.functions:
        assert name.startswith("geomprobe.")
        assert found(name) is not None
    path, test = item.test.split("::")
    assert test in names_of_tests(ROOT / path)
    assert item.verdict
    assert item.command in {"", *EXPERIMENTS}
    assert item.command or not item.erratum  # every erratum is shown in numbers


def numbers(text: str) -> Iterator[str]:
    """The numbered items of the paper."""
    for pattern, kind in ((_STATEMENT, ""), (_EQUATION, "Equation"), (_FIGURE, "Figure"), (_TABLE, "Table")):
        yield from (" ".join(filter(None, (kind, *match))).strip() for match in map(re.Match.groups, pattern.finditer(text)))


def test_no_numbered_item_of_the_paper_lacks_a_row(paper: str) -> None:
    known = [item.name for item in ITEMS]
    printed = list(numbers(paper))
    assert len(printed) > 30  # the patterns fit the text
    assert {name for name in printed if name not in known} == set()
    numbered = [name for name in known if re.fullmatch(r"[A-Z][a-z]+ (\d+\.\d+|[A-Z]\.\d+|\d+)", name)]
    assert {name for name in numbered if name not in printed} == {"Section 2.2"}  # nothing that the paper does not have
    for kind in ("Definition|Assumption|Lemma|Theorem", "Equation", "Figure"):
        of_kind = re.compile(rf"({kind}) [\dA-Z.]+")
        assert [name for name in known if of_kind.fullmatch(name)] == [name for name in printed if of_kind.fullmatch(name)]


def test_the_patterns_know_the_forms_of_the_paper() -> None:
    text = (
        "Definition 9.1 (X).\nDefinition 9.2.\n**Lemma 9.3** (Y). see theorem 9.9 and definition 9.8, by Lemma 9.7.\n"
        "Theorem Z.1. Assume\n$$x = y. \\quad (7)$$\nfrom (8) see\n$$z, \\quad (9)$$\nFigure 3: a.\nIn Figure 4, b.\n"
    )
    expected = ["Definition 9.1", "Definition 9.2", "Lemma 9.3", "Theorem Z.1", "Equation 7", "Equation 9", "Figure 3"]
    assert list(numbers(text)) == expected


def test_names_are_told_apart() -> None:
    names = [item.name for item in ITEMS]
    assert len({*names}) == len(names)


def test_the_readme_has_the_concordance() -> None:
    assert _BLOCK.told() == to_markdown(), "write it anew: python -m tests.paper.test_concordance"


def test_its_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)]+)\)", to_markdown())
    assert len(links) == len(ITEMS)
    assert all((README.parent / link).exists() for link in links)


def test_it_prints_every_row_in_eighty_columns() -> None:
    result = CliRunner().invoke(app, ["paper", "concordance"], terminal_width=80)
    assert result.exit_code == 0, result.output
    assert result.output == to_text() + "\n"
    assert max(map(len, result.output.splitlines())) <= 80
    flat = " ".join(result.output.split())
    for item in ITEMS:
        assert f"{item.name}: {item.subject}" in flat
        assert item.verdict in flat
        assert item.erratum in flat


def test_on_a_page_it_links_to_what_is_there() -> None:
    table = to_html(["fig1"])
    assert '<a href="#fig1">geomprobe paper fig1</a>' in table
    assert "#theory" not in table
    assert table.count("<tr>") == len(ITEMS) + 1


if __name__ == "__main__":
    _BLOCK.write(to_markdown())
