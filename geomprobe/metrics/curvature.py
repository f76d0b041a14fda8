"""The metric of the curvature of texts in the space of hidden states."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from geomprobe.accumulators.curvature import CurvatureSum
from geomprobe.accumulators.state import Accumulator, State
from geomprobe.metrics.base import Curve, Metric

__all__ = ["Curvature"]


@dataclass(frozen=True, kw_only=True)
class Curvature(Metric):
    """The mean angle between successive steps ``x_{t+1} − x_t`` of the hidden states x of a text, which are not scaled.

    Scalars:

    - ``curvature``: in radians, from 0 (a straight line) to π (every step reverses the one before); the mean over all turns of
      all texts, whereas Hosseini & Fedorenko (2023) average over each sentence first. Independent random rows have an angle of
      about 2π/3, not π/2, because successive steps share a row and their cosine is −½;
    - ``curvature_still``: the share of turns in which one step is as short as rounding errors. They have no angle, and are left
      out.

    Curve ``curvature`` by the position of the row at which the path turns. The first and the last row of a text have no angle.

    This is the curvature of the path of one text from token to token, not of the manifold that the rows lie on. It does not
    depend on the length of the steps.
    """

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        return (CurvatureSum(),)

    def scalars(self, states: Mapping[Accumulator, State]) -> Mapping[str, Tensor | float]:
        state = states[CurvatureSum()]
        count, still = state["count"].sum(), state["still"]
        return {"curvature": state["angle"].sum() / count, "curvature_still": still / (count + still)}

    def curves(self, states: Mapping[Accumulator, State]) -> Mapping[str, Curve]:
        state = states[CurvatureSum()]
        return {"curvature": Curve.from_sums(state["angle"], state["count"], state["angle_sq"])}
