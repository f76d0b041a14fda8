"""Faults of the texts that are read: files, datasets and conversations."""

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from geomprobe.cli.main import app
from geomprobe.models.toy import byte_tokenizer
from geomprobe.sweeps.dataset import Documents, read_documents, tokenize_documents
from geomprobe.sweeps.records import Run
from geomprobe.sweeps.sweep import sweep
from geomprobe.sweeps.table import table
from tests.faults.table import fault, refused
from tests.sweeps.conftest import save_checkpoint

ONE, TWO = b'{"text": "one two"}\n', b'{"text": "three"}\n'
TALK = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


def written(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def lines(count: int) -> bytes:
    return b"".join(json.dumps({"text": f"{i} {'x' * (i % 97)}"}).encode() + b"\n" for i in range(count))


def stream(monkeypatch: pytest.MonkeyPatch, rows: list[Any], error: Exception | None = None) -> None:
    """A library ``datasets`` whose stream has ``rows``, and then breaks with ``error``."""

    def load_dataset(*_: object, **__: object) -> Iterator[Any]:
        yield from rows
        if error is not None:
            raise error

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


# -- what is left out, and counted --------------------------------------------------------------------------------------------

SKIPPED = b'{"text": "one two"}\n\n{"text": null}\n  \r\n{"text": ""}\n{"text": " \\n"}\n{"text": "three"}\n\n'


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_blank_lines_and_documents_without_text_are_counted(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, gzip.compress(SKIPPED) if name.endswith(".gz") else SKIPPED)
    read = read_documents(path)
    assert sorted(read.texts) == ["one two", "three"]
    assert read.skipped == 6


def test_nulls_of_parquet_are_counted(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one two", None, "", "three"]}), tmp_path / "a.parquet")
    read = read_documents(str(tmp_path / "a.parquet"))
    assert (sorted(read.texts), read.skipped) == (["one two", "three"], 2)


def test_nulls_of_a_stream_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    stream(monkeypatch, [{"text": None}, {"text": "one two"}, {"text": []}])
    read = read_documents("some/dataset")
    assert (read.texts, read.skipped) == (("one two",), 2)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name, content in (("a.txt", b"one two"), ("a.jsonl", ONE), ("a.jsonl.gz", ONE)):
        marked = b"\xef\xbb\xbf" + content
        path = written(tmp_path, name, gzip.compress(marked) if name.endswith(".gz") else marked)
        assert read_documents(path).texts == ("one two",)


def test_a_byte_order_mark_is_no_token_of_inspect(tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "model", 1)
    written(tmp_path, "a.txt", b"\xef\xbb\xbfone two")
    result = CliRunner().invoke(app, ["inspect", str(model), "--file", str(tmp_path / "a.txt"), "--json"])
    assert result.exit_code == 0, result.output
    assert "".join(json.loads(result.stdout)["tokens"]) == "one two"


@pytest.mark.slow
def test_the_manifest_and_the_table_say_how_many(tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "model", 1)
    run = sweep(str(model), data=written(tmp_path, "a.jsonl", SKIPPED), out=tmp_path / "run", tokens=8, baselines=False)
    assert run.failed == []
    assert Run.open(tmp_path / "run").manifest["data"]["skipped"] == 6
    assert "6 documents without text (null, empty or blank) were left out" in table(run)


# -- conversations ------------------------------------------------------------------------------------------------------------


def test_messages_are_rendered_by_the_chat_template(tmp_path: Path) -> None:
    rows = [{"messages": TALK}, {"messages": []}]
    path = written(tmp_path, "a.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    for source in (path, str(tmp_path / "a.parquet")):
        read = read_documents(source, field="messages")
        assert read.skipped == 1
        (ids,) = tokenize_documents(tokenizer, read.texts, tokens=100, length=100).ids
        assert tokenizer.decode(ids) == "<user>hello\n<assistant>hi\n"
    assert read.digest != read_documents(written(tmp_path, "b.jsonl", ONE)).digest
    assert read.digest == read_documents(path, field="messages").digest


def test_a_template_writes_the_special_tokens_itself() -> None:
    """Not twice, as in ``<s><s>user``."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.add_bos_token = True
    tokenizer.update_post_processor()
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    (ids,) = tokenize_documents(tokenizer, [tuple(TALK)], tokens=100, length=100).ids
    assert ids.count(tokenizer.bos_token_id) == 1
    (ids,) = tokenize_documents(tokenizer, ["hello"], tokens=100, length=100).ids
    assert ids.count(tokenizer.bos_token_id) == 1


@fault(
    "data: conversations, and a tokenizer without a chat template",
    says="the documents are lists of messages, and this tokenizer has no chat template: name the tokenizer of a chat model "
    "(--tokenizer), or write the conversations as texts into a field of their own (--field)",
    kept="the checkpoint is recorded with this error",
)
def no_chat_template(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = written(folder, "a.jsonl", json.dumps({"messages": TALK}).encode())
    model = save_checkpoint(folder / "model", 1)
    run = sweep(str(model), data=path, field="messages", out=folder / "run", tokens=8, baselines=False)
    assert [record.name for record in run.failed] == ["model"]
    return str(run.failed[0].error)


@fault(
    "data: a chat template that refuses a conversation",
    says="the chat template of this tokenizer refuses a conversation: TemplateError: no system. The conversation begins with "
    '{"role": "system", "content": "be brief"}: name another tokenizer (--tokenizer), or write the conversations as texts into '
    "a field of their own (--field)",
    kept="the checkpoint is recorded with this error",
)
def template_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system') }}"
    talk = ({"role": "system", "content": "be brief"},)
    return refused(lambda: tokenize_documents(tokenizer, [talk], tokens=8, length=8))


@fault(
    "data: a list whose entries are not messages",
    says="…/a.jsonl, line 2: field 'text' is a list of other things than messages, expected text, or a list of messages that "
    "have a role and a content: name another field (--field)",
    kept="nothing is measured",
)
def other_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = written(folder, "a.jsonl", ONE + b'{"text": ["one", "two"]}\n')
    return refused(lambda: read_documents(path))


# -- what cannot be read ------------------------------------------------------------------------------------------------------


@fault(
    "data: a file that is not there", says="cannot read …/a.txt: …; expected a text file in UTF-8", kept="nothing is written"
)
def missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    said = refused(lambda: sweep("model", data=str(folder / "a.txt"), out=folder / "run"))
    assert not (folder / "run").exists()
    return said


@fault(
    "data: a file that is not UTF-8",
    says="…/a.jsonl, line 2: not UTF-8; expected a text file in UTF-8",
    kept="nothing is measured",
)
def latin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    text = refused(lambda: read_documents(written(folder, "a.txt", b"one\ntwo \xe9\n")))
    assert text.endswith("a.txt: line 2 is not UTF-8; expected a text file in UTF-8")
    return refused(lambda: read_documents(written(folder, "a.jsonl", ONE + b'{"text": "\xe9"}\n')))


@fault(
    "data: half of a surrogate pair",
    says="…/a.jsonl, line 2: field 'text' is not valid Unicode text (…surrogates not allowed): correct or remove it",
    kept="nothing is measured",
)
def surrogate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    talk = written(folder, "b.jsonl", b'{"text": [{"role": "user", "content": "\\ud83d"}]}\n')
    assert "line 1: field 'text' is not valid Unicode text" in refused(lambda: read_documents(talk))
    return refused(lambda: read_documents(written(folder, "a.jsonl", ONE + b'{"text": "\\ud83d"}\n')))


@fault(
    "data: a line that is cut off",
    says="…/a.jsonl, line 2: not JSON (…); expected one JSON object per line",
    kept="nothing is measured",
)
def cut_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return refused(lambda: read_documents(written(folder, "a.jsonl", ONE + TWO[:9])))


@fault(
    "data: JSON with 200,000 nested levels",
    says="…/a.jsonl, line 2: not JSON (maximum recursion depth exceeded…); expected one JSON object per line",
    kept="nothing is measured",
)
def deep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return refused(lambda: read_documents(written(folder, "a.jsonl", ONE + b'{"text": ' + b"[" * 200_000)))


@fault(
    "data: a line that is as long as a file",
    says="…/a.jsonl, line 2: longer than … characters; expected one document per line",
    kept="nothing is measured",
)
def long_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("geomprobe.sweeps.dataset._MOST_CHARACTERS", 1000)
    return refused(lambda: read_documents(written(folder, "a.jsonl", ONE + b'{"text": "' + b"x" * 5000)))


@fault(
    "data: a document without the field",
    says="…/a.jsonl, line 2: no field 'text'; it has: body, n. Name the field that contains the text (--field)",
    kept="nothing is measured",
)
def lacks_field(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return refused(lambda: read_documents(written(folder, "a.jsonl", ONE + b'{"body": "x", "n": 1}\n')))


@fault(
    "data: nothing but empty documents",
    says="…/a.jsonl contains no text: all 2 documents that were read are empty; expected documents that are not empty",
    kept="nothing is measured",
)
def all_empty(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    empty = refused(lambda: read_documents(written(folder, "b.jsonl", b"")))
    assert empty.endswith("b.jsonl contains no text; expected documents that are not empty")
    return refused(lambda: read_documents(written(folder, "a.jsonl", b'\n{"text": null}\n')))


@fault(
    "data: a .gz whose checksum does not match its text",
    says="cannot read …/a.jsonl.gz after line …: the compressed file is damaged or not complete (…)",
    kept="nothing is measured",
)
def damaged_gzip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    whole = gzip.compress(lines(2000))
    zeros = refused(lambda: read_documents(written(folder, "a.jsonl.gz", whole[:20] + bytes(40) + whole[60:])))
    assert "a.jsonl.gz" in zeros  # where it is noticed depends on the place: by zlib, or as text that is no JSON
    return refused(lambda: read_documents(written(folder, "a.jsonl.gz", whole[:-8] + bytes(8))))


@fault(
    "data: a .gz that is damaged, of which only the start is needed",
    says="cannot read …/a.jsonl.gz: the compressed file is damaged or not complete (CRC check failed …)",
    kept="nothing is measured",
)
def damaged_gzip_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("geomprobe.sweeps.dataset._MOST_DOCUMENTS", 5)
    whole = gzip.compress(lines(20_000))
    assert len(read_documents(written(folder, "a.jsonl.gz", whole)).texts) == 5
    return refused(lambda: read_documents(written(folder, "a.jsonl.gz", whole[:-8] + bytes(8))))


@fault(
    "data: a .gz that is cut off",
    says="cannot read …/a.jsonl.gz after line …: the compressed file is damaged or not complete (Compressed file ended before "
    "the end-of-stream marker was reached)",
    kept="nothing is measured",
)
def cut_gzip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return refused(lambda: read_documents(written(folder, "a.jsonl.gz", gzip.compress(lines(2000))[:-40])))


@fault(
    "data: a Parquet file whose pages are damaged",
    says="cannot read …/a.parquet…: …; expected a Parquet file that is complete",
    kept="nothing is measured",
)
def damaged_parquet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = folder / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"{i} two" for i in range(3000)]}), path)
    body = bytearray(path.read_bytes())
    cut = refused(lambda: read_documents(written(folder, "b.parquet", bytes(body[:-100]))))
    assert cut.endswith("expected a Parquet file that is complete")
    for start in range(10, 4000, 200):
        body[start : start + 100] = b"\xff" * 100
    return refused(lambda: read_documents(written(folder, "a.parquet", bytes(body))))


@fault(
    "data: a streamed dataset that lacks the field in a later document",
    says="some/dataset, document 2: no field 'text'; it has: body. Name the field that contains the text (--field)",
    kept="nothing is measured",
)
def stream_lacks_field(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    stream(monkeypatch, [{"text": "one two"}, {"body": "three"}])
    return refused(lambda: read_documents("some/dataset"))


@fault(
    "data: a streamed dataset that breaks off",
    says="cannot read 'some/dataset' after document 2: ConnectionError: the hub is gone. Nothing was measured on a part of it; "
    "run the same command again, or save the dataset to a file and give that",
    kept="nothing is measured",
)
def stream_breaks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    stream(monkeypatch, [{"text": "one two"}, {"text": "three"}], ConnectionError("the hub is gone.\nmore"))
    return refused(lambda: read_documents("some/dataset"))


@fault(
    "data: a dataset that cannot be opened",
    says="cannot read 'some/dataset': ValueError: no such split. Expected a .txt, .jsonl, .jsonl.gz or .parquet file that "
    "exists, or the id of a dataset on the hub that has this split (--split)",
    kept="nothing is measured",
)
def stream_does_not_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    stream(monkeypatch, [], ValueError("no such split"))
    return refused(lambda: read_documents("some/dataset"))


@pytest.mark.parametrize("name", ["a\0.txt", "a\0.jsonl", "a\0.parquet", "a\0", "é" * 300 + ".txt", "x" * 300])
def test_a_name_that_no_file_can_have(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    stream(monkeypatch, [], ValueError("no such dataset"))
    assert "cannot read" in refused(lambda: read_documents(name))


def test_conversations_and_texts_may_be_mixed() -> None:
    documents = Documents((tuple(TALK), "one two"))
    assert len({documents.digest, Documents(("one two", tuple(TALK))).digest}) == 2
