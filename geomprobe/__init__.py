"""Watch the geometry of a language model's representations from inside the forward pass.

Public names are loaded when they are first used, so that ``import geomprobe`` and ``geomprobe --help`` do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from geomprobe.errors import EmptyReadingError, GeomprobeError

if TYPE_CHECKING:
    from geomprobe.capture.decoder import Decoder
    from geomprobe.inspection.notebook import show_tokens
    from geomprobe.metrics.activations import MassiveActivations
    from geomprobe.metrics.attention import AttentionProfile
    from geomprobe.metrics.base import Metric
    from geomprobe.metrics.context_lasso import ContextLasso
    from geomprobe.metrics.curvature import Curvature
    from geomprobe.metrics.entropy import RepresentationEntropy
    from geomprobe.metrics.information_gain import InformationGain
    from geomprobe.metrics.mean_representation import MeanRepresentation
    from geomprobe.metrics.residual_growth import ResidualGrowth
    from geomprobe.metrics.routing import RouterProfile
    from geomprobe.monitoring.alarm import Alarm
    from geomprobe.monitoring.monitor import Monitor
    from geomprobe.monitoring.rules import Rule
    from geomprobe.probe import Probe
    from geomprobe.reading import Cost, Reading
    from geomprobe.schedule import budget, every
    from geomprobe.sweeps.config import SweepConfig
    from geomprobe.sweeps.sweep import sweep

__version__ = "0.2.0"
__all__ = [
    "Alarm",
    "AttentionProfile",
    "ContextLasso",
    "Cost",
    "Curvature",
    "Decoder",
    "EmptyReadingError",
    "GeomprobeError",
    "InformationGain",
    "MassiveActivations",
    "MeanRepresentation",
    "Metric",
    "Monitor",
    "Probe",
    "Reading",
    "RepresentationEntropy",
    "ResidualGrowth",
    "RouterProfile",
    "Rule",
    "SweepConfig",
    "budget",
    "every",
    "show_tokens",
    "sweep",
]

_HOME = {
    "Alarm": "geomprobe.monitoring.alarm",
    "AttentionProfile": "geomprobe.metrics.attention",
    "ContextLasso": "geomprobe.metrics.context_lasso",
    "Cost": "geomprobe.reading",
    "Curvature": "geomprobe.metrics.curvature",
    "Decoder": "geomprobe.capture.decoder",
    "InformationGain": "geomprobe.metrics.information_gain",
    "MassiveActivations": "geomprobe.metrics.activations",
    "MeanRepresentation": "geomprobe.metrics.mean_representation",
    "Metric": "geomprobe.metrics.base",
    "Monitor": "geomprobe.monitoring.monitor",
    "Probe": "geomprobe.probe",
    "Reading": "geomprobe.reading",
    "RepresentationEntropy": "geomprobe.metrics.entropy",
    "ResidualGrowth": "geomprobe.metrics.residual_growth",
    "RouterProfile": "geomprobe.metrics.routing",
    "Rule": "geomprobe.monitoring.rules",
    "SweepConfig": "geomprobe.sweeps.config",
    "budget": "geomprobe.schedule",
    "every": "geomprobe.schedule",
    "show_tokens": "geomprobe.inspection.notebook",
    "sweep": "geomprobe.sweeps.sweep",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'geomprobe' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
