"""Which earlier tokens each token of a text is made of, and attends to, at every site."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from geomprobe.accumulators.state import Accumulator, State, zeros
from geomprobe.capture.decoder import Decoder
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
"""The Lasso of the paper's picks, and the noise of its ridge regression."""

_MOST = 100
"""Picks of a token that are kept, the weightiest: no more shares than these are above 0.01."""

_KINDS = ("lasso", "ridge", "attention")

Pick = tuple[int, float]
"""An earlier token by its number in the text, and its weight."""


@dataclass(frozen=True)
class Picks:
    """Which earlier tokens each token of a text is made of at one site (section 4.2).

    Attributes:
        site: where.
        lasso: for every token the picks of its Lasso, weights above 0.01.
        ridge: its ridge regression (σ = 0.01) on all earlier tokens, weights above 0.01 either way.
        attention: what it attends to in the layer before the site, head-mean weights above 0.01; ``None`` where there is none.
        r2: for every token the share of its row's squared length that the Lasso's weights rebuild; NaN for the first.

    Picks stand in the order of their weights, largest first, and at most 100.
    """

    site: str
    lasso: tuple[tuple[Pick, ...], ...]
    ridge: tuple[tuple[Pick, ...], ...]
    attention: tuple[tuple[Pick, ...], ...] | None
    r2: tuple[float, ...]

    @property
    def kinds(self) -> dict[str, tuple[tuple[Pick, ...], ...] | None]:
        """The picks by the name of their kind."""
        return {"lasso": self.lasso, "ridge": self.ridge, "attention": self.attention}

    def to_dict(self) -> dict[str, Any]:
        """Plain lists; a share that is not defined is ``None``."""
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
    """Solve for every token of one text at ``sites``, by default all.

    Args:
        model: the model.
        ids: the text, ``(1, length)``.
        sites: where.
        decoder: the decoder of the model; run once.
        progress: told how many sites are done, as they are.

    Returns:
        the picks of each site, and why they have no attention (empty if they do).

    Raises:
        GeomprobeError: an unknown site.
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
        _, site, accumulator, what = name.split("/")
        if accumulator.startswith("_Solve"):
            found.setdefault(site, {})[what] = value
    return tuple(_read(site, found[site]) for site in probe.sites), why


@dataclass(frozen=True)
class _Solve(Metric):
    """The picks of a single text, as tensors: numbers of tokens and weights."""

    compare: bool
    progress: Callable[[int], object] = field(compare=False, repr=False)

    @property
    def attention(self) -> Literal["maps"] | None:
        return "maps" if self.compare else None

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
    """The weightiest of each row: numbers and weights, ``(…, T, picks)``."""
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
