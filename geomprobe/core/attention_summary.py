"""What each token attends to, head by head, from queries and keys: in chunks, so that no map of a long text is ever whole."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import torch
from torch import Tensor

__all__ = ["HIDDEN", "PICKED", "AttentionMask", "AttentionRows", "Layout", "from_scores", "from_weights"]

PICKED = 0.01
"""Head-mean weight above which a token is attended to, as in section 4.2."""

_ENTRIES = 1 << 19
"""Scores that are held at once: 2 MiB in float32, near what a core's cache holds; a few such tensors are alive together."""

HIDDEN = -1e30
"""Score of what must not be seen: its weight underflows to zero, and zero times it is zero."""


class AttentionMask(Protocol):
    """What rows may see."""

    def columns(self, rows: slice) -> int:
        """Number of leading columns that hold all these rows see."""
        ...

    def hide(self, rows: slice, scores: Tensor) -> None:
        """Of scores ``(batch, heads, rows, columns)`` set those to :data:`HIDDEN`, in place, that the rows must not see."""
        ...


@dataclass(frozen=True)
class AttentionRows:
    """Summaries of attention weights for every row (query); NaN where there is no attention.

    Attributes:
        entropy: ``−Σ_j a_j log a_j`` in nats, ``(…, batch, heads, length)``.
        first: weight on the first token of the row's text (the usual attention sink), ``(…, batch, heads, length)``.
        distance: ``Σ_j a_j · (how many tokens back)``, ``(…, batch, heads, length)``.
        picks: how many tokens have a head-mean weight above 0.01, ``(…, batch, length)``.
        octaves: head-mean weight by distance, ``(…, batch, length, octaves)``: on the token itself, 1 back, 2–3, 4–7, 8–15 …
        mean: the head-mean weights themselves ``(…, batch, length, columns)``, where they were asked for.
    """

    entropy: Tensor
    first: Tensor
    distance: Tensor
    picks: Tensor
    octaves: Tensor
    mean: Tensor | None = None

    def map(self, change: Callable[[str, Tensor], Tensor]) -> Self:
        """Each tensor changed, by name."""
        tensors: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: None if value is None else change(name, value) for name, value in tensors.items()}
        return type(self)(**changed)

    def batch(self, part: slice) -> Self:
        """Of some batch rows."""
        return self.map(lambda name, value: value[..., part, :] if name == "picks" else value[..., part, :, :])

    def until(self, length: int) -> Self:
        """Of the leading rows, with as many columns."""

        def cut(name: str, value: Tensor) -> Tensor:
            if name == "mean":
                return value[..., :length, :length]
            return value[..., :length, :] if name == "octaves" else value[..., :length]

        return self.map(cut)

    @classmethod
    def joined(cls, parts: "list[AttentionRows]") -> "AttentionRows":
        """Rows that came one after another, as of one forward."""

        def join(name: str, first: Tensor) -> Tensor:
            several: list[Tensor] = [getattr(part, name) for part in parts]
            if name not in ("octaves", "mean"):
                return torch.cat(several, -1)
            widest = max(value.shape[-1] for value in several)  # later rows have more behind them
            return torch.cat([torch.nn.functional.pad(value, (0, widest - value.shape[-1])) for value in several], -2)

        return parts[0] if len(parts) == 1 else parts[0].map(join)

    @classmethod
    def stacked(cls, sites: "list[AttentionRows | None]") -> "AttentionRows | None":
        """Several sites behind one new leading dimension, NaN for those that have none; ``None`` when all have none."""
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
    """Where the tokens of a forward stand among the columns that its rows may attend to.

    Attributes:
        position: how many tokens come before each column, ``(batch, columns)``.
        own: the same of each row, ``(batch, length)``.
        first: column at which the text of each row begins, ``(batch, length)``; negative when it is no longer there.
        edges: for each row and octave how many columns are as far back or farther, ``(batch, length, octaves)``.
    """

    position: Tensor
    own: Tensor
    first: Tensor
    edges: Tensor

    @classmethod
    def of(cls, tokens: Tensor, length: int, starts: Tensor | None = None) -> "Layout":
        """Of rows that are the last ``length`` columns.

        Args:
            tokens: where there are tokens, ``(batch, columns)``.
            length: number of rows.
            starts: where texts start within packed rows, ``(batch, length)``.
        """
        batch, columns = tokens.shape
        position = tokens.long().cumsum(1) - 1
        if starts is None:
            first = tokens.long().argmax(1, keepdim=True).expand(batch, length)
        else:
            here = torch.arange(columns, device=tokens.device)[-length:].expand(batch, length)
            first = torch.where(starts & tokens[:, -length:], here, 0).cummax(1).values
        own = position[:, -length:]
        steps = 2 ** torch.arange(1 + max(1, (columns - 1).bit_length()), device=tokens.device)
        behind = own.unsqueeze(-1) - steps
        edges = torch.searchsorted(position, behind.flatten(1), right=True).view(behind.shape)
        return cls(position, own, first, edges)

    def moved(self, columns: int) -> "Layout":
        """For keys of another number of columns: a window that has forgotten the oldest, or a cache with room for more."""
        more = columns - self.position.shape[1]
        if more == 0:
            return self
        last = self.position[:, -1:]
        position = torch.cat([self.position, last.expand(-1, more)], 1) if more > 0 else self.position[:, -more:]
        gone = min(more, 0)
        return Layout(position, self.own, self.first + gone, (self.edges + gone).clamp_min(0))


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
    keep: bool = False,
) -> AttentionRows:
    """Summaries of ``softmax(scale · QKᵀ)`` over what is visible.

    Args:
        query: ``(batch, heads, length, width)``.
        key: ``(batch, groups, columns, width)``; heads are shared out to groups in order.
        layout: of these columns.
        mask: what each row sees.
        scale: of the scores.
        softcap: c of ``c · tanh(score / c)``.
        bias: added to the scores, ``(1 or batch, heads, length, columns)``.
        sinks: a score per head ``(heads,)`` that takes weight from the tokens and gives it to none.
        keep: keep the head-mean weights.
    """
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    kind = torch.float64 if query.dtype == torch.float64 else torch.float32
    query, key = query.to(kind) * scale, key.to(kind)
    sinks = None if sinks is None else sinks.to(kind).view(1, -1, 1)
    out = _Out(layout, heads, length, kind, keep)
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
        else:  # Σa log a of weights that a sink has made smaller by one factor
            every = torch.logaddexp(total, sinks - most.squeeze(-1))
            left = (total - every).exp()
            weights.mul_(left.unsqueeze(-1))
            entropy = left * (every - inside)
        out.put(part, weights, entropy)
    return out.rows()


