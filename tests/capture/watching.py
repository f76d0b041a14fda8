"""What a capture reports, as it reports it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from geomprobe import Probe
from geomprobe.core.attention_summary import AttentionRows

__all__ = ["on_capture"]


def on_capture(probe: Probe, told: Callable[[str, Tensor, AttentionRows | None], object]) -> None:
    """Tell ``told`` of every site, its hidden states and its attention, before the recorder of ``probe`` is told."""
    recorder, captured = probe._recorder, probe._recorder.captured

    def watched(context: Any, site: str, hidden: Tensor, attention: AttentionRows | None = None) -> None:
        told(site, hidden, attention)
        captured(context, site, hidden, attention)

    recorder.captured = watched  # type: ignore[method-assign]
