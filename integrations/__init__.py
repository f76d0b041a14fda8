"""Integrations of geomprobe with Hugging Face Trainer, training loops and trackers.

Public names are loaded when they are first used, so that one integration can be imported without the packages of the others.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from geomprobe.integrations.hf_trainer import ProbeCallback
    from geomprobe.integrations.lightning import LightningCallback
    from geomprobe.integrations.loops import log_reading
    from geomprobe.integrations.names import flat
    from geomprobe.integrations.wandb_sink import WandbSink, offline_without_login

__all__ = ["LightningCallback", "ProbeCallback", "WandbSink", "flat", "log_reading", "offline_without_login"]

_HOME = {
    "LightningCallback": "geomprobe.integrations.lightning",
    "ProbeCallback": "geomprobe.integrations.hf_trainer",
    "WandbSink": "geomprobe.integrations.wandb_sink",
    "flat": "geomprobe.integrations.names",
    "log_reading": "geomprobe.integrations.loops",
    "offline_without_login": "geomprobe.integrations.wandb_sink",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'geomprobe.integrations' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
