"""The page of one or several experiments, with pictures, verdicts and numbers. It loads no other file and has no script."""

from collections.abc import Sequence
from typing import Any

from geomprobe.paper.concordance import to_html
from geomprobe.paper.experiment import HEADINGS, Kind, Outcome
from geomprobe.paper.style import to_svg
from geomprobe.report.render import render

__all__ = ["page"]

_CLASSES = {True: "holds", False: "fails", None: "undecided"}
_INTRODUCTIONS: dict[Kind, str] = {
    "paper": "The claims of the paper that can be measured or computed, in its order, with the results for these models and "
    "this data. One model cannot settle a claim about all language models.",
    "ours": "Controls that the paper does not have: the same numbers with random weights, with shuffled tokens, or by a "
    "measure of our own. They limit what a claim above can mean, and are not verdicts on the paper.",
    "erratum": "Statements that are wrong as they are printed, or need a condition, each with the correct statement.",
}


def page(title: str, outcomes: Sequence[Outcome[Any]]) -> str:
    """Return the page as one HTML document. For several experiments it begins with a table of contents, all verdicts and the
    concordance."""
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
