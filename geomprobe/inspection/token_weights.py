"""The weights of each token of a text on the earlier tokens at every site: Lasso, ridge regression and attention."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from geomprobe.accumulators.state import Accumulator, Key, State, zeros
from geomprobe.capture.decoder import Decoder
from geomprobe.core.attention_summary import AttentionRequest
from geomprobe.core.cholesky import ridge_coefficients, scaled_factor
from geomprobe.core.lasso import explained, sklearn_penalty, solve_lasso
from geomprobe.core.rows import Rows
from geomprobe.core.symmetric import assemble
from geomprobe.errors import GeomprobeError
from geomprobe.metrics.base import Metric
from geomprobe.metrics.context_lasso import ContextLasso
from geomprobe.metrics.information_gain import InformationGain
from geomprobe.probe import Probe

__all__ = ["Pick", "Picks", "pick_tokens"]

_LASSO, _SIGMA = ContextLasso(), InformationGain().sigma
"""The options of the Lasso whose picks agree with the paper's, and the noise σ of the paper's ridge regression."""

_MOST = 100
"""Largest number of picks kept for a token: at most 100 attention weights can be above 0.01."""

_KINDS = ("lasso", "ridge", "attention")

Pick = tuple[int, float]
"""The number of an earlier token in the text, and its weight."""


@dataclass(frozen=True)
class Picks:
    """The earlier tokens that each token of a text picks at one site (section 4.2).

    Attributes:
        site: the site.
        lasso: for every token the picks of its Lasso: the earlier tokens with a weight above 0.01.
        ridge: the picks of its ridge regression (σ = 0.01): the earlier tokens with a weight above 0.01 in magnitude.
        attention: the picks of attention in the layer before the site: the earlier tokens with a weight, averaged over heads,
            above 0.01. ``None`` if there is no attention.
        r2: for every token the share of its row's squared length that the Lasso reproduces; NaN for the first token.

    The picks of a token are sorted by magnitude, largest first, and there are at most 100 of each kind.
    """

    site: str
    lasso: tuple[tuple[Pick, ...], ...]
    ridge: tuple[tuple[Pick, ...], ...]
    attention: tuple[tuple[Pick, ...], ...] | None
    r2: tuple[float, ...]

    @property
    def kinds(self) -> dict[str, tuple[tuple[Pick, ...], ...] | None]:
        """The picks by kind: ``"lasso"``, ``"ridge"`` and ``"attention"``."""
        return {"lasso": self.lasso, "ridge": self.ridge, "attention": self.attention}

    def to_dict(self) -> dict[str, Any]:
        """Return the picks as plain lists, with ``None`` for an undefined R²."""
        lists = {k: None if rows is None else [[list(pick) for pick in row] for row in rows] for k, rows in self.kinds.items()}
        return {"site": self.site, **lists, "r2": [value if math.isfinite(value) else None for value in self.r2]}


def pick_tokens(
    model: Any,
    ids: Tensor,
    sites: Sequence[str] | None = None,
    *,
    decoder: Decoder,
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[tuple[Picks, ...], str]:
    """Compute the picks of every token of one text.

    Args:
        model: the model.
        ids: token ids of the text, ``(1, length)``.
        sites: the sites. Default: all.
        decoder: the decoder of the model, which is run once.
        progress: a function that is called with the number of sites that have been completed since its last call.

    Returns:
        The picks of each site, and the reason why there is no attention (empty if there is).

    Raises:
        GeomprobeError: if a site does not exist.
    """
    why = ""
    probe = Probe(model, [_Solve(True, progress)], sites=sites, decoder=decoder, on_error="raise")
    try:
        probe.attach()
    except GeomprobeError as error:
        why = str(error)
        probe = Probe(model, [_Solve(False, progress)], sites=sites, decoder=decoder, on_error="raise").attach()
    try:
        with torch.inference_mode():
            decoder.base(input_ids=ids, use_cache=False)  # the head is not needed
    finally:
        probe.close()
    found: dict[str, State] = {}
    for name, value in probe.state_dict().items():
        key = Key.parse(name)
        if key.accumulator.startswith(_Solve.name):
            found.setdefault(key.site, {})[key.sum] = value
    return tuple(_read(site, found[site]) for site in probe.sites), why


@dataclass(frozen=True)
class _Solve(Metric):
    """The picks of a single text as tensors: the numbers of tokens and their weights."""

    name: ClassVar[str] = "token_weights"
    version: ClassVar[int] = 1

    compare: bool
    progress: Callable[[int], object] = field(compare=False, repr=False)

    @property
    def attention(self) -> AttentionRequest | None:
        return AttentionRequest(maps=True) if self.compare else None

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        return (self,)

    def new_state(self, width: int, device: torch.device) -> State:
        tables = {f"{kind}_{what}": (0, 0) for kind in _KINDS for what in ("token", "weight")}
        return zeros(tables | {"r2": (0,), "attended": ()}, device)

    def contribution(self, rows: Rows) -> State:
        gram = assemble(rows.gram()).squeeze(-3)
        weights = solve_lasso(gram, sklearn_penalty(_LASSO.penalty, rows.width)).coefficients
        ridge = ridge_coefficients(scaled_factor(gram, _SIGMA)[0])
        maps = rows.maps.squeeze(-3).double()
        self.progress(gram.shape[0])
        return {
            **_table("lasso", weights.clamp_min(0)),
            **_table("ridge", ridge),
            **_table("attention", maps.nan_to_num(0).tril(-1)),
            "r2": explained(gram, weights).nan_to_num(0, 0, 0),
            "attended": maps.isfinite().all((-2, -1)).double(),
        }

    def scalars(self, states: Mapping[Accumulator, State]) -> dict[str, float]:
        return {}


def _table(kind: str, weights: Tensor) -> State:
    """The numbers and weights of the tokens of largest weight in each row, ``(…, T, picks)``."""
    token = weights.abs().topk(min(_MOST, weights.shape[-1]), dim=-1).indices
    return {f"{kind}_token": token.double(), f"{kind}_weight": weights.gather(-1, token)}


def _read(site: str, state: State) -> Picks:
    lasso, ridge, attention = (_lists(state[f"{kind}_token"], state[f"{kind}_weight"]) for kind in _KINDS)
    r2 = (math.nan, *state["r2"].tolist()[1:])
    return Picks(site, lasso, ridge, attention if bool(state["attended"]) else None, r2)


def _lists(tokens: Tensor, weights: Tensor) -> tuple[tuple[Pick, ...], ...]:
    rows = zip(tokens.long().tolist(), weights.tolist(), strict=True)
    threshold = _LASSO.threshold
    return tuple(tuple((j, weight) for j, weight in zip(*row, strict=True) if abs(weight) > threshold) for row in rows)
