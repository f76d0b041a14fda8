"""The names under which the numbers of a reading are logged to trackers."""

import math

from geomprobe import Reading

__all__ = ["flat"]


def flat(reading: Reading) -> dict[str, float]:
    """Return the scalars of a reading by the names that trackers get: ``geomprobe/<metric>/<site>`` for training, and
    ``geomprobe/<mode>/<metric>/<site>`` for another mode, such as ``eval`` or ``no_grad``.

    Numbers that are not finite, such as those of a metric that is undefined for the measured texts, are left out, which gives a
    gap in a chart. Curves are left out too, because they have one more dimension than a chart over training steps can show.

    >>> flat(Reading(mode="eval", sites=("embed",), values={"entropy/embed": 0.5, "anisotropy/embed": float("nan")}))
    {'geomprobe/eval/entropy/embed': 0.5}
    """
    prefix = "geomprobe" if reading.mode == "train" else f"geomprobe/{reading.mode}"
    return {f"{prefix}/{name}": value for name, value in reading.values.items() if math.isfinite(value)}