def from_weights(weights: Tensor, layout: Layout, *, keep: bool = False) -> AttentionRows:
    """Summaries of the weights ``(batch, heads, length, columns)`` that a model computed itself."""
    weights = weights.to(torch.float64 if weights.dtype == torch.float64 else torch.float32)
    batch, heads, length, columns = weights.shape
    out = _Out(layout, heads, length, weights.dtype, keep)
    for part in _chunks(length, batch * heads * columns):
        out.put(part, weights[:, :, part], torch.special.entr(weights[:, :, part]).sum(-1))
    return out.rows()


def _chunks(length: int, entries: int) -> Iterator[slice]:
    """Rows of ``entries`` scores each, as many at a time as may be held."""
    step = max(1, _ENTRIES // max(1, entries))
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


class _Out:
    """Summaries that are filled chunk by chunk."""

    def __init__(self, layout: Layout, heads: int, length: int, kind: torch.dtype, keep: bool) -> None:
        self._layout = layout
        batch, columns = layout.position.shape
        self._position = layout.position.to(kind)
        self._entropy, self._first, self._distance = layout.position.new_empty((3, batch, heads, length), dtype=kind)
        self._picks = layout.position.new_empty((batch, length), dtype=kind)
        self._octaves = layout.position.new_empty(layout.edges.shape, dtype=kind)
        self._mean = layout.position.new_zeros((batch, length, columns), dtype=kind) if keep else None

    def put(self, part: slice, weights: Tensor, entropy: Tensor) -> None:
        """Weights ``(batch, heads, rows, columns)`` of some rows, with their entropies; columns after these are not seen."""
        batch, heads, rows, columns = weights.shape
        self._entropy[:, :, part] = entropy
        first = self._layout.first[:, part]
        begins = first.clamp(0, columns - 1)[:, None, :, None].expand(batch, heads, rows, 1)
        self._first[:, :, part] = weights.gather(-1, begins).squeeze(-1) * (first >= 0).unsqueeze(1)
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

    def rows(self) -> AttentionRows:
        return AttentionRows(self._entropy, self._first, self._distance, self._picks, self._octaves, self._mean)
