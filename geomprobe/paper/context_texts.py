"""The texts of figures 4 to 6, and the rows that a model and its controls give for them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from geomprobe.capture.decoder import find_decoder
from geomprobe.core.distance import Distance, text_distances, vector_distances
from geomprobe.core.rows import unit_rows
from geomprobe.errors import GeomprobeError
from geomprobe.models.loading import Loaded, tokenize, untrained
from geomprobe.paper.experiment import Request
from geomprobe.paper.models import load_readers
from geomprobe.paper.silhouette import Array, Separation, score

__all__ = ["CONTEXTS", "COUNTRIES", "DELTA", "EMBEDDINGS", "SOURCES", "Reader", "Texts", "final_rows", "read_texts"]
__all__ += ["separation_of"]

COUNTRIES = (
    *("Australia.", "Austria.", "Brazil.", "Cuba.", "Denmark.", "Egypt.", "France.", "Germany."),
    *("Hungary.", "Iceland.", "India.", "Japan.", "Norway.", "Poland.", "Spain."),
)
"""The fifteen names of Appendix B, each with the full stop at the end of its text."""
CONTEXTS = {"king": "He is the king of {}", "queen": "She is the queen of {}", "none": "{}"}
"""The two contexts of section 4.3 and the empty one, by their names in tables."""
SOURCES = {"model": "", "shuffled": "shuffled tokens", "untrained": "untrained model"}
"""The sources of rows, and their names in tables."""
EMBEDDINGS = {"mean": "mean embedding", "last": "last token"}
DELTA = 1e-6
"""δ of logdet, Riemann and log-Euclidean: a text has fewer tokens than dimensions, so its covariance is singular."""


@dataclass(frozen=True)
class Texts:
    """The texts as tokens of a model of width ``d``: the numbers of tokens in each context, and the different last tokens.
    There is only one, the full stop, if the tokenizer makes it a token of its own."""

    name: str
    d: int
    tokens: Mapping[str, list[int]]
    last_tokens: list[str]


@dataclass(frozen=True)
class Reader:
    """The rows of the texts by their source: for each text unit rows ``(n, d)`` in float64, on the CPU."""

    name: str
    rows: Mapping[str, Sequence[Tensor]]
    last_tokens: list[str]

    def distances(self, kind: str, source: str) -> Array:
        """Return the distances between the texts, ``(45, 45)``."""
        texts = self.rows[source]
        if kind in EMBEDDINGS:
            return vector_distances(self.embeddings(kind, source)).numpy()
        known = next(distance for distance in get_args(Distance) if distance == kind)
        with _one_thread():
            return text_distances(texts, known, delta=DELTA).numpy()

    def embeddings(self, kind: str, source: str) -> Tensor:
        """One vector of each text ``(45, d)``."""
        return torch.stack([text.mean(0) if kind == "mean" else text[-1] for text in self.rows[source]])

    def separation(self, kind: str, seed: int) -> dict[str, Separation]:
        """Return for each source how far all contexts, and king and queen alone, lie apart."""
        return {source: separation_of(self.distances(kind, source), seed) for source in SOURCES}

    def texts(self) -> Texts:
        """The texts of the model itself."""
        rows = self.rows["model"]
        lengths = np.array([len(text) for text in rows]).reshape(len(CONTEXTS), -1)
        tokens = dict(zip(CONTEXTS, lengths.tolist(), strict=True))
        return Texts(self.name, rows[0].shape[1], tokens, self.last_tokens)


def separation_of(distances: Array, seed: int) -> Separation:
    """Return how far all contexts, and king and queen alone, lie apart by the distances between all texts."""
    pair = 2 * len(COUNTRIES)
    return Separation(score(distances, len(CONTEXTS), seed), score(distances[:pair, :pair], 2, seed))


def read_texts(request: Request) -> Sequence[Reader]:
    """Return the models of a request, which are read once for all three figures in one process."""
    return _read(request, json.dumps(request.key("texts"), sort_keys=True))


@lru_cache(maxsize=1)
def _read(request: Request, key: str) -> Sequence[Reader]:
    """The ``key`` changes if the files of a model change."""
    from tqdm import tqdm

    loaded = load_readers(request)
    readers = []
    texts = len(CONTEXTS) * len(COUNTRIES)
    with tqdm(total=len(loaded) * len(SOURCES) * texts, desc="texts", unit="", leave=False, disable=None) as bar:
        for name, model in loaded:
            ids = _tokens(name, model)
            shuffled = _shuffled(model, ids, request.seed)
            fresh = untrained(model, seed=request.seed)
            runs = {"model": (model, ids), "shuffled": (model, shuffled), "untrained": (fresh, ids)}
            rows = {
                source: final_rows(f"{name} ({SOURCES[source]})" if SOURCES[source] else name, *run, bar.update)
                for source, run in runs.items()
            }
            last = sorted({str(model.tokenizer.decode(text[0, -1:])) for text in ids})
            readers.append(Reader(name, rows, last))
    return readers


def _tokens(name: str, model: Loaded) -> list[Tensor]:
    """The token ids ``(1, n)`` of every text."""
    ids = []
    for text in (context.format(country) for context in CONTEXTS.values() for country in COUNTRIES):
        try:
            ids.append(tokenize(model, text))
        except Exception as error:  # no token, or what a tokenizer of its own does with words it lacks
            raise GeomprobeError(f"{name} cannot read {text!r}: {error}") from error
    return ids


def _shuffled(model: Loaded, ids: Sequence[Tensor], seed: int) -> list[Tensor]:
    """The tokens of each text in a random order. Those that the tokenizer adds stay in their places."""
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor(model.tokenizer.all_special_ids, dtype=torch.long)
    shuffled = []
    for text in ids:
        places = (~torch.isin(text[0].cpu(), special)).nonzero()[:, 0]
        other = text.clone()
        other[0, places.to(text.device)] = text[0, places[torch.randperm(len(places), generator=generator)].to(text.device)]
        shuffled.append(other)
    return shuffled


def final_rows(
    name: str, model: Loaded, ids: Sequence[Tensor], done: Callable[[int], object] = lambda texts: None
) -> list[Tensor]:
    """Return the unit rows ``(n, d)`` of ``final_norm`` of every text, in float64 on the CPU. Texts of the same length run in
    one batch, so that none is padded.

    Raises:
        GeomprobeError: if the model cannot run on them, or gives a row that is not finite.
    """
    rows: dict[int, Tensor] = {}
    base = find_decoder(model.model).base
    for length in sorted({text.shape[1] for text in ids}):
        places = [i for i, text in enumerate(ids) if text.shape[1] == length]
        try:
            with torch.inference_mode():
                hidden = base(input_ids=torch.cat([ids[i] for i in places]), use_cache=False).last_hidden_state.double().cpu()
        except (IndexError, RuntimeError) as error:  # ids that its vocabulary lacks, no memory
            raise GeomprobeError(f"{name} cannot run on the texts of {length} tokens: {error}") from error
        if not hidden.isfinite().all():
            raise GeomprobeError(
                f"{name} gives hidden states that are not finite for texts such as "
                f"{model.tokenizer.decode(ids[places[0]][0])!r}: look for NaN in its weights, or load it with another dtype"
            )
        rows |= zip(places, unit_rows(hidden, torch.linalg.vector_norm(hidden, dim=-1)), strict=True)
        done(len(places))
    return [rows[i] for i in range(len(ids))]


@contextmanager
def _one_thread() -> Iterator[None]:
    """A context with one thread. For many small matrices threads gain nothing, and when other programs used the cores, they
    took 10 to 100 times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
