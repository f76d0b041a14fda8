"""Section 4.2's table: which earlier tokens make up three tokens of one sentence, by the Lasso and by attention."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from geomprobe.errors import GeomprobeError
from geomprobe.inspection.inspect import inspect_text, visible
from geomprobe.models.loading import Loaded, tokenize
from geomprobe.paper.context_texts import final_rows
from geomprobe.paper.experiment import Experiment, Numbers, Request, Table, Verdict
from geomprobe.paper.models import load_readers
from geomprobe.paper.style import COLOURS, canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NAMES", "PRINTED", "SENTENCE", "TOKENS", "WORDS"]

SENTENCE = (
    "Is London the capital of UK? Yes. Is Moscow the capital of Russia? Yes. "
    "Is Paris the capital of France? Yes. Is Beijing the capital of China? No"
)
NAMES = ("No", "?", "China")
"""The tokens of the paper's table: the last of each in the sentence."""

PRINTED: dict[str, tuple[str, ...]] = {"China": ("Russia", "France", "Beijing", "of", "capital")}
"""What the paper's Lasso picks with Pythia 1.4B, in its order. Of its table this row is known here, and no other."""

WORDS = ("London", "UK", "Moscow", "Russia", "Paris", "France", "Beijing", "China", "capital")
"""The words of the sentence that carry what it says: cities, countries and what the ones are of the others."""

_SHOWN = {"lasso": COLOURS[0], "attention": COLOURS[1]}
"""What the picture shows."""


def _measure(request: Request) -> Numbers:
    return {"models": [{"name": name} | _of_model(name, loaded) for name, loaded in load_readers(request)]}


def _of_model(name: str, loaded: Loaded) -> dict[str, Any]:
    """For each of the three tokens what it is made of at ``final_norm``: ``[number, weight]`` of earlier tokens."""
    final_rows(name, loaded, [tokenize(loaded, SENTENCE)])  # refuses what cannot be read, such as NaN
    inspection = inspect_text(loaded, SENTENCE, site="final_norm")
    picks, tokens = inspection.picks[0], inspection.tokens
    telling = _telling(tokens)
    rows = {}
    for word in NAMES:
        t = _last(word, tokens)
        kinds = {kind: None if rows_ is None else [list(pick) for pick in rows_[t]] for kind, rows_ in picks.kinds.items()}
        shares = {kind: _share(weights, telling) for kind, weights in kinds.items()}
        rows[word] = {
            "position": t,
            "whole": tokens[t].strip() == word,
            "r2": picks.r2[t],
            "picks": kinds,
            "telling": shares | {"chance": float(np.mean(telling[:t]))},
            "jaccard": _jaccard(kinds["lasso"] or [], kinds["attention"]),
        }
    return {"tokens": list(tokens), "rows": rows}


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


def _share(picks: Sequence[Sequence[float]] | None, telling: Sequence[bool]) -> float | None:
    """How much of the weight of picks is on telling tokens."""
    total = sum(abs(weight) for _, weight in picks or ())
    return sum(abs(weight) for j, weight in picks or () if telling[int(j)]) / total if total else None


def _jaccard(lasso: Sequence[Sequence[float]], attention: Sequence[Sequence[float]] | None) -> float | None:
    if attention is None:
        return None
    first, second = {j for j, _ in lasso}, {j for j, _ in attention}
    return len(first & second) / max(1, len(first | second))


def _last(word: str, tokens: Sequence[str]) -> int:
    """The token with which the last ``word`` of the text ends: the word itself, or in other vocabularies a part of it."""
    end = "".join(tokens).rfind(word) + len(word)
    ends = list(accumulate(map(len, tokens)))
    if end < len(word):
        raise GeomprobeError(f"the tokenizer gives {''.join(tokens)!r} for the paper's sentence: expected {word!r} in it")
    return next(t for t, reached in enumerate(ends) if reached >= end)


