"""Rules: which change of which number rings an alarm."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from geomprobe.errors import GeomprobeError, is_whole

__all__ = ["DEFAULT_RULES", "Rule"]

_OVER: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "min": min,
    "max": max,
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
}
_TEXTS = ("meaning", "look_at")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One signal, and how far it must move from its own recent past to ring an alarm.

    The value v of a reading is the signal, combined over its sites. The baseline b is the median of the values of the
    ``window`` readings before. A reading is a *hit* if the signal has moved at least as far as the limit:

    ========================  ==================  ==================
    limit                     ``direction="up"``  ``direction="down"``
    ========================  ==================  ==================
    ``ratio=r``, r > 1        ``v / b ≥ r``       ``b / v ≥ r``
    ``difference=x``, x > 0   ``v − b ≥ x``       ``b − v ≥ x``
    ========================  ==================  ==================

    Use ``ratio`` for a signal that is positive by definition: an entropy, an effective rank, a norm. With a ratio, no reading
    is a hit if b ≤ 0 or v < 0. Use ``difference`` for a signal that can be zero or negative, or is a logarithm, so that its
    differences are logarithms of ratios: ``residual_growth``, ``attention_top_logit``, a cross-entropy, a share near 0.

    The rule rings after ``hits`` hits in a row. It is silent until it has seen ``window`` readings, and a drift that
    stays below the limit within a window never rings. Any single number can move for a healthy reason: a rule shows that
    something changed, not that something is broken.

    Args:
        signal: the name of a number of a reading, without the site; of a curve of a reading, whose entries count as their
            median at each site (``attention_entropy_by_head``: the median over heads); or of a number that the caller gives,
            such as ``loss``. If a number and a curve have the same name, it is the number.
        direction: ``"up"`` or ``"down"``.
        ratio: the limit as a ratio, above 1.
        difference: the limit as a difference, above 0, in the unit of the signal.
        sites: the sites to combine, in this order. ``None``: all that have the signal, in the order of the reading.
        over: how the values of sites are combined: ``"mean"``, ``"median"``, ``"min"``, ``"max"``, ``"first"`` or ``"last"``.
            Values that are not finite are left out.
        hits: number of hits in a row after which the rule rings. At most half of ``window``, because the baseline follows a
            jump after that.
        window: number of readings in the baseline.
        meaning: what an alarm may mean, in sentences.
        look_at: what to look at next, in sentences.
        name: the name of the rule, which must be unique in a monitor. Default: ``<signal>_<direction>``.

    Raises:
        GeomprobeError: if not exactly one of ``ratio`` and ``difference`` is given, or an argument is out of range.

    >>> rule = Rule(signal="effective_rank", direction="down", ratio=1.5)
    >>> rule.name, rule.change(value=10.0, baseline=20.0)
    ('effective_rank_down', 2.0)
    """

    signal: str
    direction: Literal["up", "down"]
    ratio: float | None = None
    difference: float | None = None
    sites: tuple[str, ...] | None = None
    over: Literal["mean", "median", "min", "max", "first", "last"] = "mean"
    hits: int = 2
    window: int = 10
    meaning: str = ""
    look_at: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.signal, str) or not self.signal or "/" in self.signal:
            raise GeomprobeError(
                f"Rule(signal={self.signal!r}): expected a name without a site, such as 'entropy'; give sites as sites=(…)"
            )
        if not self.name:
            object.__setattr__(self, "name", f"{self.signal}_{self.direction}")
        what = f"the rule {self.name!r}"
        if self.direction not in ("up", "down"):
            raise GeomprobeError(f"{what} has direction={self.direction!r}: expected 'up' or 'down'")
        if self.over not in _OVER:
            raise GeomprobeError(f"{what} has over={self.over!r}: expected one of {', '.join(map(repr, _OVER))}")
        if self.sites is not None and (not isinstance(self.sites, tuple) or not self.sites):
            raise GeomprobeError(f"{what} has sites={self.sites!r}: expected a tuple such as ('layer_03',), or None for all")
        if (self.ratio is None) == (self.difference is None):
            raise GeomprobeError(f"{what} needs either ratio= (of a positive signal) or difference= (of any other)")
        if not self.limit > (1 if self.ratio is not None else 0) or not math.isfinite(self.limit):
            raise GeomprobeError(f"{what} has the limit {self.limit!r}: expected a ratio above 1, or a difference above 0")
        if not is_whole(self.window, least=2) or not is_whole(self.hits, least=1) or self.hits > self.window // 2:
            raise GeomprobeError(
                f"{what} has hits={self.hits!r} and window={self.window!r}: expected whole numbers, hits at most half of "
                "window, because the baseline follows a jump after that"
            )

    @property
    def limit(self) -> float:
        """The change from which on a reading is a hit: ``ratio`` or ``difference``."""
        limit = self.difference if self.ratio is None else self.ratio
        return math.nan if limit is None else limit

    def combine(self, values: Sequence[float]) -> float:
        """Return the value of a reading from the values of its sites."""
        return _OVER[self.over](values)

    def change(self, value: float, baseline: float) -> float:
        """Return how far a value has moved from the baseline in the direction of the rule, to compare with :attr:`limit`: a
        ratio or a difference. NaN for the ratio of numbers that are not positive."""
        if self.ratio is None:
            return value - baseline if self.direction == "up" else baseline - value
        if baseline <= 0 or value < 0:
            return math.nan
        if self.direction == "up":
            return value / baseline
        return baseline / value if value else math.inf

    def identity(self) -> dict[str, Any]:
        """Return everything that the alarms of the rule depend on, as a dict that can be written as JSON."""
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _TEXTS}
        return own | {"sites": None if self.sites is None else list(self.sites)}


