"""What a metric is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from geomprobe.accumulators.state import Accumulator, State

__all__ = ["Curve", "Metric"]


@dataclass(frozen=True)
class Curve:
    """A mean at every position of a text, with what stands behind it.

    Attributes:
        mean: mean over the texts that reach the position; NaN where none does.
        std: population standard deviation over those texts; ``None`` where it is not known.
        count: how many texts reach the position. Late positions rest on few, long texts.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...] | None
    count: tuple[int, ...]

    @classmethod
    def from_sums(cls, total: Tensor, count: Tensor, squares: Tensor | None = None) -> "Curve":
        """From Σx, n and Σx² by position; positions after the last text's end are dropped."""
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
    """Pure functions of accumulated states, for one site. Subclasses are frozen dataclasses.

    Names are ``snake_case`` without a slash and belong to one metric of a probe; a curve may share its scalar's name. W&B sees
    ``geomprobe/<name>/<site>``.
    """

    @property
    @abstractmethod
    def accumulators(self) -> tuple[Accumulator, ...]:
        """The accumulators this metric reads. Equal ones are shared between metrics, and updated once."""

    @abstractmethod
    def scalars(self, states: Mapping[Accumulator, State]) -> Mapping[str, Tensor | float]:
        """Numbers by name, from the state of each accumulator in :attr:`needs`; at least one row was seen."""

    def curves(self, states: Mapping[Accumulator, State]) -> Mapping[str, Curve]:
        """Curves over positions by name; none unless a metric says otherwise."""
        return {}
