"""The metric of the information gain of every token on the earlier tokens of its text."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from geomprobe.accumulators.covariance import Covariance, outer
from geomprobe.accumulators.information_gain import InformationGainSum
from geomprobe.accumulators.state import Accumulator, State
from geomprobe.core.cholesky import information_gain
from geomprobe.errors import GeomprobeError
from geomprobe.metrics.base import Curve, Metric

__all__ = ["InformationGain"]

_EXACT = Covariance(exact=True)


@dataclass(frozen=True, kw_only=True)
class InformationGain(Metric):
    """The information gain ``I(y_T; f) = ½ logdet(I + σ⁻²K)`` of each text (section 4.1), and its exact increment per token.

    Scalars:

    - ``information_gain``: nats per text, mean over texts; ``information_gain_per_dim``: the same divided by d, as in the
      paper;
    - ``gain_per_token``: the gain of all texts divided by the number of tokens;
    - with ``stream``, ``stream_information_gain``: the gain of all tokens as if they were one text, ``½ logdet(I + σ⁻²Σzzᵀ)``.

    Curves by position in the text: ``gain`` (the increments, with their standard deviation over texts), ``information_gain``
    (their running sum, the paper's Figure 3) and ``posterior_variance`` (0 to 1, the minimum of the ridge objective).

    A token whose row repeats earlier directions has a small gain; one in a new direction gains up to ``½ log(1 + σ⁻²)``, which
    is 4.61 nats at σ = 0.01. The gain is neither mutual information between tokens nor surprisal.

    Args:
        sigma: noise σ, 0.01 in the paper. Compare only gains for the same σ.
        stream: whether to compute also the gain of all tokens as if they were one text. It is computed from a separate
            covariance with float64 products, because σ⁻² times the rounding errors of float32 products would exceed 1.

    Raises:
        GeomprobeError: if ``sigma`` is not between 1e-5 and 1e3, the range that float64 allows.
    """

    sigma: float = 0.01
    stream: bool = False

    def __post_init__(self) -> None:
        if not 1e-5 <= self.sigma <= 1e3:
            raise GeomprobeError(f"InformationGain(sigma={self.sigma!r}): expected a number from 1e-5 to 1e3, such as 0.01")

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        return (self._texts, *([_EXACT] if self.stream else []))

    @property
    def _texts(self) -> InformationGainSum:
        return InformationGainSum(sigma=self.sigma)

    def scalars(self, states: Mapping[Accumulator, State]) -> Mapping[str, Tensor | float]:
        state = states[self._texts]
        texts = torch.where(state["texts"] > 0, state["texts"], torch.nan)  # zero if no text began since the last reset
        measured = {
            "information_gain": state["total"] / texts,
            "information_gain_per_dim": state["total_per_dim"] / texts,
            "gain_per_token": state["gain"].sum() / state["count"].sum(),
        }
        if self.stream:
            measured["stream_information_gain"] = information_gain(outer(states[_EXACT]), self.sigma)
        return measured

    def curves(self, states: Mapping[Accumulator, State]) -> Mapping[str, Curve]:
        state = states[self._texts]
        gain = Curve.from_sums(state["gain"], state["count"], state["gain_sq"])
        return {
            "gain": gain,
            # A position without a finite row gains nothing, as padding does; the running sum continues after it.
            "information_gain": Curve(
                tuple(itertools.accumulate(0.0 if math.isnan(mean) else mean for mean in gain.mean)), None, gain.count
            ),
            "posterior_variance": Curve.from_sums(state["variance"], state["count"]),
        }
