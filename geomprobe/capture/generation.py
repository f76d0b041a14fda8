"""Generation: texts whose tokens arrive over several forwards, and which of their rows have ended."""

import sys
import weakref
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from geomprobe.core.attention_summary import AttentionRows
from geomprobe.core.rows import Rows

__all__ = ["MODES", "CachedSequence", "GenerateCall", "Mode", "StopTokens", "mode_of", "still_running"]

Mode = Literal["train", "eval", "no_grad"]

MODES: tuple[Mode, ...] = ("train", "eval", "no_grad")


def mode_of(training: bool, grad: bool) -> Mode:
    """Return the mode of a forward, from the decoder's ``training`` and ``torch.is_grad_enabled()`` when it is called.

    ``no_grad`` is training mode without gradients. Trainers for reinforcement learning run the reference model, the old policy
    and rollouts in it, between the forwards of the loss.
    """
    if not training:
        return "eval"
    return "train" if grad else "no_grad"


@dataclass(frozen=True)
class GenerateCall:
    """One call of ``generate``, inside of which the decoder runs.

    Attributes:
        key: an object that belongs to this call alone. Two forwards belong to one call if their keys are the same object.
        running: which rows have not ended, ``(batch,)``; ``None`` if the decoding loop does not tell, as in beam search.
    """

    key: object
    running: Tensor | None

    @classmethod
    def current(cls) -> "GenerateCall | None":
        """Return the call of Transformers' ``generate`` that the present forward is part of, or ``None``.

        It is found on the stack, because a decoder is not told who calls it. The decoding loop itself knows which rows have
        ended, for whatever reason: an end token, also one that was passed to ``generate``, a stop string, or a criterion of
        the user's own.
        """
        frame: FrameType | None = sys._getframe(1)
        running: Tensor | None = None
        while frame is not None:
            if frame.f_globals.get("__name__") == _GENERATION:
                found = frame.f_locals
                if running is None and isinstance(rows := found.get(_RUNNING), Tensor):
                    running = rows.bool()
                if (key := found.get(_KEY)) is not None and frame.f_code.co_name != "generate":
                    return cls(key, running)
            frame = frame.f_back
        return None


# Names in Transformers' decoding loops (`GenerationMixin._sample` and its kin).
_GENERATION, _RUNNING, _KEY = "transformers.generation.utils", "unfinished_sequences", "stopping_criteria"


@dataclass(frozen=True)
class StopTokens:
    """How ``generate`` ends a row of a batch: the end tokens, and the padding token that it feeds until all rows have ended."""

    eos: tuple[int, ...] = ()
    pad: int | None = None

    @classmethod
    def of(cls, model: nn.Module) -> "StopTokens":
        """Return the stop tokens of the generation config of the model, or of the module inside it that has one."""
        configs = (getattr(module, "generation_config", None) for module in model.modules())
        config = next((config for config in configs if config is not None), getattr(model, "config", None))
        eos = getattr(config, "eos_token_id", None)
        eos = () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)
        pad = getattr(config, "pad_token_id", None)
        return cls(eos, pad if pad is not None else next(iter(eos), None))


def still_running(ids: Tensor, mask: Tensor, prompt: int, stop_tokens: StopTokens) -> Tensor:
    """Return ``mask`` without the tokens that ``generate`` feeds to rows that have ended, while other rows continue.

    If a row is generated alone, neither its end token nor padding is fed to the model. In a batch, both are fed until the last
    row ends. They are removed from the mask here, so that a text gives the same numbers in every batch. Tokens of the prompt
    are never removed.

    Args:
        ids: token ids fed so far, ``(batch, length)``.
        mask: which of them are tokens, ``(batch, length)`` bool.
        prompt: number of columns before the first generated one.
        stop_tokens: the end and padding tokens.
    """
    if ids.shape[0] == 1 or not stop_tokens.eos or stop_tokens.pad is None:
        return mask
    generated = torch.arange(ids.shape[1], device=ids.device) >= prompt
    ends = torch.isin(ids, torch.tensor(stop_tokens.eos, device=ids.device, dtype=ids.dtype)) & generated
    filler = (ids == stop_tokens.pad) & generated
    tail = filler.flip(1).cumprod(1).flip(1).bool()  # the run of padding at the end of each row
    before = torch.cat([tail[:, 1:], torch.ones_like(tail[:, :1])], 1) & ~tail  # the token right before that run
    # This token ended the row if it is an end token, or if it is followed by padding that is not itself an end token.
    ended = ends if stop_tokens.pad in stop_tokens.eos else ends | tail[:, -1:]
    return mask & ~tail & ~(before & ended & generated)


