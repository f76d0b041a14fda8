"""The names under which the numbers of a reading are logged to trackers."""

import math
import re
from hashlib import sha256

from geomprobe import Reading

__all__ = ["flat", "safe_name"]


def safe_name(name: str) -> str:
    """Return ``name`` as one level of the name of a metric: all but ASCII letters, digits, ``_``, ``-`` and ``.`` become ``_``.
    If that changes it, part of a hash follows, so that different names stay different.

    >>> safe_name("step512"), safe_name("eval_my set/ä")
    ('step512', 'eval_my_set___08b7')
    """
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    return safe if safe == name else f"{safe}_{sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:4]}"


def flat(reading: Reading) -> dict[str, float]:
    """Return the scalars of a reading by the names that trackers get: ``geomprobe/<metric>/<site>`` for training, and
    ``geomprobe/<mode>/<metric>/<site>`` for another mode, such as ``eval`` or ``no_grad``. The name of an evaluation set is
    made safe (:func:`safe_name`).

    Numbers that are not finite, such as those of a metric that is undefined for the measured texts, are left out, which gives a
    gap in a chart. Curves are left out too, because they have one more dimension than a chart over training steps can show.

    >>> flat(Reading(mode="eval", sites=("embed",), values={"entropy/embed": 0.5, "anisotropy/embed": float("nan")}))
    {'geomprobe/eval/entropy/embed': 0.5}
    """
    prefix = "geomprobe" if reading.mode == "train" else f"geomprobe/{safe_name(reading.mode)}"
    return {f"{prefix}/{name}": value for name, value in reading.items() if math.isfinite(value)}
