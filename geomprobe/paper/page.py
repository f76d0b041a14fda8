"""Pieces of the paper as a page of its own: pictures, what they say, their numbers. It loads nothing and has no script."""

import html
import re
from collections.abc import Sequence
from importlib.resources import files

from geomprobe.paper.drawing import to_svg
from geomprobe.paper.piece import Outcome

__all__ = ["page"]

_CLASSES = {True: "holds", False: "fails", None: "undecided"}


def page(title: str, outcomes: Sequence[Outcome]) -> str:
    """One document. Of several pieces it begins with all verdicts and a table of contents."""
    several = len(outcomes) > 1
    lead = ""
    if several:
        verdicts = "".join(_verdicts(outcome) for outcome in outcomes)
        links = "".join(f'<a href="#{o.piece.name}">{html.escape(f"{o.piece.place}: {o.piece.title}")}</a>' for o in outcomes)
        lead = f"<p>What the paper says, and what came out here:</p>{verdicts}<nav>{links}</nav>"
    template = files("geomprobe.paper").joinpath("page.html").read_text("utf-8")
    parts = {"title": html.escape(title), "lead": lead, "body": "".join(_section(o, alone=not several) for o in outcomes)}
    return re.sub(r"\{\{(\w+)\}\}", lambda field: parts[field[1]], template)


def _section(outcome: Outcome, *, alone: bool) -> str:
    piece = outcome.piece
    title = piece.place if alone else f"{html.escape(piece.title)} <span>{html.escape(piece.place)}</span>"
    tables = "".join(table.to_html() for table in piece.tables(outcome.numbers))
    return (
        f'<section id="{piece.name}"><h2>{title}</h2><p>{html.escape(piece.read)} <i>{html.escape(piece.isnt)}</i></p>'
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
