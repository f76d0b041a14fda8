"""Information gain of every token on its own past."""

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
    """``I(y_T; f) = ½ logdet(I + σ⁻²K)`` of each text (section 4.1), and its exact increments token by token.

    Scalars:

    - ``information_gain``: nats per text, mean over texts; ``information_gain_per_dim``: the same over d, as the paper has it;
    - ``gain_per_token``: all nats over all tokens;
    - with ``stream``, ``stream_information_gain``: the whole stream as if it were one text, ``½ logdet(I + σ⁻²Σzzᵀ)``.

    Curves by position in the text: ``gain`` (increments, with their spread over texts), ``information_gain`` (their running
    sum, the paper's Figure 3) and ``posterior_variance`` (0 to 1, the least value of the ridge objective).

    A token that repeats a direction gains little; one that opens a new one gains up to ``½ log(1 + σ⁻²)``, 4.61 nats at
    σ = 0.01. This is not mutual information between tokens, and not surprisal.

    Args:
        sigma: noise σ, 0.01 in the paper. Gains depend on it: compare only equal σ.
        stream: also the gain of the whole stream, from a covariance of its own with float64 products (σ⁻² would lift the
            rounding of float32 ones above the identity).

    Raises:
        GeomprobeError: ``sigma`` is not a number from 1e-5 to 1e3, the range float64 holds.
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
        texts = torch.where(state["texts"] > 0, state["texts"], torch.nan)  # none may have begun since the last reading
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
            # A position that holds no finite row gains nothing, as padding does; the sum goes on after it.
            "information_gain": Curve(
                tuple(itertools.accumulate(0.0 if math.isnan(mean) else mean for mean in gain.mean)), None, gain.count
            ),
            "posterior_variance": Curve.from_sums(state["variance"], state["count"]),
        }
