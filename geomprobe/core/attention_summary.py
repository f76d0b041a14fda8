"""Summaries of the attention weights of each token, computed from queries and keys in chunks of rows, so that the attention map
of a long text is never held whole."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import torch
from torch import Tensor

__all__ = ["HIDDEN", "PICKED", "AttentionMask", "AttentionRequest", "AttentionRows", "Layout", "from_scores", "from_weights"]

PICKED = 0.01
"""Weight, averaged over heads, above which a token counts as attended to, as in section 4.2."""

_ENTRIES = 1 << 19
"""Number of scores held at once: 2 MiB in float32, about the cache of a core. A few such tensors exist at the same time."""

HIDDEN = -1e30
"""Score of a masked column. Its weight underflows to zero, and the product of zero and this score is zero (unlike −inf)."""


class AttentionMask(Protocol):
    """Which columns (keys) each row (query) may attend to."""

    def columns(self, rows: slice) -> int:
        """Return a number of leading columns that includes all columns visible to ``rows``."""
        ...

    def hide(self, rows: slice, scores: Tensor) -> None:
        """Set the scores ``(batch, heads, rows, columns)`` of masked columns to :data:`HIDDEN`, in place."""
        ...


@dataclass(frozen=True)
class AttentionRequest:
    """What is to be computed besides the summaries that are always computed.

    Attributes:
        first: number of tokens at the start of the text whose weights are kept.
        maps: whether the weights averaged over heads are kept, for all columns.
        logits: whether the largest score of each row is kept.
        heads: whether the weights of every head are kept, for all columns, which takes much memory for long texts.
    """

    first: int = 1
    maps: bool = False
    logits: bool = False
    heads: bool = False


@dataclass(frozen=True)
class AttentionRows:
    """Summaries of the attention weights of every row (query); NaN where there is no attention.

    Attributes:
        entropy: ``−Σ_j a_j log a_j`` in nats, ``(…, batch, heads, length)``.
        first: weights on the first K tokens of the text, ``(…, batch, heads, K, length)``. K is 1 (the usual attention sink)
            unless more were requested.
        distance: the mean distance in tokens, ``Σ_j a_j (t − j)``, ``(…, batch, heads, length)``.
        picks: number of tokens whose weight, averaged over heads, is above 0.01, ``(…, batch, length)``.
        octaves: weight averaged over heads by distance, ``(…, batch, length, octaves)``: on the token itself, on the token
            before, 2–3, 4–7, 8–15 tokens back, and so on.
        mean: the weights averaged over heads, ``(…, batch, length, columns)``, if they were requested.
        top: the largest score of a visible column as it enters the softmax (after scale, soft cap and bias),
            ``(…, batch, heads, length)``, if it was requested.
        heads: the weights of every head, ``(…, batch, heads, length, columns)``, if they were requested.
    """

    entropy: Tensor
    first: Tensor
    distance: Tensor
    picks: Tensor
    octaves: Tensor
    mean: Tensor | None = None
    top: Tensor | None = None
    heads: Tensor | None = None

    def map(self, change: Callable[[str, Tensor], Tensor]) -> Self:
        """Return a copy with ``change(name, tensor)`` in place of each tensor."""
        tensors: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: None if value is None else change(name, value) for name, value in tensors.items()}
        return type(self)(**changed)

    def batch(self, part: slice) -> Self:
        """Return the summaries of a part of the batch."""
        behind = {"picks": 1, "first": 3, "heads": 3}  # number of dimensions after that of the batch; 2 for the others
        return self.map(
            lambda name, value: value.movedim(-1 - behind.get(name, 2), 0)[part].movedim(0, -1 - behind.get(name, 2))
        )

    def until(self, length: int) -> Self:
        """Return the summaries of the first ``length`` rows, with ``length`` columns."""

        def cut(name: str, value: Tensor) -> Tensor:
            if name in ("mean", "heads"):
                return value[..., :length, :length]
            return value[..., :length, :] if name == "octaves" else value[..., :length]

        return self.map(cut)

    @classmethod
    def joined(cls, parts: "list[AttentionRows]") -> "AttentionRows":
        """Concatenate the summaries of successive forwards of the same texts, as if they were one forward."""

        def join(name: str, first: Tensor) -> Tensor:
            several: list[Tensor] = [getattr(part, name) for part in parts]
            if name not in ("octaves", "mean", "heads"):
                return torch.cat(several, -1)
            widest = max(value.shape[-1] for value in several)  # later rows have more earlier tokens
            return torch.cat([torch.nn.functional.pad(value, (0, widest - value.shape[-1])) for value in several], -2)

        return parts[0] if len(parts) == 1 else parts[0].map(join)

    @classmethod
    def stacked(cls, sites: "list[AttentionRows | None]") -> "AttentionRows | None":
        """Stack the summaries of several sites along a new leading dimension, with NaN for sites that have none.

        Return ``None`` if no site has any.
        """
        like = next((site for site in sites if site is not None), None)
        if like is None:
            return None
        return like.map(
            lambda name, value: torch.stack(
                [torch.full_like(value, torch.nan) if site is None else getattr(site, name) for site in sites]
            )
        )


@dataclass(frozen=True)
class Layout:
    """The positions of tokens among the columns (keys) that the rows (queries) of a forward may attend to.

    Attributes:
        position: number of tokens before each column, ``(batch, columns)``.
        own: number of tokens before each row, ``(batch, length)``.
        begin: number of tokens before the text of each row, ``(batch, length)``.
        edges: for each row and octave, the number of columns at that distance or farther, ``(batch, length, octaves)``.
    """

    position: Tensor
    own: Tensor
    begin: Tensor
    edges: Tensor

    @classmethod
    def of(cls, tokens: Tensor, length: int, starts: Tensor | None = None) -> "Layout":
        """Return the layout of a forward whose rows are the last ``length`` columns.

        Args:
            tokens: whether each column is a token, ``(batch, columns)`` bool.
            length: number of rows.
            starts: whether a text starts at each row, ``(batch, length)`` bool, for packed texts.
        """
        columns = tokens.shape[1]
        position = tokens.long().cumsum(1) - 1
        own = position[:, -length:]
        begin = torch.zeros_like(own)
        if starts is not None:
            begin = torch.where(starts & tokens[:, -length:], own, 0).cummax(1).values
        steps = 2 ** torch.arange(1 + max(1, (columns - 1).bit_length()), device=tokens.device)
        behind = own.unsqueeze(-1) - steps
        edges = torch.searchsorted(position, behind.flatten(1), right=True).view(behind.shape)
        return cls(position, own, begin, edges)

    def moved(self, columns: int) -> "Layout":
        """Return the layout for another number of columns: fewer if a sliding window has dropped the oldest keys, more if the
        cache has allocated space for further ones."""
        more = columns - self.position.shape[1]
        if more == 0:
            return self
        last = self.position[:, -1:]
        position = torch.cat([self.position, last.expand(-1, more)], 1) if more > 0 else self.position[:, -more:]
        return Layout(position, self.own, self.begin, (self.edges + min(more, 0)).clamp_min(0))

    def first(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the columns of the first ``number`` tokens of the text of each row, ``(batch, number, length)``, and whether
        they are there: a sliding window may have dropped them, and a text may have fewer tokens."""
        tokens = self.begin.unsqueeze(1) + torch.arange(number, device=self.begin.device).view(1, -1, 1)
        columns = torch.searchsorted(self.position.contiguous(), tokens.flatten(1)).view(tokens.shape)
        columns = columns.clamp_max(self.position.shape[1] - 1)
        there = self.position.gather(1, columns.flatten(1)).view(tokens.shape) == tokens
        return columns, there


