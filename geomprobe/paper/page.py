"""Experiments as one page: pictures, verdicts and numbers. The page loads nothing and has no script."""

import html
import re
from collections.abc import Sequence
from importlib.resources import files

from geomprobe.paper.experiment import Outcome
from geomprobe.paper.style import to_svg

__all__ = ["page"]

_CLASSES = {True: "holds", False: "fails", None: "undecided"}


def page(title: str, outcomes: Sequence[Outcome]) -> str:
    """One document. Of several experiments it begins with all verdicts and a table of contents."""
    several = len(outcomes) > 1
    lead = ""
    if several:
        verdicts = "".join(_verdicts(outcome) for outcome in outcomes)
        links = "".join(
            f'<a href="#{o.experiment.name}">{html.escape(f"{o.experiment.place}: {o.experiment.title}")}</a>' for o in outcomes
        )
        lead = f"<p>What the paper says, and what came out here:</p>{verdicts}<nav>{links}</nav>"
    template = files("geomprobe.paper").joinpath("page.html").read_text("utf-8")
    parts = {"title": html.escape(title), "lead": lead, "body": "".join(_section(o, alone=not several) for o in outcomes)}
    return re.sub(r"\{\{(\w+)\}\}", lambda field: parts[field[1]], template)


def _section(outcome: Outcome, *, alone: bool) -> str:
    experiment = outcome.experiment
    title = experiment.place if alone else f"{html.escape(experiment.title)} <span>{html.escape(experiment.place)}</span>"
    tables = "".join(table.to_html() for table in experiment.tables(outcome.numbers))
    return (
        f'<section id="{experiment.name}"><h2>{title}</h2>'
        f"<p>{html.escape(experiment.read)} <i>{html.escape(experiment.caveat)}</i></p>"
        f'<div class="picture">{to_svg(outcome.figure)}</div>{_verdicts(outcome)}'
        f"<details><summary>The numbers</summary>{tables}</details></section>"
    )


def _verdicts(outcome: Outcome) -> str:
    lines = "".join(
        f'<li><b class="{_CLASSES[verdict.holds]}">{verdict.word}</b>'
        f"<div>{html.escape(verdict.claim)}: <span>{html.escape(verdict.evidence)}</span></div></li>"
        for verdict in outcome.verdicts
    )
    return f'<ul class="verdicts">{lines}</ul>' if lines else ""
