"""The texts of a sweep: from a file or a dataset to batches of tokens that are the same for every checkpoint."""

import gzip
import json
import random
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import Tensor

from geomprobe.errors import GeomprobeError
from geomprobe.files import read_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Batch", "Document", "Documents", "Message", "TokenizedTexts", "read_documents", "text_length", "tokenize_documents"]

_LENGTH = 256
"""Default length of texts. The metrics of the sample cost up to the cube of the length, and many texts are more informative
than a few long ones."""

Message = Mapping[str, Any]
"""A message of a conversation, with a ``role`` and a ``content``."""

Document = str | tuple[Message, ...]
"""A text, or the messages of a conversation."""

_Found = tuple[str, Any]
"""Where a document was found, and what its field contains."""

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


@dataclass(frozen=True)
class Documents:
    """The documents of a file or dataset, in shuffled order.

    Attributes:
        texts: the documents. One that is a list of messages becomes a text by the chat template of a tokenizer.
        skipped: number of documents without text, which are left out: null, empty or blank.
    """

    texts: tuple[Document, ...]
    skipped: int = 0

    @property
    def digest(self) -> str:
        """The SHA-256 hash of the documents in their order."""
        hashed = sha256()
        for document in self.texts:
            text = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False, sort_keys=True)
            hashed.update(f"{len(text)}:".encode() + text.encode())
        return hashed.hexdigest()


def read_documents(data: str, *, field: str = "text", split: str = "train", seed: int = 0) -> Documents:
    """Return the documents of a file or dataset in shuffled order.

    At most the first 10,000 documents and about 64 million characters are read. Documents without text (null, empty, or only
    white space) and blank lines are left out and counted.

    Args:
        data: a ``.txt`` (one document), ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` file, or the id of a dataset on the hub, with
            its configuration after a colon (``wikitext:wikitext-2-raw-v1``).
        field: name of the field that contains the text of a document, or its list of messages, each with a ``role`` and a
            ``content``; not used for ``.txt``.
        split: split of a dataset on the hub.
        seed: seed of the order.

    Raises:
        GeomprobeError: if the data cannot be read, or contain no text in ``field``.
    """
    path = Path(data)
    name = path.name.lower()
    try:
        if name.endswith(".txt"):
            found: Iterable[_Found] = [(data, read_text(path, most=_MOST_CHARACTERS))]
        elif name.endswith(".parquet"):
            found = _parquet(path, field)
        elif name.endswith((".jsonl", ".jsonl.gz", ".json.gz")):
            found = _json_lines(path, field)
        elif path.exists():
            raise GeomprobeError(f"{data}: expected a .txt, .jsonl, .jsonl.gz or .parquet file, or the id of a dataset")
        else:
            found = _data_set(data, field, split)
        documents = _some(field, found)
        if name.endswith(".gz"):
            _check_sum(path)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise GeomprobeError(f"cannot read {data}: {error}") from error
    if not documents.texts:
        read = f": all {documents.skipped:,} documents that were read are empty" if documents.skipped else ""
        raise GeomprobeError(f"{data} contains no text{read}; expected documents that are not empty")
    order = list(documents.texts)
    random.Random(seed).shuffle(order)
    return replace(documents, texts=tuple(order))


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
    tokenizer: "PreTrainedTokenizerBase",
    documents: Iterable[Document],
    *,
    tokens: int,
    length: int,
    count: int | None = None,
    truncate: bool = False,
) -> TokenizedTexts:
    """Return the first ``tokens`` tokens of ``documents``, in texts of at most ``length`` tokens. Long documents are divided.

    Texts of a single token are left out, because their token has no earlier tokens. Lists of messages are rendered by the chat
    template of the tokenizer.

    Args:
        tokenizer: the tokenizer.
        documents: the documents.
        tokens: maximum number of tokens.
        length: maximum number of tokens of a text.
        count: the number of texts to return. Default: as many as there are tokens for.
        truncate: whether only the first ``length`` tokens of each document are read, instead of dividing it.

    Raises:
        GeomprobeError: if no text of two tokens or more is left, or fewer than ``count``; or if there are messages and the
            tokenizer has no chat template or its template refuses them.
    """
    texts: list[tuple[int, ...]] = []
    left = tokens
    for document in documents:
        # A document may be very long, and a token rarely has more than eight characters: tokenize no more than can be used.
        plain = isinstance(document, str)
        text = document if isinstance(document, str) else _rendered(tokenizer, document)
        # A chat template writes the special tokens itself.
        most = min(left, length) if truncate else left
        ids = tokenizer(text[: 16 * most + 64], add_special_tokens=plain, verbose=False).input_ids[:most]
        cut = [tuple(ids[i : i + length]) for i in range(0, len(ids), length)]
        kept = [text for text in cut if len(text) > 1][: None if count is None else count - len(texts)]
        texts += kept
        left -= sum(map(len, kept))
        if left < 2 or len(texts) == count:
            break
    if not texts:
        raise GeomprobeError("the data contain no text of two tokens or more: give longer texts")
    if count is not None and len(texts) < count:
        if left < 2:
            raise GeomprobeError(
                f"{tokens:,} tokens are only {len(texts):,} texts of at most {length:,} tokens, and {count:,} (--texts) were "
                f"asked for: give --tokens {count * length}"
            )
        raise GeomprobeError(
            f"the data contain only {len(texts):,} texts of two tokens or more, and {count:,} (--texts) were asked for: give "
            "more data, or ask for fewer"
        )
    return TokenizedTexts(tuple(texts))


