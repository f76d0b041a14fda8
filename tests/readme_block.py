"""Blocks of README files that tests write, and hold to what they measured: between ``<!-- name -->`` and ``<!-- /name -->``."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ReadmeBlock:
    """A block of a README.

    Attributes:
        readme: the file.
        name: the name in the comments around the block.
    """

    readme: Path
    name: str

    def told(self) -> str:
        """Return what stands in the block."""
        return self._parts()[1]

    def write(self, text: str) -> None:
        """Replace what stands in the block."""
        before, _, after = self._parts()
        self.readme.write_text(before + text + after, "utf-8")

    def _parts(self) -> tuple[str, str, str]:
        """The file before the block, the block, and the file after it."""
        start, end = f"<!-- {self.name} -->\n", f"<!-- /{self.name} -->\n"
        before, found, rest = self.readme.read_text("utf-8").partition(start)
        block, ended, after = rest.partition(end)
        assert found, f"no {start.strip()} in {self.readme}"
        assert ended, f"no {end.strip()} in {self.readme}"
        return before + start, block, end + after


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown.

    >>> print(markdown_table(("a", "b"), [("1", "2")]), end="")
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (columns, *rows)]
    lines = [f"| {' | '.join(row)} |\n" for row in cells]
    return lines[0] + "|---" * len(columns) + "|\n" + "".join(lines[1:])
