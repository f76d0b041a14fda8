"""Notices batches that look padded and were given without a mask."""

import torch
from torch import Tensor

from geomprobe.capture.forward_context import Call
from geomprobe.capture.generation import StopTokens

__all__ = ["PaddingCheck"]

_LONG = 8
"""A run of any one token at an end of a row that is as long as this looks like padding."""


class PaddingCheck:
    """Looks at the token ids of calls without a mask, and remembers whether rows begin or end like padded ones.

    A row looks padded if it begins or ends with two padding tokens of the model, with two tokens of id 0 (as evaluation
    harnesses pad), or with eight equal tokens. Nothing waits for the device until :meth:`note` is called.
    """

    def __init__(self, stop_tokens: StopTokens) -> None:
        self._suspects = {0, *stop_tokens.eos} | ({stop_tokens.pad} if stop_tokens.pad is not None else set())
        self._token: Tensor | None = None  # the latest token that looked like padding, or -1

    def look(self, call: Call) -> None:
        """Look at the token ids of one call."""
        ids = call.ids
        if not call.lacks_mask or ids is None or ids.shape[1] < 2 or call.past:
            return
        found = torch.full((), -1, dtype=torch.long, device=ids.device) if self._token is None else self._token.to(ids.device)
        suspects = torch.tensor(sorted(self._suspects), dtype=ids.dtype, device=ids.device)
        for end in (ids[:, :_LONG], ids[:, -_LONG:].flip(1)):
            first = end[:, 0]
            looks = (end[:, 1] == first) & torch.isin(first, suspects)
            if end.shape[1] == _LONG:
                looks = looks | (end == first.unsqueeze(1)).all(1)
            found = torch.maximum(found, torch.where(looks, first, -1).max())
        self._token = found

    def note(self) -> str | None:
        """Return a remark for a reading, or ``None``. It waits for the device."""
        if self._token is None or (token := int(self._token)) < 0:
            return None
        return (
            f"no attention mask was given, and rows begin or end with repeated tokens of id {token}, which were counted: if "
            f"they are padding, pass the mask to the model, or use Probe(model, pad_token_id={token})"
        )
