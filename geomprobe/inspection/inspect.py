"""Runs one text through a model and returns the numbers of every site and the information gain of each token."""

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from geomprobe.capture.decoder import Decoder, find_decoder
from geomprobe.errors import GeomprobeError
from geomprobe.inspection.token_weights import Pick, Picks, pick_tokens
from geomprobe.models.loading import Loaded, tokenize
from geomprobe.probe import Probe
from geomprobe.reading import Reading
from geomprobe.report.token_page import TokenPage

__all__ = ["Inspection", "inspect_text", "inspect_tokens", "visible"]

_ON_PAGE = 12
"""Largest number of picks of each kind that the page shows for a token."""

_ATTENTION = (
    "Attention weights are those of the layer whose output is shown, as means over heads unless a head is chosen. embed has "
    "none, and final_norm has those of the last layer."
)

_NO_HEADS = (
    "Attention heads are not shown one by one, because the text or the model is too large, or the number of heads is not known."
)


@dataclass(frozen=True)
class Inspection:
    """The reading of one text, its tokens, and the earlier tokens that each token picks, if that was requested.

    Attributes:
        reading: the numbers of every site.
        tokens: the text, token by token.
        picks: the picks of every token, one entry for each site.
        shown: the site whose picks are printed.
        chosen: the tokens whose picks are printed, by number; ``None`` for all.
        model: name of the model, the title of the page.
    """

    reading: Reading
    tokens: tuple[str, ...]
    picks: tuple[Picks, ...] = ()
    shown: str | None = None
    chosen: tuple[int, ...] | None = None
    model: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return :meth:`Reading.to_dict` with ``tokens``, and with ``picks`` by site if there are any."""
        picks = {"picks": [picks.to_dict() for picks in self.picks]} if self.picks else {}
        return self.reading.to_dict() | {"tokens": list(self.tokens)} | picks

    def __str__(self) -> str:
        """Return the table of all sites, the text with the gain of each token under it, and the picks of tokens."""
        made_of = [self._all_made_of(picks) for picks in self.picks if picks.site == self.shown]
        return "\n\n".join([str(self.reading), self._gains(), *made_of])

    def to_html(self) -> str:
        """Return a self-contained HTML page with the tokens of the text and their picks at every requested site."""
        sites = tuple(picks.site for picks in self.picks)
        by_kind = {kind: [picks.kinds[kind] for picks in self.picks] for kind in self.picks[0].kinds}
        shown = {
            kind: tuple(tuple(row[:_ON_PAGE] for row in rows or ((),) * len(self.tokens)) for rows in sites)
            for kind, sites in by_kind.items()
            if any(rows is not None for rows in sites)
        }
        page = TokenPage(
            title=self.model,
            tokens=self.tokens,
            sites=sites,
            gain=tuple(tuple(self._gain(site)) for site in sites),
            picks=shown,
            r2=tuple(picks.r2 for picks in self.picks),
            notes=(*self.reading.notes, *([_ATTENTION] if "attention" in shown else [])),
            start=sites[-1],
            heads=tuple(picks.heads or () for picks in self.picks) if any(picks.heads for picks in self.picks) else (),
        )
        return page.to_html()

    def _gain(self, site: str) -> list[float]:
        """The gain of every token at a site; NaN where it is not known."""
        known = f"gain_per_token/{site}" in self.reading
        gain = [*self.reading.curve("gain", site).mean] if known else []
        return gain + [math.nan] * (len(self.tokens) - len(gain))  # a curve ends with its last finite row

    def _all_made_of(self, picks: Picks, width: int = 80) -> str:
        """A line for every token with the R² of its Lasso and the earlier tokens of largest weight, as many as fit."""
        if self.chosen is not None:
            title = f"weights on earlier tokens at {picks.site}, for the chosen tokens"
            return "\n".join([title, *(line for t in self.chosen for line in ("", *self.made_of(picks, t, width)))])
        lines = [f"Lasso of each token on the earlier tokens at {picks.site}: R² and weights", ""]
        for t, (token, weights, share) in enumerate(zip(self.tokens, picks.lasso, picks.r2, strict=True)):
            start = f"{t:>4} {_fit(token, 14)} {'' if math.isnan(share) else _share(share):>4} "
            lines.append(self._picked(start, weights, width))
        return "\n".join(lines)

    def made_of(self, picks: Picks, t: int, width: int = 80) -> list[str]:
        """Return four lines: a token, and the largest weights of its Lasso, its ridge regression and its attention."""
        share = f"R² of the Lasso: {_share(picks.r2[t])}" if math.isfinite(picks.r2[t]) else "the first token of the text"
        named = {kind.replace("lasso", "Lasso"): rows for kind, rows in picks.kinds.items()}
        shown = (self._picked(f"     {kind:<10}", rows[t], width) for kind, rows in named.items() if rows is not None)
        return [f"{t:>4} [{visible(self.tokens[t])}]   {share}", *shown]

    def _picked(self, line: str, weights: Sequence[Pick], width: int) -> str:
        """``line`` followed by as many picks as fit."""
        for j, weight in weights:
            pick = f" {visible(self.tokens[j])}#{j} {_share(weight)}"  # the position tells equal tokens apart
            if _columns(line) + _columns(pick) > width - 2:
                return f"{line} …"
            line += pick
        return line.rstrip()

    def _gains(self, site: str = "final_norm", width: int = 80) -> str:
        """The text in lines, with a bar under every token whose height shows its information gain."""
        if f"gain_per_token/{site}" not in self.reading:
            return f"no token has a finite row at {site}, so there are no gains to show"
        gain = self._gain(site)
        lines, words, bars, used = [], "", "", 0
        first = next(t for t, value in enumerate(gain) if math.isfinite(value))
        finite = [value for value in gain[first + 1 :] if math.isfinite(value)]
        least, most = (min(finite), max(finite)) if finite else (math.nan, math.nan)
        span = (most - least) or 1.0
        for t, (token, value) in enumerate(zip(self.tokens, gain, strict=True)):
            cell = visible(token)
            cells = _columns(cell)
            if used and used + cells + 1 > width:
                lines += [words, bars.rstrip()]
                words, bars, used = "", "", 0
            words += cell + " "
            bar = "▁▂▃▄▅▆▇█"[min(7, int(8 * (value - least) / span))] if math.isfinite(value) and t != first else "?"
            bar = "·" if t == first else bar
            bars += bar * cells + " "
            used += cells + 1
        title = f"information gain of each token at {site}" + f", {least:.2f} (▁) to {most:.2f} nats (█)" * bool(finite)
        about = f"the first token (·) has no token before it: its gain is {gain[first]:.2f} nats in any text"
        return "\n".join([title, about, "", *lines, words, bars.rstrip()])


def inspect_text(
    loaded: Loaded,
    text: str,
    *,
    site: str | None = None,
    all_sites: bool = False,
    tokens: Sequence[str] | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Inspection:
    """Run ``text`` through the model under a probe of every site.

    Args:
        loaded: the model and its tokenizer.
        text: the text.
        site: the site whose picks are printed. Default: none.
        all_sites: whether to compute the picks at all sites, for the page.
        tokens: the tokens whose picks are printed, by number or as they are written. Default: all.
        progress: a function that is called with the number of sites that have been completed since its last call.

    Raises:
        GeomprobeError: if the text is empty or longer than the model accepts, or if there is no such site or token.
    """
    for name, value, kind in (("loaded", loaded, Loaded), ("text", text, str), ("site", site, str | None)):
        if not isinstance(value, kind):
            wanted = {
                "loaded": "what load() returned",
                "text": "a text",
                "site": "the name of a site, such as 'final_norm', or None",
            }
            raise GeomprobeError(f"inspect_text({name}={value!r:.60}): expected {wanted[name]}")
    if tokens is not None and (isinstance(tokens, str) or not all(isinstance(token, str) for token in tokens)):
        raise GeomprobeError(f"inspect_text(tokens={tokens!r}): expected a list of tokens as text, such as ['China', '-1']")
    ids = tokenize(loaded, text)
    return _inspect(loaded, ids, site=site, all_sites=all_sites, tokens=tokens, progress=progress)


def inspect_tokens(loaded: Loaded, ids: Sequence[int], *, all_sites: bool = False) -> Inspection:
    """Run exactly these tokens of one text through the model. See :func:`inspect_text`."""
    return _inspect(loaded, torch.tensor([list(ids)], device=loaded.model.device), all_sites=all_sites)


def _inspect(
    loaded: Loaded,
    ids: torch.Tensor,
    *,
    site: str | None = None,
    all_sites: bool = False,
    tokens: Sequence[str] | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Inspection:
    decoder = find_decoder(loaded.model)
    written = tuple(_written(loaded.tokenizer, token) for token in ids[0].tolist())
    chosen = None if tokens is None else tuple(dict.fromkeys(t for token in tokens for t in _find(token, written)))
    picks: tuple[Picks, ...] = ()
    why = ""
    remarks = list(loaded.notes)
    if all_sites or site is not None:
        sites = None if all_sites or site is None else [site]
        heads = all_sites and _few_enough(loaded, decoder, ids.shape[-1])
        picks, why = pick_tokens(loaded.model, ids, sites, decoder=decoder, heads=heads, progress=progress)
        if all_sites and not (heads or why):
            remarks.append(_NO_HEADS)
    with torch.inference_mode(), Probe(loaded.model, decoder=decoder, on_error="raise") as probe:
        decoder.base(input_ids=ids, use_cache=False)
    reading = probe.read()
    reading.notes += [*remarks, *([f"attention was not measured: {why}"] if why else [])]
    return Inspection(reading, written, picks, site, chosen, _name(loaded))


def _few_enough(loaded: Loaded, decoder: Decoder, tokens: int) -> bool:
    """Whether the weights of all heads fit into memory, 64 MiB a site, and into a page, a few megabytes."""
    config = loaded.model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 0) or 0
    return heads * tokens**2 <= 1 << 24 and heads * tokens * len(decoder.select(None)) <= 1 << 18


def _name(loaded: Loaded) -> str:
    """The name of the model: its id on the hub, or the name of its folder."""
    name = str(getattr(loaded.model.config, "name_or_path", "")) or type(loaded.model).__name__
    return Path(name).absolute().name or name if Path(name).exists() else name


def _written(tokenizer: Any, token: int) -> str:
    """A token as it is written in a text. SentencePiece tokenizers drop the leading space of a token that is decoded alone."""
    text, piece = str(tokenizer.decode([token])), tokenizer.convert_ids_to_tokens(token)
    return f" {text}" if isinstance(piece, str) and piece.startswith("▁") and not text.startswith(" ") else text


def _find(token: str, written: Sequence[str]) -> list[int]:
    """The numbers of the tokens that ``token`` refers to, by number or as written."""
    if re.fullmatch(r"-?[0-9]{1,9}", token) and -len(written) <= int(token) < len(written):
        return [int(token) % len(written)]
    if found := [t for t, other in enumerate(written) if other.strip() == token.strip() != ""]:
        return found
    raise GeomprobeError(
        f"no token {token!r} in this text: expected one of its tokens, or a number from 0 to {len(written) - 1}"
    )


def _fit(token: str, width: int) -> str:
    """A token in exactly ``width`` columns of the terminal."""
    name = visible(token)
    while _columns(name) > width:
        name = name[:-2] + "…"
    return name + " " * (width - _columns(name))


def _share(value: float) -> str:
    """A number with two decimals, without a leading zero."""
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def _columns(text: str) -> int:
    """The number of columns that a text takes in a terminal."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def visible(token: str) -> str:
    """Return a token on one line, with signs for characters that cannot be seen."""
    shown = token.replace("\n", "⏎").replace("\t", "⇥").strip(" ")
    return "".join(c if c.isprintable() else "�" for c in shown) or "␣"
