"""An interactive page of one text: the information gain of each token, and its weights on earlier tokens."""

import math
import re
import unicodedata
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from geomprobe.errors import GeomprobeError
from geomprobe.report.render import render

__all__ = ["KINDS", "Row", "TokenPage", "printable"]

KINDS = ("lasso", "ridge", "attention")
"""The kinds of weights, in the order in which the page shows them."""

Row = tuple[tuple[tuple[int, float], ...], ...]
"""The picks at one site: for every token the positions of earlier tokens and their weights, largest first."""


@dataclass(frozen=True)
class TokenPage:
    """The data of a page of one text: its tokens, their information gain at every site, and their picks.

    Attributes:
        title: title of the page, such as the name of the model.
        tokens: the text, token by token, of any characters.
        sites: the positions of the layer slider, in order.
        gain: information gain in nats for every site and token; NaN where unknown.
        picks: for some or all kinds of :data:`KINDS`, the picks at every site; empty for a site that has none.
        r2: R² of the Lasso for every site and token; NaN where undefined.
        notes: remarks that a reader must know, such as why a kind is missing.
        start: the site shown first; the last one if there is no site of this name.
        heads: for every site the picks of each attention head; no heads at a site without attention, and empty if heads are not
            shown one by one.

    The last token is chosen at the start, because most earlier tokens can be among its picks. The first token has no shade: its
    gain is ``½ log(1 + σ⁻²)`` in any text, and would hide the differences between the others.

    Raises:
        GeomprobeError: if there are no tokens or sites, or if the shapes of the attributes do not agree.
    """

    title: str
    tokens: tuple[str, ...]
    sites: tuple[str, ...]
    gain: tuple[tuple[float, ...], ...]
    picks: Mapping[str, tuple[Row, ...]]
    r2: tuple[tuple[float, ...], ...]
    notes: tuple[str, ...] = ()
    start: str = "final_norm"
    heads: tuple[tuple[Row, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.tokens or not self.sites:
            raise GeomprobeError("a page needs at least one token and one site")
        if unknown := [kind for kind in self.picks if kind not in KINDS]:
            raise GeomprobeError(f"unknown kinds of picks: {', '.join(unknown)}; expected some of {', '.join(KINDS)}")
        shape = (len(self.sites), len(self.tokens))
        for name, table in {"gain": self.gain, "r2": self.r2, **self.picks}.items():
            lengths = {len(row) for row in table} - ({0} if name in self.picks else set())
            if len(table) != shape[0] or not lengths <= {shape[1]}:
                raise GeomprobeError(f"{name} must have {shape[0]} sites with {shape[1]} tokens each")
        for kind, sites in self.picks.items():
            for site, row in zip(self.sites, sites, strict=True):
                _check_row(row, f"{kind} at {site}")
        if self.heads and len(self.heads) != shape[0]:
            raise GeomprobeError(f"heads must have {shape[0]} sites")
        for site, of_site in zip(self.sites, self.heads, strict=False):
            for head, row in enumerate(of_site):
                if len(row) != shape[1]:
                    raise GeomprobeError(f"head {head} at {site} must have {shape[1]} tokens")
                _check_row(row, f"head {head} at {site}")

    def to_html(self) -> str:
        """Return the page as one self-contained HTML document, which works from a file or in a frame."""
        start = self.sites.index(self.start) if self.start in self.sites else len(self.sites) - 1
        gain = self.gain[start]
        first = next((t for t, value in enumerate(gain) if math.isfinite(value)), -1)
        low, high = _range(gain[first + 1 :])
        return render(
            "geomprobe.report",
            "tokens.html.j2",
            title=printable(self.title),
            notes=[printable(note) for note in self.notes],
            tokens=[_token(token, gain[t], low, high, first=t == first) for t, token in enumerate(self.tokens)],
            most_heads=max(map(len, self.heads), default=0),
            site=printable(self.sites[start]),
            low=_nats(low),
            high=_nats(high),
            data={
                "start": start,
                "sites": [printable(site) for site in self.sites],
                "gain": [_thousandths(row) for row in self.gain],
                "r2": [_thousandths(row) for row in self.r2],
                "picks": {kind: [_packed(row) for row in self.picks[kind]] for kind in KINDS if kind in self.picks},
                "heads": [[_packed(row) for row in of_site] for of_site in self.heads],
            },
        )


def _check_row(row: Row, where: str) -> None:
    for t, picks in enumerate(row):
        if not all(0 <= j < t and math.isfinite(weight) for j, weight in picks):
            raise GeomprobeError(f"{where}: token {t} must pick earlier tokens with finite weights")


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest finite value; NaN if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return (min(finite), max(finite)) if finite else (math.nan, math.nan)


def _nats(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "unknown"


def _thousandths(values: Sequence[float]) -> list[int | None]:
    return [round(1000 * value) if math.isfinite(value) else None for value in values]


def _packed(row: Row) -> str:
    """Picks as varints in base64: for every token the number of its picks, and the distance and weight in thousandths of each.

    For a thousand tokens, 32 sites and three kinds this is half as long as JSON. A weight ``w`` is written as ``2w``, or
    ``-2w - 1`` if it is negative.
    """
    packed = bytearray()
    for t, picks in enumerate(row):
        numbers = [len(picks)]
        for j, weight in picks:
            w = round(1000 * weight)
            numbers += (t - j, 2 * w if w >= 0 else -2 * w - 1)
        for number in numbers:
            while number > 127:
                packed.append(number & 127 | 128)
                number >>= 7
            packed.append(number)
    return b64encode(packed).decode()


class _Token(NamedTuple):
    """A token on the page. A single space before a word is written between the tokens, as ``gap``."""

    gap: str
    word: str
    shade: str
    first: bool
    ends_line: bool


def _token(token: str, gain: float, low: float, high: float, *, first: bool) -> _Token:
    """A token, shaded by its gain; without a shade where the gain is not known, and for the first token of a text."""
    gap, word = (" ", token[1:]) if token.startswith(" ") and token[1:2].strip() else ("", token)
    shade = f"{(gain - low) / ((high - low) or 1):.3f}" if math.isfinite(gain) and not first else ""
    return _Token(gap, _visible(word), shade, first, "\n" in word)


def _visible(token: str) -> str:
    """A token with signs for what cannot be seen: spaces at its ends, control characters, or an empty token."""
    shown = printable(re.sub(r"^ +| +$| {2,}", lambda spaces: "␣" * len(spaces[0]), token))
    mark = unicodedata.category(shown[:1] or "-").startswith("M")  # a combining mark would be drawn on the token before
    return "◌" * mark + shown or "∅"


def printable(text: str) -> str:
    """Return text with visible signs for control characters, joiners and unusual spaces."""
    return "".join(_character(character, alone=len(text) == 1) for character in text)


def _character(character: str, alone: bool) -> str:
    if character in "\u200c\u200d" and not alone:  # joiners shape the letters and emoji around them
        return character
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs") or character == " ":
        return character
    code = ord(character)
    if code < 32:
        return {"\n": "⏎", "\t": "⇥"}.get(character, chr(0x2400 + code))
    return f"⟨U+{code:04X}⟩"
