"""Options that several commands have."""

from enum import StrEnum
from typing import Annotated

import typer

__all__ = ["Device", "Dtype"]


class Dtype(StrEnum):
    """The dtypes in which models are loaded."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    auto = "auto"


Device = Annotated[
    str | None, typer.Option(help="Device, such as cpu, cuda or cuda:1. Default: CUDA if available, else the CPU.")
]
