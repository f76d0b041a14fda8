"""Experiments as one page: pictures, verdicts and numbers. The page loads nothing and has no script."""

import html
import re
from collections.abc import Sequence
from importlib.resources import files

from geomprobe.paper.concordance import to_html
from geomprobe.paper.experiment import HEADINGS, Kind, Outcome, Verdict
from geomprobe.paper.style import to_svg

__all__ = ["page"]

_CLASSES = {True: "holds", False: "fails", None: "undecided"}
_INTRODUCTIONS: dict[Kind, str] = {
    "paper": "The claims of the paper that can be measured or computed, in its order, with what came out of these models and "
    "this data. A claim about language models is not settled by one of them.",
    "ours": "What the paper does not do: the same numbers of random weights, of shuffled tokens, or by a measure of our own. "
    "They limit what a claim above can mean, and are no verdicts on the paper.",
    "erratum": "Statements that are wrong as they are printed, or need a condition, each with what is right.",
}


def page(title: str, outcomes: Sequence[Outcome]) -> str:
    """One document. Of several experiments it begins with all verdicts, the concordance and a table of contents."""
    several = len(outcomes) > 1
    parts = {
        "title": html.escape(title),
        "lead": _summary(outcomes) if several else "",
        "body": "".join(_section(outcome, alone=not several) for outcome in outcomes),
    }
    template = files("geomprobe.paper").joinpath("page.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda field: parts[field[1]], template)


def _summary(outcomes: Sequence[Outcome]) -> str:
    """Every verdict, those of a kind together; then every item of the paper."""
    kinds = [kind for kind in HEADINGS if any(outcome.of_kind(kind) for outcome in outcomes)]
    entries: dict[str, str] = {
        **{kind: HEADINGS[kind] for kind in kinds},
        "concordance": "Concordance",
        **{o.experiment.name: f"{o.experiment.place}: {o.experiment.title}" for o in outcomes},
    }
    links = "".join(f'<a href="#{name}">{html.escape(entry)}</a>' for name, entry in entries.items())
    told = "".join(
        f'<section class="summary" id="{kind}"><h2>{HEADINGS[kind]}</h2><p>{_INTRODUCTIONS[kind]}</p>'
        + "".join(_of_one(outcome, kind) for outcome in outcomes)
        + "</section>"
        for kind in kinds
    )
    concordance = (
        '<section class="summary" id="concordance"><h2>Concordance</h2><p>Every item of the paper in its order: the function '
        "that computes it, the test that checks that function independently, and the verdict.</p>"
        f"<details><summary>All items</summary>{to_html([o.experiment.name for o in outcomes])}</details></section>"
    )
    return f"<nav>{links}</nav>{told}{concordance}"


def _of_one(outcome: Outcome, kind: Kind) -> str:
    """What one experiment says of this kind, under a link to it."""
    if not (verdicts := outcome.of_kind(kind)):
        return ""
    experiment = outcome.experiment
    return f'<h3><a href="#{experiment.name}">{html.escape(experiment.place)}</a></h3>{_list(verdicts)}'


def _section(outcome: Outcome, *, alone: bool) -> str:
    experiment = outcome.experiment
    title = experiment.place if alone else f"{html.escape(experiment.title)} <span>{html.escape(experiment.place)}</span>"
    tables = "".join(table.to_html() for table in experiment.tables(outcome.numbers))
    verdicts = "".join(
        f"<h3>{heading}</h3>{_list(found)}" for kind, heading in HEADINGS.items() if (found := outcome.of_kind(kind))
    )
    return (
        f'<section class="experiment" id="{experiment.name}"><h2>{title}</h2>'
        f"<p>{html.escape(experiment.read)} <i>{html.escape(experiment.caveat)}</i></p>"
        f'<div class="picture">{to_svg(outcome.figure)}</div>{verdicts}'
        f"<details><summary>The numbers</summary>{tables}</details></section>"
    )


def _list(verdicts: Sequence[Verdict]) -> str:
    lines = "".join(
        f'<li><b class="{_CLASSES[verdict.holds]}">{verdict.word}</b>'
        f"<div>{html.escape(verdict.claim)}: <span>{html.escape(verdict.evidence)}</span></div></li>"
        for verdict in verdicts
    )
    return f'<ul class="verdicts">{lines}</ul>'
