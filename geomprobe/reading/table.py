"""The tables of a reading: for a terminal of 80 columns, and for notebooks."""

import html
import math
import textwrap
from collections.abc import Sequence

from geomprobe.reading.bounds import most_directions, remark_on_few_tokens
from geomprobe.reading.data import ReadingData

__all__ = ["cell", "columns", "headline", "notebook_table", "shorten", "terminal_notes"]
__all__ += ["terminal_table", "wrap"]

_WIDTH = 80
_BAR = 10
_PADDING = "text-align:right;vertical-align:bottom;padding:2px 8px"
_MOST = 5
"""Number of columns of the table for notebooks that are not folded."""

# The first columns of a table, in order, with their titles in a terminal.
_COLUMNS = {
    "entropy": ("entropy", "{:.3f}"),
    "effective_rank": ("eff.rank", "{:.1f}"),
    "anisotropy": ("anisotropy", "{:.3f}"),
    "information_gain": ("gain/text", "{:.1f}"),
    "gain_per_token": ("gain/token", "{:.3f}"),
    "lasso_picks": ("picks", "{:.1f}"),
    "lasso_r2": ("Lasso R²", "{:.3f}"),
    "attention_entropy": ("att.entropy", "{:.3f}"),
    "attention_sink": ("att.sink", "{:.3f}"),
    "attention_distance": ("att.dist", "{:.1f}"),
    "router_load_entropy": ("load entropy", "{:.3f}"),
    "router_entropy": ("router ent.", "{:.3f}"),
    "router_dead_experts": ("dead", "{:.2f}"),
    "router_largest_share": ("largest", "{:.3f}"),
    "lasso_attention_jaccard": ("jaccard", "{:.3f}"),
    "eq5_r2": ("Eq.5 R²", "{:.3f}"),
}


def headline(reading: ReadingData) -> str:
    """Return one line that says on what a reading was measured: tokens, texts, the width d and the mode."""
    tokens, texts = (
        max((reading.get(f"{what}/{site}", 0) for site in reading.sites), default=0) for what in ("tokens", "texts")
    )
    widths = sorted(set(reading.widths.values()))
    width = f" · d = {' or '.join(f'{d:,}' for d in widths)}" if widths else ""
    count = f"{tokens:,.0f} token{'s' * (tokens != 1)} in {texts:,.0f} text{'s' * (texts != 1)}"
    return f"geomprobe · {count}{width} · {reading.mode}"


def columns(reading: ReadingData) -> list[str]:
    """Return the metrics of a reading in the order of the columns of a table: those that are read most come first."""
    names = [name for name in reading.metrics if name not in ("tokens", "texts")]
    return [name for name in _COLUMNS if name in names] + [name for name in names if name not in _COLUMNS]


def cell(name: str, value: float, sign: str = "") -> str:
    """Return a number of a metric as it stands in a table; a dash for NaN. ``sign="+"`` writes the sign of a difference."""
    if math.isnan(value):
        return "–"
    if sign:  # the digits that a number needs may show nothing of a difference
        return f"{value:{sign}.3g}"
    text = _COLUMNS.get(name, ("", "{:.4g}"))[1].format(value)
    return text if len(text) <= 12 else f"{value:.4g}"


def terminal_table(reading: ReadingData, *, head: str = "", sign: str = "", bars: bool = True) -> str:
    """Return a table for 80 columns with one line for each site, and as many metrics as fit; the names of the others stand
    under it. With ``bars``, a bar beside each effective rank shows it as a fraction of ``min(n, d)``, the largest rank that n
    rows of width d can have, or of the largest one if d is not known."""
    ranks = [reading.get(f"effective_rank/{site}", math.nan) for site in reading.sites]
    limits = [most_directions(reading, site) if bars else None for site in reading.sites]
    bars = bars and any(map(math.isfinite, ranks))
    known = bars and None not in limits
    largest = max((rank for rank in ranks if math.isfinite(rank)), default=1.0) or 1.0
    block = [_padded(["site", *(shorten(site, 20) for site in reading.sites)], left=True, least=10)]
    shown = []
    for name in columns(reading):
        values = [cell(name, reading.get(f"{name}/{site}", math.nan), sign) for site in reading.sites]
        column = _padded([shorten(_COLUMNS.get(name, (name, ""))[0], 24), *values], least=7)
        if bars and name == "effective_rank":
            fractions = [rank / (most or largest) for rank, most in zip(ranks, limits, strict=True)]
            column = [f"{number} {bar}" for number, bar in zip(column, [" " * _BAR, *map(_bar, fractions)], strict=True)]
        if sum(len(cells[0]) + 2 for cells in [*block, column]) - 2 <= _WIDTH:
            block.append(column)
            shown.append(name)
    lines = [*wrap(head or headline(reading)), "", *("  ".join(row).rstrip() for row in zip(*block, strict=True))]
    if bars and "effective_rank" in shown:
        ends = sorted({most for most in limits if most is not None})
        most = " or ".join(f"{end:,}" for end in dict.fromkeys((ends[0], ends[-1]))) if known else ""
        scale = f"{most} = min(n, d)" if known else f"{largest:.1f}, the largest"
        lines += ["", *wrap(f"bars: effective rank from 0 to {scale}")]
    if others := [name for name in columns(reading) if name not in shown]:
        lines += ["", *wrap("also: " + ", ".join(others))]
    return "\n".join(lines)


