"""Blocks of README files that tests generate: a table between two comments."""

from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["block", "table", "write_block"]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (columns, *rows)]
    lines = [f"| {' | '.join(row)} |\n" for row in cells]
    return "".join([lines[0], "|" + "---|" * len(columns) + "\n", *lines[1:]])


def block(readme: Path, name: str) -> str:
    """What a README contains between ``<!-- name -->`` and ``<!-- /name -->``."""
    return readme.read_text("utf-8").partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->\n")[0]


def write_block(readme: Path, name: str, content: str) -> None:
    """Replace the content of a block."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, found, rest = readme.read_text("utf-8").partition(start)
    _, closed, after = rest.partition(end)
    assert found, f"{readme} has no line {start!r}"
    assert closed, f"{readme} has no line {end!r}"
    readme.write_text(before + start + content + end + after, "utf-8")