def from_scores(
    query: Tensor,
    key: Tensor,
    layout: Layout,
    mask: AttentionMask,
    *,
    scale: float,
    softcap: float | None = None,
    bias: Tensor | None = None,
    sinks: Tensor | None = None,
    request: AttentionRequest = AttentionRequest(),
) -> AttentionRows:
    """Return summaries of the weights ``softmax(scale · QKᵀ)`` over the visible columns.

    Args:
        query: queries ``(batch, heads, length, width)``.
        key: keys ``(batch, groups, columns, width)``. Heads are assigned to groups in order.
        layout: the layout of these columns.
        mask: which columns each row may attend to.
        scale: multiplier of the attention scores.
        softcap: the constant c of ``c · tanh(score / c)``, if scores are capped.
        bias: bias added to the scores, ``(1 or batch, heads, length, columns)``.
        sinks: one additional score per head ``(heads,)``, whose share of the weight goes to no token.
        request: what to compute besides the summaries.
    """
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    kind = torch.float64 if query.dtype == torch.float64 else torch.float32
    query, key = query.to(kind) * scale, key.to(kind)
    sinks = None if sinks is None else sinks.to(kind).view(1, -1, 1)
    out = _Out(layout, heads, length, kind, request)
    for part in _chunks(length, batch * heads * key.shape[2]):
        columns = mask.columns(part)
        rows = query[:, :, part].reshape(batch, groups, -1, width)
        scores = (rows @ key[:, :, :columns].mT).view(batch, heads, -1, columns)
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        if bias is not None:
            scores.add_(bias[:, :, part, :columns])
        mask.hide(part, scores)
        most = scores.amax(-1, keepdim=True)
        weights = scores.sub_(most).softmax(-1)
        total = weights.amax(-1).log_().neg_()  # log Σ exp of these scores, the largest of which is zero
        inside = scores.mul_(weights).sum(-1)
        if sinks is None:
            entropy = total - inside
        else:  # a sink reduces all weights by one factor, ``left``
            every = torch.logaddexp(total, sinks - most.squeeze(-1))
            left = (total - every).exp()
            weights.mul_(left.unsqueeze(-1))
            entropy = left * (every - inside)
        out.put(part, weights, entropy, most.squeeze(-1))
    return out.rows()


