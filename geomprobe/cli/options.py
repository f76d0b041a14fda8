"""Options that several commands have."""

from enum import StrEnum
from typing import Annotated

import typer

__all__ = ["CkaRows", "Device", "Dtype", "ProtocolName", "WhichRows"]


class Dtype(StrEnum):
    """The dtypes in which models are loaded."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    auto = "auto"


class WhichRows(StrEnum):
    """Which rows of a text count."""

    all = "all"
    last = "last"
    mean = "mean"


class CkaRows(StrEnum):
    """How the rows are scaled that CKA compares."""

    unit = "unit"
    raw = "raw"


ProtocolName = StrEnum(
    "ProtocolName",
    ["three-phases", "matrix-entropy", "prompt-entropy", "dataset-entropy", "rankme", "attention-sink"],
)
"""The names of :data:`geomprobe.protocols.PROTOCOLS`, whose module needs torch, which ``--help`` does not wait for."""

Device = Annotated[
    str | None, typer.Option(help="Device, such as cpu, cuda or cuda:1. Default: CUDA if available, else the CPU.")
]
