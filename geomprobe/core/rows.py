"""What one site of a model shows of one forward pass: rows, which of them are real, and which text each belongs to."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

__all__ = ["Rows", "exact_arithmetic", "unit_rows"]


@contextmanager
def exact_arithmetic(device_type: str) -> Iterator[None]:
    """Compute in the dtype that is written: no autograd, no autocast, no TF32 or bf16 passes inside a float32 product.

    The host's settings are put back on exit, through the same interface PyTorch reads them by, so that a program which set
    them the old way (``torch.set_float32_matmul_precision``) still reads what it wrote.
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
            # What was inherited from the general setting is left to it again.
            general = torch.backends.fp32_precision  # type: ignore[attr-defined]
            backend.fp32_precision = "none" if precision == general else precision


def unit_rows(rows: Tensor, norms: Tensor) -> Tensor:
    """``rows / norms``, and zero for rows of no direction: norm zero, or so small that its squares have underflowed."""
    kind = torch.finfo(norms.dtype)
    return rows / torch.where(norms > (kind.tiny / kind.eps) ** 0.5, norms, torch.inf).unsqueeze(-1)


class Rows:
    """Hidden states of one site in one forward, with what is shared between accumulators computed once.

    Args:
        hidden: ``(batch, length, width)``, any floating dtype. Half precisions are upcast; float64 stays.
        mask: ``(batch, length)`` bool, True where there is a token. ``None`` means everywhere.
        text: ``(batch, length)`` int64, the text each row belongs to, in ``[0, texts)``. ``None``: one text per batch row.
        position: ``(batch, length)`` int64, the row's position in its text. ``None``: counted from the mask.
        texts: an upper bound of ``text + 1``.

    A row that holds NaN or Inf is treated like padding, and counted by :class:`~geomprobe.core.state.Tally`.
    """

    def __init__(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        *,
        text: Tensor | None = None,
        position: Tensor | None = None,
        texts: int | None = None,
    ) -> None:
        hidden = hidden.detach()
        self.hidden = hidden if hidden.dtype in (torch.float32, torch.float64) else hidden.float()
        batch, length, self.width = hidden.shape
        self.mask = mask if mask is not None else hidden.new_ones((batch, length), dtype=torch.bool)
        self.packed = text is not None
        self.text = text if text is not None else torch.arange(batch, device=hidden.device).unsqueeze(1).expand(batch, length)
        self.texts = texts if texts is not None else batch
        self.position = position if position is not None else (self.mask.cumsum(1) - 1).clamp_min(0)
        self._unit: dict[bool, Tensor] = {}
        self._gram: dict[bool, Tensor] = {}

    @cached_property
    def norms(self) -> Tensor:
        """Euclidean norm of every row, ``(batch, length)``."""
        norms: Tensor = torch.linalg.vector_norm(self.hidden, dim=-1)
        return norms

    @cached_property
    def valid(self) -> Tensor:
        """Where there is a token and its row is finite, ``(batch, length)`` bool."""
        return self.mask & self.norms.isfinite()

    def per_text(self, values: Tensor) -> Tensor:
        """Sums of ``values`` ``(batch, length, …)`` over the rows of each text, ``(texts, …)``; padding must be zero."""
        values = values if values.is_floating_point() else values.double()
        if not self.packed:
            return values.sum(1)
        return values.new_zeros((self.texts, *values.shape[2:])).index_add_(0, self.text.flatten(), values.flatten(0, 1))

    def split(self, entries: int = 1 << 24) -> Iterator["Rows"]:
        """The same rows in batches whose Gram matrices hold at most about ``entries`` numbers (128 MiB); states add."""
        batch, length = self.mask.shape
        step = max(1, entries // max(1, length * length))
        if step >= batch:
            yield self
            return
        for start in range(0, batch, step):
            part = slice(start, start + step)
            if self.packed:
                yield Rows(
                    self.hidden[part], self.mask[part], text=self.text[part], position=self.position[part], texts=self.texts
                )
            else:
                yield Rows(self.hidden[part], self.mask[part])

    def unit(self, center: bool = False) -> Tensor:
        """Rows scaled to length one, zero where not valid: ``(batch, length, width)``.

        With ``center`` the mean over the text's rows is subtracted first (Wei et al. 2024).
        """
        if center not in self._unit:
            rows, norms = self.hidden, self.norms
            if center:
                rows = torch.where(self.valid.unsqueeze(-1), rows, 0)
                # In float64: rounding of the mean, scaled to length one, would pass for a direction.
                counts = self.per_text(self.valid)
                means = self.per_text(rows.double()) / counts.clamp_min(1).unsqueeze(-1)
                rows = rows - means.to(rows.dtype)[self.text]
                norms = torch.linalg.vector_norm(rows, dim=-1)
                # What is left of a row equal to the mean is rounding, and has no direction: let it divide to zero.
                # A sum of n rows in float64 rounds by up to n·eps of float64, the mean and the difference by eps of the rows.
                rounding = 8 * torch.finfo(rows.dtype).eps + counts[self.text] * torch.finfo(torch.float64).eps
                norms = torch.where(norms > rounding * self.norms, norms, torch.inf)
            self._unit[center] = torch.where(self.valid.unsqueeze(-1), unit_rows(rows, norms), 0)
        return self._unit[center]

    def gram(self, center: bool = False) -> Tensor:
        """``K = ZZᵀ`` of the unit rows of each batch row in float64, ``(batch, length, length)``; zero between different texts.

        Float64 because σ⁻² multiplies it: a float32 product was measured 1.5e-3 nats off per token, a float64 product of the
        same float32 rows 1e-6.
        """
        if center not in self._gram:
            z = self.unit(center).double()
            gram = z @ z.mT
            if self.packed:
                gram = gram * (self.text.unsqueeze(2) == self.text.unsqueeze(1))
            self._gram[center] = gram
        return self._gram[center]