def from_weights(weights: Tensor, layout: Layout, *, request: AttentionRequest = AttentionRequest()) -> AttentionRows:
    """Return summaries of the weights ``(batch, heads, length, columns)`` that a model returned, from which the scores are not
    known (``top``)."""
    weights = weights.to(torch.float64 if weights.dtype == torch.float64 else torch.float32)
    batch, heads, length, columns = weights.shape
    out = _Out(layout, heads, length, weights.dtype, request)
    for part in _chunks(length, batch * heads * columns):
        out.put(part, weights[:, :, part], torch.special.entr(weights[:, :, part]).sum(-1))
    return out.rows()


def _chunks(length: int, entries: int) -> Iterator[slice]:
    """Slices of rows, each row with ``entries`` scores, of at most :data:`_ENTRIES` scores together."""
    step = max(1, _ENTRIES // max(1, entries))
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


class _Out:
    """Tensors of summaries that are filled chunk by chunk."""

    def __init__(self, layout: Layout, heads: int, length: int, kind: torch.dtype, request: AttentionRequest) -> None:
        self._layout = layout
        batch, columns = layout.position.shape
        self._position = layout.position.to(kind)
        self._begins, self._there = layout.first(request.first)
        self._entropy, self._distance = layout.position.new_empty((2, batch, heads, length), dtype=kind)
        self._first = layout.position.new_empty((batch, heads, request.first, length), dtype=kind)
        self._picks = layout.position.new_empty((batch, length), dtype=kind)
        self._octaves = layout.position.new_empty(layout.edges.shape, dtype=kind)
        self._mean = layout.position.new_zeros((batch, length, columns), dtype=kind) if request.maps else None
        self._top = torch.empty_like(self._entropy) if request.logits else None
        self._heads = layout.position.new_zeros((batch, heads, length, columns), dtype=kind) if request.heads else None

    def put(self, part: slice, weights: Tensor, entropy: Tensor, most: Tensor | None = None) -> None:
        """Fill in the rows ``part`` from their weights ``(batch, heads, rows, columns)``, entropies and largest scores. Columns
        after the given ones are masked."""
        batch, heads, rows, columns = weights.shape
        self._entropy[:, :, part] = entropy
        begins, there = (each[..., part].unsqueeze(1) for each in (self._begins, self._there & (self._begins < columns)))
        begins = begins.clamp_max(columns - 1).mT.expand(batch, heads, rows, -1)
        self._first[..., part] = weights.gather(-1, begins).mT * there
        position = self._position[:, None, None, :columns]
        own = self._layout.own[:, part].to(weights)
        seen = (weights * position).sum(-1)  # six times as fast as a product with one column
        self._distance[:, :, part] = own.unsqueeze(1) * weights.sum(-1) - seen
        mean = weights.mean(1)
        self._picks[:, part] = (mean > PICKED).sum(-1).to(mean)
        behind = torch.nn.functional.pad(mean.cumsum(-1), (1, 0))
        at_least = behind.gather(-1, self._layout.edges[:, part].clamp_max(columns))
        self._octaves[:, part] = torch.cat([behind[..., -1:], at_least], -1).diff(dim=-1).neg_()
        if self._mean is not None:
            self._mean[:, part, :columns] = mean
        if self._top is not None:
            self._top[:, :, part] = torch.nan if most is None else most
        if self._heads is not None:
            self._heads[:, :, part, :columns] = weights

    def rows(self) -> AttentionRows:
        kept = (self._mean, self._top, self._heads)
        return AttentionRows(self._entropy, self._first, self._distance, self._picks, self._octaves, *kept)
