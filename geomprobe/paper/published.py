"""Normalised matrix entropies that Wei et al. (2024) printed, which Figure 1 is simulated from.

``H / log d`` of ``last_hidden_state``, less each text's mean, in unit rows; from version 1 of *Diff-eRank*, as arXiv:2410.10672
tabulates them (Tables 10 and 11).
"""

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["PUBLISHED", "Family"]


class Family(NamedTuple):
    """Models of one kind, small to large.

    Attributes:
        names: what their authors call the sizes.
        parameters: how many.
        widths: dimensions of a hidden state.
        entropies: ``H / log d`` by data set.
    """

    names: tuple[str, ...]
    parameters: tuple[float, ...]
    widths: tuple[int, ...]
    entropies: Mapping[str, tuple[float, ...]]


PUBLISHED = {
    "Cerebras-GPT": Family(
        ("111M", "256M", "590M", "1.3B", "2.7B", "6.7B", "13B"),
        (111e6, 256e6, 590e6, 1.3e9, 2.7e9, 6.7e9, 13e9),
        (768, 1088, 1536, 2048, 2560, 4096, 5120),
        {
            "dolly-15k": (0.5976, 0.5840, 0.5582, 0.5477, 0.5240, 0.5064, 0.4859),
            "wikipedia": (0.6177, 0.6077, 0.5848, 0.5786, 0.5523, 0.5368, 0.5126),
            "openwebtext2": (0.6527, 0.6479, 0.6206, 0.6142, 0.5855, 0.5683, 0.5463),
            "hh-rlhf": (0.5753, 0.5635, 0.5350, 0.5268, 0.4971, 0.4813, 0.4640),
        },
    ),
    "Pythia": Family(
        ("14M", "31M", "70M", "160M", "410M", "1B", "1.4B", "2.8B", "6.9B", "12B"),
        (14e6, 31e6, 70e6, 160e6, 410e6, 1e9, 1.4e9, 2.8e9, 6.9e9, 12e9),
        (128, 256, 512, 768, 1024, 2048, 2048, 2560, 4096, 5120),
        {
            "dolly-15k": (0.7732, 0.7155, 0.6707, 0.6243, 0.5760, 0.5328, 0.5309, 0.5263, 0.5003, 0.4876),
            "wikipedia": (0.7938, 0.7442, 0.7003, 0.6580, 0.6039, 0.5584, 0.5587, 0.5553, 0.5314, 0.5140),
            "openwebtext2": (0.8144, 0.7749, 0.7370, 0.6980, 0.6415, 0.5944, 0.5916, 0.5887, 0.5591, 0.5417),
            "hh-rlhf": (0.7673, 0.7114, 0.6607, 0.6126, 0.5552, 0.5054, 0.5032, 0.4977, 0.4699, 0.4528),
        },
    ),
}
