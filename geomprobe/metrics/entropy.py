"""The metric of representation entropy, with the other quantities of the spectrum of the covariance."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from geomprobe.accumulators.covariance import Covariance, Which, covariance, eigenvalues, mean_cosine, rounding
from geomprobe.accumulators.covariance_sketch import CovarianceSketch, sketched_eigenvalues
from geomprobe.accumulators.state import Accumulator, State
from geomprobe.accumulators.text_entropy import TextEntropySum
from geomprobe.core import spectrum
from geomprobe.errors import GeomprobeError, is_whole
from geomprobe.metrics.base import Curve, Metric

__all__ = ["RepresentationEntropy"]


@dataclass(frozen=True, kw_only=True)
class RepresentationEntropy(Metric):
    """How widely the rows (hidden states) of a site spread over directions: representation entropy (Def. 3.1), matrix entropy,
    and ranks.

    Scalars of all tokens together, computed from one covariance Σ of their rows, which are scaled to length one:

    - ``entropy``: ``L / L_max``, 0 to 1, with ``L = (d+n)/2 · logdet(I + d/ε² Σ)``; ``entropy_nats``: L itself;
    - ``matrix_entropy``: ``H = −Σp log p`` in nats, ``matrix_entropy_log_d = H/log d`` and
      ``matrix_entropy_log_n = H/log min(n, d)`` (n is reduced by one for each mean that was subtracted). Compare all three:
      most of a trend of H/log d over model sizes comes from its denominator;
    - ``effective_rank`` e^H, ``rank_ratio`` e^H/d, ``stable_rank``, ``participation_ratio``;
    - ``rankme``, and ``alpha_req`` with the R² of its fit, ``alpha_req_r2`` (:mod:`geomprobe.core.spectrum`). Both are computed
      from the eigenvalues above rounding errors (:func:`~geomprobe.accumulators.covariance.rounding`), and eigenvalues close to
      that threshold have less weight. ``rankme_left_out`` is an upper bound of the share of Σ√λ that is missing for this
      reason, and ``alpha_req_left_out`` is the share of the weights of the fit that is missing. Both are 0 where rounding has
      no influence;
    - ``anisotropy``: the mean cosine of two different rows.

    Scalars that are means over texts: ``text_entropy``, ``text_entropy_nats``; with ``text_spectrum`` also
    ``text_matrix_entropy``, ``text_matrix_entropy_log_d``, ``text_matrix_entropy_log_n``, ``text_effective_rank`` and
    ``text_rank_ratio``.

    With ``spectrum=True`` there is a curve ``spectrum``: the eigenvalues of Σ from the largest to the smallest, with n as the
    count of each. Eigenvalues of the null space are rounding errors of either sign.

    If the rows are not simply the unit rows of all tokens, every name starts with prefixes that say so: ``last_`` or ``mean_``
    (see ``rows``), ``raw_`` (see ``unit``), and ``centered_`` or ``stream_centered_`` (see ``center``), in this order. The
    entropies of Def. 3.1 are computed for unit rows only, and ``anisotropy`` for unit rows that were not centred on the stream.

    None of these is the entropy of the tokens or of the model's predictions. The entropies and ranks grow with the number of
    rows until n ≫ d, so compare only readings on equally many tokens.

    Args:
        epsilon: distortion ε of the entropies.
        center: ``"text"`` subtracts the mean row of each text before rows are scaled to length one, as in Wei et al. (2024).
            ``"stream"`` subtracts the mean of all rows, after scaling: ``Σ − z̄z̄ᵀ``, the usual covariance. The paper subtracts
            nothing.
        unit: whether rows are scaled to length one. Without scaling, rows with massive activations dominate.
        rows: ``"all"`` for the rows of all tokens; ``"last"`` for the last row of each text; ``"mean"`` for the mean row of
            each text, which is not scaled again.
        alpha_range: the first and the last rank of the fit of ``alpha_req``; the largest eigenvalue has rank 1.
        texts: whether to compute the means over texts too. They are defined only for the unit rows of all tokens, for which
            they are computed by default. Without them a forward costs less (only the covariance), which is useful for many
            tokens.
        text_spectrum: whether to compute also those means over texts that need eigenvalues, at about ten times the cost.
        spectrum: whether to return the curve ``spectrum`` of all eigenvalues. It only makes readings larger.
        clipped: whether to compute ``clipped_matrix_entropy`` too, and with ``text_spectrum`` ``clipped_text_matrix_entropy``:
            the entropies of Σ, and of the Gram matrices of texts, after their negative entries were set to zero. The code of
            Skean et al. (2025) does this. We know of no justification for it.
        sketch: number of random directions with which Σ is approximated, instead of being stored completely. This is for models
            that are too wide for a d×d sum at every layer (a 70B model needs 27 GB of sums, or 2.7 GB with ``sketch=512``). The
            scalar ``sketch_residual`` is then the share of tr Σ that is missing from the sketch, with the bounds given in
            :func:`~geomprobe.accumulators.covariance_sketch.sketched_eigenvalues`: the smaller it is, the more accurate are the
            numbers; for ``entropy`` it must be much smaller than ε²/d. ``rankme`` is too high if the missing part is not spread
            evenly (by 14% at a residual of 1e-3 and ``λ_j ∝ j^−3``), and ``alpha_req`` is fitted to the eigenvalues that exceed
            the residual. The means over texts stay exact.

    Raises:
        GeomprobeError: if an argument is not as described, or if two of them exclude each other. ``epsilon`` must be between
            1e-5 and 1e3, the range that float64 allows.
    """

    epsilon: float = 0.1
    center: Literal[False, "text", "stream"] = False
    unit: bool = True
    rows: Which = "all"
    alpha_range: tuple[int, int] = spectrum.ALPHA_RANGE
    texts: bool | None = None
    text_spectrum: bool = False
    spectrum: bool = False
    clipped: bool = False
    sketch: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.epsilon, int | float) or not 1e-5 <= self.epsilon <= 1e3:
            self._refuse("epsilon", "a number from 1e-5 to 1e3, such as 0.1")
        if self.center is not False and self.center not in ("text", "stream"):
            self._refuse("center", "False, 'text' or 'stream'")
        if self.rows not in ("all", "last", "mean"):
            self._refuse("rows", "'all', 'last' or 'mean'")
        for name in ("unit", "texts", "text_spectrum", "spectrum", "clipped"):
            if not isinstance(getattr(self, name), bool) and (name, self.texts) != ("texts", None):
                self._refuse(name, "True or False")
        if self.sketch is not None and not is_whole(self.sketch, least=1):
            self._refuse("sketch", "a number of directions, such as 512")
        try:
            first, last = self.alpha_range
        except (TypeError, ValueError):
            first = last = 0
        if not (is_whole(first, least=1) and is_whole(last) and first < last):
            self._refuse("alpha_range", "the first and the last rank, such as (4, 100)")
        object.__setattr__(self, "alpha_range", (first, last))  # a list, as in JSON, would not be hashable
        if self.center == "text" and not self.unit and self.rows == "mean":
            raise GeomprobeError(
                "RepresentationEntropy(center='text', unit=False, rows='mean'): the mean row of a text is zero after it was "
                "subtracted; use center='stream' or unit=True"
            )
        alone = self._stream_alone
        if self.texts and alone:
            self._refuse("texts", f"not with {alone}: means over texts are defined for unit rows of all tokens")
        if self.text_spectrum and not self._has_texts:
            self._refuse("text_spectrum", f"not with {alone or 'texts=False'}: it adds to the means over texts")
        if self.clipped and self.sketch is not None:
            self._refuse("clipped", "not with sketch: entries of Σ are not known then")

    def _refuse(self, name: str, expected: str) -> NoReturn:
        raise GeomprobeError(f"RepresentationEntropy({name}={getattr(self, name)!r}): expected {expected}")

    @property
    def _stream_alone(self) -> str:
        """The argument that excludes means over texts; empty if there is none."""
        if self.center == "stream":
            return "center='stream'"
        return "unit=False" if not self.unit else f"rows={self.rows!r}" if self.rows != "all" else ""

    @property
    def _has_texts(self) -> bool:
        return self.texts is not False and not self._stream_alone

    @property
    def _stream(self) -> Covariance | CovarianceSketch:
        # After subtracting a mean, the largest eigenvalue may hide the small ones in the rounding of float32: where activations
        # are massive, RankMe was up to 15% too low.
        exact = self.center is not False or self.epsilon < 0.05 or not self.unit or self.rows == "mean"
        more: dict[str, Any] = {"center": self.center == "text", "exact": exact, "unit": self.unit, "rows": self.rows}
        return Covariance(**more) if self.sketch is None else CovarianceSketch(rank=self.sketch, **more)

    @property
    def _texts(self) -> TextEntropySum:
        return TextEntropySum(
            epsilon=self.epsilon,
            center=self.center == "text",
            spectrum=self.text_spectrum,
            clipped=self.clipped and self.text_spectrum,
        )

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        return (self._stream, *([self._texts] if self._has_texts else []))

    @property
    def _prefix(self) -> str:
        centered = {False: "", "text": "centered_", "stream": "stream_centered_"}[self.center]
        return f"{self.rows}_" * (self.rows != "all") + "raw_" * (not self.unit) + centered

    def scalars(self, states: Mapping[Accumulator, State]) -> Mapping[str, Tensor | float]:
        return self.measure(states)[0]

    def curves(self, states: Mapping[Accumulator, State]) -> Mapping[str, Curve]:
        return self.measure(states)[1]

    def measure(self, states: Mapping[Accumulator, State]) -> tuple[Mapping[str, Tensor | float], Mapping[str, Curve]]:
        state = states[self._stream]
        values, residual = self._eigenvalues(state)
        measured = self._of_stream(state, values, residual)
        if self._has_texts:
            measured |= self._of_texts(states[self._texts], state)
        curves = {}
        if self.spectrum:
            curves[f"{self._prefix}spectrum"] = Curve(tuple(values.flip(0).tolist()), None, (int(state["n"]),) * len(values))
        return {f"{self._prefix}{name}": value for name, value in measured.items()}, curves

    def _eigenvalues(self, state: State) -> tuple[Tensor, Tensor]:
        """The eigenvalues of Σ in ascending order, and the residual of the sketch, which is 0 without one."""
        if isinstance(self._stream, CovarianceSketch):
            return sketched_eigenvalues(state, self._stream, center=self.center == "stream")
        return eigenvalues(state, center=self.center == "stream"), torch.zeros(())

    def _of_stream(self, state: State, values: Tensor, residual: Tensor) -> dict[str, Tensor | float]:
        n, width, stream = float(state["n"]), state["sum"].shape[0], self.center == "stream"
        measured: dict[str, Tensor | float] = {}
        if self.sketch is not None:
            measured["sketch_residual"] = residual
        floor = rounding(self._stream.exact)
        if stream:  # rounding is a share of the largest eigenvalue before the mean was subtracted
            floor *= float(1 + (state["sum"] / n).square().sum() / values.amax())
        known = max(floor, float(residual * spectrum.stable_rank(values)))
        law = spectrum.power_law(values, known, self.alpha_range)
        matrix_entropy = spectrum.matrix_entropy(values)
        means = {"text": float(state["texts"]), "stream": 1.0, False: 0.0}[self.center]
        rank = min(n - means * (self.rows == "all" or stream), width)
        if self.unit and self.rows != "mean":
            nats = spectrum.rate_distortion_entropy(values, n, self.epsilon)
            measured["entropy"] = nats / spectrum.max_rate_distortion_entropy(width, n, self.epsilon)
            measured["entropy_nats"] = nats
        measured |= {
            "matrix_entropy": matrix_entropy,
            "matrix_entropy_log_d": _over_log(matrix_entropy, width),
            "matrix_entropy_log_n": _over_log(matrix_entropy, rank),
            "effective_rank": matrix_entropy.exp(),
            "rank_ratio": matrix_entropy.exp() / width,
            "stable_rank": spectrum.stable_rank(values),
            "participation_ratio": spectrum.participation_ratio(values),
            "rankme": spectrum.rankme(values, floor),
            "rankme_left_out": spectrum.rankme_left_out(values, floor, math.ceil(rank)),
            "alpha_req": law.alpha,
            "alpha_req_r2": law.r2,
            "alpha_req_left_out": law.left_out,
        }
        if self.unit and self.rows != "mean" and not stream:
            measured["anisotropy"] = mean_cosine(state)
        if self.clipped:
            measured["clipped_matrix_entropy"] = spectrum.clipped_matrix_entropy(covariance(state, center=stream))
        return measured

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
            if self.clipped:
                measured["clipped_text_matrix_entropy"] = state["clipped_matrix_entropy"] / texts
        return measured


def _over_log(entropy: Tensor, count: float) -> Tensor | float:
    """``H / log count``; NaN for a single direction, whose entropy is always 0."""
    return entropy / math.log(count) if count > 1 else math.nan
