"""Figures 4 to 6: whether texts of the same context are close to each other, by their embeddings and by distances of their
covariances.

The texts are "He is the king of X", "She is the queen of X" and X alone, for the fifteen names X of Appendix B, each with its
full stop: every text ends in one, so the last token is the same in all of them. Rows are those of ``final_norm``, scaled to
length one, with the tokens that the tokenizer adds by itself (a BOS, where it has one).

Figure 4 draws the mean and the last-token embeddings by UMAP and by PCA, figure 5 the JS distance, figure 6 the others. The
paper does not say how figures 5 and 6 are drawn: a map of the distances and the plane of classical MDS on them are our choice.

How well contexts *separate* is measured by the mean silhouette of the texts, with a p-value from 999 permutations of the
contexts within each country, which are exchangeable if contexts do not matter. X alone differs from both other contexts in
length, so the silhouette of king and queen alone is given as well. The claims of the paper are judged on the model alone. Our
controls have verdicts of their own: ``shuffled``, the tokens of each text in a random order (added ones stay where they are),
and ``untrained``, the model before its training. Texts of one context share their tokens, so a control may separate them as
well; then the separation does not show what the model has learned.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from geomprobe.paper.context_texts import CONTEXTS, COUNTRIES, DELTA, EMBEDDINGS, SOURCES, Texts, read_texts, separation_of
from geomprobe.paper.experiment import Experiment, Request, Table, Verdict, span
from geomprobe.paper.fig4_6_drawing import distance_map, legend, scatter
from geomprobe.paper.silhouette import Array, Separation, as_well, better, classical_mds, rounded, separates
from geomprobe.paper.style import canvas, caption

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIG4", "FIG5", "FIG6"]

_DELTA = f"δ = {DELTA:g}".replace("e-0", "e-")
_DISTANCES = {
    "js": "JS (γ = 100)",
    "logdet": f"logdet ({_DELTA})",
    "riemann": f"Riemann ({_DELTA})",
    "log_euclidean": f"log-Euclidean ({_DELTA})",
}
_SHORT = {kind: called.split(" (")[0] for kind, called in (EMBEDDINGS | _DISTANCES).items()}
_METHODS = {"pca": "PCA", "umap": "UMAP"}
_CONTROLS = {
    "untrained": "Random weights separate the contexts as well",
    "shuffled": "Each text's tokens in a random order separate the contexts as well",
}
_NO_UMAP = "without UMAP: pip install 'geomprobe[umap]', then run again with --fresh"


@dataclass(frozen=True)
class Plane:
    """The plane of PCA of embeddings, with its shares of variance, and that of UMAP, which is ``None`` if UMAP is not
    installed."""

    pca: list[list[float]]
    shares: list[float]
    umap: list[list[float]] | None

    def of(self, method: str) -> list[list[float]] | None:
        """The points of one method."""
        return self.pca if method == "pca" else self.umap


@dataclass(frozen=True)
class DistancePlane:
    """Classical MDS of distances, and the share of their squares in this plane."""

    mds: list[list[float]]
    share: float


@dataclass(frozen=True)
class Embedded(Texts):
    """For every embedding its plane, and for each source how far it separates the contexts; and the same for the planes that
    are drawn."""

    planes: Mapping[str, Plane]
    separation: Mapping[str, Mapping[str, Separation]]
    shown: Mapping[str, Separation]


@dataclass(frozen=True)
class Mapped(Texts):
    """For every distance its map and its plane, and for each source how far it separates the contexts."""

    maps: Mapping[str, list[list[float]]]
    planes: Mapping[str, DistancePlane]
    separation: Mapping[str, Mapping[str, Separation]]


@dataclass(frozen=True)
class Figure4:
    """The numbers of figure 4."""

    countries: list[str]
    models: list[Embedded]


@dataclass(frozen=True)
class Figures5And6:
    """The numbers of figure 5 or 6."""

    countries: list[str]
    delta: float
    models: list[Mapped]


def _measure_embeddings(request: Request) -> Figure4:
    models = []
    for reader in read_texts(request):
        planes = {kind: _planes(reader.embeddings(kind, "model").numpy(), request.seed) for kind in EMBEDDINGS}
        separation = {kind: reader.separation(kind, request.seed) for kind in EMBEDDINGS}
        drawn = {method: np.array(plane) for method in _METHODS if (plane := planes["mean"].of(method)) is not None}
        shown = {
            method: separation_of(np.linalg.norm(plane[:, None] - plane, axis=-1), request.seed)
            for method, plane in drawn.items()
        }
        models.append(Embedded(**vars(reader.texts()), planes=planes, separation=separation, shown=shown))
    return Figure4(list(COUNTRIES), models)


def _measure_distances(request: Request, shown: Sequence[str], also: Sequence[str] = ()) -> Figures5And6:
    models = []
    for reader in read_texts(request):
        maps = {kind: reader.distances(kind, "model") for kind in shown}
        found = {kind: classical_mds(distances) for kind, distances in maps.items()}
        planes = {kind: DistancePlane(rounded(points), share) for kind, (points, share) in found.items()}
        separation = {kind: reader.separation(kind, request.seed) for kind in (*shown, *also)}
        named = {kind: rounded(distances) for kind, distances in maps.items()}
        models.append(Mapped(**vars(reader.texts()), maps=named, planes=planes, separation=separation))
    return Figures5And6(list(COUNTRIES), DELTA, models)


def _planes(vectors: Array, seed: int) -> Plane:
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="full").fit(vectors)
    shares = np.nan_to_num(pca.explained_variance_ratio_)  # 0/0 where all vectors are one
    return Plane(rounded(pca.transform(vectors)), rounded(shares), _umap(vectors, seed))


def _umap(vectors: Array, seed: int) -> list[list[float]] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads that a seed forbids, and of few points
        try:
            from umap import UMAP  # takes seconds: it brings a compiler
        except ImportError:
            return None
        points: list[list[float]] = rounded(UMAP(random_state=seed, n_jobs=1).fit_transform(vectors))
        return points


def _draw_embeddings(numbers: Figure4) -> "Figure":
    models, names = numbers.models, _names(numbers.models)
    umap = all(plane.umap is not None for model in models for plane in model.planes.values())
    methods = ("umap", "pca") if umap else ("pca",)
    figure, panels = canvas(len(models) * len(methods), 2, height=3.3)
    places = iter(panels)
    for model, name in zip(models, names, strict=True):
        for method in methods:
            for kind, called in EMBEDDINGS.items():
                axes, plane = next(places), model.planes[kind]
                silhouette = model.separation[kind]["model"].all.silhouette
                scatter(axes, plane.of(method) or [], f"{name}{called}, {_METHODS[method]}", silhouette)
                if method == "pca":
                    axes.set(**{f"{x}label": f"{share:.0%} of variance" for x, share in zip("xy", plane.shares, strict=True)})
    legend(figure, panels[0])
    caption(figure, f"{_subject(models)}; l2 distances" + ("" if umap else f"\n{_NO_UMAP}"))
    return figure


def _draw_distances(numbers: Figures5And6) -> "Figure":
    models, names = numbers.models, _names(numbers.models)
    shown = list(models[0].maps)
    figure, panels = canvas(len(models) * len(shown), 2, height=3.5)
    places = iter(panels)
    for model, name in zip(models, names, strict=True):
        for kind in shown:
            distance_map(figure, next(places), np.array(model.maps[kind]), f"{name}{_DISTANCES[kind]}")
            axes, plane = next(places), model.planes[kind]
            silhouette = model.separation[kind]["model"].all.silhouette
            scatter(axes, plane.mds, f"{name}{_SHORT[kind]}, MDS", silhouette)
            axes.set_xlabel(f"{plane.share:.0%} of squared distances in this plane")
    legend(figure, panels[1])
    regularised = f"; {_DELTA} added to singular covariances" if set(shown) != {"js"} else ""
    caption(figure, f"{_subject(models)}\nThe map and the plane of the distances are our choice{regularised}")
    return figure


def _subject(models: Sequence[Texts]) -> str:
    """The model and the texts that a picture shows, in words."""
    names = ", ".join(model.name for model in models)
    texts, countries = len(CONTEXTS) * len(COUNTRIES), len(COUNTRIES)
    return f"{names}: unit rows at final_norm of {texts} texts, X the {countries} countries of Appendix B"


def _names(models: Sequence[Texts]) -> list[str]:
    """The beginning of titles, which is empty if there is only one model."""
    return [""] if len(models) == 1 else [f"{model.name}\n" for model in models]


def _tables(numbers: Figure4 | Figures5And6) -> list[Table]:
    columns = ("", "3 contexts", "p", "king/queen", "p")
    tables = []
    for model in numbers.models:
        lengths = ", ".join(f"{context} {span(model.tokens[context], 'd')}" for context in CONTEXTS)
        rows = [
            (
                ", ".join(filter(None, [(EMBEDDINGS | _DISTANCES)[kind], called])),
                *(f"{number:z.3f}" for one in (found.all, found.king_queen) for number in (one.silhouette, one.p)),
            )
            for kind, by_source in model.separation.items()
            for called, found in ((called, by_source[source]) for source, called in SOURCES.items())
        ]
        last = ", ".join(map(repr, model.last_tokens[:3])) + (" …" if len(model.last_tokens) > 3 else "")
        title = f"silhouettes of {model.name} (d = {model.d});\ntokens per text: {lengths}; last tokens: {last}"
        tables.append(Table(title, columns, rows))
    return tables


def _embedding_tables(numbers: Figure4) -> list[Table]:
    tables = _tables(numbers)
    if any(plane.umap is None for model in numbers.models for plane in model.planes.values()):
        tables.append(Table("not drawn", ("", "how to have it"), [("UMAP", _NO_UMAP.removeprefix("without UMAP: "))]))
    return tables


def _judge_embeddings(numbers: Figure4) -> list[Verdict]:
    verdicts = []
    for model in numbers.models:
        of, mean, last = _of(model, numbers.models), model.separation["mean"], model.separation["last"]
        shown = {_METHODS[method]: found for method, found in model.shown.items()}
        verdicts += [
            Verdict(f"Mean embeddings separate the contexts{of}", *separates({"mean": mean["model"]})),
            Verdict(
                f"Mean embeddings separate the contexts better than last tokens do{of}", *better(mean["model"], last["model"])
            ),
            Verdict(f"Planes of the mean embeddings separate the contexts, too{of}", *separates(shown)),
            *_judge_controls({"mean": mean}, of),
        ]
    return verdicts


def _judge_distances(numbers: Figures5And6, claim: str) -> list[Verdict]:
    verdicts = []
    for model in numbers.models:
        of, separation = _of(model, numbers.models), {_SHORT[kind]: found for kind, found in model.separation.items()}
        seen = separates({called: found["model"] for called, found in separation.items()})
        verdicts += [Verdict(f"{claim}{of}", *seen), *_judge_controls(separation, of)]
    return verdicts


def _judge_controls(separation: Mapping[str, Mapping[str, Separation]], of: str) -> list[Verdict]:
    """Whether contexts lie as far apart without training, or without the order of tokens. If they do, the model has not learned
    it."""
    by_source = {source: {called: found[source] for called, found in separation.items()} for source in SOURCES}
    return [
        Verdict(f"{called}{of}", *as_well(by_source[source], by_source["model"]), kind="ours")
        for source, called in _CONTROLS.items()
    ]


def _of(model: Texts, models: Sequence[Texts]) -> str:
    """The name of the model that a claim is about, if there are several."""
    return f" ({model.name})" if len(models) > 1 else ""


_READ = "Each country of Appendix B is the end of three texts: one about a king, one about a queen, and its name alone."
_MAPS = (
    "On the left is the distance of every pair of texts, and on the right the plane of classical MDS of these distances. The "
    "paper does not say how it draws them, so both are our choice."
)
_CAVEAT = "Silhouettes are computed in all dimensions, not in the plane. A name alone has fewer tokens than the other texts."
_WITH_DELTA = f"Covariances of short texts are singular, so {_DELTA} is added to their diagonal."

FIG4 = Experiment(
    name="fig4",
    title="Contexts in embeddings",
    place="Figure 4",
    read=f"{_READ} On the left are their mean embeddings, and on the right those of their last token, the full stop (l2 norm).",
    caveat=f"{_CAVEAT} UMAP preserves neighbours, not distances.",
    of="texts",
    numbers=Figure4,
    measure=_measure_embeddings,
    draw=_draw_embeddings,
    tables=_embedding_tables,
    judge=_judge_embeddings,
)
FIG5 = Experiment(
    name="fig5",
    title="Contexts in covariances: JS distance",
    place="Figure 5",
    read=f"{_READ} {_MAPS}",
    caveat=_CAVEAT,
    of="texts",
    numbers=Figures5And6,
    measure=partial(_measure_distances, shown=("js",)),
    draw=_draw_distances,
    tables=_tables,
    judge=partial(_judge_distances, claim="JS distances of covariances separate the contexts"),
)
FIG6 = Experiment(
    name="fig6",
    title="Contexts in covariances: other distances",
    place="Figure 6",
    read=f"{_READ} {_MAPS} {_WITH_DELTA}",
    caveat=_CAVEAT,
    of="texts",
    numbers=Figures5And6,
    measure=partial(_measure_distances, shown=("logdet", "riemann", "log_euclidean"), also=("js",)),
    draw=_draw_distances,
    tables=_tables,
    judge=partial(_judge_distances, claim=f"All distances separate the contexts ({_DELTA})"),
)
