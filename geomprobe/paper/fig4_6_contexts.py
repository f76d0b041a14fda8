"""Figures 4 to 6: whether texts of one context lie together, by their embeddings and by distances of their covariances.

The texts are "He is the king of X", "She is the queen of X" and X alone, for 15 countries X. The paper's list (its Appendix B)
is not known here: :data:`COUNTRIES` is ours, and begins with the four of its section 4.2. Rows are those of ``final_norm``,
scaled to length one, with the tokens that the tokenizer adds by itself (a BOS, where it has one).

That contexts *separate* is a number: the mean silhouette of the texts, with the p-value of 999 permutations of contexts within
each country, where they are exchangeable if contexts do not matter. It is given for two controls too: ``shuffled``, the tokens
of each text in a random order (added ones stay where they are), and ``untrained``, the model before its training. Texts of one
context share their tokens, so random weights separate them as well: only what goes beyond both controls was learned. X alone
differs from both others in length, hence the silhouette of king and queen alone beside it.

Distances are taken as the paper has them, JS and logdet without a root; γ = 100 in JS, δ = 1e-6 in the others but Frobenius.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geomprobe.paper.context_texts import CONTEXTS, COUNTRIES, DELTA, EMBEDDINGS, SOURCES, read_texts
from geomprobe.paper.experiment import Experiment, Numbers, Request, Table, Verdict, span
from geomprobe.paper.silhouette import Array, beyond_controls, classical_mds, larger_than, rounded
from geomprobe.paper.style import COLOURS, MUTED, canvas, shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIG4", "FIG5", "FIG6"]

_DISTANCES = {
    "js": "JS (γ = 100)",
    "logdet": "logdet",
    "riemann": "Riemann",
    "log_euclidean": "log-Euclidean",
    "frobenius": "Frobenius",
}
_NO_UMAP = "without UMAP: pip install 'geomprobe[umap]', then run again with --fresh"
_MARKERS = "o^s"
_SHADES = 20
"""Colours of a map: few, so that many neighbours are of one colour, and one shape of the page."""
_BEYOND = "and more than in both controls"


def _measure_embeddings(request: Request) -> Numbers:
    models = []
    for reader in read_texts(request):
        planes = {kind: _planes(reader.embeddings(kind, "model").numpy(), request.seed) for kind in EMBEDDINGS}
        separation = {kind: reader.separation(kind, request.seed) for kind in EMBEDDINGS}
        models.append(reader.described() | {"planes": planes, "separation": separation})
    return {"countries": COUNTRIES, "models": models}


def _measure_distances(request: Request, shown: Sequence[str], also: Sequence[str] = ()) -> Numbers:
    models = []
    for reader in read_texts(request):
        maps = {kind: reader.distances(kind, "model") for kind in shown}
        planes = {}
        for kind, distances in maps.items():
            points, share = classical_mds(distances)
            planes[kind] = {"mds": rounded(points), "share": share}
        separation = {kind: reader.separation(kind, request.seed) for kind in (*shown, *also)}
        models.append(
            reader.described()
            | {"maps": {kind: rounded(known) for kind, known in maps.items()}, "planes": planes, "separation": separation}
        )
    return {"countries": COUNTRIES, "delta": DELTA, "models": models}


def _planes(vectors: Array, seed: int) -> dict[str, Any]:
    """PCA, with the shares of variance, and UMAP; ``None`` where it is not installed."""
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="full").fit(vectors)
    shares = np.nan_to_num(pca.explained_variance_ratio_)  # 0/0 where all vectors are one
    return {"pca": rounded(pca.transform(vectors)), "shares": rounded(shares), "umap": _umap(vectors, seed)}


def _umap(vectors: Array, seed: int) -> list[Any] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads that a seed forbids, and of few points
        try:
            from umap import UMAP  # takes seconds: it brings a compiler
        except ImportError:
            return None
        return rounded(UMAP(random_state=seed, n_jobs=1).fit_transform(vectors))


def _draw_embeddings(numbers: Numbers) -> "Figure":
    models, names = numbers["models"], _names(numbers)
    umap = all(plane["umap"] is not None for model in models for plane in model["planes"].values())
    methods = ("pca", "umap") if umap else ("pca",)
    figure, panels = canvas(len(models) * len(methods), 2, height=3.3)
    places = iter(panels)
    for model, name in zip(models, names, strict=True):
        for method in methods:
            for kind, called in EMBEDDINGS.items():
                axes, plane = next(places), model["planes"][kind]
                title = f"{name}{called}, {method.upper()}"
                silhouette = model["separation"][kind]["model"]["all"]["silhouette"]
                _scatter(axes, plane[method], title, silhouette, named=method == "pca")
                if method == "pca":
                    axes.set(
                        **{f"{x}label": f"{share:.0%} of variance" for x, share in zip("xy", plane["shares"], strict=True)}
                    )
    _legend(figure, panels[0], "" if umap else _NO_UMAP)
    return figure


def _draw_distances(numbers: Numbers) -> "Figure":
    models, names = numbers["models"], _names(numbers)
    shown = list(models[0]["maps"])
    figure, panels = canvas(len(models) * len(shown), 2, height=3.5)
    places = iter(panels)
    for model, name in zip(models, names, strict=True):
        for kind in shown:
            _map(figure, next(places), np.array(model["maps"][kind]), f"{name}{_DISTANCES[kind]}")
            axes, plane = next(places), model["planes"][kind]
            silhouette = model["separation"][kind]["model"]["all"]["silhouette"]
            _scatter(axes, plane["mds"], f"{name}{_DISTANCES[kind]}, MDS", silhouette)
            axes.set_xlabel(f"{plane['share']:.0%} of squared distances in this plane")
    _legend(figure, panels[1])
    return figure


def _scatter(axes: "Axes", points: Sequence[Sequence[float]], title: str, silhouette: float, *, named: bool = True) -> None:
    """A plane of texts, and how far its contexts lie apart in all dimensions; ``named``: the outermost of each context."""
    groups = np.array(points).reshape(len(CONTEXTS), -1, 2)
    for group, colour, marker in zip(groups, COLOURS, _MARKERS, strict=False):
        axes.scatter(group[:, 0], group[:, 1], s=22, color=colour, marker=marker, alpha=0.8, linewidths=0)
        if not named:
            continue
        furthest = np.linalg.norm(group - np.median(group, 0), axis=1).argmax()
        at: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(COUNTRIES[furthest], group[furthest], **at, fontsize=7, color=MUTED)
    axes.set_title(title, parse_math=False)
    axes.set_title(f"silhouette {silhouette:z.2f}", loc="right", fontsize=8, color=MUTED)
    axes.set_aspect("equal", "datalim")
    axes.margins(0.08)
    axes.tick_params(length=0, labelbottom=False, labelleft=False)


def _map(figure: "Figure", axes: "Axes", distances: Array, title: str) -> None:
    """Distances between all texts: a shape of the page for each colour, so that dark paper has its own."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.patches import PathPatch

    colours = shades(_SHADES)
    others = distances[~np.eye(len(distances), dtype=bool)]
    norm = Normalize(others.min(), others.max() if np.ptp(others) else others.min() + 1)
    levels = np.clip(np.asarray(norm(distances)) * _SHADES, 0, _SHADES - 1).astype(int)
    each = len(distances) // len(CONTEXTS)
    gaps = range(each, len(distances), each)
    levels = np.insert(np.insert(levels, gaps, -1, axis=0), gaps, -1, axis=1)  # where paper shows through
    for level, colour in enumerate(colours):
        if (levels == level).any():
            axes.add_patch(PathPatch(_cells(levels == level), facecolor=colour, edgecolor=colour, linewidth=0.7))
    axes.set(xlim=(0, len(levels)), ylim=(len(levels), 0), aspect="equal")
    axes.set_title(title, parse_math=False)
    middles = [i * (each + 1) + each / 2 for i in range(len(CONTEXTS))]
    axes.set_xticks(middles, list(CONTEXTS))
    axes.set_yticks(middles, list(CONTEXTS), rotation=90, va="center")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(ScalarMappable(norm, ListedColormap(colours)), ax=axes, fraction=0.04, pad=0.03)
    for shape in bar.ax.collections:
        shape.set(edgecolor="face", linewidth=0.7)  # no seams between colours
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)


