"""The texts of a sweep: from a file or a dataset to batches of tokens that are the same for every checkpoint."""

import gzip
import json
import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from geomprobe.errors import GeomprobeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Batch", "TokenizedTexts", "read_documents", "text_length", "tokenize_documents"]

_LENGTH = 256
"""Default length of texts. The metrics of the sample cost up to the cube of the length, and many texts are more informative
than a few long ones."""

_MOST_DOCUMENTS = 10_000
_MOST_CHARACTERS = 1 << 26
"""Limits of how much of a source is read, because shuffling needs all documents in memory."""


@dataclass(frozen=True)
class Batch:
    """A batch of texts padded on the right: ``ids`` and ``mask`` ``(batch, length)``, on the CPU."""

    ids: Tensor
    mask: Tensor

    @property
    def tokens(self) -> int:
        """The number of tokens without padding."""
        return int(self.mask.sum())


@dataclass(frozen=True)
class TokenizedTexts:
    """The texts of a dataset as token ids of one tokenizer.

    Attributes:
        ids: the token ids of each text, in shuffled order.
    """

    ids: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return sum(map(len, self.ids))

    @property
    def digest(self) -> str:
        """The SHA-256 hash of the tokens and of the ends of texts."""
        hashed = sha256()
        for text in self.ids:
            hashed.update(struct.pack(f"<q{len(text)}q", len(text), *text))
        return hashed.hexdigest()

    def split(self, tokens: int) -> "tuple[TokenizedTexts, TokenizedTexts]":
        """Return the first texts, as many as contain at least ``tokens`` tokens, and the rest."""
        held, cut = 0, 0
        while cut < len(self.ids) and held < tokens:
            held += len(self.ids[cut])
            cut += 1
        return TokenizedTexts(self.ids[:cut]), TokenizedTexts(self.ids[cut:])

    def batches(self, tokens: int) -> list[Batch]:
        """Return batches of at most ``tokens`` tokens, padding included, but at least one text each. Texts of similar length
        are batched together."""
        batches: list[Batch] = []
        held: list[tuple[int, ...]] = []
        for text in sorted(self.ids, key=len, reverse=True):
            if held and len(held[0]) * (len(held) + 1) > tokens:
                batches.append(_padded(held))
                held = []
            held.append(text)
        return [*batches, _padded(held)] if held else batches


def read_documents(data: str, *, field: str = "text", split: str = "train", seed: int = 0) -> list[str]:
    """Return the documents of a file or dataset in shuffled order.

    At most the first 10,000 documents and about 64 million characters are read.

    Args:
        data: a ``.txt`` (one document), ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` file, or the id of a dataset on the hub, with
            its configuration after a colon (``wikitext:wikitext-2-raw-v1``).
        field: name of the field that contains the text of a document; not used for ``.txt``.
        split: split of a dataset on the hub.
        seed: seed of the order.

    Raises:
        GeomprobeError: if the data cannot be read, or contain no text in ``field``.
    """
    path = Path(data)
    try:
        if path.suffix == ".txt":
            found: Iterable[Any] = [_text(path)]
        elif path.suffix == ".parquet":
            found = _parquet(path, field)
        elif path.name.endswith((".jsonl", ".jsonl.gz", ".json.gz")):
            found = _json_lines(path, field)
        elif path.exists():
            raise GeomprobeError(f"{data}: expected a .txt, .jsonl, .jsonl.gz or .parquet file, or the id of a dataset")
        else:
            found = _data_set(data, field, split)
        documents = _some(data, field, found)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise GeomprobeError(f"cannot read {data}: {error}") from error
    if not documents:
        raise GeomprobeError(f"{data} contains no text: expected documents that are not empty")
    random.Random(seed).shuffle(documents)
    return documents


def text_length(model: "PreTrainedModel", length: int | None = None) -> int:
    """Return the maximum length of the texts that a model reads: ``length``, or by default 256, or what the model accepts if
    that is less.

    Raises:
        GeomprobeError: if the model does not accept texts of ``length`` tokens.
    """
    accepted = getattr(model.config, "max_position_embeddings", None)
    length = length or min(_LENGTH, accepted or _LENGTH)
    if accepted is not None and length > accepted:
        raise GeomprobeError(
            f"texts of {length:,} tokens are longer than this model accepts ({accepted:,}): give a smaller length (--length)"
        )
    return length