def _padded(texts: Sequence[tuple[int, ...]]) -> Batch:
    longest = max(map(len, texts))
    ids = torch.zeros((len(texts), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    return Batch(ids, mask)


def _rendered(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> str:
    """A conversation as the text that the chat template of the tokenizer writes."""
    if not getattr(tokenizer, "chat_template", None):
        raise GeomprobeError(
            "the documents are lists of messages, and this tokenizer has no chat template: name the tokenizer of a chat model "
            "(--tokenizer), or write the conversations as texts into a field of their own (--field)"
        )
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False))
    except Exception as error:  # a template is a program that came with the tokenizer, and can raise errors of many kinds
        raise GeomprobeError(
            f"the chat template of this tokenizer refuses a conversation: {type(error).__name__}: {error}. The conversation "
            f"begins with {json.dumps(messages[0], ensure_ascii=False)[:80]}: name another tokenizer (--tokenizer), or write "
            "the conversations as texts into a field of their own (--field)"
        ) from error


def _some(field: str, found: Iterable[_Found]) -> Documents:
    """The first documents of ``found``, without those that are empty."""
    documents: list[Document] = []
    skipped = characters = 0
    for place, value in islice(found, _MOST_DOCUMENTS):
        document = _document(place, field, value)
        if document is None:
            skipped += 1
            continue
        documents.append(document)
        characters += len(document) if isinstance(document, str) else len(json.dumps(document))
        if characters > _MOST_CHARACTERS:
            break
    return Documents(tuple(documents), skipped)


def _document(place: str, field: str, value: Any) -> Document | None:
    """A document as text or messages, or ``None`` if it is empty."""
    if value is None or value == []:
        return None
    conversation = isinstance(value, list)
    if not isinstance(value, str) and not (conversation and all(map(_is_message, value))):
        kind = "a list of other things than messages" if conversation else f"of type {type(value).__name__}"
        raise GeomprobeError(
            f"{place}: field {field!r} is {kind}, expected text, or a list of messages that have a role and a content: name "
            "another field (--field)"
        )
    try:
        text = json.dumps(value, ensure_ascii=False) if conversation else value
        text.encode()
    except (TypeError, ValueError) as error:  # UnicodeEncodeError is a ValueError
        raise GeomprobeError(f"{place}: field {field!r} is not valid Unicode text ({error}): correct or remove it") from error
    if conversation:
        return tuple(value)
    return value if value.strip() else None


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and "content" in value


def _json_lines(path: Path, field: str) -> Iterator[_Found]:
    """The value of ``field`` of every line. Bytes that are not UTF-8 are read as surrogates, so that their line is known.

    :func:`geomprobe.files.read_lines` reads our own files. Those of users may be compressed, larger than the memory, and have
    blank lines or NaN, and a last line without an end is a document.
    """
    number = 0
    try:
        with _opened(path) as lines:
            while line := lines.readline(_MOST_CHARACTERS + 1):
                number += 1
                place = f"{path}, line {number}"
                if len(line) > _MOST_CHARACTERS:
                    raise GeomprobeError(
                        f"{place}: longer than {_MOST_CHARACTERS:,} characters; expected one document per line"
                    )
                if not line.strip():
                    yield place, None
                    continue
                try:
                    line.encode()
                    record = json.loads(line)
                except UnicodeEncodeError as error:
                    raise GeomprobeError(f"{place}: not UTF-8; expected a text file in UTF-8") from error
                except (ValueError, RecursionError) as error:
                    raise GeomprobeError(f"{place}: not JSON ({error}); expected one JSON object per line") from error
                yield place, _field(place, record, field)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise GeomprobeError(
            f"cannot read {path} after line {number}: the compressed file is damaged or not complete ({error})"
        ) from error


def _check_sum(path: Path) -> None:
    """Read a compressed file to its end, where its check sum stands: a changed byte can leave a text that looks whole."""
    try:
        with gzip.open(path) as file:
            while file.read(1 << 24):
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise GeomprobeError(f"cannot read {path}: the compressed file is damaged or not complete ({error})") from error


def _opened(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="surrogateescape")
    return path.open(encoding="utf-8-sig", errors="surrogateescape")


def _parquet(path: Path, field: str) -> Iterator[_Found]:
    try:
        from pyarrow.lib import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise GeomprobeError("reading .parquet needs pyarrow: pip install 'geomprobe[data]'") from error
    number = 0
    try:
        with ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                raise GeomprobeError(f"{path} has no field {field!r}: expected one of {', '.join(file.schema_arrow.names)}")
            for batch in file.iter_batches(columns=[field], batch_size=256):
                for value in batch.column(0):
                    number += 1
                    yield f"{path}, row {number}", value.as_py()
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        where = f" near row {number + 1}" if number else ""
        raise GeomprobeError(f"cannot read {path}{where}: {error}; expected a Parquet file that is complete") from error


def _data_set(data: str, field: str, split: str) -> Iterator[_Found]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise GeomprobeError(
            f"{data}: no such file; to read a dataset of this name from the hub: pip install 'geomprobe[data]'"
        ) from error
    name, _, configuration = data.partition(":")
    try:
        rows = iter(load_dataset(name, configuration or None, split=split, streaming=True))
        row = next(rows, None)
    except Exception as error:  # a hub and its formats can raise errors of many kinds
        raise GeomprobeError(
            f"cannot read {data!r}: {_reason(error)}. Expected a .txt, .jsonl, .jsonl.gz or .parquet file that exists, or the "
            "id of a dataset on the hub that has this split (--split)"
        ) from error
    number = 1
    while row is not None:
        place = f"{data}, document {number}"
        yield place, _field(place, row, field)
        try:
            row = next(rows, None)
        except Exception as error:
            raise GeomprobeError(
                f"cannot read {data!r} after document {number}: {_reason(error)}. Nothing was measured on a part of it; run "
                "the same command again, or save the dataset to a file and give that"
            ) from error
        number += 1


def _reason(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().split(chr(10))[0].rstrip('.')}"


def _field(place: str, record: Any, field: str) -> Any:
    if not isinstance(record, dict) or field not in record:
        has = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise GeomprobeError(f"{place}: no field {field!r}; it has: {has}. Name the field that contains the text (--field)")
    return record[field]