def _cells(chosen: npt.NDArray[np.bool_]) -> Any:
    """The cells ``(row, column)`` of a map that are chosen, as one path of their runs along rows."""
    from matplotlib.path import Path

    edges = np.diff(np.pad(chosen, ((0, 0), (1, 1))).astype(int), axis=1)
    (rows, starts), (_, ends) = np.nonzero(edges == 1), np.nonzero(edges == -1)
    corners = [(starts, rows), (ends, rows), (ends, rows + 1), (starts, rows + 1), (starts, rows)]
    points = np.stack([np.stack(corner, -1) for corner in corners], 1).reshape(-1, 2)
    return Path(points, [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(rows))


def _legend(figure: "Figure", axes: "Axes", note: str = "") -> None:
    """What the colours are, once, and a remark under it."""
    labels = [context.format("X") for context in CONTEXTS.values()]
    figure.legend(axes.collections, labels, loc="outside upper left", ncols=len(labels), handletextpad=0.2)
    if note:
        figure.supxlabel(note, fontsize=8, color=MUTED, x=0.01, ha="left")


def _names(numbers: Numbers) -> list[str]:
    """What titles begin with: nothing where there is one model."""
    models = numbers["models"]
    return [""] if len(models) == 1 else [f"{model['name']}\n" for model in models]


def _tables(numbers: Numbers) -> list[Table]:
    models = numbers["models"]
    columns = ("", "3 contexts", "p", "king/queen", "p")
    tables = []
    for model in models:
        lengths = ", ".join(f"{context} {span(model['tokens'][context], 'd')}" for context in CONTEXTS)
        rows = [
            (
                ", ".join(filter(None, [(EMBEDDINGS | _DISTANCES)[kind], called])),
                *_cell(found["all"]),
                *_cell(found["king_queen"]),
            )
            for kind, by_source in model["separation"].items()
            for called, found in ((called, by_source[source]) for source, called in SOURCES.items())
        ]
        title = f"silhouettes of {model['name']} (d = {model['d']});\ntokens a text: {lengths}"
        tables.append(Table(title, columns, rows))
    return tables


def _embedding_tables(numbers: Numbers) -> list[Table]:
    tables = _tables(numbers)
    if any(plane["umap"] is None for model in numbers["models"] for plane in model["planes"].values()):
        tables.append(Table("not drawn", ("", "how to have it"), [("UMAP", _NO_UMAP.removeprefix("without UMAP: "))]))
    return tables


def _cell(found: Mapping[str, Any]) -> tuple[str, str]:
    return f"{found['silhouette']:z.3f}", f"{found['p']:z.3f}"


def _judge_embeddings(numbers: Numbers) -> list[Verdict]:
    verdicts = []
    for model in numbers["models"]:
        mean, last = (model["separation"][kind] for kind in EMBEDDINGS)
        larger, p = larger_than(mean["model"]["all"], last["model"]["all"])

        def against(source: str, which: str, mean: Any = mean, last: Any = last) -> str:
            return f"{mean[source][which]['silhouette']:z.2f} against {last[source][which]['silhouette']:z.2f}"

        evidence = (
            f"silhouette {against('model', 'all')} (paired by country, p = {p:.1g}), of king and queen alone "
            f"{against('model', 'king_queen')}; untrained {against('untrained', 'all')}, {against('untrained', 'king_queen')}"
        )
        of = _of(model, numbers)
        verdicts.append(Verdict(f"mean embeddings separate contexts better than last-token ones{of}", larger, evidence))
        verdicts.append(Verdict(f"mean embeddings tell contexts apart, {_BEYOND}{of}", *beyond_controls(mean)))
    return verdicts


def _judge_distances(numbers: Numbers) -> list[Verdict]:
    return [
        Verdict(
            f"{_DISTANCES[kind]} distances separate contexts too, {_BEYOND}{_of(model, numbers)}",
            *beyond_controls(model["separation"][kind]),
        )
        for model in numbers["models"]
        for kind in model["maps"]
    ]


def _of(model: Numbers, numbers: Numbers) -> str:
    """Which model a claim is about, where there are several."""
    return f" ({model['name']})" if len(numbers["models"]) > 1 else ""


_READ = "Of every country three texts: a king, a queen, and its name alone. The one furthest from its context is named."
_MAPS = "Left the distance of each two, right the plane that keeps the distances best. Texts of one length compare fairly."
_ISNT = "The country list is ours, a name alone is another token than one after a space, and a silhouette is of all dimensions."

FIG4 = Experiment(
    name="fig4",
    title="Contexts in embeddings",
    place="Figure 4",
    read=f"{_READ} Contexts that lie apart as mean rows, beside last rows, are what the paper shows.",
    caveat=f"UMAP keeps neighbours, not distances. {_ISNT}",
    of="texts",
    measure=_measure_embeddings,
    draw=_draw_embeddings,
    tables=_embedding_tables,
    judge=_judge_embeddings,
)
FIG5 = Experiment(
    name="fig5",
    title="Contexts in covariances: JS and logdet",
    place="Figure 5",
    read=f"{_READ} {_MAPS}",
    caveat=_ISNT,
    of="texts",
    measure=partial(_measure_distances, shown=("js", "logdet"), also=("frobenius",)),
    draw=_draw_distances,
    tables=_tables,
    judge=_judge_distances,
)
FIG6 = Experiment(
    name="fig6",
    title="Contexts in covariances: Riemann and log-Euclidean",
    place="Figure 6",
    read=f"{_READ} {_MAPS}",
    caveat=_ISNT,
    of="texts",
    measure=partial(_measure_distances, shown=("riemann", "log_euclidean")),
    draw=_draw_distances,
    tables=_tables,
    judge=_judge_distances,
)