def terminal_notes(reading: ReadingData) -> list[str]:
    """Return the lines under the table: the notes of a reading, and the remark on few tokens."""
    return [line for note in _notes(reading) for line in wrap("! " + note)]


def notebook_table(reading: ReadingData, *, head: str = "", sign: str = "", notes: Sequence[str] | None = None) -> str:
    """Return an HTML table for notebooks: the five metrics that are read most, in colours from the smallest to the largest
    value of each column, and the others folded. The colours are translucent, so that they fit light and dark pages."""
    names = columns(reading)
    tables = [_html_table(reading, names[:_MOST], sign)]
    if folded := names[_MOST:]:
        more = f"{len(folded)} more metric{'s' * (len(folded) > 1)}"
        tables.append(f"<details><summary>{more}</summary>{_html_table(reading, folded, sign)}</details>")
    remarks = "".join(f"<p>⚠ {html.escape(note)}</p>" for note in (_notes(reading) if notes is None else notes))
    return f"<p>{html.escape(head or headline(reading))}</p>{''.join(tables)}{remarks}"


def _html_table(reading: ReadingData, names: Sequence[str], sign: str) -> str:
    names_that_wrap = (html.escape(name).replace("_", "_<wbr>") for name in ["site", *names])
    head = "".join(f"<th style='{_PADDING}'>{name}</th>" for name in names_that_wrap)
    values = {name: [reading.get(f"{name}/{site}", math.nan) for site in reading.sites] for name in names}
    tints = {name: _tints(values[name], sign) for name in names}
    body = ""
    for i, site in enumerate(reading.sites):
        cells = (f"<td style='{_PADDING};{tints[name][i]}'>{cell(name, values[name][i], sign)}</td>" for name in names)
        body += f"<tr><th style='text-align:left;padding:2px 8px'>{html.escape(site)}</th>{''.join(cells)}</tr>"
    style = "border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums"
    table = f"<table style='{style}'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div style='overflow-x:auto'>{table}</div>"


def _tints(values: Sequence[float], sign: str) -> list[str]:
    """The background of the cells of a column: from pale (smallest) to strong (largest), or, for differences, blue above zero
    and orange below."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (0.0, max(map(abs, finite), default=0.0)) if sign else (min(finite, default=0.0), max(finite, default=0.0))
    styles = []
    for value in values:
        if not math.isfinite(value) or high <= low:
            styles.append("background:none")
            continue
        share = (abs(value) - low if sign else value - low) / (high - low)
        colour = "214 106 40" if sign and value < 0 else "74 124 214"
        styles.append(f"background:rgb({colour} / {0.04 + 0.41 * share:.2f})")
    return styles


def _notes(reading: ReadingData) -> list[str]:
    few = remark_on_few_tokens(reading)
    return [*([few] if few else []), *reading.notes]


def _padded(cells: Sequence[str], *, left: bool = False, least: int = 0) -> list[str]:
    """Cells of one width."""
    width = max(least, *map(len, cells))
    return [cell.ljust(width) if left else cell.rjust(width) for cell in cells]


def shorten(text: str, width: int) -> str:
    """Return a printable text of at most ``width`` characters."""
    text = "".join(character if character.isprintable() else "�" for character in text)
    return text if len(text) <= width else text[: width - 1] + "…"


def _bar(share: float) -> str:
    """A bar of ten characters for a value from 0 to 1, in steps of an eighth of a character."""
    eighths = 0 if math.isnan(share) else round(min(max(share, 0.0), 1.0) * _BAR * 8)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()).ljust(_BAR)


def wrap(text: str) -> list[str]:
    """Return the lines of a text in 80 columns."""
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ")
