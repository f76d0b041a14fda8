"""The hidden states of one forward pass as rows, with the information which rows are tokens and which text each belongs to."""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from geomprobe.core.attention_summary import AttentionRows
from geomprobe.core.symmetric import panel_starts, panels

__all__ = ["Rows", "full_precision", "unit_rows"]


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """A context manager in which products are computed in the dtype of their inputs: without autograd, autocast, TF32 or bf16.

    The settings of the host program are restored on exit, through the same interface by which PyTorch reads them, so that a
    program that used ``torch.set_float32_matmul_precision`` still reads the value that it set.
    """
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    lowered = [(backend, backend.fp32_precision) for backend in backends if backend.fp32_precision not in ("none", "ieee")]
    for backend, _ in lowered:
        backend.fp32_precision = "ieee"
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, precision in lowered:
            # A setting that was inherited from the general one inherits it again.
            general = torch.backends.fp32_precision  # type: ignore[attr-defined]
            backend.fp32_precision = "none" if precision == general else precision


def unit_rows(rows: Tensor, norms: Tensor) -> Tensor:
    """Return ``rows / norms``, with zeros for rows that have no direction: those of norm zero, or of a norm so small that the
    squares underflow."""
    kind = torch.finfo(norms.dtype)
    return rows / torch.where(norms > (kind.tiny / kind.eps) ** 0.5, norms, torch.inf).unsqueeze(-1)


