"""Figures of runs. Every function returns a Plotly ``Figure`` in light colours, or ``None`` if the run lacks its numbers.

In all figures, lines go from faint (early, shallow or small) to strong, an untrained model of the same configuration is dashed,
and Gaussian rows of the same number and width are dotted. ``meta`` of a line is its colour in the dark scheme, and
``customdata`` has the labels of its points. Names from a run are escaped (:func:`geomprobe.report.theme.escape_label`).
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from geomprobe.errors import GeomprobeError
from geomprobe.metrics.base import Curve
from geomprobe.metrics.descriptions import describe
from geomprobe.report.marks import fitted, name_ends, name_points
from geomprobe.report.theme import BASELINES, Ink, categorical, escape_label, sequence, si_format, template
from geomprobe.sweeps.records import Record, Run

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["across_depth", "agreement", "agreement_over_checkpoints", "gain_curves", "heatmap", "over_checkpoints", "scaling"]

_SITES = 6
"""Largest number of layers that are drawn as lines over checkpoints."""
_NAMED = 5
"""Largest number of lines of a sequence that a legend names."""
_FIRST, _LATER = 16, 60
"""Number of positions of a curve that are drawn: all of the first ones, and evenly spaced later ones."""
_AGREEMENT = (
    ("lasso_attention_precision", "share of the most attended tokens that the Lasso picks", "solid", categorical(0)),
    ("lasso_attention_chance", "the same, expected by chance", "dot", categorical(0)),
    ("lasso_attention_jaccard", "share of all picked tokens that both pick", "solid", categorical(3)),
)


# -- layers -----------------------------------------------------------------------------------------------------------------


def heatmap(run: Run, metric: str) -> "Figure | None":
    """Return a heatmap of layers × checkpoints, with columns of equal width, or ``None`` for fewer than two of either."""
    records, sites = run.checkpoints, _sites(run, metric)
    if len(records) < 2 or len(sites) < 2:
        return None
    labels, rows = _labels(run), [escape_label(site) for site in sites]
    z = [[_value(record, metric, site) for record in records] for site in sites]
    floor, known = describe(metric).floor, [value for row in z for value in row if value is not None]
    clipped = floor is not None and min(known) < floor < max(known)
    body = {
        "type": "heatmap",
        "x": labels,
        "y": rows,
        "z": z,
        "hovertemplate": "%{y}<br>%{x}<br>%{z:.4g}<extra></extra>",
    } | ({"zmin": floor, "zmax": max(known)} if clipped else {})
    columns, layers = _some(range(len(records)), 7), _by_layer(sites)
    layout = {
        "xaxis": _ticked(
            "training step" if run.axis == "step" else "model",
            [labels[i] for i in columns],
            _ticks(run, [records[i] for i in columns]),
        ),
        "yaxis": {"showgrid": False} | _ticked("layer", [rows[i] for i in layers["tickvals"]], layers["ticktext"]),
    }
    about = [describe(metric).title, describe(metric).axis, *([f"clipped at {floor:g}".replace("-", "−")] if clipped else [])]
    return _figure([body], ", ".join(about), **layout)


def across_depth(run: Run, metric: str) -> "Figure | None":
    """Return a figure with one line per checkpoint from ``embed`` to ``final_norm``. Models of different depth share an axis
    from 0 to 1."""
    sites = _sites(run, metric)
    if len(sites) < 2:
        return None
    records = run.checkpoints
    alike = len({record.reading.sites for record in records if record.reading}) == 1

    def line(record: Record, **style: Any) -> dict[str, Any]:
        own, x = ["gaussian"] * 2, [0.0, len(sites) - 1 if alike else 1]
        if record.kind != "gaussian":
            own = _own(record, sites)
            x = [sites.index(site) if alike else round(i / max(len(own) - 1, 1), 4) for i, site in enumerate(own)]
        return _line(x, [_value(record, metric, site) for site in own], [escape_label(site) for site in own], **style)

    colours, legend = _ranked(len(records))
    lines = [
        line(record, name=label, colour=colour, legend=named)
        for record, label, colour, named in zip(records, _labels(run), colours, legend, strict=True)
    ]
    room = name_ends(lines) if run.axis == "step" else {}
    nulls = _nulls((run, *of) for of in zip(records, _labels(run), colours, strict=True))
    lines += [line(null, **style) for null, style in nulls]
    axis = _by_layer(sites) if alike else _titled("depth, as a share of the layers")
    return _plot(lines, metric, axis | room)


def _by_layer(sites: Sequence[str]) -> dict[str, Any]:
    """The axis of sites 0, 1, 2 …, with ticks at both ends and at round numbers of layers.

    >>> _by_layer(["embed", *(f"layer_{i:02d}" for i in range(30)), "final_norm"])["ticktext"]
    ['embed', '5', '10', '15', '20', '25', 'final_norm']
    """
    numbers = {i: int(site[6:]) for i, site in enumerate(sites) if site.startswith("layer_") and site[6:].isdecimal()}
    step = next(step for step in (1, 2, 5, 10, 20, 50, len(sites)) if len(sites) <= 7 * step)
    last = len(sites) - 1
    between = [i for i, number in numbers.items() if number % step == 0 and step / 2 < i < last - step / 2]
    ticks = [0, *between, last]
    return _ticked(
        "layer",
        ticks,
        [str(numbers[i]) if i in numbers else escape_label(sites[i], most=10) for i in ticks],
    )


# -- checkpoints ------------------------------------------------------------------------------------------------------------


def over_checkpoints(
    runs: Sequence[Run], metric: str, *, most: int = _SITES, log_steps: bool = True, site: str | None = None
) -> "Figure | None":
    """Return a figure over training steps or model sizes: for one run with lines for up to ``most`` layers, for several runs
    with one line each at the last site.

    For models of different depth, layers at the same share of the depth are compared. Baselines are those of the last site.
    ``metric`` can be ``"loss"``. Without ``log_steps`` the axis of steps is linear. ``site`` selects another site than the
    last one, if one line is drawn. A single line has its first, lowest and last number beside it. Return ``None`` for fewer
    than two checkpoints.
    """
    axis = _Axis.of(runs, log_steps=log_steps)
    single = len(runs) == 1
    lines, nulls = [], []
    for run, colour in zip(runs, _distinct(runs), strict=True):
        sites = _sites(run, metric)
        records = [record for record in run.checkpoints if axis.knows(record)]
        owns = [_own(record, sites) or ["final_norm"] for record in records]
        if site is not None:
            owns = [[site]] * len(records)
        deep = max(owns, key=len, default=[])
        by_layer = single and most > 1
        depths = [i / (len(deep) - 1) for i in _some(range(len(deep)), most)] if by_layer and len(deep) > 1 else [1.0]
        for depth, shade in zip(depths, _ranked(len(depths))[0], strict=True):
            places = [own[round(depth * (len(own) - 1))] for own in owns]
            layer = escape_label(places[0]) if len({*places}) == 1 else f"{depth:.0%} of the depth"
            name = layer if by_layer else escape_label(run.name)
            y = [_value(record, metric, site) for record, site in zip(records, places, strict=True)]
            lines.append(_trajectory(axis, records, y, run, name=name, colour=shade if single else colour))
        for kind, (label, dash, own_colour) in BASELINES.items():
            found = [run.baseline(record, kind) for record in records]
            y = [_value(null, metric, own[-1]) for null, own in zip(found, owns, strict=True)]
            style = {
                "name": label if single else f"{label}, {escape_label(run.name)}",
                "group": label,
                "dash": dash,
                "markers": False,
            }
            nulls.append(
                _trajectory(axis, records, y, run, colour=own_colour if single else colour, legend=run is runs[0], **style)
            )
    if not any(sum(y is not None for y in line["y"]) > 1 for line in lines):
        return None
    if len(lines) == 1:  # then ``records`` and ``owns`` are those of the only run
        name_points(lines[0], [_exact(record, metric, own[-1]) for record, own in zip(records, owns, strict=True)])
    return _plot([*lines, *nulls], metric, axis.layout)


def _trajectory(axis: "_Axis", records: Sequence[Record], y: list[float | None], run: Run, **style: Any) -> dict[str, Any]:
    labels = {id(record): label for record, label in zip(run.checkpoints, _labels(run), strict=True)}
    return _line([axis.place(r) for r in records], y, [labels[id(r)] for r in records], **{"markers": True} | style)


@dataclass(frozen=True)
class _Axis:
    """The positions of checkpoints on the x axis.

    Steps that span two decades have a logarithmic axis, and so have those that double over a smaller range. Step 0, which has
    no position on it, is drawn one interval before the first step.
    """

    place: Callable[[Record], float]
    knows: Callable[[Record], bool]
    layout: dict[str, Any]

    @classmethod
    def of(cls, runs: Sequence[Run], *, log_steps: bool = True) -> "_Axis":
        records = [record for run in runs for record in run.checkpoints]
        if all(run.axis == "step" for run in runs):
            return cls._of_steps(sorted({record.step for record in records if record.step is not None}), log=log_steps)
        sizes = sorted({record.parameters for record in records if record.parameters})
        if len(sizes) > 1:
            ticks = _some(sizes, 6)
            layout = _ticked("parameters", ticks, [si_format(size) for size in ticks]) | {"type": "log"}
            return cls(lambda record: float(record.parameters or 1), lambda record: bool(record.parameters), layout)
        names = [record.name for record in records]
        layout = _ticked("", range(len(names)), [escape_label(name, most=14) for name in names])
        return cls(lambda record: names.index(record.name), lambda record: True, layout)

    @classmethod
    def _of_steps(cls, steps: list[int], *, log: bool) -> "_Axis":
        after = [step for step in steps if step > 0]
        early = sum(step**2 < after[0] * after[-1] for step in after)  # in the first half of a logarithmic axis
        wide = 100 if 4 * early < len(after) else 30
        if not log or len(after) < 2 or after[-1] < wide * after[0]:
            return cls(lambda record: float(record.step or 0), lambda record: True, _titled("training step"))
        gaps = [math.log10(b / a) for a, b in itertools.pairwise(after)]
        zero = after[0] / 10 ** max(0.15, min(1.0, statistics.median(gaps)))
        decades = [10.0**i for i in range(math.ceil(math.log10(after[0])), math.floor(math.log10(after[-1])) + 1)]
        ticks = [zero] * (steps[0] == 0) + (decades if len(decades) > 2 else [float(step) for step in _some(after, 7)])
        layout = _ticked("training step, log", ticks, ["0" if tick == zero else si_format(tick) for tick in ticks])
        return cls(lambda record: float(record.step or zero), lambda record: True, layout | {"type": "log"})


# -- positions --------------------------------------------------------------------------------------------------------------


def gain_curves(runs: Sequence[Run], *, increments: bool = False, per_dimension: bool = False) -> "Figure | None":
    """Return a figure of information gain against the position in the text at the last site, with one line per checkpoint, or
    for several runs one line for the last checkpoint of each.

    It shows the running sum (the paper's Figure 3), or the gain of each token with ``increments``. Not every position is drawn;
    the increments between two drawn positions are averaged.
    """
    if len(runs) == 1:
        picked, names = [(runs[0], record) for record in runs[0].checkpoints], _labels(runs[0])
        colours, legend = _ranked(len(picked))
    else:
        picked, names = [(run, run.checkpoints[-1]) for run in runs], [escape_label(run.name) for run in runs]
        colours, legend = _distinct(runs), [True] * len(runs)
    metric = "gain" if increments else "information_gain"

    def line(record: Record, **style: Any) -> dict[str, Any] | None:
        curve = _curve(record, metric)
        if curve is None or not (per := record.width if per_dimension else 1):
            return None
        x = _positions(len(curve))
        y = _means(curve, x) if increments else [curve.mean[position - 1] for position in x]
        return _line(x, [_four(value / per) for value in y], [f"position {position}" for position in x], **style)

    lines = [
        line(record, name=name, colour=colour, legend=named)
        for (_, record), name, colour, named in zip(picked, names, colours, legend, strict=True)
    ]
    if not any(lines):
        return None
    nulls = _nulls((*one, name, colour) for one, name, colour in zip(picked, names, colours, strict=True))
    lines += [line(null, **style) for null, style in nulls]
    found = [line for line in lines if line]
    layout = {"xaxis": _titled("position in the text, tokens")} | fitted(
        found, _titled("nats per dimension" if per_dimension else "nats")
    )
    title = "Information gain of each token" if increments else "Information gain of the text so far"
    return _figure(found, title, **layout)


def _curve(record: Record, metric: str) -> Curve | None:
    """The curve at the last site that has it."""
    reading = record.reading
    for site in reversed(reading.sites if reading else ()):
        try:
            return reading.curve(metric, site) if reading else None
        except GeomprobeError:
            continue
    return None


def _positions(length: int) -> list[int]:
    """The positions that are drawn, from 1 to ``length``: all of the first ones, and evenly spaced later ones.

    >>> _positions(5), _positions(2048)[14:18], len(_positions(2048))
    ([1, 2, 3, 4, 5], [15, 16, 50, 84], 76)
    """
    first = min(_FIRST, length)
    later = [round(first + (length - first) * i / _LATER) for i in range(1, _LATER + 1)]
    return [*range(1, first), *dict.fromkeys([first, *later])]


def _means(curve: Curve, ends: Sequence[int]) -> list[float]:
    """The means of a curve between successive ``ends``, weighted by the number of texts that reach each position."""
    means = []
    for start, end in zip((0, *ends), ends, strict=False):
        pairs = [(m, n) for m, n in zip(curve.mean[start:end], curve.count[start:end], strict=True) if math.isfinite(m)]
        texts = sum(n for _, n in pairs)
        means.append(sum(m * n for m, n in pairs) / texts if texts else math.nan)
    return means


# -- Lasso and attention ----------------------------------------------------------------------------------------------------


def agreement(run: Run) -> "Figure | None":
    """Return a figure of the agreement of Lasso and attention at each layer of the last checkpoint, with that expected by
    chance."""
    sites = _sites(run, "lasso_attention_precision")
    if not sites:
        return None
    last = run.checkpoints[-1]
    null = run.baseline(last, "untrained")
    labels = [escape_label(site) for site in sites]
    lines = [
        _line(
            list(range(len(sites))), [_value(last, metric, site) for site in sites], labels, name=name, dash=dash, colour=colour
        )
        for metric, name, dash, colour in _AGREEMENT
    ]
    if null is not None:
        y = [_value(null, _AGREEMENT[0][0], site) for site in sites]
        lines.append(_line(list(range(len(sites))), y, labels, name="untrained", dash="dash", colour=BASELINES["untrained"][2]))
    layout = {"xaxis": _by_layer(sites), "yaxis": _titled("share") | {"rangemode": "tozero"}}
    return _figure(_drawn(lines), "By layer, last checkpoint", **layout)


def agreement_over_checkpoints(run: Run) -> "Figure | None":
    """Return a figure of the same, as means over layers, over training steps or model sizes."""
    axis, sites = _Axis.of([run]), _sites(run, "lasso_attention_precision")
    records = [record for record in run.checkpoints if axis.knows(record)]
    lines = [
        _trajectory(
            axis, records, [_mean(record, metric, sites) for record in records], run, name=name, dash=dash, colour=colour
        )
        for metric, name, dash, colour in _AGREEMENT
    ]
    if len(records) < 2 or not _drawn(lines):
        return None
    layout = {"xaxis": axis.layout, "yaxis": _titled("share, mean over layers") | {"rangemode": "tozero"}}
    return _figure(_drawn(lines), "By checkpoint, mean over layers", **layout)


def _mean(record: Record, metric: str, sites: Iterable[str]) -> float | None:
    known = [value for site in sites if (value := _value(record, metric, site)) is not None]
    return _four(statistics.fmean(known)) if known else None


# -- sizes ------------------------------------------------------------------------------------------------------------------


def scaling(run: Run, metric: str) -> "Figure | None":
    """Return a figure of a metric at the last site against the number of parameters, with the best fit of a power law.

    Its annotation compares this fit with a logarithm and a constant.
    """
    from geomprobe.theory.power_law import fit_power_law

    axis, sites = _Axis.of([run]), _sites(run, metric)
    records = [record for record in run.checkpoints if record.parameters and _own(record, sites)]
    ends = [_own(record, sites)[-1] for record in records]
    y = [_value(record, metric, site) for record, site in zip(records, ends, strict=True)]
    known = [(float(record.parameters or 0), value) for record, value in zip(records, y, strict=True) if value is not None]
    sizes = [size for size, _ in known]
    if len({*sizes}) < 2:
        return None
    lines = [_trajectory(axis, records, y, run, name="models", colour=categorical(0), line=False)]
    for kind, (label, dash, colour) in BASELINES.items():
        nulls = [run.baseline(record, kind) for record in records]
        y = [_value(null, metric, site) for null, site in zip(nulls, ends, strict=True)]
        lines.append(_trajectory(axis, records, y, run, name=label, dash=dash, colour=colour, markers=False))
    try:
        law = fit_power_law(sizes, [value for _, value in known])
    except GeomprobeError as error:
        said = f"no power law was fitted: {escape_label(str(error), most=90)}"
    else:
        ratio = max(sizes) / min(sizes)
        along = [min(sizes) * ratio ** (i / 40) for i in range(41)]
        fitted = [_four(float(value)) for value in law(along)]
        labels = [f"{si_format(size)} parameters" for size in along]
        lines.insert(0, _line(along, fitted, labels, name="power law", colour=categorical(1)))
        low, high = law.exponent_interval
        said = (
            f"exponent {law.exponent:.3g}, 95% interval {low:.3g} to {high:.3g}<br>R² {law.r2:.3f}. {_verdict(law.weights)}"
        ).replace("-", "−")
    figure = _plot(lines, metric, axis.layout)
    figure.add_annotation(text=said, x=0, y=-0.32, xref="paper", yref="paper", xanchor="left", yanchor="top", align="left")
    figure.update_layout(margin_b=112)
    return figure


def _verdict(weights: dict[str, float]) -> str:
    """A sentence that compares the Akaike weights of a power law and the other laws. A law within a factor e fits as well.

    >>> _verdict({"power": 0.5, "log-linear": 0.3, "constant": 0.2})
    'A logarithm and a constant fit as well.<br>Akaike weights: power 0.50, logarithm 0.30, constant 0.20'
    """
    names = {"power": "power", "log-linear": "logarithm", "constant": "constant"}
    shares = ", ".join(f"{names.get(law, law)} {weight:.2f}" for law, weight in weights.items())
    best = max(weights, key=weights.__getitem__)
    close = [
        f"a {names.get(law, law)}" for law, weight in weights.items() if law != "power" and weight * math.e > weights["power"]
    ]
    if best != "power" and weights[best] > math.e * weights["power"]:
        verdict = f"A {names.get(best, best)} fits better"
    elif close:
        verdict = f"{' and '.join(close).capitalize()} fit{'s' * (len(close) == 1)} as well"
    else:
        verdict = "No other law fits as well"
    return f"{verdict}.<br>Akaike weights: {shares}"


# -- parts ------------------------------------------------------------------------------------------------------------------


def _value(record: Record | None, metric: str, site: str) -> float | None:
    """A number with four digits, or ``None`` if it is missing or not finite. For Gaussian rows, ``site`` is ignored."""
    return _four(_exact(record, metric, site))


def _exact(record: Record | None, metric: str, site: str) -> float:
    if record is None or record.reading is None:
        return math.nan
    if metric == "loss":
        return math.nan if record.loss is None else record.loss
    value: float = record.reading.get(f"{metric}/{'gaussian' if record.kind == 'gaussian' else site}", math.nan)
    return value


def _four(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _sites(run: Run, metric: str) -> list[str]:
    """The sites at which any checkpoint has the metric, in the order of the deepest model."""
    readings = sorted((record.reading for record in run.checkpoints if record.reading), key=lambda r: -len(r.sites))
    sites = list(dict.fromkeys(site for reading in readings for site in reading.sites))
    return [site for site in sites if any(_value(record, metric, site) is not None for record in run.checkpoints)]


def _own(record: Record, sites: Iterable[str]) -> list[str]:
    """Those of ``sites`` that the model of the record has, in order."""
    known = {*sites}
    return [site for site in (record.reading.sites if record.reading else ()) if site in known]


def _labels(run: Run) -> list[str]:
    """Unique labels of the checkpoints."""
    if run.axis == "step":
        names = [f"step {record.step:,}" for record in run.checkpoints]
    else:
        names = [escape_label(record.name.rsplit("/", 1)[-1]) for record in run.checkpoints]
    return [name if name not in names[:i] else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _ticks(run: Run, records: Sequence[Record]) -> list[str]:
    """Tick labels of checkpoints: their steps, their sizes if these are unique, or else their names."""
    numbers = [record.step if run.axis == "step" else record.parameters for record in records]
    known = [si_format(number) for number in numbers if number is not None]
    return known if len({*known}) == len(records) else [escape_label(record.name, most=10) for record in records]


def _nulls(checkpoints: Iterable[tuple[Run, Record, str, Ink]]) -> list[tuple[Record, dict[str, Any]]]:
    """The null baselines of named checkpoints and how to draw them. A single baseline has its own colour; several have the
    colours of their checkpoints."""
    checkpoints = list(checkpoints)
    drawn: list[tuple[Record, dict[str, Any]]] = []
    for kind, (label, dash, own) in BASELINES.items():
        found = {
            id(null): (null, name, colour) for run, record, name, colour in checkpoints if (null := run.baseline(record, kind))
        }
        single = len(found) == 1
        for i, (null, name, colour) in enumerate(found.values()):
            style = {"name": label if single else f"{label}, {name}", "group": label, "dash": dash, "legend": i == 0}
            drawn.append((null, style | {"colour": own if single else colour}))
    return drawn


def _some(things: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` of the things, evenly spaced, including both ends.

    >>> _some(range(31), 4), _some("ab", 6)
    ([0, 10, 20, 30], ['a', 'b'])
    """
    count = min(most, len(things))
    return [things[round(i * (len(things) - 1) / max(count - 1, 1))] for i in range(count)]


def _ranked(count: int) -> tuple[list[Ink], list[bool]]:
    """The colours of a sequence of lines, and which of them the legend names."""
    named = set(_some(range(count), _NAMED))
    return [sequence(i / (count - 1) if count > 1 else 0.75) for i in range(count)], [i in named for i in range(count)]


def _distinct(runs: Sequence[Run]) -> list[Ink]:
    """The colours of runs: a sequence by model size if all sizes differ, or else categorical colours."""
    sizes = sorted({run.checkpoints[-1].parameters or 0 for run in runs})
    if len(sizes) == len(runs):
        colours = _ranked(len(sizes))[0]
        return [colours[sizes.index(run.checkpoints[-1].parameters or 0)] for run in runs]
    return [categorical(i) for i in range(len(runs))]


def _line(
    x: Sequence[float], y: Sequence[float | None], labels: Sequence[str], *, name: str, colour: Ink, dash: str = "solid",
    legend: bool = True, markers: bool = False, line: bool = True, group: str = "",
) -> dict[str, Any]:  # fmt: skip
    drawn = {
        "type": "scatter",
        "mode": "+".join(["lines"] * line + ["markers"] * markers),
        "name": name,
        "x": list(x),
        "y": list(y),
        "customdata": list(labels),
        "hovertemplate": "%{customdata}<br>%{y:.4g}<extra>%{fullData.name}</extra>",
        "line": {"color": colour[0], "width": 1.5, "dash": dash},
        "meta": colour[1],
        "legendgroup": group or name,
        "showlegend": legend,
    }
    return drawn | ({"marker": {"color": colour[0], "size": 5 if line else 9}} if markers else {})


def _drawn(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that have a number."""
    return [line for line in lines if any(y is not None for y in line["y"])]


def _titled(title: str) -> dict[str, Any]:
    return {"title": {"text": title}}


def _ticked(title: str, places: Sequence[float], labels: Sequence[str]) -> dict[str, Any]:
    return _titled(title) | {"tickmode": "array", "tickvals": list(places), "ticktext": list(labels)}


def _plot(lines: Iterable[dict[str, Any]], metric: str, xaxis: dict[str, Any]) -> "Figure":
    about, drawn = describe(metric), _drawn(lines)
    yaxis = _titled(about.axis) | ({"type": "log"} if about.log else {})
    return _figure(drawn, about.title, xaxis=xaxis, **fitted(drawn, yaxis, about.floor))


def _figure(traces: list[dict[str, Any]], title: str, **layout: Any) -> "Figure":
    from plotly.graph_objects import Figure

    return Figure(traces, {"template": template(), "title": {"text": title}, **layout})
