"""Figures 1 and 3: entropy and information gain of models of several sizes, and what width alone does to them."""

import json
import math
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr

from geomprobe.core.spectrum import equal_spectrum_entropy
from geomprobe.errors import GeomprobeError
from geomprobe.paper.drawing import COLOURS, MUTED, UNTRAINED, canvas, shades
from geomprobe.paper.facts import PUBLISHED
from geomprobe.paper.family import default_data
from geomprobe.paper.piece import Numbers, Piece, Request, Table, Verdict
from geomprobe.report.style import thousands
from geomprobe.runs.records import Record, Run
from geomprobe.runs.sweep import sweep
from geomprobe.theory.power_law import fit_power_law

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIG1", "FIG3"]

Floats = NDArray[np.float64]

_SAMPLE = 4096
"""Tokens whose texts are measured closely."""
_BIN = 4
"""Positions whose increments are drawn as their mean."""
_TELLING = 0.01
"""Of a rank correlation: below, it is taken for one."""
_FITS = {"power": "power", "log-linear": "log", "constant": "constant"}
"""What the table calls fits."""
_MATRIX_ENTROPY = "centered_text_matrix_entropy/final_norm"
"""Wei et al.'s: of each text's rows less their mean, mean over texts."""


def _swept(request: Request) -> Run:
    """The models of a request read on its data, each beside its untrained self; what an earlier run read is kept."""
    key = json.dumps(request.key(FIG1), sort_keys=True, default=str)
    run = sweep(
        request.models,
        data=default_data(request),
        out=request.out / f"sizes-{sha256(key.encode()).hexdigest()[:8]}",
        field=request.field,
        tokens=request.tokens,
        sample=min(_SAMPLE, request.tokens),
        seed=request.seed,
        dtype=request.dtype,
        device=request.device,
        progress=True,
    )
    if not run.checkpoints:
        raise GeomprobeError(f"no model was read: {run.failed[0].error}")
    return run


# -- Figure 1 ---------------------------------------------------------------------------------------------------------------


def _measure_entropy(request: Request) -> Numbers:
    published = {
        f"{family}, {data}": _trend(known.parameters, known.widths, np.power(known.widths, entropies))
        for family, known in PUBLISHED.items()
        for data, entropies in known.entropies.items()
    }
    run = _swept(request)
    pairs = [(record, run.baseline(record, "untrained")) for record in run.checkpoints]
    parameters = [record.parameters or math.nan for record, _ in pairs]
    widths = [record.width or math.nan for record, _ in pairs]
    own = _trend(parameters, widths, [_rank(record) for record, _ in pairs])
    nulls = [math.nan if null is None else _rank(null) for _, null in pairs]
    own |= {
        "names": [record.name for record, _ in pairs],
        "text_entropy": [_value(record, "centered_text_entropy/final_norm") for record, _ in pairs],
        "loss": [record.loss for record, _ in pairs],
        "untrained": _trend(parameters, widths, nulls),
    }
    return {"published": published, "own": own, "failed": [f"{r.name}: {r.error}" for r in run.failed]}


def _trend(parameters: ArrayLike, widths: ArrayLike, ranks: ArrayLike) -> dict[str, Any]:
    """Eq. 1 of ``r/d`` along sizes, beside what it would be had every size the same rank, and the power law that fits best.

    ``share`` is how much of the fall of log entropy, first to last, is there with the same rank too: what is left for the
    models themselves is ``1 − share``. ``law`` is ``None`` where fewer than four sizes are known.
    """
    d, r = np.asarray(widths, np.float64), np.asarray(ranks, np.float64)
    entropy, same = _equation_1(r / d), _equation_1(np.exp(np.log(r).mean()) / d)
    fall = math.log(entropy[0] / entropy[-1])
    try:
        law: Mapping[str, Any] | None = vars(fit_power_law(parameters, entropy))
    except GeomprobeError:
        law = None
    return {
        "parameters": np.asarray(parameters, np.float64),
        "widths": d,
        "ranks": r,
        "entropy": entropy,
        "same_rank": same,
        "share": math.log(same[0] / same[-1]) / fall if fall else math.nan,
        "law": law,
    }


