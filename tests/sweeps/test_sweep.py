"""Sweeps: their numbers against a probe's own, and what is left when something goes wrong."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from geomprobe import GeomprobeError, InformationGain, Probe, RepresentationEntropy, SweepConfig, sweep
from geomprobe.accumulators.covariance import eigenvalues
from geomprobe.accumulators.state import State
from geomprobe.core.similarity import debiased_cka
from geomprobe.files import append_line
from geomprobe.models.loading import load, untrained
from geomprobe.sweeps import sweep as module
from geomprobe.sweeps.checkpoints import Checkpoint
from geomprobe.sweeps.dataset import Documents, TokenizedTexts, read_documents, tokenize_documents
from geomprobe.sweeps.measure import gaussian, measure, sample_metrics, token_metrics
from geomprobe.sweeps.processes import Team
from geomprobe.sweeps.records import READINGS, Record, Run
from tests.reference import hidden_states, unit
from tests.sweeps.conftest import STEPS, save_checkpoint

pytestmark = pytest.mark.slow  # it sweeps checkpoints

OPTIONS: dict[str, Any] = {"field": "prose", "tokens": 700, "sample": 200, "length": 50, "batch_tokens": 200}


@pytest.fixture(scope="module")
def run(training: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return sweep(str(training), data=str(texts), out=tmp_path_factory.mktemp("runs") / "run", **OPTIONS)


def texts_of(texts: Path, training: Path) -> TokenizedTexts:
    tokenizer = load(str(training / "checkpoint-1")).tokenizer
    return tokenize_documents(tokenizer, read_documents(str(texts), field="prose").texts, tokens=700, length=50)


def test_every_checkpoint_and_the_baselines_once(run: Run) -> None:
    assert [(r.kind, r.step) for r in run.records] == [
        ("untrained", None),
        ("gaussian", None),
        *(("checkpoint", step) for step in STEPS),
    ]
    assert run.failed == []
    assert run.axis == "step"
    assert len({(r.config, r.tokens) for r in run.records}) == 1
    for record in run.checkpoints:
        assert run.baseline(record, "untrained") is run.records[0]
        assert run.baseline(record, "gaussian") is run.records[1]


def test_numbers_are_a_probes_on_the_same_texts(run: Run, training: Path, texts: Path) -> None:
    cut = texts_of(texts, training)
    sample, _ = cut.split(200)
    for record in run.checkpoints:
        loaded = load(str(training / record.name))
        assert record.tokens == cut.digest
        readings, losses = [], []
        for part in (cut, sample):
            metrics = [RepresentationEntropy(), RepresentationEntropy(center="text", text_spectrum=True), InformationGain()]
            with torch.no_grad(), Probe(loaded.model, metrics, on_error="raise") as probe:
                for ids in part.ids:  # one by one: no padding
                    logits = loaded.model(input_ids=torch.tensor([ids])).logits[0].double()
                    losses.append(cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none"))
            readings.append(probe.read())
        reading = record.reading
        assert reading is not None
        for site in reading.sites:
            assert reading[f"tokens/{site}"] == cut.tokens
            assert reading[f"sample_tokens/{site}"] == sample.tokens
            for name in ("entropy", "matrix_entropy", "effective_rank", "anisotropy", "stable_rank"):
                assert reading[f"{name}/{site}"] == pytest.approx(readings[0][f"{name}/{site}"], rel=1e-4)
            for name in ("information_gain", "gain_per_token", "text_entropy", "centered_text_matrix_entropy"):
                assert reading[f"{name}/{site}"] == pytest.approx(readings[1][f"{name}/{site}"], rel=1e-4)
            assert reading.curve("gain", site).count == readings[1].curve("gain", site).count
        assert record.loss == pytest.approx(float(torch.cat(losses[: len(cut.ids)]).mean()), rel=1e-5)


def test_eigenvalues_of_a_sum_are_computed_once(training: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[str] = []

    def counted(state: State, *, center: bool = False) -> torch.Tensor:
        computed.append(",".join(state))
        return eigenvalues(state, center=center)

    monkeypatch.setattr("geomprobe.metrics.entropy.eigenvalues", counted)
    loaded = load(str(training / "checkpoint-4"))
    sample, rest = ([*part.batches(100)] for part in texts_of(texts, training).split(200))
    near, far = sample_metrics(), token_metrics()
    measured = measure(loaded, sample, rest, sample_metrics=near, token_metrics=far, team=Team(), advance=lambda tokens: None)
    reading = measured.reading
    assert len(computed) == 2 * len(reading.sites)  # of the rows of all tokens, and of those of the sample about their mean
    gaussian(32, sample, rest, sample_metrics=near, token_metrics=far, seed=0)
    assert len(computed) == 2 * len(reading.sites) + 2


def test_baselines_are_null(run: Run) -> None:
    untrained_record, gaussian_record = run.records[:2]
    assert untrained_record.loss == pytest.approx(math.log(256), rel=0.02)
    reading = gaussian_record.reading
    assert reading is not None
    assert reading.sites == ("gaussian",)
    assert untrained_record.reading is not None
    assert reading["tokens/gaussian"] == untrained_record.reading["tokens/final_norm"] == 700
    assert reading["effective_rank/gaussian"] > 0.9 * 32
    assert abs(reading["anisotropy/gaussian"]) < 0.01
    assert "lasso_attention_jaccard/gaussian" not in reading
    assert reading["information_gain/gaussian"] > 0


def test_an_untrained_model_is_seeded_and_leaves_the_generator_alone(training: Path) -> None:
    loaded = load(str(training / "checkpoint-4"))
    before = torch.get_rng_state()
    first, same, other = (untrained(loaded, seed=seed).model.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [name for name, value in first.items() if value.dim() == 2]
    assert all(torch.equal(first[name], same[name]) for name in weights)
    assert not any(torch.equal(first[name], other[name]) for name in weights)
    assert not any(torch.equal(first[name], loaded.model.state_dict()[name]) for name in weights)
    assert not untrained(loaded).model.training


def test_diff_erank_and_cka_against_their_definitions(run: Run, training: Path, texts: Path) -> None:
    anchor = texts_of(texts, training).split(OPTIONS["sample"])[0]
    grams: list[dict[str, torch.Tensor]] = []
    start = run.records[0].reading
    assert start is not None
    for record in run.checkpoints:
        model = load(str(training / record.name)).model
        rows: dict[str, list[torch.Tensor]] = {}
        for ids in sorted(anchor.ids, key=len, reverse=True):
            for site, hidden in hidden_states(model, {"input_ids": torch.tensor([ids])}).items():
                rows.setdefault(site, []).append(torch.from_numpy(unit(hidden[0])))
        grams.append({site: torch.cat(z) @ torch.cat(z).T for site, z in rows.items()})
        reading = record.reading
        assert reading is not None
        name = "centered_text_matrix_entropy/final_norm"
        expected = math.exp(start[name]) - math.exp(reading[name])
        assert reading["diff_erank/final_norm"] == pytest.approx(expected, rel=1e-12)
        for what, other in (("cka_first", 0), ("cka_previous", len(grams) - 2)):
            for site in reading.sites:
                if len(grams) == 1:
                    assert f"{what}/{site}" not in reading
                else:
                    twin = float(debiased_cka(grams[-1][site], grams[other][site]))
                    assert reading[f"{what}/{site}"] == pytest.approx(twin, abs=1e-4)
    last = run.checkpoints[-1].reading
    assert last is not None
    assert 0 < last["cka_first/final_norm"] < 1


# -- again, and after something went wrong ------------------------------------------------------------------------------------


def lines(folder: Path) -> list[dict[str, Any]]:
    """The records of a run without the times."""
    found = [json.loads(line) for line in (folder / READINGS).read_text("utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in ("seconds", "finished")} for line in found]


@pytest.fixture
def begin(tmp_path: Path, texts: Path, training: Path) -> Callable[..., Run]:
    """A sweep into ``tmp_path / "run"`` over a copy of the training, without baselines."""
    shutil.copytree(training, tmp_path / "training")

    def start(**options: Any) -> Run:
        options = OPTIONS | {"baselines": False, "data": str(texts), "out": tmp_path / "run"} | options
        return sweep(options.pop("models", str(tmp_path / "training")), **options)

    return start


def test_a_rerun_reads_nothing_twice(begin: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    ahead: list[list[str]] = []

    def read_ahead(checkpoints: Sequence[Checkpoint]) -> AbstractContextManager[None]:
        ahead.append([checkpoint.name for checkpoint in checkpoints])
        return nullcontext()

    monkeypatch.setattr(module, "read_ahead", read_ahead)
    first = begin(on_record=lambda record: told.append(record.name))
    assert ahead == [["checkpoint-4"], ["checkpoint-16"], []]  # each beside the one before
    before = lines(tmp_path / "run")
    scratch = tmp_path / "run" / ".manifest.json.123.part"
    scratch.touch()  # of a process that was killed
    monkeypatch.setattr(module, "load", None)  # nothing may be loaded
    again = begin(on_record=lambda record: told.append(record.name))
    assert lines(tmp_path / "run") == before
    assert [r.to_dict() for r in again.records] == [r.to_dict() for r in first.records]
    assert told == [r.name for r in first.records] * 2
    assert not scratch.exists()


def test_the_time_of_a_checkpoint_is_without_that_of_the_baselines(
    begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def baselines(*_: object) -> None:
        clock[0] += 1000

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(module._Sweep, "_read_baselines", baselines)
    run = begin(baselines=True)
    assert clock == [3000]
    assert [record.seconds for record in run.records] == [0, 0, 0]


def test_records_are_told_in_the_main_process_only() -> None:
    for main in (True, False):
        told: list[Record] = []
        config = SweepConfig("a", data="a.txt", out="run", on_record=told.append)
        team: Any = SimpleNamespace(main=main, device=None)
        bar: Any = None
        module._Sweep(config, team, Documents(()), {}, bar)._tell(Record(name="a"))
        assert len(told) == main


def test_a_training_that_goes_on_is_read_on(begin: Callable[..., Run], tmp_path: Path) -> None:
    begin()
    save_checkpoint(tmp_path / "training" / "checkpoint-64", 64)
    assert [r.step for r in begin().checkpoints] == [*STEPS, 64]
    assert len(lines(tmp_path / "run")) == 4


@pytest.mark.parametrize("damage", ["weights", "NaN", "config", "tokenizer", "gone"])
def test_a_checkpoint_that_fails_is_recorded_and_tried_again(
    begin: Callable[..., Run], tmp_path: Path, training: Path, damage: str
) -> None:
    broken = tmp_path / "training" / "checkpoint-4"
    said = {
        "weights": "cannot load",
        "NaN": "there is no finite row at embed",
        "config": "config.json",
        "tokenizer": "there is no tokenizer",
    }
    if damage == "weights":
        (broken / "model.safetensors").write_bytes(b"\0" * 100)
    elif damage == "NaN":
        weights = {name: torch.full_like(value, torch.nan) for name, value in load_file(broken / "model.safetensors").items()}
        save_file(weights, broken / "model.safetensors", {"format": "pt"})
    elif damage == "config":
        (broken / "config.json").unlink()
    else:
        for path in broken.glob("tokenizer*"):
            path.unlink()
        if damage == "gone":
            (broken / "model.safetensors").unlink()
    run = begin()
    assert [r.name for r in run.checkpoints] == ["checkpoint-1", "checkpoint-16"]
    (failed,) = run.failed
    assert failed.name == "checkpoint-4"
    assert failed.error is not None
    assert said.get(damage, "cannot load") in failed.error
    shutil.rmtree(broken)
    shutil.copytree(training / "checkpoint-4", broken)
    mended = begin()
    assert mended.failed == []
    assert [r.step for r in mended.checkpoints] == [*STEPS]
    # The failure stays written, and the checkpoint after it, which was compared with another one meanwhile, is written again.
    assert [line["name"] for line in lines(tmp_path / "run")] == [f"checkpoint-{step}" for step in (1, 4, 16, 4, 16)]


def test_a_revision_that_cannot_be_had(begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run = begin(models="nobody/nothing", revisions=["step1", "step2"])
    assert [record.name for record in run.failed] == ["step1", "step2"]
    assert all("cannot load 'nobody/nothing'" in str(record.error) for record in run.failed)


def test_other_arguments_are_refused_with_the_difference(begin: Callable[..., Run], tmp_path: Path, texts: Path) -> None:
    begin()
    before = lines(tmp_path / "run")
    with pytest.raises(GeomprobeError, match=r"tokens: 700 before, 500 now.*another folder"):
        begin(tokens=500)
    other = tmp_path / "texts.jsonl"
    other.write_text(texts.read_text("utf-8").replace("the", "a"), "utf-8")
    with pytest.raises(GeomprobeError, match="hash: "):
        begin(data=str(other))
    assert lines(tmp_path / "run") == before


def test_weights_written_anew_under_the_same_name_are_refused(begin: Callable[..., Run], tmp_path: Path) -> None:
    hashes = {record.weights for record in begin().checkpoints}
    assert len(hashes) == len(STEPS)
    assert None not in hashes
    before = lines(tmp_path / "run")
    save_checkpoint(tmp_path / "training" / "checkpoint-4", 5)
    with pytest.raises(GeomprobeError, match=r"^checkpoint-4: the weights have changed since .*run was written: give another"):
        begin()
    assert lines(tmp_path / "run") == before
    shutil.rmtree(tmp_path / "training" / "checkpoint-4")  # as a training does that keeps only the latest
    assert len(begin().checkpoints) == len(STEPS)


def test_a_checkpoint_that_is_removed_during_the_sweep_is_not_looked_for_on_a_hub(
    begin: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a request was sent")

    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.model_info", refuse)
    monkeypatch.setattr("huggingface_hub.file_download.get_hf_file_metadata", refuse)
    monkeypatch.chdir(tmp_path)
    removed = f"training/checkpoint-{STEPS[-1]}"
    run = begin(models="training", on_record=lambda record: shutil.rmtree(removed, ignore_errors=True))
    assert [(record.model, record.error) for record in run.failed] == [
        (removed, f"{removed} was removed: copy it back, or sweep over the checkpoints that are left")
    ]
    assert len([record for record in run.checkpoints if record.error is None]) == len(STEPS) - 1


@pytest.mark.parametrize("cut", [1, 50, 3000])
def test_a_torn_last_line_is_read_again(begin: Callable[..., Run], tmp_path: Path, cut: int) -> None:
    begin()
    before = lines(tmp_path / "run")
    path = tmp_path / "run" / READINGS
    path.write_bytes(path.read_bytes()[:-cut])
    begin()
    assert lines(tmp_path / "run") == before


def test_a_full_disk_keeps_what_was_computed(
    begin: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = begin(out=tmp_path / "whole")
    room = [1]

    def small(path: Path, record: dict[str, Any]) -> None:
        if not room:
            raise GeomprobeError("cannot add: No space left on device")
        room.pop()
        append_line(path, record)

    monkeypatch.setattr(module, "append_line", small)
    with pytest.raises(GeomprobeError, match="No space left"):
        begin()
    assert [record["name"] for record in lines(tmp_path / "run")] == ["checkpoint-1"]
    monkeypatch.setattr(module, "append_line", append_line)
    begin()
    assert lines(tmp_path / "run") == lines(whole.path)


def test_two_sweeps_do_not_write_one_folder(begin: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(GeomprobeError, match="being written by another sweep"):
        begin()
    assert len(begin().checkpoints) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 1}, r"tokens=1\): expected a whole number, 2 or more"),
        ({"models": []}, "no model"),
        ({"data": "missing.txt"}, "missing.txt"),
        ({"out": "/dev/null/run"}, "cannot write"),
    ],
)
def test_bad_arguments(begin: Callable[..., Run], options: dict[str, Any], message: str) -> None:
    with pytest.raises(GeomprobeError, match=message):
        begin(**options)


def test_texts_longer_than_the_model_reads(begin: Callable[..., Run]) -> None:
    (failed, *_) = begin(length=300).failed
    assert "longer than this model accepts (256)" in str(failed.error)


def test_sizes_are_told_apart_by_their_parameters(begin: Callable[..., Run], tmp_path: Path) -> None:
    folders = [str(save_checkpoint(tmp_path / f"width-{width}", 1, width=width)) for width in (64, 32)]
    run = begin(models=folders, baselines=True)
    assert run.axis == "parameters"
    assert [r.name for r in run.checkpoints] == ["width-32", "width-64"]
    for record in run.checkpoints:
        null = run.baseline(record, "gaussian")
        assert null is not None
        assert null.width == record.width == int(record.name.split("-")[1])
        assert record.reading is not None
        assert "cka_first/final_norm" not in record.reading  # of another architecture


def test_a_model_without_attention_is_read_without(begin: Callable[..., Run], tmp_path: Path) -> None:
    from geomprobe.models.toy import byte_tokenizer
    from tests.tiny_models import tiny

    folder = tmp_path / "mamba"
    tiny("mamba", vocabulary=256, state_size=4, bos_token_id=0, eos_token_id=0, pad_token_id=0).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    run = begin(models=str(folder), length=20, tokens=100)
    assert run.failed == []
    reading = run.checkpoints[0].reading
    assert reading is not None
    assert any(note.startswith("attention was not measured:") for note in reading.notes)
    assert "lasso_r2/final_norm" in reading
    assert "attention_entropy/final_norm" not in reading


def test_records_round_trip(run: Run) -> None:
    for record in run.records:
        back = Record.from_dict(json.loads(json.dumps(record.to_dict())))
        assert back.to_dict() == record.to_dict()


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(GeomprobeError, match="is not a run of a sweep"):
        Run.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(GeomprobeError, match=r"manifest\.json: not JSON"):
        Run.open(tmp_path)
