"""Texts that arrive over several forwards on one KV cache."""

import weakref
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geomprobe.core.attention_summary import AttentionRows
from geomprobe.core.rows import Rows

__all__ = ["CachedSequence", "Mode", "StopTokens", "mode_of", "still_running"]

Mode = Literal["train", "eval"]


def mode_of(training: bool) -> Mode:
    """Which sums a forward adds to: evaluation inside a training run goes through the same hooks."""
    return "train" if training else "eval"


@dataclass(frozen=True)
class StopTokens:
    """How ``generate`` ends a row of a batch: the tokens that end it, and the one it is filled with while others go on."""

    eos: tuple[int, ...] = ()
    pad: int | None = None

    @classmethod
    def of(cls, model: nn.Module) -> "StopTokens":
        """From the generation config of the model, or of the module inside it that has one."""
        configs = (getattr(module, "generation_config", None) for module in model.modules())
        config = next((config for config in configs if config is not None), getattr(model, "config", None))
        eos = getattr(config, "eos_token_id", None)
        eos = () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)
        pad = getattr(config, "pad_token_id", None)
        return cls(eos, pad if pad is not None else next(iter(eos), None))


def still_running(ids: Tensor, mask: Tensor, prompt: int, stop_tokens: StopTokens) -> Tensor:
    """``mask`` less what ``generate`` feeds to rows that have ended while others of the batch go on.

    Alone, a row that ends feeds nothing more: neither the token that ended it nor padding. In a batch it feeds both until the
    last row ends. That tail is cut, so that a text counts the same in any company. Tokens of the prompt are never cut.

    Args:
        ids: ``(batch, length)`` tokens fed.
        mask: ``(batch, length)`` bool.
        prompt: how many columns came before the first generated one.
        stop_tokens: the end and padding tokens.
    """
    if ids.shape[0] == 1 or not stop_tokens.eos or stop_tokens.pad is None:
        return mask
    generated = torch.arange(ids.shape[1], device=ids.device) >= prompt
    ends = torch.isin(ids, torch.tensor(stop_tokens.eos, device=ids.device, dtype=ids.dtype)) & generated
    filler = (ids == stop_tokens.pad) & generated
    tail = filler.flip(1).cumprod(1).flip(1).bool()  # the run of padding at the end of each row
    before = torch.cat([tail[:, 1:], torch.ones_like(tail[:, :1])], 1) & ~tail  # the token right before that run
    # It ended the row: surely when it is an end token, and else when padding follows that is not an end token itself.
    ended = ends if stop_tokens.pad in stop_tokens.eos else ends | tail[:, -1:]
    return mask & ~tail & ~(before & ended & generated)


