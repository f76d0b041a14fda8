"""The information gain of new tokens, computed while a model generates them."""

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
    """The information gain of the tokens of one forward.

    Attributes:
        nats: information gain in nats by site, ``(batch, new)``, on the device of the model. Converting it to Python numbers
            waits for the device.
        ids: the token ids of the forward, ``(batch, new)``; ``None`` if the model was called with embeddings.
        start: number of columns of each row before this forward, including padding.
    """

    nats: dict[str, Tensor]
    ids: Tensor | None
    start: int


class LiveGain:
    """One growing Cholesky factor per sequence, batched over sites, so that a step of generation is one batched append."""

    def __init__(self, sigma: float) -> None:
        self._sigma = sigma
        self._factors: weakref.WeakKeyDictionary[CachedSequence, dict[tuple[torch.device, int], GainStream]] = (
            weakref.WeakKeyDictionary()
        )

    def step(self, sequence: CachedSequence) -> GainUpdate:
        """Return the gains of the columns that the last forward added to ``sequence``.

        Raises:
            GeomprobeError: if rows of the cache were moved, as beam search and assisted decoding do.
        """
        if sequence.rearranged:
            raise GeomprobeError(
                "on_gain does not support beam search or assisted decoding, which move rows and remove drafts: generate with "
                "num_beams=1 and no assistant"
            )
        groups: dict[tuple[torch.device, int], list[str]] = {}
        for site in sequence.sites:
            latest = sequence.latest(site)
            groups.setdefault((latest.device, latest.shape[-1]), []).append(site)
        factors = self._factors.setdefault(sequence, {})
        nats: dict[str, Tensor] = {}
        for key, sites in groups.items():
            new = sequence.latest(sites[0]).shape[1]
            factor = factors.get(key)
            if factor is None:  # the sequence is new: append all of its rows
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
