"""The names under which the numbers of a reading are logged to trackers, and which of them are logged."""

import math
import re
from hashlib import sha256
from typing import Literal

from geomprobe import GeomprobeError, Reading

__all__ = ["Log", "flat", "overview_sites", "prefix", "safe_name"]

Log = Literal["overview", "all"]
"""Which numbers of a reading are logged."""

_OVERVIEW = ("entropy", "effective_rank", "anisotropy", "gain_per_token", "alpha_req")
_COUNTS = ("tokens", "texts")
_MOST = 24


def safe_name(name: str) -> str:
    """Return ``name`` as one level of the name of a metric: all but ASCII letters, digits, ``_``, ``-`` and ``.`` become ``_``.
    If that changes it, part of a hash follows, so that different names stay different.

    >>> safe_name("step512"), safe_name("eval_my set/ä")
    ('step512', 'eval_my_set___08b7')
    """
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    return safe if safe == name else f"{safe}_{sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:4]}"


def prefix(mode: str) -> str:
    """Return what the names of a mode begin with: ``geomprobe``, or ``geomprobe/<mode>`` if the mode is not ``train``. The name
    of an evaluation set is made safe (:func:`safe_name`)."""
    return "geomprobe" if mode == "train" else f"geomprobe/{safe_name(mode)}"


def flat(reading: Reading, log: Log = "all") -> dict[str, float]:
    """Return the scalars of a reading by the names that trackers get: ``geomprobe/<metric>/<site>`` for training, and
    ``geomprobe/<mode>/<metric>/<site>`` for another mode, such as ``eval`` or ``no_grad``.

    If a probe returned the reading, ``geomprobe/cost`` is the share of the time of the run that measuring has taken so far.

    Numbers that are not finite, such as those of a metric that is undefined for the measured texts, are left out, which gives a
    gap in a chart. Curves are left out too, because they have one more dimension than a chart over training steps can show.

    >>> reading = Reading(mode="eval", sites=("embed",), values={"entropy/embed": 0.5, "anisotropy/embed": float("nan")})
    >>> flat(reading)
    {'geomprobe/eval/entropy/embed': 0.5}

    Args:
        reading: the reading.
        log: ``"all"`` for all scalars, or ``"overview"`` for at most 24: ``entropy``, ``effective_rank``, ``anisotropy``,
            ``gain_per_token`` and ``alpha_req`` at the first, middle and last measured layer and at ``final_norm``, the number
            of tokens as ``geomprobe/tokens``, and the cost. If there are four sites or fewer, all of them are logged. If none
            of the five metrics was measured, the measured ones are logged, in their order, up to 24 numbers.

    Raises:
        GeomprobeError: if ``log`` is neither of these.
    """
    check_log(log)
    start = prefix(reading.mode)
    names = reading if log == "all" else _overview(reading)
    values = {f"{start}/{name}": reading[name] for name in names}
    if reading.cost is not None:
        values[f"{start}/cost"] = reading.cost.share
    if log == "overview" and (tokens := f"tokens/{reading.sites[-1] if reading.sites else ''}") in reading:
        values[f"{start}/tokens"] = reading[tokens]
    return {name: value for name, value in values.items() if math.isfinite(value)}


def check_log(log: str) -> None:
    """Check the option ``log``.

    Raises:
        GeomprobeError: if it is neither ``"overview"`` nor ``"all"``.
    """
    if log not in ("overview", "all"):
        raise GeomprobeError(f"log={log!r}: expected 'overview' (at most {_MOST} numbers a step) or 'all'")


def overview_sites(reading: Reading) -> list[str]:
    """Return the first, middle and last measured layer and ``final_norm``, or all sites if there are four or fewer."""
    sites = list(reading.sites)
    if len(sites) <= 4:
        return sites
    layers = [site for site in sites if site.startswith("layer_")] or sites
    ends = [site for site in sites if site == "final_norm"]
    return list(dict.fromkeys([layers[0], layers[len(layers) // 2], layers[-1], *ends]))


def _overview(reading: Reading) -> list[str]:
    sites = overview_sites(reading)
    measured = [metric for metric in reading.metrics if metric not in _COUNTS]
    metrics = [metric for metric in _OVERVIEW if metric in measured] or measured
    names = [f"{metric}/{site}" for metric in metrics for site in sites]
    return [name for name in names if name in reading][: _MOST - 2]  # two are left for the number of tokens and the cost
