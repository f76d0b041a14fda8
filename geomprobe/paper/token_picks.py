"""The picks of section 4.2: the paper's sentence, what it prints for three of its tokens, and what a model picks."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from geomprobe.errors import GeomprobeError
from geomprobe.inspection.inspect import inspect_text, visible
from geomprobe.models.loading import Loaded, tokenize
from geomprobe.paper.context_texts import final_rows
from geomprobe.paper.experiment import Request
from geomprobe.paper.models import load_readers

__all__ = ["KINDS", "PRINTED", "READINGS", "SENTENCE", "WORDS", "Agreement", "Model", "Row", "Telling", "TokenPicks"]
__all__ += ["matched", "measure", "numbered"]

SENTENCE = (
    "Is London the capital of UK? Yes. Is Moscow the capital of Russia? Yes. "
    "Is Paris the capital of France? Yes. Is Beijing the capital of China? No"
)

PRINTED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "No": {"lasso": ("Yes", "Yes"), "attention": ("Is", ",", "?")},
    "?": {"lasso": ("?", "?"), "attention": ("Is", ",", "?", ",", ",", "of", "?")},
    "China": {
        "lasso": ("Russia", "France", "Beijing", "of", "capital"),
        "attention": ("Is", "of", "capital", ",", "Beijing"),
    },
}
"""The picks that the paper prints for Pythia 1.4B, in its order, for the last occurrence of each token in the sentence."""

KINDS = {"lasso": "Lasso", "attention": "attention"}
"""The two ways of picking, and their names in tables."""

WORDS = ("London", "UK", "Moscow", "Russia", "Paris", "France", "Beijing", "China", "capital")
"""The words that we count as telling: cities, countries, and “capital”."""

READINGS = {"": {}, "without [,]": {",": ""}, "[,] read as [.]": {",": "."}}
"""The ways in which a printed row with commas is compared: as printed, without them, and with full stops in their place."""


Picks = Sequence[Sequence[float]]
"""``(number, weight)`` of earlier tokens, the largest weight first."""


@dataclass(frozen=True)
class Agreement:
    """How picks agree with a printed row. The row does not say which of several equal tokens is meant, so both are compared as
    multisets of tokens.

    Of several equal tokens, the picks with the largest weights match. Numbers by chance are exact expectations for equally many
    picks with the same weights, on tokens that are drawn at random without replacement from all earlier ones.

    Attributes:
        printed: the number of tokens in the row.
        which: the picks that match, by number of the token.
        overlap: the number of matches divided by the number of tokens in the union of both multisets.
        share: the weight of the matches divided by that of all picks; NaN if there are no picks.
        chance: the expected share of random tokens.
        chance_matches: their expected number of matches.
    """

    printed: int
    which: list[int]
    overlap: float
    share: float
    chance: float
    chance_matches: float


@dataclass(frozen=True)
class Telling:
    """The share of the weight of the Lasso's and of attention's picks on telling words (NaN if there are no picks), and the
    share of such words among earlier tokens."""

    lasso: float
    attention: float
    chance: float


@dataclass(frozen=True)
class Row:
    """One of the three tokens: its number, whether it is a whole word, R² of the Lasso, and by kind its picks at ``final_norm``
    and by reading of the printed row how they agree with it; ``None`` if the attention of the model cannot be read."""

    position: int
    whole: bool
    r2: float
    picks: Mapping[str, Picks | None]
    printed: Mapping[str, Mapping[str, Agreement] | None]
    telling: Telling


@dataclass(frozen=True)
class Model:
    """The sentence in a model, token by token, and the row of each of the three."""

    name: str
    tokens: list[str]
    rows: Mapping[str, Row]


@dataclass(frozen=True)
class TokenPicks:
    """The numbers of the table in section 4.2."""

    models: list[Model]


def measure(request: Request) -> TokenPicks:
    """Measure the picks of every model, and how they agree with those of the paper."""
    return TokenPicks([_of_model(name, loaded) for name, loaded in load_readers(request)])


def _of_model(name: str, loaded: Loaded) -> Model:
    final_rows(name, loaded, [tokenize(loaded, SENTENCE)])  # refuses what cannot be read, such as NaN
    inspection = inspect_text(loaded, SENTENCE, site="final_norm")
    picks, tokens = inspection.picks[0], inspection.tokens
    telling = _telling(tokens)
    rows = {}
    for word in PRINTED:
        t = _last(word, tokens)
        found = {kind: None if of is None else of[t] for kind, of in picks.kinds.items() if kind in KINDS}
        rows[word] = Row(
            t,
            tokens[t].strip() == word,
            picks.r2[t],
            found,
            printed={kind: None if row is None else _against(row, tokens[:t], word, kind) for kind, row in found.items()},
            telling=Telling(**{kind: _share(row, telling) for kind, row in found.items()}, chance=float(np.mean(telling[:t]))),
        )
    return Model(name, list(tokens), rows)


def _against(picks: Picks, earlier: Sequence[str], word: str, kind: str) -> dict[str, Agreement]:
    """How picks agree with the printed row of their kind, in every way of reading it, and with the printed row of the Lasso."""
    readings = {
        label: tuple(filter(None, (changed.get(token, token) for token in PRINTED[word][kind])))
        for label, changed in READINGS.items()
        if not label or "," in PRINTED[word][kind]
    }
    found = {label: matched(picks, earlier, printed) for label, printed in readings.items()}
    return found | {"lasso": matched(picks, earlier, PRINTED[word]["lasso"])}


def matched(picks: Picks, earlier: Sequence[str], printed: Sequence[str]) -> Agreement:
    """Return how picks agree with a row.

    Args:
        picks: the picks.
        earlier: the tokens that could be picked.
        printed: the row.
    """
    texts, weights = [token.strip() for token in earlier], np.array([weight for _, weight in picks])
    left, which = Counter(printed), []
    for j, _ in picks:
        if left[texts[int(j)]] > 0:
            left[texts[int(j)]] -= 1
            which.append(int(j))
    hits = np.isin([j for j, _ in picks], which)
    chances = _chances(len(picks), texts, Counter(printed))
    total = float(weights.sum())
    return Agreement(
        len(printed),
        which,
        overlap=len(which) / max(1, len(picks) + len(printed) - len(which)),
        share=float(weights[hits].sum()) / total if total else math.nan,
        chance=float(weights @ chances) / total if total else math.nan,
        chance_matches=float(chances.sum()),
    )


def _chances(picks: int, texts: Sequence[str], printed: Mapping[str, int]) -> Any:
    """For each of the picks, heaviest first, the probability that it matches where tokens are drawn at random: that it is a
    printed token of which heavier picks have left one over."""
    from scipy.stats import hypergeom

    number, chances = np.arange(picks), np.zeros(picks)
    for token, most in printed.items():
        if there := texts.count(token):
            chances += there / len(texts) * hypergeom.cdf(most - 1, len(texts) - 1, there - 1, number)
    return chances


def _telling(tokens: Sequence[str]) -> list[bool]:
    """Whether each token is one of :data:`WORDS`, or a part of one."""
    text, ends = "".join(tokens), list(accumulate(map(len, tokens)))
    inside = np.zeros(len(text), bool)
    for word in WORDS:
        start = text.find(word)
        while start >= 0:
            inside[start : start + len(word)] = True
            start = text.find(word, start + 1)
    return [bool(inside[end - len(token) : end].any()) for token, end in zip(tokens, ends, strict=True)]


def _share(picks: Picks | None, telling: Sequence[bool]) -> float:
    """How much of the weight of picks is on telling tokens."""
    total = sum(weight for _, weight in picks or ())
    return sum(weight for j, weight in picks or () if telling[int(j)]) / total if total else math.nan


def _last(word: str, tokens: Sequence[str]) -> int:
    """The token with which the last ``word`` of the text ends: the word itself, or in other vocabularies a part of it."""
    end = "".join(tokens).rfind(word) + len(word)
    ends = list(accumulate(map(len, tokens)))
    if end < len(word):
        raise GeomprobeError(
            f"the tokenizer gives {''.join(tokens)!r} for the paper's sentence, without {word!r}: give a model with "
            "another tokenizer"
        )
    return next(t for t, reached in enumerate(ends) if reached >= end)


def numbered(token: str, number: int) -> str:
    """A token with its number in the text as a subscript, which tells equal tokens apart.

    >>> numbered(" London", 1)
    'London₁'
    """
    return visible(token) + str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
