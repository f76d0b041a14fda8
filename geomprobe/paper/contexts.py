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

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geomprobe.capture.anatomy import find_anatomy
from geomprobe.core.distance import Distance, text_distances, vector_distances
from geomprobe.core.rows import unit_rows
from geomprobe.errors import GeomprobeError
from geomprobe.loading import Loaded, tokenize, untrained
from geomprobe.paper.drawing import COLOURS, MUTED, canvas, shades
from geomprobe.paper.family import load_readers
from geomprobe.paper.piece import Numbers, Piece, Request, Table, Verdict
from geomprobe.report.tokens import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CONTEXTS", "COUNTRIES", "FIG4", "FIG5", "FIG6", "classical_mds", "permutation_p", "silhouettes"]

COUNTRIES = (
    *("UK", "Russia", "France", "China", "Germany", "Italy", "Spain", "Japan"),
    *("India", "Brazil", "Canada", "Mexico", "Egypt", "Australia", "Sweden"),
)
"""Fifteen well-known countries. The choice is ours."""
CONTEXTS = {"king": "He is the king of {}", "queen": "She is the queen of {}", "none": "{}"}
"""What is said of a country, and what that is called."""
PERMUTATIONS = 999
ALPHA = 0.05
"""What p has to be below."""

_SOURCES = {"model": "", "shuffled": "shuffled tokens", "untrained": "untrained model"}
"""Where rows come from, and what tables call it."""
_EMBEDDINGS = {"mean": "mean", "last": "last token"}
_DISTANCES = {
    "js": "JS (γ = 100)",
    "logdet": "logdet",
    "riemann": "Riemann",
    "log_euclidean": "log-Euclidean",
    "frobenius": "Frobenius",
}
_DELTA = 1e-6
_NO_UMAP = "without UMAP: pip install 'geomprobe[umap]', then run again with --fresh"
_MARKERS = "o^s"
_SHADES = 20
"""Colours of a map: few, so that many neighbours are of one colour, and one shape of the page."""
_BEYOND = "and more than in both controls"

_Array = npt.NDArray[np.float64]


def silhouettes(distances: _Array, groups: npt.NDArray[np.int64]) -> _Array:
    """Silhouettes ``(…, n)`` of n things in ``groups`` ``(…, n)`` 0, 1 …, each of two things or more.

    ``s = (b − a) / max(a, b)``: a is the mean distance to the others of a thing's own group, b that to the nearest other group
    (Rousseeuw 1987, as scikit-learn has it), for many groupings at once.

    >>> silhouettes(np.array([[0.0, 1, 4, 4], [1, 0, 4, 4], [4, 4, 0, 2], [4, 4, 2, 0]]), np.array([0, 0, 1, 1])).tolist()
    [0.75, 0.75, 0.5, 0.5]
    """
    member = groups[..., None] == np.arange(groups.max() + 1)
    sums, sizes = distances @ member.astype(float), member.sum(-2)[..., None, :]
    own = np.where(member, sums / (sizes - 1), 0.0).sum(-1)
    other = np.where(member, np.inf, sums / sizes).min(-1)
    return np.asarray((other - own) / np.maximum(np.maximum(own, other), np.finfo(float).tiny))