def _equation_1(ratio: ArrayLike) -> Floats:
    return np.asarray(equal_spectrum_entropy(torch.as_tensor(ratio)).numpy())


def _value(record: Record, name: str) -> float:
    assert record.reading is not None  # it is one of those that were read
    return record.reading[name]


def _rank(record: Record) -> float:
    return math.exp(_value(record, _MATRIX_ENTROPY))


def _draw_entropy(numbers: Numbers) -> "Figure":
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, (entropy, rank, own) = canvas(1, 3, width=3.7, height=3.4)
    for colour, family in zip(COLOURS, PUBLISHED, strict=False):
        sets = [trend for name, trend in numbers["published"].items() if name.startswith(f"{family},")]
        for number, trend in enumerate(sets):
            label = family if number == 0 else None
            for axes, of in ((entropy, "entropy"), (rank, "ranks")):
                axes.plot(trend["parameters"], trend[of], color=colour, marker="o", markersize=3, label=label, linewidth=1.1)
        same = np.exp(np.log([trend["same_rank"] for trend in sets]).mean(0))
        entropy.plot(sets[0]["parameters"], same, color=MUTED, linestyle=":", zorder=3)
    entropy.plot([], [], color=MUTED, linestyle=":", label="same rank at every size")
    trend, null = numbers["own"], numbers["own"]["untrained"]
    own.plot(trend["parameters"], trend["entropy"], color=COLOURS[0], marker="o", label="trained")
    if None not in null["entropy"]:
        own.plot(null["parameters"], null["entropy"], color=UNTRAINED, linestyle="--", marker="o", label="untrained")
    own.plot(trend["parameters"], trend["same_rank"], color=MUTED, linestyle=":", label="same rank at every size")
    entropy.set_title("Eq. 1, published, four data sets each")
    rank.set_title("Effective rank $e^H$ behind it")
    own.set_title("Eq. 1, models at hand")
    for axes, unit in ((entropy, "share of its maximum"), (rank, "directions"), (own, "share of its maximum")):
        _size_axis(axes, own_sizes=trend["parameters"] if axes is own else None)
        axes.set_ylabel(unit)
        axes.legend()
    for axes in (entropy, own):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    rank.set_ylim(bottom=0)
    return figure


