"""From files to batches of tokens."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geomprobe.errors import GeomprobeError
from geomprobe.models.toy import byte_tokenizer
from geomprobe.sweeps.dataset import Documents, TokenizedTexts, read_documents, tokenize_documents

DOCUMENTS = ["one", "two words", "three wörds 🙂", "four\nlines"]


def written(folder: Path, name: str) -> str:
    path = folder / name
    lines = "".join(json.dumps({"text": text, "n": i}) + "\n" for i, text in enumerate(DOCUMENTS))
    if name.endswith(".txt"):
        path.write_text("\n".join(DOCUMENTS), "utf-8")
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": DOCUMENTS, "n": list(range(4))}), path)
    else:
        path.write_text(lines, "utf-8")
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_files_hold_the_same_documents_in_an_order_of_the_seed(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name)
    orders = {read_documents(path, seed=seed).texts for seed in range(8)}
    assert all(sorted(order) == sorted(DOCUMENTS) for order in orders)
    assert len(orders) > 1
    assert read_documents(path, seed=3) == read_documents(written(tmp_path, "b.jsonl"), seed=3)


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    assert read_documents(written(tmp_path, "a.txt")).texts == ("\n".join(DOCUMENTS),)


@pytest.mark.parametrize(
    ("name", "content", "field", "message"),
    [
        ("missing.txt", None, "text", "missing.txt"),
        ("a.bin", b"x", "text", "expected a .txt"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', "text", "line 2: not JSON"),
        (
            "a.jsonl",
            b'{"body": "a"}\n',
            "text",
            r"no field 'text'; it has: body\. Name the field that contains the text \(--field\)",
        ),
        ("a.jsonl", b"[1]\n", "text", "no field"),
        ("a.jsonl", b'{"text": 3}\n', "text", "line 1: field 'text' is of type int"),
        ("a.jsonl", b'{"text": "  "}\n', "text", "contains no text"),
        ("a.jsonl", b"", "text", "contains no text"),
        ("a.txt", b"\xff\xfe", "text", "cannot read"),
        ("a.jsonl.gz", b"no gzip", "text", "cannot read"),
        ("a.parquet", b"no parquet", "text", "cannot read"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes | None, field: str, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GeomprobeError, match=message):
        read_documents(str(path), field=field)


def test_an_unknown_field_of_parquet_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(GeomprobeError, match="no field 'body': expected one of text, n"):
        read_documents(written(tmp_path, "a.parquet"), field="body")


def test_a_data_set_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(GeomprobeError, match="cannot read 'nobody/nothing'"):
        read_documents("nobody/nothing")


@given(st.lists(st.text(max_size=60), min_size=1), st.integers(2, 200), st.integers(2, 40))
def test_pieces_are_the_documents_cut(documents: list[str], tokens: int, length: int) -> None:
    tokenizer = byte_tokenizer()
    whole = [text.encode("utf-8", "replace") for text in documents]
    if not any(len(text) % length != 1 or len(text) > length for text in whole if len(text) > 1):
        return  # nothing but single tokens may be left
    texts = tokenize_documents(tokenizer, documents, tokens=tokens, length=length)
    assert 2 <= texts.tokens <= tokens
    assert all(2 <= len(piece) <= length for piece in texts.ids)
    everything = b"".join(whole)
    position = 0
    for piece in texts.ids:  # in order, and nothing but single tokens lost between
        position = everything.index(bytes(piece), position) + len(piece)
    if sum(len(text) // length * length for text in whole) >= tokens + length:
        assert texts.tokens >= tokens - 1


def test_too_little_text() -> None:
    with pytest.raises(GeomprobeError, match="no text of two tokens"):
        tokenize_documents(byte_tokenizer(), ["a", "b"], tokens=10, length=5)


@given(st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=12).map(tuple), min_size=1), st.integers(2, 40))
def test_batches_hold_every_text_once_and_little_padding(ids: list[tuple[int, ...]], places: int) -> None:
    batches = TokenizedTexts(tuple(ids)).batches(places)
    back = [tuple(row[: int(n)].tolist()) for b in batches for row, n in zip(b.ids, b.mask.sum(1), strict=True)]
    assert sorted(back) == sorted(ids)
    for batch in batches:
        assert batch.ids.numel() <= places or len(batch.ids) == 1
        assert batch.tokens == int(batch.mask.sum())
        lengths = batch.mask.sum(1)
        assert torch.equal(batch.mask, (torch.arange(batch.ids.shape[1]) < lengths[:, None]).long())
    assert sum(batch.tokens for batch in batches) == TokenizedTexts(tuple(ids)).tokens


def test_split_cuts_between_texts() -> None:
    texts = TokenizedTexts(((1, 2, 3), (4, 5), (6, 7, 8)))
    for tokens in (4, 5):
        assert texts.split(tokens) == (TokenizedTexts(((1, 2, 3), (4, 5))), TokenizedTexts(((6, 7, 8),)))
    assert texts.split(100) == (texts, TokenizedTexts(()))


def test_the_digest_of_documents_knows_where_they_end_and_what_a_conversation_says() -> None:
    said = ({"role": "user", "content": "a"}, {"content": "a", "role": "user"}, {"role": "user", "content": "b"})
    one, same, other = (Documents(((message,),)).digest for message in said)
    assert one == same != other
    several = [("ab", "c"), ("a", "bc"), ("abc",), ("c", "ab"), ("ab", "c", "")]
    assert len({Documents(texts).digest for texts in several}) == len(several)


def test_the_digest_knows_tokens_and_where_texts_end() -> None:
    cuts = [((1, 2), (3,)), ((1,), (2, 3)), ((1, 2, 3),), ((1, 2), (4,))]
    assert len({TokenizedTexts(cut).digest for cut in cuts}) == len(cuts)
    assert TokenizedTexts(((1, 2),)).digest == TokenizedTexts((tuple(int(i) for i in np.array([1, 2])),)).digest
