"""What a capture reports, as it reports it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from geomprobe import Probe
from geomprobe.core.attention_summary import AttentionRows
from geomprobe.core.layer_rows import NOTHING, LayerRows

__all__ = ["on_capture"]


def on_capture(probe: Probe, told: Callable[[str, Tensor, AttentionRows | None], object]) -> None:
    """Tell ``told`` of every site, its hidden states and its attention, before the recorder of ``probe`` is told."""
    recorder, captured = probe._recorder, probe._recorder.captured

    def watched(context: Any, site: str, hidden: Tensor, beside: LayerRows = NOTHING) -> None:
        told(site, hidden, beside.attention)
        captured(context, site, hidden, beside)

    recorder.captured = watched  # type: ignore[method-assign]
