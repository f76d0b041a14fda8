"""How products are computed: in float64, in float32 parts of the same accuracy, or in TF32 where that is accurate enough."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal, get_args

import torch

__all__ = ["PRECISIONS", "Precision", "precision", "splits", "tensor_cores"]

Precision = Literal["auto", "float64", "split"]
"""``"float64"`` computes Gram matrices in float64, and ``"split"`` in parts in float32 (:mod:`geomprobe.core.split`).
``"auto"`` chooses ``"split"`` on devices with slow float64."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}
"""Compute capabilities of NVIDIA GPUs (P100, V100, A100, H100, B200) with at least a quarter of the float32 rate in float64.
All others have 1/32 or 1/64 of it."""

_present: ContextVar[Precision] = ContextVar("precision", default="float64")


@contextmanager
def precision(kind: Precision) -> Iterator[None]:
    """A context manager that sets how the functions of this package compute products. Outside of it they use float64."""
    token = _present.set(kind)
    try:
        yield
    finally:
        _present.reset(token)


def splits(device: torch.device) -> bool:
    """Return whether Gram matrices and their factors on ``device`` are computed in parts in float32."""
    kind = _present.get()
    return kind == "split" or (kind == "auto" and not _has_fast_float64(device))


@contextmanager
def tensor_cores(device: torch.device) -> Iterator[None]:
    """A context manager in which float32 products on ``device`` are computed in TF32, unless the precision is ``"float64"`` or
    the device has no TF32.

    Only for products that are accurate enough with operands of 10 bits, as those of covariances are: emulated on trained
    models, it changed entropies by up to 3e-6 and effective ranks by up to 4e-5 of their values.
    """
    matmul = torch.backends.cuda.matmul
    if _present.get() == "float64" or not _has_tf32(device):
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@cache
def _has_fast_float64(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    if torch.version.hip is not None:  # the Instinct series
        return torch.cuda.get_device_properties(device).gcnArchName.startswith(("gfx90a", "gfx908", "gfx94", "gfx95"))
    return torch.cuda.get_device_capability(device) in _FAST_FLOAT64


@cache
def _has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
