"""One text through one model: every site's numbers, and what each token adds."""

import math
import unicodedata
from dataclasses import dataclass
from typing import Any

import torch

from geomprobe.capture.anatomy import find_anatomy
from geomprobe.loading import Loaded, tokenize
from geomprobe.probe import Probe
from geomprobe.reading import Reading

__all__ = ["Inspection", "inspect_text"]


@dataclass(frozen=True)
class Inspection:
    """The reading of one text, and its tokens as text."""

    reading: Reading
    tokens: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """:meth:`Reading.to_dict` with ``tokens``."""
        return self.reading.to_dict() | {"tokens": list(self.tokens)}

    def __str__(self) -> str:
        """The table of all sites, then the text with the gain of each token under it."""
        return f"{self.reading}\n\n{self._gains()}"

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


def inspect_text(loaded: Loaded, text: str) -> Inspection:
    """Run ``text`` through the model under a probe of every site.

    Raises:
        GeomprobeError: the text is empty or longer than the model reads.
    """
    ids = tokenize(loaded, text)
    with torch.inference_mode(), Probe(loaded.model, on_error="raise") as probe:
        find_anatomy(loaded.model).base(input_ids=ids, use_cache=False)  # the head is not needed
    tokens = tuple(loaded.tokenizer.decode([token]) for token in ids[0].tolist())
    return Inspection(probe.read(), tokens)


def _columns(text: str) -> int:
    """How many places of a terminal a text takes."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _visible(token: str) -> str:
    """A token on one line, with what cannot be seen made visible."""
    shown = token.replace("\n", "⏎").replace("\t", "⇥").strip(" ")
    return "".join(c if c.isprintable() else "�" for c in shown) or "␣"
