"""The names that the numbers of a reading have outside geomprobe."""

import math

from geomprobe import Reading

__all__ = ["flat"]


def flat(reading: Reading) -> dict[str, float]:
    """The scalars under the names they have in W&B: ``geomprobe/<metric>/<site>``, or ``geomprobe/eval/<metric>/<site>``.

    Numbers that are not finite (a metric undefined on what was seen) are left out: a gap in a chart, not a zero. Curves are not
    in it: they change in two dimensions, and a tracker that draws lines has no place for them.

    >>> flat(Reading(mode="eval", sites=("embed",), values={"entropy/embed": 0.5, "anisotropy/embed": float("nan")}))
    {'geomprobe/eval/entropy/embed': 0.5}
    """
    prefix = "geomprobe" if reading.mode == "train" else f"geomprobe/{reading.mode}"
    return {f"{prefix}/{name}": value for name, value in reading.values.items() if math.isfinite(value)}
