"""Every item of the paper in its order: the function that computes it, the test that checks this function, and the verdict.

The items are in :data:`geomprobe.paper.items.ITEMS`. This module formats them for a terminal, for the page of all figures, and
for the ``README.md`` of this folder, which a test compares with the items.
"""

import textwrap
from collections.abc import Collection, Sequence

from geomprobe.paper.items import ITEMS, Item
from geomprobe.report.render import render

__all__ = ["to_html", "to_markdown", "to_text"]

_WIDTH = 80


def to_text() -> str:
    """Return the items as text for a terminal of 80 columns."""
    return "\n\n".join(map(_lines, ITEMS))


def _lines(item: Item) -> str:
    def wrapped(text: str, indent: str = "  ") -> list[str]:
        return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent="  ", break_on_hyphens=False)

    path, test = item.test.split("::")
    lines = [*wrapped(f"{item.name}: {item.subject}", ""), *wrapped(_verdict(item)), *(f"  {name}" for name in item.functions)]
    lines += [f"  {item.test}"] if len(item.test) + 2 <= _WIDTH else [f"  {path}::", f"    {test}"]
    return "\n".join([*lines, *([f"  geomprobe paper {item.command}"] if item.command else [])])


def to_markdown() -> str:
    """Return the concordance and the errata as Markdown for the ``README.md`` of this folder."""
    rows = [
        (item.name, item.subject, "<br>".join(map(_code, _shown(item))), _linked(item.test), item.verdict) for item in ITEMS
    ]
    errata = [(item.name, item.erratum, _code(f"geomprobe paper {item.command}")) for item in ITEMS if item.erratum]
    parts = [
        "## Concordance\n\nEvery item of the paper in its order. "
        "A statement *holds* if it is true in every case of its test.\n",
        _table(("item", "what it is", "computed by", "tested by", "verdict"), rows),
        "## Errata\n\nThese statements are wrong as printed, or need a condition.\n",
        _table(("item", "erratum", "in numbers"), errata),
    ]
    return "\n".join(parts)


def to_html(on_page: Collection[str] = ()) -> str:
    """Return the items as an HTML table. Commands whose sections are ``on_page`` become links to them."""
    return render("geomprobe.paper", "concordance.html.j2", items=ITEMS, on_page=on_page)


def _verdict(item: Item) -> str:
    return f"{item.verdict}: {item.erratum}" if item.erratum else item.verdict


def _shown(item: Item) -> tuple[str, ...]:
    return (*item.functions, f"geomprobe paper {item.command}") if item.command else item.functions


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`"


def _linked(test: str) -> str:
    path, name = test.split("::")
    return f"[`{name}`](../../{path})"
