"""The table of section 4.2: the earlier tokens that the Lasso and attention pick for three tokens of one sentence."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from geomprobe.inspection.inspect import visible
from geomprobe.paper.experiment import Experiment, Table, Verdict, cell
from geomprobe.paper.style import COLOURS, canvas, caption
from geomprobe.paper.token_picks import KINDS, PRINTED, READINGS, Model, Row, TokenPicks, measure, numbered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["TOKENS"]

_COLOURS = {"lasso": COLOURS[0], "attention": COLOURS[1]}
_WORDINGS = {
    "The Lasso may usually pick more meaningful tokens than raw attention": 2,
    "Abstract: the Lasso sometimes outperforms attention weights in selecting meaningful tokens": 1,
}
"""The claim of the paper in both wordings, and for how many of the three tokens it must be true to hold."""


def _draw(numbers: TokenPicks) -> "Figure":
    models = numbers.models
    figure, panels = canvas(len(PRINTED) * len(models), 1, width=10.5, height=1.9)
    places = iter(panels)
    for model in models:
        for name, row in model.rows.items():
            _draw_row(next(places), model, name, row)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3)
    caption(figure, "The paper's sentence, token by token, at final_norm. Dots mark tokens that the paper's table lists, too.")
    return figure


def _draw_row(axes: "Axes", model: Model, name: str, row: Row) -> None:
    tokens = model.tokens
    for offset, (kind, label) in zip((-0.2, 0.2), KINDS.items(), strict=True):
        weights = {int(j): weight for j, weight in row.picks[kind] or []}
        axes.bar([j + offset for j in weights], list(weights.values()), 0.4, color=_COLOURS[kind], label=label)
        printed = row.printed[kind]
        also = [] if printed is None else printed[""].which
        above = 0.05 * max(weight for drawn in row.picks.values() for _, weight in drawn or [[0, 1.0]])
        axes.plot([j + offset for j in also], [weights[j] + above for j in also], "o", color=_COLOURS[kind], markersize=3.5)
    axes.set_title(f"{model.name}: {numbered(tokens[row.position], row.position)}", parse_math=False)
    axes.set(xlim=(-0.7, len(tokens) - 0.3), ylabel="weight")
    axes.margins(y=0.12)
    axes.grid(axis="x", visible=False)
    few = len(tokens) <= 60
    written = [visible(token) for token in tokens]
    axes.set_xticks(range(len(tokens)), written, parse_math=False, rotation=90 if few else 0, fontsize=7 if few else 4)


def _tables(numbers: TokenPicks) -> list[Table]:
    return [table for model in numbers.models for table in (*_pick_tables(model), _agreement_table(model))]


def _pick_tables(model: Model) -> list[Table]:
    """Tables that show for each token the printed picks, and below them those of the model."""
    tables = []
    for name, row in model.rows.items():
        part = "" if row.whole else f" (the end of {name!r} in this vocabulary)"
        rows = []
        for kind, label in KINDS.items():
            rows.append((label, "the paper", " ".join(PRINTED[name][kind])))
            picks, printed = row.picks[kind], row.printed[kind]
            if picks is not None and printed is not None:
                lines = _listed(picks, model.tokens, printed[""].which)
                rows += [("", "" if number else "this model", line) for number, line in enumerate(lines)]
        token = numbered(model.tokens[row.position], row.position)
        title = f"{model.name}, {token}{part}: picks and their weights. R² of the Lasso {row.r2:.2f}"
        tables.append(Table(title, ("by", "of", "earlier tokens (subscript: number; *: the paper's too)"), rows, words=3))
    return tables


def _listed(picks: Sequence[Sequence[float]], tokens: Sequence[str], also: Sequence[int], width: int = 56) -> list[str]:
    """The picks as lines, the largest weight first, with a star at those that the paper prints, too."""
    lines = [""]
    for j, weight in picks:
        star = "*" if int(j) in also else ""
        pick = f"{numbered(tokens[int(j)], int(j))}{star} {f'{weight:.2f}'.removeprefix('0')}"
        if lines[-1] and len(lines[-1]) + len(pick) + 2 > width:
            lines.append("")
        lines[-1] += ("  " if lines[-1] else "") + pick
    return lines if picks else ["nothing above 0.01"]


def _agreement_table(model: Model) -> Table:
    """A table of how many printed picks the model has, where both are multisets."""
    rows = []
    for name, row in model.rows.items():
        for kind, label in KINDS.items():
            for reading in READINGS:
                found = (row.printed[kind] or {}).get(reading)
                if found is None:
                    continue
                counts = (found.printed, len(row.picks[kind] or []), len(found.which))
                shares = (cell(share, ".0%") for share in (found.share, found.chance))
                numbers = (f"{found.chance_matches:.1f}", f"{found.overlap:.2f}", *shares)
                rows.append((f"[{name}]" if not reading else "", reading or label, *map(str, counts), *numbers))
    title = (
        f"{model.name}: its picks and the paper's, as multisets of tokens. By chance: as many picks with the same "
        "weights on earlier tokens drawn at random"
    )
    columns = ("for", "by", "paper", "picks", "both", "chance", "overlap", "weight", "chance")
    return Table(title, columns, rows, words=2)


# -- the verdicts -----------------------------------------------------------------------------------------------------------


def _judge(numbers: TokenPicks) -> list[Verdict]:
    return [verdict for model in numbers.models for verdict in _judge_model(model)]


def _judge_model(model: Model) -> list[Verdict]:
    rows = model.rows.values()
    if not all(row.whole for row in rows):
        why = "this vocabulary cuts the paper's words into parts; give a model that has them whole with --models"
        return [Verdict(f"The table of picks ({model.name})", None, why), _telling_words(model)]
    table = [_as_printed(model, kind) for kind in KINDS if all(row.printed[kind] is not None for row in rows)]
    return [*table, *_against_attention(model), _telling_words(model)]


def _as_printed(model: Model, kind: str) -> Verdict:
    """It holds if for every token more of the printed picks are found than by chance, and they carry more than half of the
    weight and more than by chance. It does not hold if that is so for no token."""
    told, good = [], []
    rows = {name: printed for name, row in model.rows.items() if (printed := row.printed[kind]) is not None}
    for name, printed in rows.items():
        found = printed[""]
        both = len(found.which)
        good.append(found.share > max(0.5, found.chance) and both > found.chance_matches)
        told.append(
            f"for [{name}] {both} of {found.printed}, with {cell(found.share, '.0%')} of the weight (by chance "
            f"{found.chance_matches:.1f} and {cell(found.chance, '.0%')})"
        )
    listed = "; ".join(f"[{name}]: {' '.join(f'[{token}]' for token in PRINTED[name][kind])}" for name in rows)
    who = "The Lasso picks" if kind == "lasso" else "The largest attention weights pick"
    evidence = f"of the printed picks this model has {'; '.join(told)}"
    if kind == "attention":
        readings = [printed["without [,]"] for printed in rows.values()]
        counts = ", ".join(f"{len(found.which)} of {found.printed}" for found in readings)
        evidence += f". Without [,], which the sentence does not contain, {counts}"
    return Verdict(f"{who} {listed} ({model.name})", {0: False, len(good): True}.get(sum(good)), evidence)


def _against_attention(model: Model) -> list[Verdict]:
    """Verdicts on the claim in both wordings. The evidence of the paper is its table, so the tokens that it lists for the Lasso
    count as meaningful. It is counted for how many tokens more of the Lasso's weight than of attention's is on them, and more
    than by chance."""
    named = {f"{wording} ({model.name})": least for wording, least in _WORDINGS.items()}
    printed = [(row.printed["lasso"], row.printed["attention"]) for row in model.rows.values()]
    pairs = [(one["lasso"], other["lasso"]) for one, other in printed if one is not None and other is not None]
    if len(pairs) < len(printed) or any(math.isnan(found.share) for pair in pairs for found in pair):
        why = "the attention of this model cannot be read, or one of the two picks nothing for a token"
        return [Verdict(claim, None, why) for claim in named]
    more = sum(lasso.share > max(attention.share, lasso.chance) for lasso, attention in pairs)
    told = "; ".join(
        f"[{name}] {lasso.share:.0%} and {attention.share:.0%} (by chance {lasso.chance:.0%} and {attention.chance:.0%})"
        for name, (lasso, attention) in zip(model.rows, pairs, strict=True)
    )
    counted = f"for {more} of {len(pairs)} tokens"
    evidence = (
        f"{counted} if the tokens that the table lists for the Lasso are the meaningful ones: the paper does not measure "
        f"meaning, and the table is its evidence. Their shares of the Lasso's weight and of attention's are: {told}"
    )
    (usually, two), (sometimes, one) = named.items()
    return [Verdict(usually, more >= two, evidence), Verdict(sometimes, more >= one, f"{counted}, counted in the same way")]


def _telling_words(model: Model) -> Verdict:
    """A verdict that holds if, for each of the three tokens, more of the Lasso's weight than of attention's is on telling
    words."""
    shares = [row.telling for row in model.rows.values()]
    claim = f"For all three tokens more of the Lasso's weight than of attention's is on telling words ({model.name})"
    if any(math.isnan(share.attention) or math.isnan(share.lasso) for share in shares):
        return Verdict(claim, None, "the attention of this model cannot be read, or its Lasso picks nothing", "ours")
    more = sum(share.lasso > share.attention for share in shares)
    told = "; ".join(
        f"[{name}] {share.lasso:.0%} and {share.attention:.0%} (they are {share.chance:.0%} of earlier tokens)"
        for name, share in zip(model.rows, shares, strict=True)
    )
    evidence = f"the shares of the Lasso's weight and of attention's on cities, countries and “capital” are: {told}"
    return Verdict(claim, {0: False, len(shares): True}.get(more), evidence, "ours")


TOKENS = Experiment(
    name="tokens",
    title="What the Lasso and attention pick for three tokens",
    place="Section 4.2",
    read=(
        "The rows are those of final_norm. The Lasso reproduces the row of a token from the rows of earlier tokens "
        "(1/(2d)‖z − Zβ‖² + α‖β‖₁, α = 1e-4). Attention is that of the last layer, as a mean over heads. Weights above 0.01 "
        "are picks. The paper lists the picks of Pythia 1.4B. A row of its table holds here if more of the listed tokens are "
        "picked than by chance, and these have more than half of the weight."
    ),
    caveat="A weight is not a cause: the rows from which a row can be reproduced need not be those from which it was computed.",
    of="texts",
    numbers=TokenPicks,
    measure=measure,
    draw=_draw,
    tables=_tables,
    judge=_judge,
)