class CachedSequence:
    """The hidden states of texts that are still being generated, stored until the texts end. The memory is of the order of the
    KV cache's own.

    A sequence is created for a cache that was empty when first observed. Its rows are the same :class:`Rows` as if the texts
    had been run in one forward, so the rest of the package does not need to know about generation.

    The columns of a forward that has not ended belong to no number: rows and masks end at the last completed forward.

    Attributes:
        columns: number of tokens fed so far per row, including padding.
        mode: the mode of the first forward of the sequence, to whose sums it is added.
    """

    def __init__(self, cache: Any, stop_tokens: StopTokens, mode: Mode) -> None:
        self.mode = mode
        self.columns = 0
        self._completed = 0
        self._forwards = 0
        self._counted: Tensor | None = None
        self._cache = weakref.ref(cache)
        self._stop_tokens = stop_tokens
        self._prompt = 0
        self._before = 0
        self._ids: Tensor | None = None
        self._latest_ids: Tensor | None = None
        self._mask: Tensor | None = None
        self._running: Tensor | None = None
        self._told = True  # whether generate told in every forward which rows are running
        self._hidden: dict[str, list[Tensor]] = {}
        self._attention: dict[str, list[AttentionRows]] = {}
        self._signature: Tensor | None = None
        self._rearranged: Tensor | None = None

    @property
    def rearranged(self) -> bool:
        """Whether the cache was changed between forwards, so that the stored rows do not belong to one text.

        Beam search moves rows. Assisted decoding feeds drafts and removes the rejected ones from the cache.
        """
        return self._rearranged is not None and bool(self._rearranged)

    @property
    def cache(self) -> Any:
        """The cache, or ``None`` if it was garbage collected, so that no further token can arrive."""
        return self._cache()

    @property
    def generated(self) -> bool:
        """Whether tokens arrived in more than one forward, as they do while a model generates."""
        return self._forwards > 1

    @property
    def device(self) -> torch.device:
        """The device of the tokens."""
        assert self._mask is not None
        return self._mask.device

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites whose hidden states were added so far."""
        return tuple(self._hidden)

    def extend(
        self,
        ids: Tensor | None,
        mask: Tensor,
        past: int,
        whole: Tensor | None = None,
        running: Tensor | None = None,
    ) -> None:
        """Prepare for a forward of ``mask.shape[1]`` new columns after ``past`` cached columns.

        Args:
            ids: the token ids ``(batch, new)``, or ``None`` if the model is called with embeddings.
            mask: which of them are tokens, ``(batch, new)`` bool.
            past: number of cached columns.
            whole: which of all columns are tokens, if the caller's mask covers them.
            running: which rows have not ended ``(batch,)``, if ``generate`` tells.
        """
        if past < self.columns:
            self._crop(past)
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
        if self._mask is not None and whole is not None and past == self._mask.shape[1] and mask.shape[1] > 1:
            # The next turn of a chat: its mask excludes the padding that ended rows were fed.
            self._mask = self._mask & whole[:, :past].to(self._mask.device)
            self._running = None if self._running is None else torch.ones_like(self._running)
        self._told = self._told and running is not None
        now = torch.ones_like(mask) if running is None else running.to(mask.device).unsqueeze(1).expand_as(mask)
        self._running = _append(self._running, now)
        self._mask = _append(self._mask, mask)
        self._before, self.columns = past, past + mask.shape[1]

    def _crop(self, past: int) -> None:
        """Follow a cache from which the newest columns were removed. Assisted decoding removes drafts, which were taken for
        tokens; ``generate`` may also remove columns that it fed after every row had ended."""
        assert self._ids is not None
        assert self._mask is not None
        assert self._running is not None
        removed = (self._mask & self._running)[:, past:].any()
        self._rearranged = removed if self._rearranged is None else self._rearranged | removed.to(self._rearranged.device)
        self._ids, self._mask, self._running = self._ids[:, :past], self._mask[:, :past], self._running[:, :past]
        for site in self._hidden:
            self._hidden[site] = [self._whole(site)[:, :past]]
        for site, parts in self._attention.items():
            self._attention[site] = [AttentionRows.joined(parts).until(past)]
        self._completed = self.columns = past
        self._signature = None  # of a column that is gone

    def complete(self) -> None:
        """Take the columns of the present forward into the texts, after the decoder has returned. The newest key of each row is
        remembered, so that the next forward can check whether rows were moved."""
        self._completed, self._forwards = self.columns, self._forwards + 1
        self._signature = self._keys(self.columns)

    def _keys(self, columns: int) -> Tensor | None:
        """The newest cached key, or the recurrent state, of every row in the first layer; ``None`` for a single row."""
        layers = getattr(self.cache, "layers", None)
        keys = getattr(layers[0], "keys", None) if layers else None
        states = getattr(layers[0], "recurrent_states", None) if layers else None
        state = states.get(0) if isinstance(states, dict) else states  # a dict since Transformers 5.13
        if keys is None and isinstance(state, Tensor):
            return None if state.shape[0] == 1 else state.clone()
        if not isinstance(keys, Tensor) or keys.dim() != 4 or keys.shape[0] == 1 or not keys.shape[2]:
            return None
        return keys[:, 0, min(columns, keys.shape[2]) - 1].clone()

    @property
    def tokens(self) -> Tensor:
        """Which columns are tokens, ``(batch, columns)`` bool: as :meth:`mask`, but including tokens fed to ended rows."""
        assert self._mask is not None
        return self._mask

    def add(self, site: str, hidden: Tensor, attention: AttentionRows | None = None) -> None:
        """Add a copy of the hidden states of the new columns at one site. The model may later change them in place."""
        self._hidden.setdefault(site, []).append(hidden.detach().clone())
        if attention is not None:
            self._attention.setdefault(site, []).append(attention)

    def latest(self, site: str) -> Tensor:
        """Return the hidden states that :meth:`add` received last for ``site``."""
        return self._hidden[site][-1]

    def latest_mask(self) -> Tensor:
        """Return the mask of the columns that the last forward added, ``(batch, new)``."""
        assert self._mask is not None
        return self._mask[:, self._before :]

    def latest_ids(self) -> Tensor | None:
        """Return the token ids of the last forward, ``(batch, new)``; ``None`` if it was called with embeddings."""
        return self._latest_ids

    def rows(self, site: str) -> Rows:
        """Return all rows of a site so far, as a stack of one site."""
        return self._rows(site, self.mask())

    def mark_counted(self) -> None:
        """Mark everything so far as counted, so that it is not counted again."""
        self._counted = self.mask()

    @property
    def is_counted(self) -> bool:
        """Whether :meth:`mark_counted` was called."""
        return self._counted is not None

    def counted_rows(self, site: str) -> Rows:
        """Return the rows of a site that were counted when :meth:`mark_counted` was called, with their mask at that time."""
        assert self._counted is not None
        return self._rows(site, self._counted)

    def _rows(self, site: str, mask: Tensor) -> Rows:
        """The rows of a site under ``mask``, which has fewer columns than there are rows while a forward is running."""
        length = mask.shape[1]
        hidden = self._whole(site)[:, :length]
        attention = None
        if site in self._attention:
            self._attention[site][:] = [AttentionRows.joined(self._attention[site])]
            attention = AttentionRows.stacked([self._attention[site][0].until(length)])
        return Rows(hidden.unsqueeze(0), mask.to(hidden.device), attention=attention, generated=self.generated)

    def _whole(self, site: str) -> Tensor:
        """The hidden states of a site, ``(batch, columns, width)``. The parts are joined and stored joined."""
        parts = self._hidden[site]
        if len(parts) > 1:
            parts[:] = [torch.cat(parts, 1)]
        return parts[0]

    def mask(self) -> Tensor:
        """Return which columns of completed forwards are tokens, without the tokens fed to rows that have ended."""
        assert self._ids is not None
        assert self._mask is not None
        assert self._running is not None
        columns = slice(self._completed)
        mask = (self._mask & self._running)[:, columns]
        return mask if self._told else still_running(self._ids[:, columns], mask, self._prompt, self._stop_tokens)


def _append(old: Tensor | None, new: Tensor) -> Tensor:
    return new if old is None else torch.cat([old.to(new.device), new], 1)