def _both(rule: Rule, *, down: float) -> tuple[Rule, Rule]:
    """A rule for a rise, and the same for a fall with a limit of its own."""
    fall = replace(rule, direction="down", name="")
    return rule, replace(fall, difference=down) if rule.ratio is None else replace(fall, ratio=down)


DEFAULT_RULES: tuple[Rule, ...] = (
    *_both(
        Rule(
            signal="attention_entropy_normalised_by_head",
            direction="up",
            ratio=1.2,
            over="median",
            meaning=(
                "The attention of the typical head became broader or narrower. It becomes narrower when heads learn what to "
                "attend to, and when the scores before the softmax grow, as they have before a divergence of the loss."
            ),
            look_at=(
                "Compare attention_top_logit, attention_sink and the norms of the query and key weights in the layer named. "
                "A learning rate that is too high, or a missing normalisation of queries and keys, can be the cause."
            ),
        ),
        down=1.55,
    ),
    *_both(
        Rule(
            signal="residual_growth",
            direction="up",
            difference=0.08,
            meaning=(
                "The layers lengthen the rows of the residual stream by another factor than before: what they add became large "
                "or small in comparison with what they receive."
            ),
            look_at=(
                "Compare the learning rate, the clipping of gradients and the weight decay with the steps before, and the "
                "norms of the output projections in the layer named."
            ),
        ),
        down=0.08,
    ),
    *_both(
        Rule(
            signal="entropy",
            direction="up",
            ratio=1.3,
            meaning="The hidden states of different tokens use more or fewer directions than before.",
            look_at=(
                "Compare effective_rank and anisotropy at the site named, and look at the texts of these steps: repeated or "
                "shuffled texts change the entropy, too."
            ),
        ),
        down=1.15,
    ),
    Rule(
        signal="nonfinite",
        direction="up",
        difference=1.0,
        over="max",
        meaning="Hidden states contain NaN or Inf. These rows are left out of every other number.",
        look_at="Look at the loss scale, the precision and the norms of the weights before the site named.",
    ),
    Rule(
        signal="loss",
        direction="up",
        difference=0.35,
        meaning="The loss rose: the texts became harder, or the model worse.",
        look_at="Look at the texts of these steps and at the learning rate, and whether fixed texts have moved as well.",
    ),
    Rule(
        signal="loss",
        direction="down",
        difference=0.5,
        meaning="The loss fell faster than training usually lowers it: the texts became easier, or repeat.",
        look_at="Look at the texts of these steps, the share of repeated batches, and how many tokens have a label.",
    ),
    Rule(
        signal="gradient_norm",
        direction="up",
        ratio=2.9,
        meaning="The norm of the gradient before clipping grew: an unusual batch, or a steep region of the loss.",
        look_at="Look at the texts of these steps, the learning rate, and how often gradients are clipped.",
    ),
    Rule(
        signal="repeated_batch",
        direction="up",
        difference=0.5,
        meaning="Batches that were seen before were seen again, as they are in a second epoch in the same order.",
        look_at="Look at the sampler, the seed of its shuffling, and the place in the data at which a resumed run begins.",
    ),
    Rule(
        signal="token_entropy",
        direction="down",
        ratio=1.15,
        meaning="The batches have fewer different tokens than before.",
        look_at="Print a batch: padding without a mask, one repeated text, or another part of the data can be the cause.",
    ),
    # Seven healthy trainings of a small mixture with top-1 routing changed by up to 1.17 for two readings, and by up to 1.39
    # where the balancing loss was a tenth as large. Six of the seven changed by 1.48 to 4.9 once that loss was removed.
    # The largest share of an expert separated them less well: up to 1.32, against 1.31 to 1.94.
    Rule(
        signal="router_load_entropy",
        direction="down",
        ratio=1.4,
        over="min",
        meaning=(
            "The experts of a mixture divide the tokens less evenly than before, in at least one layer: some receive most of "
            "them. This happens when routing collapses, and also in the first steps of a healthy training."
        ),
        look_at=(
            "Look at the curve router_load and at router_dead_experts in the layer named, and at the coefficient of the "
            "balancing loss or the bias of the routers."
        ),
    ),
)
"""The rules of a :class:`~geomprobe.Monitor` by default.

Each limit is at least 1.3 times the largest change that lasted for two readings in 146 healthy trainings of small models (of
a ratio, the part above 1 is multiplied). 90 of them had an event, such as a new optimizer or other texts. ``geomprobe bench
alarms --calibrate`` runs 100 of them. The limit of ``router_load_entropy`` is just above the largest change in healthy
trainings of mixtures with two layers and eight experts, read from step 40 on. Larger models and later stages of training
were not measured: set limits from healthy runs of your own, as the README of this folder explains. A rule whose signal is
not measured cannot ring."""