def _draw(numbers: Numbers) -> "Figure":
    models = numbers["models"]
    figure, panels = canvas(len(NAMES) * len(models), 1, width=10.5, height=1.75)
    places = iter(panels)
    for model in models:
        tokens = model["tokens"]
        for name, row in model["rows"].items():
            axes = next(places)
            for offset, (kind, colour) in zip((-0.2, 0.2), _SHOWN.items(), strict=True):
                picks = row["picks"][kind] or []
                x = [j + offset for j, _ in picks]
                axes.bar(x, [weight for _, weight in picks], 0.4, color=colour, label=kind.replace("lasso", "Lasso"))
            axes.set_title(f"{model['name']}: [{name}]" if len(models) > 1 else f"[{name}]", parse_math=False)
            axes.set_xlim(-0.7, len(tokens) - 0.3)
            axes.set_ylabel("weight")
            axes.grid(axis="x", visible=False)
            few = len(tokens) <= 60
            written = [visible(token) for token in tokens]
            axes.set_xticks(range(len(tokens)), written, parse_math=False, rotation=90 if few else 0, fontsize=7 if few else 4)
    panels[0].legend(loc="upper left", ncols=2)
    return figure


def _tables(numbers: Numbers) -> list[Table]:
    tables = []
    for model in numbers["models"]:
        for name, row in model["rows"].items():
            part = "" if row["whole"] else f" (this vocabulary's end of {name!r})"
            rows = [
                [kind.replace("lasso", "Lasso"), _listed(picks, model["tokens"])]
                for kind, picks in row["picks"].items()
                if picks is not None
            ]
            if name in PRINTED:
                rows.append(["paper", f"{' '.join(PRINTED[name])}  (Lasso, Pythia 1.4B)"])
            title = f"{model['name']}, [{visible(model['tokens'][row['position']])}]{part}, R² of the Lasso {row['r2']:.2f}"
            tables.append(Table(title, ("by", "earlier tokens, with their weights"), rows, words=2))
    return tables


def _listed(picks: Sequence[Sequence[float]], tokens: Sequence[str], width: int = 66) -> str:
    """As many picks as fit, the weightiest first."""
    line = ""
    for j, weight in picks:
        pick = f"{visible(tokens[int(j)])} {weight:.2f}".replace("0.", ".")
        if len(line) + len(pick) + 2 > width:
            return f"{line} …"
        line += ("  " if line else "") + pick
    return line or "nothing above 0.01"


def _judge(numbers: Numbers) -> list[Verdict]:
    return [verdict for model in numbers["models"] for verdict in (_as_printed(model), _against_attention(model))]


def _as_printed(model: Mapping[str, Any]) -> Verdict:
    """Holds for the same picks in whatever order; undecided where words are cut into parts."""
    row = model["rows"]["China"]
    picks = [model["tokens"][int(j)].strip() for j, _ in row["picks"]["lasso"]]
    shared = len({*picks} & {*PRINTED["China"]})
    return Verdict(
        f"[China] is made of {', '.join(PRINTED['China'])} ({model['name']})",
        (set(picks) == set(PRINTED["China"])) if row["whole"] else None,
        f"of {len(picks)} picks {shared} are among the paper's {len(PRINTED['China'])}"
        + ("" if row["whole"] else ", but this vocabulary cuts words into parts"),
    )


def _against_attention(model: Mapping[str, Any]) -> Verdict:
    """Holds if for each of the three tokens more of the Lasso's weight than of attention's is on telling words."""
    shares = [row["telling"] for row in model["rows"].values()]
    claim = f"The Lasso picks more telling words than attention does ({model['name']})"
    if any(share["attention"] is None or share["lasso"] is None for share in shares):
        return Verdict(claim, None, "this model shows no attention, or its Lasso picks nothing")
    more = sum(share["lasso"] > share["attention"] for share in shares)
    told = "; ".join(
        f"[{name}] {share['lasso']:.0%} and {share['attention']:.0%}, by lot {share['chance']:.0%}"
        for name, share in zip(model["rows"], shares, strict=True)
    )
    same = [row["jaccard"] for row in model["rows"].values()]
    return Verdict(
        claim,
        {0: False, len(shares): True}.get(more),
        f"of Lasso and attention weight there lies on cities, countries and “capital”: {told}. Of what either picks, both pick "
        f"{min(same):.0%} to {max(same):.0%}",
    )


TOKENS = Experiment(
    name="tokens",
    title="What three tokens are made of",
    place="Section 4.2",
    read=(
        "Rows of final_norm: the Lasso's weights of earlier tokens rebuild a token's row (1/(2d)‖z − Zβ‖² + α‖β‖₁, α = 1e-4); "
        "attention is the last layer's mean over heads. Weights above 0.01 count as picks."
    ),
    caveat="A weight is not a cause: what a row can be written by is not what the model computed it from.",
    of="texts",
    measure=_measure,
    draw=_draw,
    tables=_tables,
    judge=_judge,
)
