"""The metric of representation entropy, with the other quantities of the spectrum of the covariance."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from geomprobe.accumulators.covariance import Covariance, eigenvalues, mean_cosine, rounding
from geomprobe.accumulators.covariance_sketch import CovarianceSketch, sketched_eigenvalues
from geomprobe.accumulators.state import Accumulator, State
from geomprobe.accumulators.text_entropy import TextEntropySum
from geomprobe.core import spectrum
from geomprobe.errors import GeomprobeError
from geomprobe.metrics.base import Metric

__all__ = ["RepresentationEntropy"]


@dataclass(frozen=True, kw_only=True)
class RepresentationEntropy(Metric):
    """Measures of how widely the unit rows of a site spread over directions: Def. 3.1, matrix entropy, and ranks.

    Scalars over all tokens, whose rows are pooled in one covariance Σ:

    - ``entropy``: ``L / L_max``, 0 to 1, with ``L = (d+n)/2 · logdet(I + d/ε² Σ)``; ``entropy_nats``: L itself;
    - ``matrix_entropy``: ``H = −Σp log p`` in nats, ``matrix_entropy_log_d = H/log d`` and
      ``matrix_entropy_log_n = H/log min(n, d)`` (with ``center``, n is reduced by one for each text). Compare all three: most
      of a trend of H/log d over model sizes comes from its denominator;
    - ``effective_rank`` e^H, ``rank_ratio`` e^H/d, ``stable_rank``, ``participation_ratio``;
    - ``rankme`` and ``alpha_req`` (:mod:`geomprobe.core.spectrum`), computed from the eigenvalues above
      :func:`~geomprobe.accumulators.covariance.rounding`; those close to that threshold are weighted down;
    - ``anisotropy``: the mean cosine of two different rows.

    Scalars that are means over texts: ``text_entropy``, ``text_entropy_nats``; with ``text_spectrum`` also
    ``text_matrix_entropy``, ``text_matrix_entropy_log_d``, ``text_matrix_entropy_log_n``, ``text_effective_rank`` and
    ``text_rank_ratio``.

    None of these is the entropy of the tokens or of the model's predictions. The entropies and ranks grow with the number of
    rows until n ≫ d, so compare only readings on equally many tokens.

    Args:
        epsilon: distortion ε of the entropies.
        center: whether to subtract the mean row of each text before scaling rows to length one, as in Wei et al. (2024). Every
            name then starts with ``centered_``.
        texts: whether to compute the means over texts too. Without them a forward costs only the covariance, which is useful
            for many tokens.
        text_spectrum: whether to compute the means over texts that need eigenvalues too, at about ten times the cost.
        sketch: number of random directions by which Σ is approximated instead of stored whole, for models too wide for a d×d
            sum at every layer (a 70B model needs 27 GB of sums, or 2.7 GB with ``sketch=512``). The scalar ``sketch_residual``
            is then the share of tr Σ that is missing from the sketch, with the bounds given in
            :func:`~geomprobe.accumulators.covariance_sketch.sketched_eigenvalues`: the smaller it is, the more accurate are the
            numbers; for ``entropy`` it must be much smaller than ε²/d. ``rankme`` is too high if the missing part is not spread
            evenly (by 14% at a residual of 1e-3 and ``λ_j ∝ j^−3``), and ``alpha_req`` is fitted to the eigenvalues that exceed
            the residual. The means over texts stay exact.

    Raises:
        GeomprobeError: if ``epsilon`` is not between 1e-5 and 1e3, the range that float64 allows; if ``sketch`` is not a
            positive whole number; or if ``text_spectrum`` is set without ``texts``.
    """

    epsilon: float = 0.1
    center: bool = False
    texts: bool = True
    text_spectrum: bool = False
    sketch: int | None = None

    def __post_init__(self) -> None:
        if not 1e-5 <= self.epsilon <= 1e3:
            raise GeomprobeError(
                f"RepresentationEntropy(epsilon={self.epsilon!r}): expected a number from 1e-5 to 1e3, such as 0.1"
            )
        if self.sketch is not None and (not isinstance(self.sketch, int) or self.sketch < 1):
            raise GeomprobeError(f"RepresentationEntropy(sketch={self.sketch!r}): expected a number of directions, such as 512")
        if self.text_spectrum and not self.texts:
            raise GeomprobeError("RepresentationEntropy(texts=False, text_spectrum=True): text_spectrum needs texts=True")

    @property
    def _stream(self) -> Covariance | CovarianceSketch:
        # Centred rows of a trained model may have a largest eigenvalue that hides the small ones in the rounding of float32:
        # where activations are massive, RankMe was up to 15% too low.
        exact = self.center or self.epsilon < 0.05
        if self.sketch is not None:
            return CovarianceSketch(rank=self.sketch, center=self.center, exact=exact)
        return Covariance(center=self.center, exact=exact)

    @property
    def _texts(self) -> TextEntropySum:
        return TextEntropySum(epsilon=self.epsilon, center=self.center, spectrum=self.text_spectrum)

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        return (self._stream, *([self._texts] if self.texts else []))

    def scalars(self, states: Mapping[Accumulator, State]) -> Mapping[str, Tensor | float]:
        measured = self._of_stream(states[self._stream])
        if self.texts:
            measured |= self._of_texts(states[self._texts], states[self._stream])
        return {f"centered_{name}": value for name, value in measured.items()} if self.center else measured

    def _of_stream(self, state: State) -> dict[str, Tensor | float]:
        n, width = float(state["n"]), state["sum"].shape[0]
        measured: dict[str, Tensor | float] = {}
        floor = known = rounding(self._stream.exact)
        if isinstance(self._stream, CovarianceSketch):
            values, residual = sketched_eigenvalues(state, self._stream)
            measured["sketch_residual"] = residual
            known = max(floor, float(residual * spectrum.stable_rank(values)))
        else:
            values = eigenvalues(state)
        nats = spectrum.rate_distortion_entropy(values, n, self.epsilon)
        matrix_entropy = spectrum.matrix_entropy(values)
        rank = min(n - float(state["texts"]) * self.center, width)
        return measured | {
            "entropy": nats / spectrum.max_rate_distortion_entropy(width, n, self.epsilon),
            "entropy_nats": nats,
            "matrix_entropy": matrix_entropy,
            "matrix_entropy_log_d": _over_log(matrix_entropy, width),
            "matrix_entropy_log_n": _over_log(matrix_entropy, rank),
            "effective_rank": matrix_entropy.exp(),
            "rank_ratio": matrix_entropy.exp() / width,
            "stable_rank": spectrum.stable_rank(values),
            "participation_ratio": spectrum.participation_ratio(values),
            "rankme": spectrum.rankme(values, floor),
            "alpha_req": spectrum.alpha_req(values, known),
            "anisotropy": mean_cosine(state),
        }

    def _of_texts(self, state: State, stream: State) -> dict[str, Tensor | float]:
        width = stream["sum"].shape[0]
        texts = torch.where(state["texts"] > 0, state["texts"], torch.nan)  # zero if no text began since the last reset
        measured: dict[str, Tensor | float] = {
            "text_entropy": state["entropy"] / texts,
            "text_entropy_nats": state["entropy_nats"] / texts,
        }
        if self.text_spectrum:
            matrix_entropy = state["matrix_entropy"] / texts
            measured |= {
                "text_matrix_entropy": matrix_entropy,
                "text_matrix_entropy_log_d": _over_log(matrix_entropy, width),
                "text_matrix_entropy_log_n": state["matrix_entropy_log_n"] / state["log_n_texts"],
                "text_effective_rank": state["effective_rank"] / texts,
                "text_rank_ratio": state["effective_rank"] / texts / width,
            }
        return measured


def _over_log(entropy: Tensor, count: float) -> Tensor | float:
    """``H / log count``; NaN for a single direction, whose entropy is always 0."""
    return entropy / math.log(count) if count > 1 else math.nan