def tokenize_documents(
    tokenizer: "PreTrainedTokenizerBase", documents: Sequence[str], *, tokens: int, length: int
) -> TokenizedTexts:
    """Return the first ``tokens`` tokens of ``documents``, in texts of at most ``length`` tokens. Long documents are divided.

    Texts of a single token are left out, because their token has no earlier tokens.

    Raises:
        GeomprobeError: if no text of two tokens or more is left.
    """
    texts: list[tuple[int, ...]] = []
    left = tokens
    for document in documents:
        # A document may be very long, and a token rarely has more than eight characters: tokenize no more than can be used.
        ids = tokenizer(document[: 16 * left + 64], verbose=False).input_ids[:left]
        cut = [tuple(ids[i : i + length]) for i in range(0, len(ids), length)]
        kept = [text for text in cut if len(text) > 1]
        texts += kept
        left -= sum(map(len, kept))
        if left < 2:
            break
    if not texts:
        raise GeomprobeError("the data contain no text of two tokens or more: give longer texts")
    return TokenizedTexts(tuple(texts))


def _padded(texts: Sequence[tuple[int, ...]]) -> Batch:
    longest = max(map(len, texts))
    ids = torch.zeros((len(texts), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    return Batch(ids, mask)


def _some(data: str, field: str, found: Iterable[Any]) -> list[str]:
    documents: list[str] = []
    characters = 0
    for number, document in enumerate(islice(found, _MOST_DOCUMENTS), 1):
        if not isinstance(document, str):
            raise GeomprobeError(
                f"{data}, document {number}: field {field!r} is of type {type(document).__name__}, expected text: name another "
                "field (--field)"
            )
        if document.strip():
            documents.append(document)
            characters += len(document)
        if characters > _MOST_CHARACTERS:
            break
    return documents


def _text(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.read(_MOST_CHARACTERS)


def _json_lines(path: Path, field: str) -> Iterator[Any]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise GeomprobeError(f"{path}, line {number}: not JSON ({error})") from error
            yield _field(f"{path}, line {number}", record, field)


def _parquet(path: Path, field: str) -> Iterator[Any]:
    try:
        from pyarrow.lib import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise GeomprobeError("reading .parquet needs pyarrow: pip install 'geomprobe[data]'") from error
    try:
        file = ParquetFile(path)
    except ArrowInvalid as error:
        raise GeomprobeError(f"cannot read {path}: {error}") from error
    if field not in file.schema_arrow.names:
        raise GeomprobeError(f"{path} has no field {field!r}: expected one of {', '.join(file.schema_arrow.names)}")
    for batch in file.iter_batches(columns=[field], batch_size=256):
        yield from batch.column(0).to_pylist()


def _data_set(data: str, field: str, split: str) -> Iterator[Any]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise GeomprobeError(
            f"{data}: no such file; to read a dataset of this name from the hub: pip install 'geomprobe[data]'"
        ) from error
    name, _, configuration = data.partition(":")
    try:
        rows = iter(load_dataset(name, configuration or None, split=split, streaming=True))
        first = next(rows, None)
    except Exception as error:  # a hub and its formats can raise errors of many kinds
        reason = str(error).strip().split("\n")[0]
        raise GeomprobeError(
            f"cannot read {data!r}: {type(error).__name__}: {reason}. Expected a .txt, .jsonl, .jsonl.gz or .parquet file that "
            "exists, or the id of a dataset on the hub that has this split (--split)"
        ) from error
    if first is not None:
        yield _field(data, first, field)
        yield from (row[field] for row in rows)


def _field(place: str, record: Any, field: str) -> Any:
    if not isinstance(record, dict) or field not in record:
        has = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise GeomprobeError(f"{place}: no field {field!r}; it has: {has}. Name the field that contains the text (--field)")
    return record[field]
