"""Information gain of new tokens while a model generates them."""

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from geomprobe.capture.generation import CachedSequence
from geomprobe.core.rows import Rows
from geomprobe.core.streaming_gain import GainStream
from geomprobe.errors import GeomprobeError

__all__ = ["GainUpdate", "LiveGain"]


@dataclass(frozen=True)
class GainUpdate:
    """What the tokens of one forward told, as it happened.

    Attributes:
        nats: information gain by site, ``(batch, new)``, on the model's device: reading a number off it waits.
        ids: the tokens fed, ``(batch, new)``; ``None`` when the model was given embeddings.
        start: how many columns each row had before, padding included.
    """

    nats: dict[str, Tensor]
    ids: Tensor | None
    start: int


class LiveGain:
    """One growing factor per sequence for all sites together: a step of generation is one batched append."""

    def __init__(self, sigma: float) -> None:
        self._sigma = sigma
        self._factors: weakref.WeakKeyDictionary[CachedSequence, dict[tuple[torch.device, int], GainStream]] = (
            weakref.WeakKeyDictionary()
        )

    def step(self, sequence: CachedSequence) -> GainUpdate:
        """The gains of the columns that the last forward added to ``sequence``."""
        if sequence.rearranged:
            raise GeomprobeError("live gains cannot follow beam search or assisted decoding: rows move, drafts are dropped")
        groups: dict[tuple[torch.device, int], list[str]] = {}
        for site in sequence.sites:
            latest = sequence.latest(site)
            groups.setdefault((latest.device, latest.shape[-1]), []).append(site)
        factors = self._factors.setdefault(sequence, {})
        nats: dict[str, Tensor] = {}
        for key, sites in groups.items():
            new = sequence.latest(sites[0]).shape[1]
            factor = factors.get(key)
            if factor is None:  # the sequence is new: take up everything there is
                factor = factors[key] = GainStream(
                    key[1], self._sigma, batch=(len(sites), sequence.latest(sites[0]).shape[0]), device=key[0]
                )
                rows = torch.cat([sequence.rows(site).unit() for site in sites])
            else:
                stacked = torch.cat([sequence.latest(site) for site in sites])
                mask = sequence.latest_mask().to(key[0]).repeat(len(sites), 1)
                rows = Rows(stacked, mask).unit().view(len(sites), -1, new, key[1])
            gains = factor.append(rows)[..., -new:]
            nats.update(zip(sites, gains, strict=True))
        return GainUpdate(nats, sequence.latest_ids(), sequence.columns - sequence.latest_mask().shape[1])
