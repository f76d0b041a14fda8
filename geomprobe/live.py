"""Information gain of new tokens while a model generates them."""

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from geomprobe.capture.stream import Stream
from geomprobe.core.gain_stream import GainStream
from geomprobe.core.rows import Rows
from geomprobe.errors import GeomprobeError

__all__ = ["GainUpdate", "LiveGains"]


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


class LiveGains:
    """One growing factor per stream for all sites together: a step of generation is one batched append."""

    def __init__(self, sigma: float) -> None:
        self._sigma = sigma
        self._factors: weakref.WeakKeyDictionary[Stream, dict[tuple[torch.device, int], GainStream]] = (
            weakref.WeakKeyDictionary()
        )

    def step(self, stream: Stream) -> GainUpdate:
        """The gains of the columns that the last forward added to ``stream``."""
        if stream.rearranged:
            raise GeomprobeError("live gains cannot follow beam search or assisted decoding: rows move, drafts are dropped")
        groups: dict[tuple[torch.device, int], list[str]] = {}
        for site in stream.sites:
            latest = stream.latest(site)
            groups.setdefault((latest.device, latest.shape[-1]), []).append(site)
        factors = self._factors.setdefault(stream, {})
        nats: dict[str, Tensor] = {}
        for key, sites in groups.items():
            new = stream.latest(sites[0]).shape[1]
            factor = factors.get(key)
            if factor is None:  # the stream is new: take up everything there is
                factor = factors[key] = GainStream(
                    key[1], self._sigma, batch=(len(sites), stream.latest(sites[0]).shape[0]), device=key[0]
                )
                rows = torch.cat([stream.rows(site).unit() for site in sites])
            else:
                stacked = torch.cat([stream.latest(site) for site in sites])
                mask = stream.latest_mask().to(key[0]).repeat(len(sites), 1)
                rows = Rows(stacked, mask).unit().view(len(sites), -1, new, key[1])
            gains = factor.append(rows)[..., -new:]
            nats.update(zip(sites, gains, strict=True))
        return GainUpdate(nats, stream.latest_ids(), stream.columns - stream.latest_mask().shape[1])
