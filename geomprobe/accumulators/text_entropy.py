"""Sums over texts of the entropy of each text."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from geomprobe.accumulators.state import State, zeros
from geomprobe.core.cholesky import log_pivots
from geomprobe.core.rows import Rows
from geomprobe.core.spectrum import clipped_matrix_entropy, effective_rank, matrix_entropy, max_rate_distortion_entropy
from geomprobe.core.symmetric import assemble, exact_panels, scaled

__all__ = ["TextEntropySum"]

_SPECTRAL = ("matrix_entropy", "matrix_entropy_log_n", "log_n_texts", "effective_rank")


@dataclass(frozen=True)
class TextEntropySum:
    """Sums over texts of the entropy of each text's own rows, computed from its Gram matrix.

    ``logdet(I_d + d/ε² Σ) = logdet(I_T + d/(nε²) K)``, because ``ZᵀZ`` and ``ZZᵀ`` have the same non-zero eigenvalues.

    State (float64): ``texts``, the number of texts; sums over texts of ``entropy`` (divided by its maximum for n rows, the
    length of that text) and ``entropy_nats``; with ``spectrum`` also of ``matrix_entropy``, ``effective_rank`` and
    ``matrix_entropy_log_n``, and ``log_n_texts``, the number of texts for which H/log min(n, d) is defined (n > 1, or n > 2
    with ``center``); with ``clipped`` of ``clipped_matrix_entropy``.

    Args:
        epsilon: distortion ε, 0.1 in the paper.
        center: whether to subtract the mean row of each text first, as in Wei et al. (2024).
        spectrum: whether to compute the quantities that need eigenvalues too. They are computed text by text, which costs about
            ten times as much and waits for the device.
        clipped: whether to compute the matrix entropy of the clipped Gram matrix as well, which the code of Skean et al. (2025)
            calls prompt entropy: negative cosines are set to zero. The result need not be positive semi-definite; its negative
            eigenvalues are left out. Needs ``spectrum``.
    """

    name: ClassVar[str] = "text_entropy"
    version: ClassVar[int] = 1

    epsilon: float = 0.1
    center: bool = False
    spectrum: bool = False
    clipped: bool = False

    def new_state(self, width: int, device: torch.device) -> State:
        return zeros(dict.fromkeys(("texts", "entropy", "entropy_nats", *self._spectral), ()), device)

    @property
    def _spectral(self) -> tuple[str, ...]:
        """The sums that need eigenvalues."""
        return (*_SPECTRAL, *(["clipped_matrix_entropy"] if self.clipped else [])) if self.spectrum else ()

    def contribution(self, rows: Rows) -> State:
        n, width = rows.counts, rows.width
        nats = ((width + n) / 2 * self._log_volumes(rows, n)).where(n > 0, 0)
        measured = {
            "texts": rows.seen,
            "entropy_nats": nats.sum(-1),
            "entropy": (nats / max_rate_distortion_entropy(width, n, self.epsilon)).sum(-1),
        }
        return measured | self._spectra(rows) if self.spectrum else measured

    def _log_volumes(self, rows: Rows, n: Tensor) -> Tensor:
        """``logdet(I + d/ε² Σ)`` of each text, ``(…, texts)``, from the smaller one of ``ZZᵀ`` and ``ZᵀZ``.

        Computed with the accuracy of float64: a float32 factor of equal rows had an error of 2e-3 at d = 4096, and was not
        finite at ε = 1e-3.
        """
        scale = rows.width / (n.clamp_min(1) * self.epsilon**2)
        if rows.packed:
            # Every row is scaled by √(d/(nε²)) of its own text, so that texts of different n share one factorisation.
            row_scale = scale.sqrt()[..., rows.text]
            gram = scaled(rows.gram(self.center), 1.0) * row_scale.unsqueeze(-1) * row_scale.unsqueeze(-2)
            return rows.per_text(_log_pivots(gram))
        long = rows.mask.shape[1] > rows.width
        product = exact_panels(rows.unit(self.center).mT) if long else rows.gram(self.center)
        return _log_pivots(scaled(product, scale[..., None, None])).sum(-1)

    def _spectra(self, rows: Rows) -> State:
        """The sums that need the eigenvalues of each text, site by site and text by text."""
        lead = rows.valid.shape[:-2]
        measured = zeros(dict.fromkeys(self._spectral, lead), rows.hidden.device)
        z = rows.unit(self.center)
        for site, place in rows.each_text():
            for name, value in self._spectrum(z[site][place]).items():
                measured[name][site] += value
        return measured

    def _spectrum(self, z: Tensor) -> dict[str, Tensor | float]:
        n, width = z.shape
        product = assemble(exact_panels(z if n <= width else z.mT))
        values = torch.linalg.eigvalsh(product).clamp_min(0)
        if values.sum() == 0:  # a single centred row, or equal rows: their entropy is that of one direction, zero
            values[-1] = product[-1, -1] = 1
        entropy = matrix_entropy(values)
        measured: dict[str, Tensor | float] = {"matrix_entropy": entropy, "effective_rank": effective_rank(values)}
        if self.clipped:
            measured["clipped_matrix_entropy"] = clipped_matrix_entropy(product)
        rank = min(n - self.center, width)
        return measured | ({"matrix_entropy_log_n": entropy / math.log(rank), "log_n_texts": 1} if rank > 1 else {})


def _log_pivots(matrix: Tensor) -> Tensor:
    """Logarithms of the squared pivots of ``I + matrix``, ``(…, n)``, whose sum is its log determinant."""
    return 2 * log_pivots(matrix)[0]
