"""Section 4.2's table: which earlier tokens make up three tokens of one sentence, by the Lasso and by attention."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from geomprobe.errors import GeomprobeError
from geomprobe.inspection import Inspection, inspect_text
from geomprobe.loading import Loaded
from geomprobe.picks import Picks

__all__ = ["PRINTED", "SENTENCE", "TOKENS", "TokenTable", "token_table"]

SENTENCE = (
    "Is London the capital of UK? Yes. Is Moscow the capital of Russia? Yes. "
    "Is Paris the capital of France? Yes. Is Beijing the capital of China? No"
)
TOKENS = ("No", "?", "China")
"""The tokens of the paper's table: the last of each in the sentence."""

PRINTED: dict[str, tuple[str, ...]] = {"China": ("Russia", "France", "Beijing", "of", "capital")}
"""What the paper's Lasso picks with Pythia 1.4B, in its order. Of its table this row is known here, and no other."""


@dataclass(frozen=True)
class TokenTable:
    """The paper's table for one model, at ``final_norm``: three tokens, what their Lasso picks and what they attend to.

    Attention is the last layer's mean over heads. The Lasso is ``1/(2d)‖z − Zβ‖² + α‖β‖₁`` at α = 1e-4 on unit rows; both count
    weights above 0.01.
    """

    inspection: Inspection

    @property
    def picks(self) -> Picks:
        """What every token of the sentence is made of."""
        return self.inspection.picks[0]

    def to_dict(self) -> dict[str, Any]:
        """For each of the three tokens: picks and weights of each kind, R² of the Lasso, the Jaccard index of Lasso and
        attention, and the paper's own picks (``None`` where they are not known here)."""
        tokens: dict[str, Any] = {}
        for token, t in zip(TOKENS, self.inspection.chosen or (), strict=True):
            named = {
                kind: None if rows is None else [[self.inspection.tokens[j], weight] for j, weight in rows[t]]
                for kind, rows in self.picks.kinds.items()
            }
            printed = list(PRINTED[token]) if token in PRINTED else None
            tokens[token] = {"position": t, **named, "r2": self.picks.r2[t], "jaccard": self._jaccard(t), "paper": printed}
        return {"model": self.inspection.model, "sentence": SENTENCE, "site": self.picks.site, "tokens": tokens}

    def __str__(self) -> str:
        """The three tokens, and under each the paper's picks and this model's."""
        lines = [f"what three tokens are made of at {self.picks.site} of {self.inspection.model} (section 4.2)"]
        for token, t in zip(TOKENS, self.inspection.chosen or (), strict=True):
            agree = self._jaccard(t)
            title, *made_of = self.inspection.made_of(self.picks, t)
            whole = self.inspection.tokens[t].strip() == token
            lines += ["", title if whole else f"{title} (this vocabulary's end of {token!r})", *made_of]
            lines += [f"     Lasso and attention share {agree:.0%} of what either picks"] if agree is not None else []
            lines += [f"     paper      {' '.join(PRINTED[token])}   (Lasso, Pythia 1.4B)"] if token in PRINTED else []
        return "\n".join(lines)

    def _jaccard(self, t: int) -> float | None:
        if self.picks.attention is None:
            return None
        lasso, attention = ({j for j, _ in rows[t]} for rows in (self.picks.lasso, self.picks.attention))
        return len(lasso & attention) / max(1, len(lasso | attention))


def token_table(loaded: Loaded) -> TokenTable:
    """Run the paper's sentence through a model.

    Raises:
        GeomprobeError: the tokenizer does not give the sentence back.
    """
    inspection = inspect_text(loaded, SENTENCE, picks_at="final_norm")
    return TokenTable(replace(inspection, chosen=tuple(_last(word, inspection.tokens) for word in TOKENS)))


def _last(word: str, tokens: Sequence[str]) -> int:
    """The token with which the last ``word`` of the text ends: the word itself, or in other vocabularies a part of it."""
    end = "".join(tokens).rfind(word) + len(word)
    ends = list(accumulate(map(len, tokens)))
    if end < len(word):
        raise GeomprobeError(f"the tokenizer gives {''.join(tokens)!r} for the paper's sentence: expected {word!r} in it")
    return next(t for t, reached in enumerate(ends) if reached >= end)
