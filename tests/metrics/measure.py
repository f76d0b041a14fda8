"""What a probe does for one site, without a model."""

import torch

from geomprobe.accumulators.state import Accumulator, State, add
from geomprobe.core.rows import Rows
from geomprobe.metrics.base import Curve, Metric


def states_of(metric: Metric, *stream: Rows) -> dict[Accumulator, State]:
    """The states that ``metric`` needs, after ``stream``."""
    states = {need: need.new_state(stream[0].width, torch.device("cpu")) for need in metric.accumulators}
    for rows in stream:
        for accumulator, state in states.items():
            add(state, accumulator.contribution(rows))
    return states


def scalars_of(metric: Metric, *stream: Rows) -> dict[str, float]:
    """The metric's numbers, as a reading holds them."""
    return {name: float(value) for name, value in metric.scalars(states_of(metric, *stream)).items()}


def curves_of(metric: Metric, *stream: Rows) -> dict[str, Curve]:
    """The metric's curves."""
    return dict(metric.curves(states_of(metric, *stream)))
