"""Experiments as one page: pictures, verdicts and numbers. The page loads nothing and has no script."""

from collections.abc import Sequence
from typing import Any

from geomprobe.paper.concordance import to_html
from geomprobe.paper.experiment import HEADINGS, Kind, Outcome
from geomprobe.paper.style import to_svg
from geomprobe.report.render import render

__all__ = ["page"]

_CLASSES = {True: "holds", False: "fails", None: "undecided"}
_INTRODUCTIONS: dict[Kind, str] = {
    "paper": "The claims of the paper that can be measured or computed, in its order, with what came out of these models and "
    "this data. A claim about language models is not settled by one of them.",
    "ours": "What the paper does not do: the same numbers of random weights, of shuffled tokens, or by a measure of our own. "
    "They limit what a claim above can mean, and are no verdicts on the paper.",
    "erratum": "Statements that are wrong as they are printed, or need a condition, each with what is right.",
}


def page(title: str, outcomes: Sequence[Outcome[Any]]) -> str:
    """One document. Of several experiments it begins with all verdicts, the concordance and a table of contents."""
    return render(
        "geomprobe.paper",
        "page.html.j2",
        title=title,
        outcomes=outcomes,
        headings=HEADINGS,
        kinds=[kind for kind in HEADINGS if any(outcome.of_kind(kind) for outcome in outcomes)],
        introductions=_INTRODUCTIONS,
        classes=_CLASSES,
        concordance=to_html([outcome.experiment.name for outcome in outcomes]),
        svg=to_svg,
    )
