"""The base class of metrics, and curves over positions in the text."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from geomprobe.accumulators.state import Accumulator, State

__all__ = ["Curve", "Metric"]


@dataclass(frozen=True)
class Curve:
    """The mean of a quantity at every position of a text, with the number of texts behind it.

    Attributes:
        mean: mean over the texts that reach the position; NaN if there is none.
        std: population standard deviation over those texts; ``None`` if it is not known.
        count: number of texts that reach the position. Late positions are reached by few, long texts only.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...] | None
    count: tuple[int, ...]

    @classmethod
    def from_sums(cls, total: Tensor, count: Tensor, squares: Tensor | None = None) -> "Curve":
        """Return the curve from Σx, n and Σx² by position. Positions that no text reaches are dropped from the end."""
        reached = int(count.nonzero().max()) + 1 if bool(count.any()) else 0
        total, count = total[:reached], count[:reached]
        mean = total / count
        std = None
        if squares is not None:
            std = tuple((squares[:reached] / count - mean.square()).clamp_min(0).sqrt().tolist())
        return cls(tuple(mean.tolist()), std, tuple(int(n) for n in count.tolist()))

    def __len__(self) -> int:
        return len(self.mean)


class Metric(ABC):
    """The base class of metrics: pure functions of the accumulated states of one site. Subclasses are frozen dataclasses.

    Names of scalars and curves are in ``snake_case`` without a slash. No two metrics of a probe may have a scalar of the same
    name, but a curve may have the name of a scalar. In W&B a scalar is ``geomprobe/<name>/<site>``.
    """

    @property
    @abstractmethod
    def accumulators(self) -> tuple[Accumulator, ...]:
        """The accumulators whose states this metric reads. If several metrics need equal accumulators, they share one, which is
        updated once."""

    @abstractmethod
    def scalars(self, states: Mapping[Accumulator, State]) -> Mapping[str, Tensor | float]:
        """Return the scalars by name, computed from the state of each accumulator in :attr:`accumulators`.

        It is called only if at least one row was accumulated.
        """

    def curves(self, states: Mapping[Accumulator, State]) -> Mapping[str, Curve]:
        """Return the curves over positions by name. A metric that does not override this has none."""
        return {}

    def measure(self, states: Mapping[Accumulator, State]) -> tuple[Mapping[str, Tensor | float], Mapping[str, Curve]]:
        """Return :meth:`scalars` and :meth:`curves`. Override it too if both need the same expensive step."""
        return self.scalars(states), self.curves(states)
