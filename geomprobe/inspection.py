"""One text through one model: every site's numbers, and what each token adds."""

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geomprobe.capture.anatomy import find_anatomy
from geomprobe.core.lasso import explained, sklearn_penalty, solve_lasso
from geomprobe.core.rows import Rows
from geomprobe.core.state import Accumulator, State, zeros
from geomprobe.core.symmetric import assemble
from geomprobe.loading import Loaded, tokenize
from geomprobe.metrics.context import ContextLasso
from geomprobe.metrics.metric import Metric
from geomprobe.probe import Probe
from geomprobe.reading import Reading

__all__ = ["Inspection", "Picks", "inspect_text"]

_PAPER = ContextLasso()
"""The Lasso of the paper's picks."""


@dataclass(frozen=True)
class Picks:
    """Which earlier tokens each token of a text is made of at one site: its Lasso (section 4.2).

    Attributes:
        site: where.
        weights: for every token, the earlier tokens by position and their weights, largest first; those above 0.01.
        r2: for every token, the share of its row's squared length that all weights rebuild; NaN for the first.
    """

    site: str
    weights: tuple[tuple[tuple[int, float], ...], ...]
    r2: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists; a share that is not defined is ``None``."""
        shares = [value if math.isfinite(value) else None for value in self.r2]
        return {"site": self.site, "weights": [[list(pick) for pick in row] for row in self.weights], "r2": shares}


@dataclass(frozen=True)
class Inspection:
    """The reading of one text, its tokens as text, and what they are made of where that was asked for."""

    reading: Reading
    tokens: tuple[str, ...]
    picks: Picks | None = None

    def to_dict(self) -> dict[str, Any]:
        """:meth:`Reading.to_dict` with ``tokens``, and ``picks`` if any."""
        picks = {} if self.picks is None else {"picks": self.picks.to_dict()}
        return self.reading.to_dict() | {"tokens": list(self.tokens)} | picks

    def __str__(self) -> str:
        """The table of all sites, then the text with the gain of each token under it, then what tokens are made of."""
        return "\n\n".join([str(self.reading), self._gains(), *([] if self.picks is None else [self._made_of(self.picks)])])

    def _made_of(self, picks: Picks, width: int = 80) -> str:
        """A line for every token: how much of its row earlier tokens rebuild, and which, the weightiest that fit."""
        lines = [f"what each token is made of at {picks.site}: R², and Lasso weights of earlier ones", ""]
        for t, (token, weights, share) in enumerate(zip(self.tokens, picks.weights, picks.r2, strict=True)):
            name = _visible(token)
            while _columns(name) > 14:
                name = name[:-2] + "…"
            line = f"{t:>4} {name}{' ' * (14 - _columns(name))} {'' if math.isnan(share) else _share(share):>4} "
            for j, weight in weights:
                pick = f" {_visible(self.tokens[j])} {_share(weight)}"
                if _columns(line) + _columns(pick) > width - 2:
                    line += " …"
                    break
                line += pick
            lines.append(line.rstrip())
        return "\n".join(lines)

    def _gains(self, site: str = "final_norm", width: int = 80) -> str:
        """The text in lines, a bar under every token as high as its information gain."""
        if f"gain_per_token/{site}" not in self.reading:
            return f"no token had a finite row at {site}, so there are no gains to show"
        gain = [*self.reading.curve("gain", site).mean]
        gain += [math.nan] * (len(self.tokens) - len(gain))  # a curve ends with its last finite row
        lines, words, bars, used = [], "", "", 0
        finite = [value for value in gain if math.isfinite(value)]
        least, most = min(finite), max(finite)
        span = (most - least) or 1.0
        for token, value in zip(self.tokens, gain, strict=True):
            cell = _visible(token)
            cells = _columns(cell)
            if used and used + cells + 1 > width:
                lines += [words, bars.rstrip()]
                words, bars, used = "", "", 0
            words += cell + " "
            bar = "▁▂▃▄▅▆▇█"[min(7, int(8 * (value - least) / span))] if math.isfinite(value) else "?"
            bars += bar * cells + " "
            used += cells + 1
        title = f"information gain of each token at {site}, {least:.2f} (▁) to {most:.2f} nats (█)"
        return "\n".join([title, "", *lines, words, bars.rstrip()])


def inspect_text(loaded: Loaded, text: str, *, picks_at: str | None = None) -> Inspection:
    """Run ``text`` through the model under a probe of every site.

    Args:
        loaded: model and tokenizer.
        text: the text.
        picks_at: the site at which to show what each token is made of; nowhere by default.

    Raises:
        GeomprobeError: the text is empty or longer than the model reads, or there is no such site.
    """
    ids = tokenize(loaded, text)
    base = find_anatomy(loaded.model).base  # the head is not needed
    picks = None
    if picks_at is not None:
        with torch.inference_mode(), Probe(loaded.model, [_Gram()], layers=[picks_at], on_error="raise") as looking:
            base(input_ids=ids, use_cache=False)
        picks = _picks(picks_at, {name.rpartition("/")[2]: value for name, value in looking.state_dict().items()})
    with torch.inference_mode(), Probe(loaded.model, on_error="raise") as probe:
        base(input_ids=ids, use_cache=False)
    tokens = tuple(loaded.tokenizer.decode([token]) for token in ids[0].tolist())
    return Inspection(probe.read(), tokens, picks)


@dataclass(frozen=True)
class _Gram(Metric):
    """The Gram matrix of a single text, and the width of its rows."""

    @property
    def needs(self) -> tuple[Accumulator, ...]:
        return (self,)

    def zero(self, width: int, device: torch.device) -> State:
        return zeros({"gram": (0, 0), "width": ()}, device)

    def measure(self, rows: Rows) -> State:
        gram = assemble(rows.gram()).sum(-3)
        return {"gram": gram, "width": gram.new_full(gram.shape[:-2], rows.width)}

    def scalars(self, states: Any) -> dict[str, float]:
        return {}


def _picks(site: str, state: Mapping[str, Tensor]) -> Picks:
    gram = state["gram"]
    weights = solve_lasso(gram, sklearn_penalty(_PAPER.penalty, int(state["width"]))).coefficients
    shares = explained(gram, weights)
    shares[0] = torch.nan
    ordered = [
        tuple((j, float(row[j])) for j in row.argsort(descending=True).tolist() if row[j] > _PAPER.threshold) for row in weights
    ]
    return Picks(site, tuple(ordered), tuple(shares.tolist()))


def _share(value: float) -> str:
    """Two digits without the zero before them."""
    return f"{value:.2f}".removeprefix("0")


def _columns(text: str) -> int:
    """How many places of a terminal a text takes."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _visible(token: str) -> str:
    """A token on one line, with what cannot be seen made visible."""
    shown = token.replace("\n", "⏎").replace("\t", "⇥").strip(" ")
    return "".join(c if c.isprintable() else "�" for c in shown) or "␣"
