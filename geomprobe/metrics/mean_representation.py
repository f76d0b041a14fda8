"""The metric of the mean representation, from which its velocity is computed."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from geomprobe.accumulators.mean_row import MeanRowSum
from geomprobe.accumulators.state import Accumulator, State
from geomprobe.metrics.base import Curve, Metric

__all__ = ["MeanRepresentation"]


@dataclass(frozen=True, kw_only=True)
class MeanRepresentation(Metric):
    """The mean ``z̄ = Σz / n`` of the rows of a site, each scaled to length one.

    Scalar ``representation_mean_norm``: ``‖z̄‖``, 0 to 1. It is 1 if all rows point in one direction. Its square is nearly the
    anisotropy of ``RepresentationEntropy``, which leaves out the pairs of a row with itself.

    Curve ``representation_mean``: z̄ by dimension, with n as the count of every entry. Between two readings of the *same* texts
    :func:`geomprobe.core.similarity.mean_velocity` tells how fast it moves. Each reading holds d numbers for each site, so
    choose few ``sites`` if readings are written to files.
    """

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        return (MeanRowSum(),)

    def scalars(self, states: Mapping[Accumulator, State]) -> Mapping[str, Tensor | float]:
        state = states[MeanRowSum()]
        return {"representation_mean_norm": state["sum"].norm() / state["n"]}

    def curves(self, states: Mapping[Accumulator, State]) -> Mapping[str, Curve]:
        state = states[MeanRowSum()]
        return {"representation_mean": Curve.from_sums(state["sum"], state["n"].expand_as(state["sum"]))}
