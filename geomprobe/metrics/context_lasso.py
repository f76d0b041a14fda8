"""Which earlier tokens a token is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from geomprobe.accumulators.context_lasso import ContextLassoSum
from geomprobe.accumulators.state import Accumulator, State
from geomprobe.errors import GeomprobeError
from geomprobe.metrics.base import Curve, Metric

__all__ = ["ContextLasso"]


@dataclass(frozen=True, kw_only=True)
class ContextLasso(Metric):
    """The Lasso of each token's unit row on the earlier rows of its text (section 4.2): how few rebuild it, and how well.

    Scalars, means over targets (tokens with a past):

    - ``lasso_picks``: how many earlier tokens have a weight above ``threshold``; ``lasso_nonzero``: how many have any;
    - ``lasso_r2``: ``1 − ‖z − Σβz‖²``, the share of the row's squared length that they rebuild, 0 to 1;
    - ``lasso_first``: the share of Σ|β| on the text's first token, of targets that have any weight;
    - ``lasso_unsolved``: the share of targets whose duality gap stayed above ``tol``; look at it before the others.

    Curve ``lasso_weight``: Σ|β| by distance, place 0 the token right before; ``count``: how many targets have one so far back.

    It says which rows a row can be written by, not which ones the model computed it from. ``attention=True`` compares with the
    head-mean attention weights a of the layer before the site (of the last layer at ``final_norm``; ``embed`` has none):

    - ``lasso_attention_jaccard``: of the tokens that either picks (weight above ``threshold``), the share that both do;
    - ``lasso_attention_precision``: of the k tokens attended to most, the share that the Lasso picks, k being how many it
      picks; ``lasso_attention_chance``: what that would be for k tokens drawn by lot, so below it there is no agreement at all;
    - ``lasso_attention_rank``: Spearman's rank correlation of β and a over all earlier tokens;
    - ``eq5_r2``: the R² of the second term of Eq. 5, which rebuilds a row with coefficients ``a_tj / a_jj``. Eq. 5's first
      term, the token's own value vector times its weight on itself, is left out. It has no least value: weights on tokens
      that hardly attend to themselves imply huge coefficients.

    and adds the curves ``attention_weight`` and ``eq5_weight`` by the same distances as ``lasso_weight``.

    Args:
        penalty: α of the convention ``"sklearn"``, ``1/(2d)‖z − Zβ‖² + α‖β‖₁``, by which the paper's picks come out; λ of
            ``"literal"``, ``‖z − Zβ‖² + λ‖β‖₁``, the formula it prints, which picks hundreds.
        convention: ``"sklearn"`` or ``"literal"``.
        threshold: weight above which a token is picked.
        rate: the share of tokens that are solved. A text of 512 tokens costs some 50 ms per site on two cores, and solving
            waits for the device: in training, take a small one, and few steps.
        tol: duality gap that each target is solved to, in units of ``½‖z − Zβ‖² + λ‖β‖₁``.
        attention: compare with attention. Keeps a map of each text at a few sites at a time, while it generates at all sites.

    Raises:
        GeomprobeError: an argument is out of its range; with ``attention``, when the probe is attached and the model has none.
    """

    penalty: float = 1e-4
    convention: Literal["sklearn", "literal"] = "sklearn"
    threshold: float = 0.01
    rate: float = 1.0
    tol: float = 1e-6
    attention: bool = False

    def __post_init__(self) -> None:
        if not (self.penalty > 0 and self.tol > 0 and self.threshold >= 0 and 0 < self.rate <= 1):
            raise GeomprobeError(f"{self!r}: expected penalty and tol above 0, threshold of 0 or more, rate from 0 to 1")
        if self.convention not in ("sklearn", "literal"):
            raise GeomprobeError(f"ContextLasso(convention={self.convention!r}): expected 'sklearn' or 'literal'")

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        return (self._sums,)

    @property
    def _sums(self) -> ContextLassoSum:
        return ContextLassoSum(self.penalty, self.convention, self.threshold, self.rate, self.tol, self.attention)

    def scalars(self, states: Mapping[Accumulator, State]) -> Mapping[str, Tensor | float]:
        state = states[self._sums]
        named = {f"lasso_{name}": (name, "targets") for name in ("picks", "nonzero", "r2", "unsolved")}
        named["lasso_first"] = ("first", "weighted")
        if self.attention:
            named |= {f"lasso_attention_{name}": (name, f"{name}_count") for name in ("jaccard", "precision", "chance", "rank")}
            named["eq5_r2"] = ("eq5_r2", "attended")
        return {name: state[total] / torch.where(state[n] > 0, state[n], torch.nan) for name, (total, n) in named.items()}

    def curves(self, states: Mapping[Accumulator, State]) -> Mapping[str, Curve]:
        state = states[self._sums]
        reach = state["reach"]
        curves = {"lasso_weight": Curve.from_sums(state["weight"], reach)}
        if self.attention and bool(state["attended"]):
            curves |= {name: Curve.from_sums(state[name], reach) for name in ("attention_weight", "eq5_weight")}
        return curves