class CachedSequence:
    """Hidden states of texts that are still arriving, kept until they end, with memory like the KV cache's own.

    Made for a cache that was empty when first seen. The rows become the same :class:`Rows` as if the texts had come in one
    forward, so nothing downstream knows about generation.

    Attributes:
        columns: tokens fed so far per row, padding included.
        training: mode of the forward that opened the sequence.
    """

    def __init__(self, cache: Any, stop_tokens: StopTokens, training: bool) -> None:
        self.training = training
        self.columns = 0
        self._counted: Tensor | None = None
        self._cache = weakref.ref(cache)
        self._stop_tokens = stop_tokens
        self._prompt = 0
        self._before = 0
        self._ids: Tensor | None = None
        self._latest_ids: Tensor | None = None
        self._mask: Tensor | None = None
        self._hidden: dict[str, list[Tensor]] = {}
        self._attention: dict[str, list[AttentionRows]] = {}
        self._signature: Tensor | None = None
        self._rearranged: Tensor | None = None

    @property
    def rearranged(self) -> bool:
        """Whether the cache was changed between forwards, so that what is kept here belongs to no one text.

        Beam search moves rows; assisted decoding feeds drafts and drops those that are rejected, the last ones unseen.
        """
        return self._rearranged is not None and bool(self._rearranged)

    @property
    def cache(self) -> Any:
        """The cache, or ``None`` when it is gone, so that nothing can come after."""
        return self._cache()

    @property
    def mode(self) -> Mode:
        """Which sums this sequence adds to."""
        return mode_of(self.training)

    @property
    def device(self) -> torch.device:
        """Where the tokens are."""
        assert self._mask is not None
        return self._mask.device

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites seen so far."""
        return tuple(self._hidden)

    def extend(self, ids: Tensor | None, mask: Tensor, past: int, whole: Tensor | None = None) -> None:
        """A forward of ``mask.shape[1]`` new columns after ``past`` cached ones is about to run."""
        if past < self.columns:  # cropped
            self._rearranged = torch.tensor(True)
        if past == 0 or mask.shape[1] > 1:  # a prompt, a chunk of one, or the next turn of a chat
            self._prompt = past + mask.shape[1]
        elif self._signature is not None:
            keys = self._keys(past)
            moved = (
                (torch.ne(keys, self._signature) & ~(keys.isnan() & self._signature.isnan())).any()
                if keys is not None
                else torch.tensor(False)
            )
            self._rearranged = moved if self._rearranged is None else self._rearranged | moved
        self._latest_ids = ids
        self._ids = _append(self._ids, ids if ids is not None else torch.full_like(mask, -1, dtype=torch.long))
        if self._mask is not None and whole is not None and past == self.columns and mask.shape[1] > 1:
            # The next turn: its mask knows of fillers.
            self._mask = self._mask & whole[:, :past].to(self._mask.device)
        self._mask = _append(self._mask, mask)
        self._before, self.columns = past, past + mask.shape[1]

    def remember_keys(self) -> None:
        """The forward is done: remember each row's newest key, to see at the next one whether the rows are still in place."""
        self._signature = self._keys(self.columns)

    def _keys(self, columns: int) -> Tensor | None:
        """The newest cached key, or the recurrent state, of every row in the first layer; needless for one row."""
        layers = getattr(self.cache, "layers", None)
        keys = getattr(layers[0], "keys", None) if layers else None
        if keys is None and layers and isinstance(state := getattr(layers[0], "recurrent_states", {}).get(0), Tensor):
            return None if state.shape[0] == 1 else state.clone()
        if not isinstance(keys, Tensor) or keys.dim() != 4 or keys.shape[0] == 1 or not keys.shape[2]:
            return None
        return keys[:, 0, min(columns, keys.shape[2]) - 1].clone()

    @property
    def tokens(self) -> Tensor:
        """Where there are tokens, ``(batch, columns)``: as :meth:`mask`, with what rows were fed that had ended."""
        assert self._mask is not None
        return self._mask

    def add(self, site: str, hidden: Tensor, attention: AttentionRows | None = None) -> None:
        """The new columns' hidden states at one site. Copied: the model may go on to change them in place."""
        self._hidden.setdefault(site, []).append(hidden.detach().clone())
        if attention is not None:
            self._attention.setdefault(site, []).append(attention)

    def latest(self, site: str) -> Tensor:
        """What :meth:`add` got last for ``site``."""
        return self._hidden[site][-1]

    def latest_mask(self) -> Tensor:
        """Mask of the columns that the last forward added, ``(batch, new)``."""
        assert self._mask is not None
        return self._mask[:, self._before :]

    def latest_ids(self) -> Tensor | None:
        """Tokens that the last forward was fed, ``(batch, new)``; ``None`` when it was fed embeddings."""
        return self._latest_ids

    def rows(self, site: str) -> Rows:
        """All rows of a site so far, as of a stack of one site."""
        return self._rows(site, self.mask())

    def mark_counted(self) -> None:
        """Everything so far has been told, and is not to be told again."""
        self._counted = self.mask()

    @property
    def is_counted(self) -> bool:
        """Whether :meth:`report` was called."""
        return self._counted is not None

    def counted_rows(self, site: str) -> Rows:
        """The rows of a site that were there at :meth:`report`, with the mask they were told by."""
        assert self._counted is not None
        return self._rows(site, self._counted)

    def _rows(self, site: str, mask: Tensor) -> Rows:
        """The rows of a site that ``mask`` tells of; of a forward that has not ended, it tells of more than there are."""
        hidden = self._whole(site)[:, : mask.shape[1]]
        length = hidden.shape[1]
        attention = None
        if site in self._attention:
            self._attention[site][:] = [AttentionRows.joined(self._attention[site])]
            attention = AttentionRows.stacked([self._attention[site][0].until(length)])
        return Rows(hidden.unsqueeze(0), mask[:, :length].to(hidden.device), attention=attention)

    def _whole(self, site: str) -> Tensor:
        """Hidden states of a site, ``(batch, columns, width)``; parts are joined once."""
        parts = self._hidden[site]
        if len(parts) > 1:
            parts[:] = [torch.cat(parts, 1)]
        return parts[0]

    def mask(self) -> Tensor:
        """``(batch, columns)`` bool: real tokens, without what ended rows were fed."""
        assert self._ids is not None
        assert self._mask is not None
        return still_running(self._ids, self._mask, self._prompt, self._stop_tokens)


def _append(old: Tensor | None, new: Tensor) -> Tensor:
    return new if old is None else torch.cat([old.to(new.device), new], 1)
