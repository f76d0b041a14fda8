"""The weights of each token of a text on the earlier tokens at every site: Lasso, ridge regression and attention."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from geomprobe.capture.decoder import Decoder
from geomprobe.core.attention_summary import AttentionRequest
from geomprobe.core.cholesky import ridge_coefficients, scaled_factor
from geomprobe.core.lasso import explained, sklearn_penalty, solve_lasso
from geomprobe.core.rows import Rows
from geomprobe.core.symmetric import assemble
from geomprobe.errors import GeomprobeError
from geomprobe.metrics.context_lasso import ContextLasso
from geomprobe.metrics.information_gain import InformationGain
from geomprobe.probe import Mode, Probe, add_consumer

__all__ = ["Pick", "Picks", "pick_tokens"]

_LASSO, _SIGMA = ContextLasso(), InformationGain().sigma
"""The options of the Lasso whose picks agree with the paper's, and the noise σ of the paper's ridge regression."""

_MOST = 100
"""Largest number of picks kept for a token: at most 100 attention weights can be above 0.01."""

_MOST_OF_A_HEAD = 5
"""Largest number of picks kept for a token and a head."""

Pick = tuple[int, float]
"""The number of an earlier token in the text, and its weight."""


@dataclass(frozen=True)
class Picks:
    """The earlier tokens that each token of a text picks at one site (section 4.2).

    Attributes:
        site: the site.
        lasso: for every token the picks of its Lasso: the earlier tokens with a weight above 0.01.
        ridge: the picks of its ridge regression (σ = 0.01): the earlier tokens with a weight above 0.01 in magnitude.
        attention: the picks of attention in the layer whose output is the site: the earlier tokens with a weight, averaged over
            heads, above 0.01. ``None`` if there is no attention.
        r2: for every token the share of its row's squared length that the Lasso reproduces; NaN for the first token.
        heads: for every attention head the picks of every token, at most 5, if they were requested; ``None`` if there is no
            attention. They are not part of ``to_dict``.

    The picks of a token are sorted by magnitude, largest first, and there are at most 100 of each kind.
    """

    site: str
    lasso: tuple[tuple[Pick, ...], ...]
    ridge: tuple[tuple[Pick, ...], ...]
    attention: tuple[tuple[Pick, ...], ...] | None
    r2: tuple[float, ...]
    heads: tuple[tuple[tuple[Pick, ...], ...], ...] | None = None

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
    heads: bool = False,
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[tuple[Picks, ...], str]:
    """Compute the picks of every token of one text.

    Args:
        model: the model.
        ids: token ids of the text, ``(1, length)``.
        sites: the sites. Default: all.
        decoder: the decoder of the model, which is run once.
        heads: whether to return the picks of every attention head too.
        progress: a function that is called with the number of sites that have been completed since its last call.

    Returns:
        The picks of each site, and the reason why there is no attention (empty if there is).

    Raises:
        GeomprobeError: if a site does not exist.
    """
    why, solve = "", _Solve(AttentionRequest(maps=True, heads=heads), progress)
    probe = Probe(model, [], sites=sites, decoder=decoder, on_error="raise")
    try:
        add_consumer(probe, solve).attach()
    except GeomprobeError as error:
        why, solve = str(error), _Solve(None, progress)
        probe = add_consumer(Probe(model, [], sites=sites, decoder=decoder, on_error="raise"), solve).attach()
    try:
        with torch.inference_mode():
            decoder.base(input_ids=ids, use_cache=False)  # the head is not needed
    finally:
        probe.close()
    return tuple(solve.found[site] for site in probe.sites), why


@dataclass
class _Solve:
    """Solves for the picks of a single text, while the model runs."""

    attention: AttentionRequest | None
    progress: Callable[[int], object]
    found: dict[str, Picks] = field(default_factory=dict)

    def consume(self, mode: Mode, sites: Sequence[str], rows: Rows) -> Callable[[], object]:
        gram = assemble(rows.gram()).squeeze(-3)
        lasso = solve_lasso(gram, sklearn_penalty(_LASSO.penalty, rows.width)).coefficients
        ridge = ridge_coefficients(scaled_factor(gram, _SIGMA)[0])
        r2 = explained(gram, lasso).nan_to_num(0, 0, 0).tolist()
        maps = rows.maps.squeeze(-3).double()
        attended = maps.isfinite().all((-2, -1)).tolist()
        kinds = map(_lists, (lasso.clamp_min(0), ridge, maps.nan_to_num(0).tril(-1)))
        picks = {
            site: Picks(site, solved, regressed, weights if there else None, (math.nan, *shares[1:]), of if there else None)
            for site, solved, regressed, weights, there, shares, of in zip(
                sites, *kinds, attended, r2, _of_heads(rows, len(sites)), strict=True
            )
        }
        self.progress(len(sites))
        return lambda: self.found.update(picks)


def _of_heads(rows: Rows, sites: int) -> "list[tuple[tuple[tuple[Pick, ...], ...], ...] | None]":
    """The picks of the tokens of each site by head; ``None`` if they were not requested."""
    if rows.attention is None or rows.attention.heads is None:
        return [None] * sites
    weights = rows.attention.heads.squeeze(-4).nan_to_num(0).tril(-1)  # (sites, heads, T, T)
    return [tuple(_lists(of_site, _MOST_OF_A_HEAD)) for of_site in weights]


def _lists(weights: Tensor, most: int = _MOST) -> list[tuple[tuple[Pick, ...], ...]]:
    """The picks of the tokens of each site, or head, from the weights ``(sites, T, T)``, those of largest weight first."""
    tokens = weights.abs().topk(min(most, weights.shape[-1]), dim=-1).indices
    pairs = zip(tokens.tolist(), weights.gather(-1, tokens).tolist(), strict=True)
    return [tuple(map(_picks, *site)) for site in pairs]


def _picks(tokens: Sequence[int], weights: Sequence[float]) -> tuple[Pick, ...]:
    return tuple((j, weight) for j, weight in zip(tokens, weights, strict=True) if abs(weight) > _LASSO.threshold)
