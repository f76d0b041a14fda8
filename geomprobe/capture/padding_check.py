"""Detects batches that look padded and were given without a mask, and padding that cannot be distinguished from the end of a
text."""

import torch
from torch import Tensor

from geomprobe.capture.forward_context import Call
from geomprobe.capture.generation import StopTokens

__all__ = ["PaddingCheck"]

_LONG = 32
"""A run of any one token at an end of a row that is as long as this looks like padding. Texts have shorter ones, such as lines
of asterisks."""

_UNIFORM = 8
"""A whole row of one token is not a text if it is at least this long."""


class PaddingCheck:
    """Looks at the token ids of calls without a mask. Nothing waits for the device until :meth:`notes` is called.

    A suspect is a padding or end token of the model, or the token 0, with which evaluation harnesses pad. A row looks padded if
    it begins or ends with two suspects, or with one while another row of the batch does not, or with 32 equal tokens.
    """

    def __init__(self, stop_tokens: StopTokens, pad: int | None) -> None:
        self._suspects = {0, *stop_tokens.eos} | ({stop_tokens.pad} if stop_tokens.pad is not None else set())
        self._pad = pad
        self._ambiguous = pad is not None and pad in stop_tokens.eos
        # The largest token that looked like padding, and the largest of which a whole row consists; -1 if there is none.
        self._found: Tensor | None = None

    def look(self, call: Call) -> None:
        """Look at the token ids of one call."""
        ids = call.ids
        if ids is None or call.arguments.get("attention_mask") is not None or ids.shape[1] < 2 or call.past:
            return
        padding = none = torch.full((), -1, dtype=ids.dtype, device=ids.device)
        if self._pad is None:
            padding = torch.maximum(self._looks_padded(ids[:, :_LONG]), self._looks_padded(ids[:, -_LONG:].flip(1)))
        elif self._ambiguous:
            padding = torch.where(ids[:, -1] == self._pad, self._pad, -1).max()
        uniform = (ids == ids[:, :1]).all(1) & (ids[:, 0] != (-1 if self._pad is None else self._pad))
        whole = torch.where(uniform, ids[:, 0], -1).max() if ids.shape[1] >= _UNIFORM else none
        found = torch.stack([padding, whole])
        self._found = found if self._found is None else torch.maximum(self._found.to(found.device), found)

    def _looks_padded(self, ends: Tensor) -> Tensor:
        """The largest token with which a row looks padded, or -1. ``ends`` has the outermost token first."""
        outer = ends[:, 0]
        suspect = torch.stack([outer == token for token in self._suspects]).any(0)  # with no copy to the device
        looks = suspect & ((ends[:, 1] == outer) | ((outer != outer[0]).any() & ~suspect.all()))
        if ends.shape[1] == _LONG:
            looks = looks | (ends == outer.unsqueeze(1)).all(1)
        return torch.where(looks, outer, -1).max()

    def notes(self) -> list[str]:
        """Return remarks for a reading. This waits for the device."""
        if self._found is None:
            return []
        token, whole = self._found.tolist()
        notes = []
        if whole >= 0:
            notes.append(
                f"rows that consist of one repeated token (id {whole}) were counted: evaluation harnesses run such "
                "rows to find a batch size, so give them a batch size"
            )
        if self._ambiguous and token >= 0:
            notes.append(
                f"token {token} is both the padding token and an end token of this model: where a row ends with it, the first "
                "of them was counted as the end of the text"
            )
        elif token >= 0 and token != whole:
            notes.append(
                f"no attention mask was given, and rows begin or end with tokens of id {token} as padded rows do; they were "
                f"counted: if they are padding, pass the mask to the model, or use Probe(model, pad_token_id={token})"
            )
        return notes
