"""Entropies of single texts, summed over texts."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geomprobe.core.rows import Rows
from geomprobe.core.spectrum import effective_rank, matrix_entropy, max_rate_distortion_entropy
from geomprobe.core.state import State

__all__ = ["TextEntropySum"]


@dataclass(frozen=True)
class TextEntropySum:
    """Sums over texts of each text's own entropy, from its Gram matrix (T×T, never d×d).

    ``logdet(I_d + d/ε² Σ) = logdet(I_T + d/(nε²) K)``, since ``ZᵀZ`` and ``ZZᵀ`` share their non-zero eigenvalues.

    State (float64): ``texts``; sums over texts of ``entropy`` (normalised by its maximum for that text's n) and
    ``entropy_nats``; with ``spectrum`` also of ``matrix_entropy``, ``effective_rank``, ``matrix_entropy_log_n`` and
    ``log_n_texts``, the texts on which H/log min(n, d) is defined (n > 1; centred, n > 2).

    Args:
        epsilon: distortion ε, 0.1 in the paper.
        center: subtract each text's mean row first (Wei et al. 2024).
        spectrum: also the quantities that need eigenvalues, text by text: about ten times dearer, and waits for the device.
    """

    epsilon: float = 0.1
    center: bool = False
    spectrum: bool = False

    def zero(self, width: int, device: torch.device) -> State:
        names = ["texts", "entropy", "entropy_nats"]
        if self.spectrum:
            names += ["matrix_entropy", "matrix_entropy_log_n", "log_n_texts", "effective_rank"]
        return {name: torch.zeros((), dtype=torch.float64, device=device) for name in names}

    def update(self, state: State, rows: Rows) -> None:
        n, width = rows.per_text(rows.valid), rows.width
        seen = n > 0
        nats = (width + n) / 2 * self._log_volumes(rows, n)
        state["texts"] += seen.sum()
        state["entropy_nats"] += nats.where(seen, 0).sum()
        state["entropy"] += (nats / max_rate_distortion_entropy(width, n, self.epsilon)).where(seen, 0).sum()
        if self.spectrum:
            z = rows.unit(self.center).double()
            for text in rows.text[rows.valid].unique():  # type: ignore[no-untyped-call]
                self._add_spectrum(state, z[(rows.text == text) & rows.valid])

    def _log_volumes(self, rows: Rows, n: Tensor) -> Tensor:
        """``logdet(I + d/ε² Σ)`` of each text, ``(texts,)``, from whichever of ``ZZᵀ`` and ``ZᵀZ`` is smaller.

        In float64: a float32 factor of equal rows was measured 2e-3 off at d = 4096, and not finite at ε = 1e-3.
        """
        scale = (rows.width / (n.clamp_min(1) * self.epsilon**2)).sqrt()
        if rows.packed or rows.mask.shape[1] <= rows.width:
            # Every row is scaled by √(d/(nε²)) of its own text, so packed texts of different n share one factor.
            row_scale = scale[rows.text]
            return rows.per_text(_log_pivots(rows.gram(self.center) * (row_scale.unsqueeze(2) * row_scale.unsqueeze(1))))
        z = rows.unit(self.center).double() * scale.view(-1, 1, 1)
        return _log_pivots(z.mT @ z).sum(-1)

    def _add_spectrum(self, state: State, z: Tensor) -> None:
        n, width = z.shape
        values = torch.linalg.eigvalsh(z @ z.mT if n < width else z.mT @ z).clamp_min(0)
        if values.sum() == 0:  # one centred row, or rows all equal: a point has no spread
            values[-1] = 1
        entropy = matrix_entropy(values)
        state["matrix_entropy"] += entropy
        state["effective_rank"] += effective_rank(values)
        rank = min(n - self.center, width)
        if rank > 1:
            state["matrix_entropy_log_n"] += entropy / math.log(rank)
            state["log_n_texts"] += 1


def _log_pivots(matrix: Tensor) -> Tensor:
    """Logs of the squared pivots of ``I + matrix``, ``(…, n)``, which sum to its log determinant. Overwrites ``matrix``."""
    matrix.diagonal(dim1=-2, dim2=-1).add_(1)
    factor: Tensor = torch.linalg.cholesky_ex(matrix)[0]
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log()