def _size_axis(axes: "Axes", own_sizes: Sequence[float] | None) -> None:
    """A log axis of parameters; few sizes are its ticks."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.set_xlabel("parameters")
    if own_sizes is not None and len(own_sizes) <= 5:
        axes.set_xticks(own_sizes)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: thousands(size)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _tables_of_entropy(numbers: Numbers) -> list[Table]:
    columns = ("models", "e^H", "Eq. 1", "γ", "best fit", "by width")
    rows = [_trend_row(name, trend) for name, trend in numbers["published"].items()]
    own, null = numbers["own"], numbers["own"]["untrained"]
    rows += [_trend_row("models at hand", own)]
    rows += [_trend_row("… untrained", null)] if None not in null["ranks"] else []
    each = [
        [
            thousands(size),
            f"{width:.0f}",
            *(_form(value, form) for value, form in ((rank, ".1f"), (entropy, ".3f"), (direct, ".3f"), (loss, ".2f"))),
            _form(untrained, ".1f"),
        ]
        for size, width, rank, entropy, direct, loss, untrained in zip(
            *(own[name] for name in ("parameters", "widths", "ranks", "entropy", "text_entropy", "loss")),
            null["ranks"],
            strict=True,
        )
    ]
    return [
        Table("smallest to largest, L = L₀ + λN^γ; by width: how much of the fall one rank gives", columns, rows),
        Table(
            "models at hand",
            ("parameters", "d", "e^H", "Eq. 1", "Def. 3.1", "loss", "e^H untrained"),
            each,
        ),
    ]


def _trend_row(name: str, trend: Mapping[str, Any]) -> list[str]:
    def ends(of: str, form: str) -> str:
        return f"{trend[of][0]:{form}} → {trend[of][-1]:{form}}"

    law, share = trend["law"], _form(trend["share"], ".0%")
    fit = ("–", "–") if law is None else (f"{law['exponent']:.2f}", f"{_FITS[law['best']]} {law['weights'][law['best']]:.0%}")
    return [name, ends("ranks", ".0f"), ends("entropy", ".2f"), *fit, share]


def _form(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _judge_entropy(numbers: Numbers) -> list[Verdict]:
    groups = {"published": list(numbers["published"].values()), "models at hand": [numbers["own"]]}
    return [judge(where, trends) for where, trends in groups.items() for judge in (_judge_law, _judge_width)]


def _judge_law(where: str, trends: Sequence[Mapping[str, Any]]) -> Verdict:
    """Holds if in every data set the points prefer a power law, and does not if in none."""
    claim, laws = f"Entropy is a power law of size ({where})", [trend["law"] for trend in trends]
    if None in laws:
        return Verdict(claim, None, "needs models of at least four sizes")
    nulls = [trend["untrained"]["law"] for trend in trends if "untrained" in trend]
    won = sum(law["best"] == "power" for law in laws)
    exponents = _range([law["exponent"] for law in laws], ".2f")
    return Verdict(
        claim,
        {0: False, len(laws): True}.get(won),
        f"of power law, logarithm and constant the points prefer the power law in {won} of {len(laws)}; exponents {exponents}"
        + "".join(f"; untrained the same models prefer {null['best']}" for null in nulls if null is not None),
    )


def _judge_width(where: str, trends: Sequence[Mapping[str, Any]]) -> Verdict:
    """Does not hold if the same rank at every size gives 90% of the fall everywhere; holds if it gives at most half."""
    shares = [trend["share"] for trend in trends]
    ranks, widths = (_range([trend[of][-1] / trend[of][0] for trend in trends], ".1f") for of in ("ranks", "widths"))
    claim = f"It falls because the models differ, not only their width ({where})"
    if None in shares:
        return Verdict(claim, None, "needs models of at least two widths")
    return Verdict(
        claim,
        False if min(shares) >= 0.9 else True if max(shares) <= 0.5 else None,
        f"with one rank for all sizes the fall is {_range(shares, '.0%')} of what it is; the rank itself goes by a factor of "
        f"{ranks} while d goes by {widths}",
    )


def _range(values: Sequence[float], form: str) -> str:
    """Both ends of values, or the one that there is."""
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} to {high}"


FIG1 = Piece(
    name="fig1",
    title="Entropy against model size",
    place="Figure 1",
    read=(
        "Eq. 1 turns the effective rank e^H of a model's rows into a normalised entropy, with r/d in it; dotted is the same "
        "with one rank for all sizes, so that only the width d differs."
    ),
    isnt=(
        "A straight line here is no law of the models where the dotted one is as steep: the ranks behind it, in the middle, "
        "are nearly flat."
    ),
    of="sizes",
    measure=_measure_entropy,
    draw=_draw_entropy,
    tables=_tables_of_entropy,
    judge=_judge_entropy,
)

# -- Figure 3 ---------------------------------------------------------------------------------------------------------------


def _measure_gain(request: Request) -> Numbers:
    run = _swept(request)
    models = []
    for record in run.checkpoints:
        nulls = {"untrained": run.baseline(record, "untrained"), "gaussian": run.baseline(record, "gaussian")}
        models.append(
            {"name": record.name, "parameters": record.parameters, "width": record.width, "trained": _gain(record)}
            | {kind: null and _gain(null) for kind, null in nulls.items()}
        )
    return {"models": models, "failed": [f"{r.name}: {r.error}" for r in run.failed]}


def _gain(record: Record) -> dict[str, Any]:
    """Increments by position, of positions that at least half of the texts reach, their running sum, and their trend.

    The first increment is left out of the trend: it is ``½ log(1 + σ⁻²)`` whatever the row is.
    """
    assert record.reading is not None
    curve = record.reading.curve("gain", record.reading.sites[-1])
    count = np.array(curve.count)
    kept = count >= count.max() / 2
    gain = np.array(curve.mean)[kept]
    later = gain[1:]
    quarter = max(1, len(later) // 4)
    trend = spearmanr(np.arange(len(later)), later) if len(later) > 2 and np.ptp(later) > 0 else None
    return {
        "gain": gain,
        "total": gain.cumsum(),
        "texts": int(count.max()),
        "first_quarter": later[:quarter].mean() if len(later) else math.nan,
        "last_quarter": later[-quarter:].mean() if len(later) else math.nan,
        "rho": None if trend is None else float(trend.statistic),
        "p": None if trend is None else float(trend.pvalue),
    }


def _draw_gain(numbers: Numbers) -> "Figure":
    figure, (total, each) = canvas(1, 2, width=5.2, height=3.6)
    models = numbers["models"]
    styles = {"trained": ("-", 1.6), "untrained": ("--", 1.0), "gaussian": (":", 1.0)}
    for model, colour in zip(models, shades(len(models)), strict=True):
        for kind, (dash, width) in styles.items():
            if model[kind] is None:
                continue
            gain = np.array(model[kind]["gain"])
            label = f"{thousands(model['parameters'])}, d = {model['width']}" if kind == "trained" else None
            style: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": width, "label": label}
            total.plot(np.arange(1, len(gain) + 1), np.array(model[kind]["total"]) / model["width"], **style)
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
    each.legend(loc="upper right")
    return figure


def _tables_of_gain(numbers: Numbers) -> list[Table]:
    rows = []
    for model in numbers["models"]:
        for kind in ("trained", "untrained", "gaussian"):
            if (gain := model[kind]) is None:
                continue
            name = f"{thousands(model['parameters'])}, d = {model['width']}" if kind == "trained" else f"  {kind}"
            quarters = (_form(gain[of], ".2f") for of in ("first_quarter", "last_quarter"))
            total = gain["total"][-1]
            rows.append(
                [
                    name,
                    f"{len(gain['gain'])}",
                    f"{total:.0f}",
                    f"{total / model['width']:.2f}",
                    *quarters,
                    _form(gain["rho"], ".2f"),
                ]
            )
    columns = ("model", "tokens", "nats", "nats / d", "first ¼", "last ¼", "ρ")
    return [Table("gain of a text; of each token in its first and last quarter; trend of the latter", columns, rows)]


def _judge_gain(numbers: Numbers) -> list[Verdict]:
    models = numbers["models"]
    least = min(min(model["trained"]["gain"]) for model in models)
    nulls = [model["untrained"] for model in models if model["untrained"] is not None]
    rises = Verdict(
        "Gain rises with the length of the input",
        least > 0,
        f"the least increment is {least:.2g} nats; ½ log(1 + σ⁻²σ_T²) cannot be negative, so it rises for any rows, also of "
        "untrained models: this tells nothing of training",
    )
    trained = [model["trained"] for model in models]
    falling, rising = ([_moves(gain, sign) for gain in trained] for sign in (-1, 1))
    kept = [gain["last_quarter"] / gain["first_quarter"] for gain in trained if gain["first_quarter"]]
    falls = Verdict(
        "Each further token adds less",
        True if all(falling) else False if any(rising) else None,
        f"increments fall with position in {sum(falling)} of {len(trained)} models (Spearman, p < {_TELLING}), and in "
        f"{sum(_moves(gain, -1) for gain in nulls)} of {len(nulls)} untrained ones; the last quarter adds "
        f"{_range(kept, '.0%')} of the first",
    )
    return [rises, falls]


def _moves(gain: Mapping[str, Any], sign: int) -> bool:
    """Whether increments fall (−1) or rise (+1) with position, beyond chance."""
    return gain["rho"] is not None and bool(sign * gain["rho"] > 0 and gain["p"] < _TELLING)


FIG3 = Piece(
    name="fig3",
    title="Information gain against length",
    place="Figure 3",
    read=(
        "Left, ½ logdet(I + σ⁻²K) of the first T tokens over d, σ = 0.01; right, what each further token adds. A line bends "
        "where new rows repeat old directions."
    ),
    isnt=(
        "It is no surprisal: untrained models (dashed) and Gaussian rows (dotted) gain too, and over d a wider model gains "
        "less whatever it knows, as T rows fill at most T directions."
    ),
    of="sizes",
    measure=_measure_gain,
    draw=_draw_gain,
    tables=_tables_of_gain,
    judge=_judge_gain,
)
