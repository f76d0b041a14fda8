"""Figure 3: information gain against the length of the input, for models of several sizes.

The paper makes four claims about it (section 4.1): the normalised gain rises with length, and more moderately in larger models;
the increments fall with length, and less so in larger models. Each claim has a verdict. The claims about sizes also have
verdicts for random weights and for Gaussian rows of the same widths, where nothing was learned. Sizes are compared over the
lengths that all models reach.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import spearmanr

from geomprobe.paper.experiment import Experiment, Kind, Request, Table, Verdict, cell
from geomprobe.paper.models import by_size, failure_tables, failures, read_from, swept
from geomprobe.paper.style import MUTED, canvas, caption, shades
from geomprobe.report.theme import si_format
from geomprobe.sweeps.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIG3"]

_BIN = 4
"""Number of successive positions whose increments are averaged before they are drawn."""
_TELLING = 0.01
"""Level below which the p-value of a rank correlation must be, so that it counts."""
_LEAST = 9
"""Least number of tokens of a text, so that it has quarters after its first token."""
_SIZES = 3
"""Least number of models for a verdict on sizes, because two models always follow some order."""
_KINDS = {"trained": "", "untrained": "random weights", "gaussian": "Gaussian rows"}
"""The sources of rows, and their names in verdicts."""


@dataclass(frozen=True)
class Gain:
    """The increments at the positions that at least half of the texts reach, their running sum, and their trend.

    The trend is Spearman's ``rho`` with its ``p``. The first increment is left out of it, because it is ``½ log(1 + σ⁻²)`` for
    any row.
    """

    gain: list[float]
    total: list[float]
    texts: int
    first_quarter: float
    last_quarter: float
    rho: float
    p: float


@dataclass(frozen=True)
class Model:
    """The gain of texts in a model, and in its null baselines."""

    name: str
    parameters: int
    width: int
    trained: Gain
    untrained: Gain | None
    gaussian: Gain | None

    def of(self, kind: str) -> Gain | None:
        """The gain in one kind of rows."""
        return {"trained": self.trained, "untrained": self.untrained, "gaussian": self.gaussian}[kind]


@dataclass(frozen=True)
class Figure3:
    """The numbers of figure 3."""

    models: list[Model]
    read: str
    failed: list[list[str]]


def _measure_gain(request: Request) -> Figure3:
    run = swept(request)
    models = []
    for record in by_size(run):
        nulls = [run.baseline(record, "untrained"), run.baseline(record, "gaussian")]
        gains = [None if null is None else _gain(null) for null in nulls]
        models.append(Model(record.name, record.parameters or 0, record.width or 0, _gain(record), *gains))
    return Figure3(models, read_from(request, run), failures(run))


def _gain(record: Record) -> Gain:
    assert record.reading is not None
    curve = record.reading.curve("gain", record.reading.sites[-1])
    count = np.array(curve.count)
    kept = count >= count.max() / 2
    gain = np.array(curve.mean)[kept]
    later = gain[1:]
    quarter = max(1, len(later) // 4)
    trend = spearmanr(np.arange(len(later)), later) if len(later) > 2 and np.ptp(later) > 0 else None
    return Gain(
        gain.tolist(),
        gain.cumsum().tolist(),
        int(count.max()),
        first_quarter=float(later[:quarter].mean()) if len(later) else math.nan,
        last_quarter=float(later[-quarter:].mean()) if len(later) else math.nan,
        rho=math.nan if trend is None else float(trend.statistic),
        p=math.nan if trend is None else float(trend.pvalue),
    )


def _draw_gain(numbers: Figure3) -> "Figure":
    figure, (total, each) = canvas(1, 2, width=5.2, height=3.6)
    models = numbers.models
    styles = {"trained": ("-", 1.6), "untrained": ("--", 1.0), "gaussian": (":", 1.0)}
    for model, colour in zip(models, shades(len(models)), strict=True):
        for kind, (dash, width) in styles.items():
            if (found := model.of(kind)) is None:
                continue
            gain = np.array(found.gain)
            label = f"{si_format(model.parameters)}, d = {model.width}" if kind == "trained" else None
            style: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": width, "label": label}
            total.plot(np.arange(1, len(gain) + 1), np.array(found.total) / model.width, **style)
            ends = np.arange(1, len(gain) - _BIN + 1, _BIN)
            if len(ends):
                each.plot(ends + (_BIN + 1) / 2, [gain[i : i + _BIN].mean() for i in ends], **style)
    each.plot([], [], color=MUTED, linestyle="--", linewidth=1, label="untrained")
    each.plot([], [], color=MUTED, linestyle=":", linewidth=1, label="Gaussian rows")
    total.set_title("Information gain of a text, per dimension")
    total.set_ylabel("nats / d")
    each.set_title(f"What each token adds (means of {_BIN})")
    each.set_ylabel("nats")
    each.set_ylim(bottom=0)
    for axes in (total, each):
        axes.set_xlabel("length of the text, tokens")
    figure.legend(*each.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    caption(figure, f"{numbers.read}; σ = 0.01")
    return figure


def _tables_of_gain(numbers: Figure3) -> list[Table]:
    rows = []
    for model in numbers.models:
        for kind in _KINDS:
            if (gain := model.of(kind)) is None:
                continue
            name = f"{si_format(model.parameters)}, d = {model.width}" if kind == "trained" else f"  {kind}"
            trend = (cell(number, ".2f") for number in (gain.first_quarter, gain.last_quarter, gain.rho))
            total = gain.total[-1]
            rows.append([name, f"{len(gain.gain)}", f"{total:.0f}", f"{total / model.width:.2f}", *trend])
    columns = ("model", "tokens", "nats", "nats / d", "first ¼", "last ¼", "ρ")
    title = "gain of a text; mean gain of a token in the first and last ¼; its trend ρ"
    return [Table(title, columns, rows), *failure_tables(numbers.failed)]


def _judge_gain(numbers: Figure3) -> list[Verdict]:
    models = numbers.models
    trained = [model.trained for model in models]
    least = min(min(gain.gain) for gain in trained)
    falling, rising = ([_moves(gain, sign) for gain in trained] for sign in (-1, 1))
    nulls = [model.untrained for model in models if model.untrained is not None]
    return [
        Verdict(
            "The normalised gain rises with the length of the input",
            least > 0,
            f"the smallest increment is {least:.2g} nats; ½ log(1 + σ⁻²σ_T²) is never negative, so the gain rises for any rows",
        ),
        *_judge_sizes("The gain rises more moderately in larger models", models, _rise),
        Verdict(
            "Increments fall with the length of the input",
            True if all(falling) else False if any(rising) else None,
            f"in {sum(falling)} of {len(trained)} models (Spearman, p < {_TELLING}), and in "
            f"{sum(_moves(gain, -1) for gain in nulls)} of {len(nulls)} with random weights",
        ),
        *_judge_sizes("Increments fall less in larger models", models, _fall),
    ]


def _judge_sizes(claim: str, models: Sequence[Model], measured: Callable[[Sequence[float], int], float]) -> list[Verdict]:
    """Whether a number falls from each model to the next larger one: in trained models, and in each null baseline.

    The claim holds if it falls at every step, does not hold if it falls at none, and is undecided otherwise.
    """
    sized = sorted((model for model in models if model.parameters), key=lambda model: model.parameters)
    verdicts = []
    for kind, called in _KINDS.items():
        known = [(model, gain.gain) for model in sized if (gain := model.of(kind)) is not None]
        length = min((len(gain) for _, gain in known), default=0)
        whose: Kind = "paper" if kind == "trained" else "ours"
        of = claim if kind == "trained" else f"With {called}, too: {claim[0].lower()}{claim[1:]}"
        if len(known) < _SIZES or length < _LEAST:
            verdicts.append(Verdict(of, None, f"needs {_SIZES} models or more, and texts of {_LEAST} tokens or more", whose))
            continue
        values = [measured(gain[1:length], model.width) for model, gain in known]
        steps = np.diff(values) < 0
        listed = ", ".join(
            f"{si_format(model.parameters)} {value:.3g}" for (model, _), value in zip(known, values, strict=True)
        )
        verdicts.append(Verdict(of, {0: False, len(steps): True}.get(int(steps.sum())), f"{_UNITS[measured]}: {listed}", whose))
    return verdicts


def _rise(later: Sequence[float], width: int) -> float:
    return float(np.mean(later)) / width


def _fall(later: Sequence[float], width: int) -> float:
    quarter = len(later) // 4
    return float(np.mean(later[:quarter]) - np.mean(later[-quarter:]))


_UNITS: dict[Callable[[Sequence[float], int], float], str] = {
    _rise: "nats / d that each further token adds",
    _fall: "nats by which increments fall from the first to the last quarter",
}
"""The quantities that the verdicts on sizes compare."""


def _moves(gain: Gain, sign: int) -> bool:
    """Whether increments fall (−1) or rise (+1) with position by more than chance."""
    return sign * gain.rho > 0 and gain.p < _TELLING


FIG3 = Experiment(
    name="fig3",
    title="Information gain against length",
    place="Figure 3",
    read=(
        "The left panel shows ½ logdet(I + σ⁻²K) of the first T tokens, divided by d, with σ = 0.01. The right panel shows "
        "what each further token adds. This falls as new rows repeat earlier directions."
    ),
    caveat=(
        "The gain is not a surprisal: random weights (dashed) and Gaussian rows (dotted) have a gain as well. Divided by d, it "
        "is lower for a wider model whatever this model has learned, because T rows fill at most T directions."
    ),
    of="sizes",
    numbers=Figure3,
    measure=_measure_gain,
    draw=_draw_gain,
    tables=_tables_of_gain,
    judge=_judge_gain,
)
