"""The largest value that a rank can have for a number of tokens, and the remark that a reading has few tokens."""

import math

from geomprobe.reading.data import ReadingData

__all__ = ["most_directions", "remark_on_few_tokens", "upper_bound"]

_RANKS = ("effective_rank", "stable_rank", "participation_ratio", "rankme")
_PREFIXES = ("last_", "mean_", "raw_", "stream_", "centered_", "text_")
"""Prefixes of names of the same quantity for fewer or other rows, to which the bound applies too."""


def most_directions(reading: ReadingData, site: str) -> int | None:
    """Return ``min(n, d)``, the largest rank that n rows of width d can have; ``None`` where d is not known or there is no
    row."""
    tokens = reading.get(f"tokens/{site}", math.nan)
    width = reading.widths.get(site, 0)
    return int(min(tokens, width)) if width >= 1 and tokens >= 1 else None


def upper_bound(reading: ReadingData, metric: str, site: str) -> float | None:
    """Return the largest value of a metric that follows from the number of rows n and their width d: ``min(n, d)`` for ranks,
    ``min(n, d)/d`` for ``rank_ratio`` and ``log min(n, d)`` for ``matrix_entropy``; ``None`` for other metrics, and where d is
    not known."""
    if (most := most_directions(reading, site)) is None:
        return None
    name = metric
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    if name in _RANKS:
        return float(most)
    return {"rank_ratio": most / reading.widths[site], "matrix_entropy": math.log(most)}.get(name)


def remark_on_few_tokens(reading: ReadingData) -> str:
    """Return a remark if a rank of this reading is limited by the number of tokens; empty if none is."""
    ranked = [site for site in reading.sites if any(f"{name}/{site}" in reading for name in _RANKS)]
    for site in reversed(ranked):  # the last site, final_norm, is the one that is quoted most
        tokens, width = reading.get(f"tokens/{site}", math.nan), reading.widths.get(site, 0)
        if tokens < width:
            return (
                f"{tokens:,.0f} token{'s' * (tokens != 1)} < d = {width:,}: rank cannot exceed {tokens:,.0f}; compare readings "
                "of equally many tokens"
            )
    return ""
