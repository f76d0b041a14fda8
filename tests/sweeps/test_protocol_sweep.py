"""Sweeps under a published protocol: one row for each text, texts that are cut, raw rows, and a report that names it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from geomprobe import GeomprobeError, sweep
from geomprobe.cli.main import app
from geomprobe.core.similarity import debiased_cka
from geomprobe.metrics.attention import AttentionProfile
from geomprobe.metrics.entropy import RepresentationEntropy
from geomprobe.models.loading import load
from geomprobe.models.toy import byte_tokenizer
from geomprobe.protocols import PROTOCOLS
from geomprobe.report.page import report_page
from geomprobe.sweeps.dataset import read_documents, tokenize_documents
from geomprobe.sweeps.measure import sample_metrics, token_metrics
from geomprobe.sweeps.records import Run
from tests.reference import hidden_states

TEXTS, LENGTH = 15, 30
OPTIONS: dict[str, Any] = {"field": "prose", "tokens": 700, "sample": 100, "batch_tokens": 200, "length": LENGTH}


def cut(texts: Path) -> list[torch.Tensor]:
    """The first tokens of the first documents, in the order of the sweep."""
    documents = read_documents(str(texts), field="prose").texts
    return [torch.tensor(byte_tokenizer()(text).input_ids[:LENGTH]) for text in documents[:TEXTS]]


@pytest.fixture(scope="module")
def run(training: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("protocol") / "run"
    options: dict[str, Any] = {"protocol": "three-phases", "texts": TEXTS, "truncate": True, "cka_rows": "raw", "rows": "mean"}
    return sweep(str(training), data=str(texts), out=out, **OPTIONS, **options)


def rows_of(training: Path, name: str, texts: list[torch.Tensor], site: str) -> list[torch.Tensor]:
    model = load(str(training / name)).model
    return [torch.from_numpy(hidden_states(model, {"input_ids": text.unsqueeze(0)})[site][0]).double() for text in texts]


@pytest.mark.slow
def test_numbers_are_those_of_the_last_rows(run: Run, training: Path, texts: Path) -> None:
    assert [record.error for record in run.records] == [None] * 5
    for record in run.checkpoints:
        assert record.reading is not None
        assert record.reading["texts/final_norm"] == TEXTS
        rows = rows_of(training, record.name, cut(texts), "final_norm")
        values = torch.linalg.eigvalsh(torch.cov(torch.stack([text[-1] for text in rows]).mT, correction=0)).clamp_min(0)
        shares = values / values.sum()
        expected = float(torch.special.entr(shares).sum().exp())
        assert record.reading["last_raw_stream_centered_effective_rank/final_norm"] == pytest.approx(expected, rel=1e-5)
        assert "mean_effective_rank/final_norm" in record.reading
    gaussian = next(record.reading for record in run.records if record.kind == "gaussian")
    assert gaussian is not None
    assert gaussian["last_raw_stream_centered_effective_rank/gaussian"] > 5


@pytest.mark.slow
def test_cka_of_raw_rows(run: Run, training: Path, texts: Path) -> None:
    """Of the first batch of the sample, which holds the longest texts first."""
    first, *_, last = run.checkpoints
    tokenized = tokenize_documents(
        byte_tokenizer(), read_documents(str(texts), field="prose").texts, tokens=700, length=LENGTH, count=TEXTS, truncate=True
    )
    sample, _ = tokenized.split(100)
    chosen = [torch.tensor(text) for text in sample.ids]
    one, other = (torch.cat(rows_of(training, record.name, chosen, "layer_00")) for record in (first, last))
    expected = float(debiased_cka(one @ one.mT, other @ other.mT))
    assert last.reading is not None
    assert last.reading["cka_first/layer_00"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_the_report_names_the_protocol(run: Run) -> None:
    page = report_page([run])
    assert "Protocol three-phases: RankMe and α-ReQ of the last tokens" in page
    assert "three-phases: RankMe and α-ReQ of the last tokens (Li et al. 2025, arXiv:2509.23024)" in page
    assert run.manifest["arguments"]["protocol"] == "three-phases"


@pytest.mark.slow
def test_a_run_is_resumed_with_its_own_protocol_only(run: Run, training: Path, texts: Path) -> None:
    options: dict[str, Any] = {"protocol": "rankme", "texts": TEXTS, "truncate": True, "cka_rows": "raw", "rows": "mean"}
    with pytest.raises(GeomprobeError, match="protocol: 'three-phases' before, 'rankme' now"):
        sweep(str(training), data=str(texts), out=run.path, **OPTIONS, **options)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_every_protocol_from_the_command_line(protocol: str, training: Path, texts: Path, tmp_path: Path) -> None:
    arguments = [
        "sweep",
        str(training / "checkpoint-1"),
        "--data",
        str(texts),
        "--field",
        "prose",
        "--out",
        str(tmp_path / "run"),
    ]
    arguments += ["--tokens", "400", "--sample", "60", "--length", "30", "--protocol", protocol]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (record,) = Run.open(tmp_path / "run").checkpoints
    assert record.reading is not None
    names = set(record.reading.metrics)
    assert set(PROTOCOLS[protocol].shown) <= names
    assert record.reading["tokens/final_norm"] == 400
    page = report_page([Run.open(tmp_path / "run")])
    for shown in PROTOCOLS[protocol].shown:
        assert shown in names
    assert f"Protocol {protocol}" in page


def test_the_metrics_of_a_sweep_have_no_name_twice() -> None:
    for protocol in (None, *PROTOCOLS.values()):
        for rows in ("all", "last", "mean"):
            for metrics in (sample_metrics(rows=rows, protocol=protocol), token_metrics(rows=rows, protocol=protocol)):
                names = [
                    (m.center, m.unit, m.rows) if isinstance(m, RepresentationEntropy) else type(m).__name__ for m in metrics
                ]
                assert len(names) == len(set(names))
    assert AttentionProfile() not in sample_metrics(protocol=PROTOCOLS["attention-sink"])


@given(st.lists(st.text(min_size=2, max_size=60), min_size=1), st.integers(2, 40), st.integers(1, 10))
def test_texts_that_are_truncated_are_the_starts_of_documents(documents: list[str], length: int, count: int) -> None:
    whole = [text.encode("utf-8", "replace") for text in documents]
    options: dict[str, Any] = {"tokens": 10_000, "length": length, "truncate": True}
    texts = tokenize_documents(byte_tokenizer(), documents, **options)
    assert [bytes(text) for text in texts.ids] == [text[:length] for text in whole]
    if count > len(documents):
        with pytest.raises(GeomprobeError, match=rf"only {len(documents):,} texts .* {count} \(--texts\) were asked for"):
            tokenize_documents(byte_tokenizer(), documents, **options, count=count)
    else:
        assert tokenize_documents(byte_tokenizer(), documents, **options, count=count).ids == texts.ids[:count]


def test_too_few_tokens_for_the_texts() -> None:
    with pytest.raises(GeomprobeError, match=r"10 tokens are only 2 texts of at most 5 tokens, and 4 .* give --tokens 20"):
        tokenize_documents(byte_tokenizer(), ["a long text"] * 9, tokens=10, length=5, count=4, truncate=True)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"texts": 0}, "texts=0"),
        ({"truncate": 1}, "truncate=1"),
        ({"rows": "first"}, "rows='first'"),
        ({"cka_rows": "all"}, "cka_rows='all'"),
        ({"protocol": "none"}, "protocol='none'): expected one of three-phases, .*, or None"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(GeomprobeError, match=what.replace(")", r"\)")):
        sweep("nowhere", data="nothing.txt", out=tmp_path / "run", **arguments)