def permutation_p(distances: _Array, contexts: int, *, seed: int, permutations: int = PERMUTATIONS) -> float:
    """How often contexts dealt anew within each country separate at least as well: ``(1 + #) / (1 + permutations)``.

    Args:
        distances: between texts, the countries of one context after another.
        contexts: how many there are.
        seed: of the permutations.
        permutations: how many.
    """
    groups = _groups(contexts, len(distances) // contexts)
    dealt = np.broadcast_to(groups.reshape(contexts, -1), (permutations, contexts, len(distances) // contexts))
    dealt = np.random.default_rng(seed).permuted(dealt, axis=1).reshape(permutations, -1)
    seen, chance = (silhouettes(distances, some).mean(-1) for some in (groups, dealt))
    return float(1 + (chance >= seen - 1e-12).sum()) / (1 + permutations)  # a context and another swapped everywhere is a tie


def classical_mds(distances: _Array) -> tuple[_Array, float]:
    """The plane ``(n, 2)`` of classical scaling (Torgerson 1952), and its share of the positive eigenvalues.

    These are of ``−½ J D² J`` with J the centring. Of distances that no Euclidean space has, some are negative, and left out.
    """
    squares = distances**2
    centred = squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean()
    values, directions = np.linalg.eigh(-centred / 2)
    kept = values[:-3:-1].clip(0)
    plane = directions[:, :-3:-1] * np.sqrt(kept)
    signs = np.sign(plane[np.abs(plane).argmax(0), [0, 1]])  # eigenvectors have no sign of their own
    return plane * np.where(signs == 0, 1, signs), float(kept.sum() / max(values.clip(0).sum(), np.finfo(float).tiny))


@dataclass(frozen=True)
class _Reader:
    """Rows of the texts by where they come from, each text ``(n, d)`` of unit rows in float64, on the CPU."""

    name: str
    rows: Mapping[str, Sequence[Tensor]]

    def distances(self, kind: str, source: str) -> _Array:
        """Between the texts, ``(45, 45)``."""
        texts = self.rows[source]
        if kind in _EMBEDDINGS:
            return vector_distances(self.embeddings(kind, source)).numpy()
        known = next(distance for distance in get_args(Distance) if distance == kind)
        with _one_thread():
            return text_distances(texts, known, delta=_DELTA).numpy()

    def embeddings(self, kind: str, source: str) -> Tensor:
        """One vector of each text ``(45, d)``."""
        return torch.stack([text.mean(0) if kind == "mean" else text[-1] for text in self.rows[source]])

    def separation(self, kind: str, seed: int) -> dict[str, Any]:
        """By source, how far all contexts lie apart, and king and queen alone."""
        found = {}
        for source in _SOURCES:
            distances, pair = self.distances(kind, source), 2 * len(COUNTRIES)
            found[source] = {"all": _score(distances, 3, seed), "king_queen": _score(distances[:pair, :pair], 2, seed)}
        return found

    def described(self) -> dict[str, Any]:
        """Its name, its width and how many tokens the texts of each context have."""
        rows = self.rows["model"]
        lengths = np.array([len(text) for text in rows]).reshape(len(CONTEXTS), -1)
        return {"name": self.name, "d": rows[0].shape[1], "tokens": dict(zip(CONTEXTS, lengths.tolist(), strict=True))}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Many small matrices: threads gain nothing, and where others use the cores they were seen to cost 10 to 100 times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _measure_embeddings(request: Request) -> Numbers:
    models = []
    for reader in _readers(request):
        planes = {kind: _planes(reader.embeddings(kind, "model").numpy(), request.seed) for kind in _EMBEDDINGS}
        separation = {kind: reader.separation(kind, request.seed) for kind in _EMBEDDINGS}
        models.append(reader.described() | {"planes": planes, "separation": separation})
    return {"countries": COUNTRIES, "models": models}


def _measure_distances(request: Request, shown: Sequence[str], also: Sequence[str] = ()) -> Numbers:
    models = []
    for reader in _readers(request):
        maps = {kind: reader.distances(kind, "model") for kind in shown}
        planes = {}
        for kind, distances in maps.items():
            points, share = classical_mds(distances)
            planes[kind] = {"mds": _rounded(points), "share": share}
        separation = {kind: reader.separation(kind, request.seed) for kind in (*shown, *also)}
        rounded = {kind: _rounded(distances) for kind, distances in maps.items()}
        models.append(reader.described() | {"maps": rounded, "planes": planes, "separation": separation})
    return {"countries": COUNTRIES, "delta": _DELTA, "models": models}


def _planes(vectors: _Array, seed: int) -> dict[str, Any]:
    """PCA, with the shares of variance, and UMAP; ``None`` where it is not installed."""
    from sklearn.decomposition import PCA

    pca = PCA(2, svd_solver="full").fit(vectors)
    shares = np.nan_to_num(pca.explained_variance_ratio_)  # 0/0 where all vectors are one
    return {"pca": _rounded(pca.transform(vectors)), "shares": _rounded(shares), "umap": _umap(vectors, seed)}


def _umap(vectors: _Array, seed: int) -> list[Any] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads that a seed forbids, and of few points
        try:
            from umap import UMAP  # takes seconds: it brings a compiler
        except ImportError:
            return None
        return _rounded(UMAP(random_state=seed, n_jobs=1).fit_transform(vectors))


def _score(distances: _Array, contexts: int, seed: int) -> dict[str, Any]:
    """The mean silhouette, its p, and the mean over the texts of each country."""
    samples = silhouettes(distances, _groups(contexts, len(distances) // contexts))
    by_country = _rounded(samples.reshape(contexts, -1).mean(0))
    p = permutation_p(distances, contexts, seed=seed)
    return {"silhouette": float(samples.mean()), "p": p, "by_country": by_country}


def _groups(contexts: int, countries: int) -> npt.NDArray[np.int64]:
    return np.repeat(np.arange(contexts), countries)


def _rounded(values: npt.ArrayLike) -> list[Any]:
    """Six digits, as lists: what a picture or a reader can tell apart."""
    array = np.asarray(values, dtype=float)
    rounded: list[Any] = np.array([float(f"{value:.6g}") for value in array.flat]).reshape(array.shape).tolist()
    return rounded


def _readers(request: Request) -> Sequence[_Reader]:
    """The models that were asked for, read once for all three figures of one process."""
    return _read(request, json.dumps(request.key("texts"), sort_keys=True))


@lru_cache(maxsize=1)
def _read(request: Request, key: str) -> Sequence[_Reader]:
    """``key`` tells whether a model's files changed."""
    from tqdm import tqdm

    loaded = load_readers(request)
    readers = []
    texts = len(CONTEXTS) * len(COUNTRIES)
    with tqdm(total=len(loaded) * len(_SOURCES) * texts, desc="texts", unit="", leave=False, disable=None) as bar:
        for name, model in loaded:
            ids = _tokens(name, model)
            shuffled = _shuffled(model, ids, request.seed)
            fresh = untrained(model, seed=request.seed)
            runs = {"model": (model, ids), "shuffled": (model, shuffled), "untrained": (fresh, ids)}
            rows = {source: _rows(name, source, *run, bar.update) for source, run in runs.items()}
            readers.append(_Reader(name, rows))
    return readers


def _tokens(name: str, model: Loaded) -> list[Tensor]:
    """Ids ``(1, n)`` of every text."""
    ids = []
    for text in (context.format(country) for context in CONTEXTS.values() for country in COUNTRIES):
        try:
            ids.append(tokenize(model, text))
        except Exception as error:  # no token, or what a tokenizer of its own does with words it lacks
            raise GeomprobeError(f"{name} cannot read {text!r}: {error}") from error
    return ids


def _shuffled(model: Loaded, ids: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Each text's tokens in a random order; those the tokenizer adds stay where they are."""
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor(model.tokenizer.all_special_ids, dtype=torch.long)
    shuffled = []
    for text in ids:
        places = (~torch.isin(text[0].cpu(), special)).nonzero()[:, 0]
        other = text.clone()
        other[0, places.to(text.device)] = text[0, places[torch.randperm(len(places), generator=generator)].to(text.device)]
        shuffled.append(other)
    return shuffled


def _rows(name: str, source: str, model: Loaded, ids: Sequence[Tensor], done: Callable[[int], object]) -> list[Tensor]:
    """Unit rows ``(n, d)`` of every text. Texts of one length run together, so that none is padded."""
    rows: dict[int, Tensor] = {}
    base = find_anatomy(model.model).base
    for length in sorted({text.shape[1] for text in ids}):
        places = [i for i, text in enumerate(ids) if text.shape[1] == length]
        try:
            with torch.inference_mode():
                hidden = base(input_ids=torch.cat([ids[i] for i in places]), use_cache=False).last_hidden_state.double().cpu()
        except (IndexError, RuntimeError) as error:  # ids that its vocabulary lacks, no memory
            raise GeomprobeError(f"{name} cannot run on the texts of {length} tokens: {error}") from error
        if not hidden.isfinite().all():
            what = f"{name} ({_SOURCES[source]})" if _SOURCES[source] else name
            raise GeomprobeError(
                f"{what} gives hidden states that are not finite for texts such as "
                f"{model.tokenizer.decode(ids[places[0]][0])!r}: look for NaN in its weights, or load it with another dtype"
            )
        rows |= zip(places, unit_rows(hidden, torch.linalg.vector_norm(hidden, dim=-1)), strict=True)
        done(len(places))
    return [rows[i] for i in range(len(ids))]


def _draw_embeddings(numbers: Numbers) -> "Figure":
    models, names = numbers["models"], _names(numbers)
    umap = all(plane["umap"] is not None for model in models for plane in model["planes"].values())
    methods = ("pca", "umap") if umap else ("pca",)
    figure, panels = canvas(len(models) * len(methods), 2, height=3.3)
    places = iter(panels)
    for model, name in zip(models, names, strict=True):
        for method in methods:
            for kind, called in _EMBEDDINGS.items():
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


def _map(figure: "Figure", axes: "Axes", distances: _Array, title: str) -> None:
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
    return [""] if len(models) == 1 else [f"{_called(model, models)}\n" for model in models]


def _called(model: Numbers, models: Sequence[Numbers]) -> str:
    """A model as short as it can be told from the others, in characters that print."""
    last = [printable(other["name"].rstrip("/").rsplit("/", 1)[-1]) for other in models]
    name = printable(model["name"].rstrip("/").rsplit("/", 1)[-1])
    name = name if last.count(name) == 1 else printable(model["name"])
    return name if len(name) <= 32 else f"…{name[-31:]}"


def _tables(numbers: Numbers) -> list[Table]:
    models = numbers["models"]
    columns = ("", "3 contexts", "p", "king/queen", "p")
    tables = []
    for model in models:
        lengths = ", ".join(f"{context} {_range(model['tokens'][context])}" for context in CONTEXTS)
        rows = [
            (
                ", ".join(filter(None, [(_EMBEDDINGS | _DISTANCES)[kind], called])),
                *_cell(found["all"]),
                *_cell(found["king_queen"]),
            )
            for kind, by_source in model["separation"].items()
            for called, found in ((called, by_source[source]) for source, called in _SOURCES.items())
        ]
        title = f"silhouettes of {_called(model, models)} (d = {model['d']});\ntokens a text: {lengths}"
        tables.append(Table(title, columns, rows))
    return tables


def _embedding_tables(numbers: Numbers) -> list[Table]:
    tables = _tables(numbers)
    if any(plane["umap"] is None for model in numbers["models"] for plane in model["planes"].values()):
        tables.append(Table("not drawn", ("", "how to have it"), [("UMAP", _NO_UMAP.removeprefix("without UMAP: "))]))
    return tables


def _cell(found: Mapping[str, Any]) -> tuple[str, str]:
    return f"{found['silhouette']:z.3f}", f"{found['p']:z.3f}"


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}–{high}"


def _judge_embeddings(numbers: Numbers) -> list[Verdict]:
    verdicts = []
    for model in numbers["models"]:
        mean, last = (model["separation"][kind] for kind in _EMBEDDINGS)
        larger, p = _larger(mean["model"]["all"], last["model"]["all"])

        def against(source: str, which: str, mean: Any = mean, last: Any = last) -> str:
            return f"{mean[source][which]['silhouette']:z.2f} against {last[source][which]['silhouette']:z.2f}"

        evidence = (
            f"silhouette {against('model', 'all')} (paired by country, p = {p:.1g}), of king and queen alone "
            f"{against('model', 'king_queen')}; untrained {against('untrained', 'all')}, {against('untrained', 'king_queen')}"
        )
        of = _of(model, numbers)
        verdicts.append(Verdict(f"mean embeddings separate contexts better than last-token ones{of}", larger, evidence))
        verdicts.append(Verdict(f"mean embeddings tell contexts apart, {_BEYOND}{of}", *_beyond_controls(mean)))
    return verdicts


def _judge_distances(numbers: Numbers) -> list[Verdict]:
    return [
        Verdict(
            f"{_DISTANCES[kind]} distances separate contexts too, {_BEYOND}{_of(model, numbers)}",
            *_beyond_controls(model["separation"][kind]),
        )
        for model in numbers["models"]
        for kind in model["maps"]
    ]


def _of(model: Numbers, numbers: Numbers) -> str:
    """Which model a claim is about, where there are several."""
    return f" ({_called(model, numbers['models'])})" if len(numbers["models"]) > 1 else ""


def _beyond_controls(separation: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Whether contexts lie apart, and further than in both controls: all three, and king and queen alone.

    For each of these two the silhouette has to be above zero with p < 0.05 by permutation, and larger than that of each
    control, paired by country (:func:`_larger`). The claim holds where all that is so; it fails where a silhouette is not above
    zero, or a control's is larger; all else is undecided.
    """
    ways: set[bool | None] = set()
    parts, by_tokens = [], False
    for which, called in (("all", "silhouette"), ("king_queen", "of king and queen alone")):
        found = separation["model"][which]
        ways.add(False if found["silhouette"] <= 0 else found["p"] < ALPHA or None)
        controls = []
        for source in ("shuffled", "untrained"):
            control = separation[source][which]
            larger, p = _larger(found, control)
            ways.add(larger)
            sign = {True: ">", None: "≈", False: "<"}[larger]
            controls.append(f"{sign} {source} {control['silhouette']:z.2f} (p = {p:.1g})")
            by_tokens |= source == "untrained" and larger is not True and found["silhouette"] > 0
        parts.append(f"{called} {found['silhouette']:z.2f} (p = {found['p']:.2g}) {' and '.join(controls)}")
    remark = "; random weights do as well: that much is of tokens, not of what was learned" if by_tokens else ""
    return False if False in ways else True if ways == {True} else None, "; ".join(parts) + remark


def _larger(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[bool | None, float]:
    """Whether one silhouette is larger than another over the same countries, and Wilcoxon's p; ``None`` where p ≥ 0.05."""
    from scipy.stats import wilcoxon

    difference = np.subtract(first["by_country"], second["by_country"])
    p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    return (bool(difference.mean() > 0) if p < ALPHA else None), p


_READ = "Of every country three texts: a king, a queen, and its name alone. The one furthest from its context is named."
_MAPS = "Left the distance of each two, right the plane that keeps the distances best. Texts of one length compare fairly."
_ISNT = "The country list is ours, a name alone is another token than one after a space, and a silhouette is of all dimensions."

FIG4 = Piece(
    name="fig4",
    title="Contexts in embeddings",
    place="Figure 4",
    read=f"{_READ} Contexts that lie apart as mean rows, beside last rows, are what the paper shows.",
    isnt=f"UMAP keeps neighbours, not distances. {_ISNT}",
    of="texts",
    measure=_measure_embeddings,
    draw=_draw_embeddings,
    tables=_embedding_tables,
    judge=_judge_embeddings,
)
FIG5 = Piece(
    name="fig5",
    title="Contexts in covariances: JS and logdet",
    place="Figure 5",
    read=f"{_READ} {_MAPS}",
    isnt=_ISNT,
    of="texts",
    measure=partial(_measure_distances, shown=("js", "logdet"), also=("frobenius",)),
    draw=_draw_distances,
    tables=_tables,
    judge=_judge_distances,
)
FIG6 = Piece(
    name="fig6",
    title="Contexts in covariances: Riemann and log-Euclidean",
    place="Figure 6",
    read=f"{_READ} {_MAPS}",
    isnt=_ISNT,
    of="texts",
    measure=partial(_measure_distances, shown=("riemann", "log_euclidean")),
    draw=_draw_distances,
    tables=_tables,
    judge=_judge_distances,
)