class Rows:
    """The hidden states of one forward at one site, or at several sites of the same width. Quantities that several accumulators
    need, such as unit rows and Gram matrices, are computed once.

    Several sites are measured together so that operations on small tensors are done once for all of them.

    Args:
        hidden: ``(batch, length, width)`` or ``(sites, batch, length, width)`` of any floating dtype. Half precision is
            converted to float32; float64 is kept. Below, ``…`` stands for ``sites`` or nothing.
        mask: ``(batch, length)`` bool, True where there is a token. ``None`` if all positions are tokens.
        text: ``(batch, length)`` int64, the number of the text that each row belongs to, in ``[0, texts)``. ``None`` if each
            batch row is one text.
        position: ``(batch, length)`` int64, the position of each row in its text. ``None`` to count it from the mask.
        texts: an upper bound of ``text + 1``.
        attention: summaries of the attention weights of each row, if they were requested, for the sites of ``hidden``.

    A row that contains NaN or Inf is treated like padding and counted by :class:`~geomprobe.accumulators.state.TokenCount`.
    """

    def __init__(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        *,
        text: Tensor | None = None,
        position: Tensor | None = None,
        texts: int | None = None,
        attention: AttentionRows | None = None,
    ) -> None:
        hidden = hidden.detach()
        self.hidden = hidden if hidden.dtype in (torch.float32, torch.float64) else hidden.float()
        *self._lead, batch, length, self.width = hidden.shape
        self.mask = mask if mask is not None else hidden.new_ones((batch, length), dtype=torch.bool)
        self.packed = text is not None
        self.text = text if text is not None else torch.arange(batch, device=hidden.device).unsqueeze(1).expand(batch, length)
        self.texts = texts if texts is not None else batch
        self.position = position if position is not None else (self.mask.cumsum(1) - 1).clamp_min(0)
        self.attention = attention
        self._unit: dict[bool, Tensor] = {}
        self._gram: dict[bool, list[Tensor]] = {}

    @cached_property
    def norms(self) -> Tensor:
        """The Euclidean norm of every row, ``(…, batch, length)``."""
        norms: Tensor = torch.linalg.vector_norm(self.hidden, dim=-1)
        return norms

    @cached_property
    def valid(self) -> Tensor:
        """Where there is a token and its row is finite, ``(…, batch, length)`` bool."""
        return self.mask & self.norms.isfinite()

    @cached_property
    def counts(self) -> Tensor:
        """The number of valid rows of each text, ``(…, texts)`` float64."""
        return self.per_text(self.valid.double())

    @cached_property
    def used(self) -> Tensor:
        """The number of valid rows, ``(…)`` float64."""
        return self.counts.sum(-1)

    @cached_property
    def seen(self) -> Tensor:
        """The number of texts that have a valid row, ``(…)``."""
        return (self.counts > 0).sum(-1)

    @property
    def maps(self) -> Tensor:
        """Attention weights averaged over heads, ``(…, batch, length, length)``; NaN if they were not requested."""
        if self.attention is not None and self.attention.mean is not None:
            return self.attention.mean
        return self.norms.new_full((*self.norms.shape, self.norms.shape[-1]), torch.nan)

    def per_text(self, values: Tensor) -> Tensor:
        """Return the sums of ``values`` ``(…, batch, length)`` over the rows of each text, ``(…, texts)``. Padding must be
        zero."""
        return values.sum(-1) if not self.packed else self._scatter(values, self.text, self.texts)

    def at_positions(self, values: Tensor) -> Tensor:
        """Return the sums of ``values`` ``(…, batch, length)`` over texts by position, ``(…, length)``. Padding must be
        zero."""
        return self._scatter(values, self.position, self.mask.shape[1])

    @staticmethod
    def _scatter(values: Tensor, index: Tensor, size: int) -> Tensor:
        values = values.flatten(-2)
        return values.new_zeros((*values.shape[:-1], size)).scatter_add_(-1, index.flatten().expand_as(values), values)

    def each_text(self) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """Iterate over the texts that have a valid row: the index of the site, and the valid rows of the text as
        ``(batch, length)`` bool.

        This waits for the device.
        """
        for site in itertools.product(*map(range, self._lead)):
            for text in self.text[self.valid[site]].unique():  # type: ignore[no-untyped-call]
                yield site, (self.text == text) & self.valid[site]

    def split(self, entries: int = 1 << 24) -> Iterator["Rows"]:
        """Iterate over parts of the batch whose Gram matrices have at most about ``entries`` numbers (128 MiB by default).

        The sums over the parts add to the sum over all rows.
        """
        batch, length = self.mask.shape
        step = max(1, entries // max(1, math.prod(self._lead) * length * length))
        if step >= batch:
            yield self
            return
        for start in range(0, batch, step):
            part = slice(start, start + step)
            attention = None if self.attention is None else self.attention.batch(part)
            packed: dict[str, Any] = {}
            if self.packed:
                packed = {"text": self.text[part], "position": self.position[part], "texts": self.texts}
            yield Rows(self.hidden[..., part, :, :], self.mask[part], attention=attention, **packed)

    def unit(self, center: bool = False) -> Tensor:
        """Return the rows scaled to length one, with zeros for rows that are not valid: ``(…, batch, length, width)``.

        With ``center`` the mean row of each text is subtracted first, as in Wei et al. (2024).
        """
        if center not in self._unit:
            rows, norms = self._centered() if center else (self.hidden, self.norms)
            # Rows that are not valid are divided by infinity, which leaves NaN for entries that are NaN or Inf.
            self._unit[center] = unit_rows(rows, torch.where(self.valid, norms, torch.inf)).nan_to_num_(0, 0, 0)
        return self._unit[center]

    def _centered(self) -> tuple[Tensor, Tensor]:
        """The rows minus the mean of their text, and the norms of the result. The norm is infinite for a row that is equal to
        the mean up to rounding."""
        rows = torch.where(self.valid.unsqueeze(-1), self.hidden, 0)
        # In float64, because rounding errors of the mean, scaled to length one, would look like a direction.
        sums = rows.double()
        if self.packed:
            index = self.text.flatten().unsqueeze(-1)
            flat = sums.flatten(-3, -2)
            sums = flat.new_zeros((*self._lead, self.texts, self.width)).scatter_add_(-2, index.expand_as(flat), flat)
        else:
            sums = sums.sum(-2)
        means = sums / self.counts.clamp_min(1).unsqueeze(-1)
        rows = rows - means.to(rows.dtype)[..., self.text, :]
        norms = torch.linalg.vector_norm(rows, dim=-1)
        # If a row is equal to the mean, only rounding errors remain, which have no direction: an infinite norm makes them zero.
        # A sum of n rows in float64 has an error of up to n·eps of float64, the mean and the difference of eps of the rows.
        rounding = 8 * torch.finfo(rows.dtype).eps + self.counts[..., self.text] * torch.finfo(torch.float64).eps
        return rows, torch.where(norms > rounding * self.norms, norms, torch.inf)

    def gram(self, center: bool = False) -> list[Tensor]:
        """Return the Gram matrix ``K = ZZᵀ`` of the unit rows of each batch row in float64, as panels of
        ``(…, batch, length, length)`` (:mod:`geomprobe.core.symmetric`). Entries between different texts are zero.

        It is computed in float64 because it is multiplied by σ⁻²: with a float32 product the error was 1.5e-3 nats per token,
        with a float64 product of the same float32 rows 1e-6.
        """
        if center not in self._gram:
            gram = panels(self.unit(center).double())
            if self.packed:
                starts = panel_starts(self.mask.shape[1])
                one_text = [self.text[:, i:, None] == self.text[:, None, i : i + starts.step] for i in starts]
                gram = [part * same for part, same in zip(gram, one_text, strict=True)]
            self._gram[center] = gram
        return self._gram[center]
