"""How sharply texts turn in the space of hidden states."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from geomprobe.accumulators.curvature import CurvatureSum
from geomprobe.accumulators.state import Accumulator, State
from geomprobe.metrics.base import Curve, Metric

__all__ = ["Curvature"]


@dataclass(frozen=True, kw_only=True)
class Curvature(Metric):
    """The mean angle between successive steps ``x_{t+1} − x_t`` of a text's hidden states, not scaled to length one.

    Scalars:

    - ``curvature``: radians, 0 (a straight line) to π (there and back); mean over all turns of all texts, where Hosseini &
      Fedorenko (2023) take the mean of each sentence first. Rows drawn independently of each other turn by about 2π/3 (their
      steps share a row, so the cosine is −½), not π/2;
    - ``curvature_still``: the share of turns with a step of length zero, which have no angle and are left out.

    Curve ``curvature`` by position of the row where the path turns; a text's first and last rows have none.

    It is of the path of one text from token to token, not the curvature of the manifold that rows lie on, and it does not see
    how long the steps are.
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
