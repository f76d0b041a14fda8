"""The metric of the Lasso regression of each token on the earlier tokens of its text."""

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
    """The Lasso regression of each token's unit row on the earlier rows of its text (section 4.2).

    Scalars, which are means over targets. A target is a token that has earlier tokens in its text:

    - ``lasso_picks``: the number of earlier tokens with a weight above ``threshold``; ``lasso_nonzero``: the number with a
      weight other than zero;
    - ``lasso_r2``: ``1 − ‖z − Σβz‖²``, the share of the row's squared length that the weighted earlier rows reproduce, 0 to 1;
    - ``lasso_first``: the share of Σ|β| on the first token of the text, as a mean over targets with a weight other than zero;
    - ``lasso_unsolved``: the share of targets whose duality gap stayed above ``tol``. If it is not zero, the other numbers are
      approximate.

    Curve ``lasso_weight``: the mean of |β| by distance, starting with the token directly before the target; its ``count`` is
    the number of targets that have a token at that distance.

    The weights show from which rows a row can be reproduced, not from which rows the model computed it. ``attention=True``
    compares them with the attention weights a, averaged over heads, in the layer whose output the site is (``final_norm`` has
    those of the last layer, and ``embed`` has none):

    - ``lasso_attention_jaccard``: among the tokens that the Lasso or attention picks (weight above ``threshold``), the share
      that both pick;
    - ``lasso_attention_precision``: among the k tokens with the largest attention weights, the share that the Lasso picks, with
      k the number of tokens that the Lasso picks; ``lasso_attention_chance``: the precision expected by chance, for k random
      tokens;
    - ``lasso_attention_rank``: Spearman's rank correlation of β and a over all earlier tokens;
    - ``eq5_r2``: the R² of Eq. 5, which reproduces a row with the coefficients ``a_tj / a_jj``, without the first term of the
      equation (the value vector of the token itself). It has no lower bound: weights on tokens that hardly attend to themselves
      imply very large coefficients.

    It also adds the curves ``attention_weight`` and ``eq5_weight`` by the same distances as ``lasso_weight``.

    Args:
        penalty: α in the convention ``"sklearn"``, ``1/(2d)‖z − Zβ‖² + α‖β‖₁``, whose picks agree with those of the paper; or λ
            in the convention ``"literal"``, ``‖z − Zβ‖² + λ‖β‖₁``, which is the formula printed in the paper and picks many
            more tokens.
        convention: ``"sklearn"`` or ``"literal"``.
        threshold: weight above which a token counts as picked.
        rate: share of the tokens for which the Lasso is solved. A text of 512 tokens costs about 50 ms per site on two cores,
            and the host waits for the device before it solves. During training, use a small rate and measure few steps.
        tol: duality gap to which each target is solved, in units of ``½‖z − Zβ‖² + λ‖β‖₁``.
        attention: whether to compare with attention. The attention maps of a few sites at a time are kept in memory, and those
            of all sites while a text is generated.

    Raises:
        GeomprobeError: if an argument is out of range; with ``attention``, when the probe is attached to a model whose
            attention cannot be read.
    """

    penalty: float = 1e-4
    convention: Literal["sklearn", "literal"] = "sklearn"
    threshold: float = 0.01
    rate: float = 1.0
    tol: float = 1e-6
    attention: bool = False

    def __post_init__(self) -> None:
        if not (self.penalty > 0 and self.tol > 0 and self.threshold >= 0 and 0 < self.rate <= 1):
            raise GeomprobeError(
                f"{self!r}: expected penalty and tol above 0, threshold of 0 or more, rate above 0 and at most 1"
            )
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
