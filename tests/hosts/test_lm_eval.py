"""lm-evaluation-harness on a local task. It pads with token 0 on the right and passes no mask when it scores texts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from geomprobe import Probe, Reading
from tests.hosts.harness import PAD, alone, assert_same, letters, model, tokenizer
from tests.tiny_models import hooks

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install geomprobe[hosts]")

QUESTIONS = 12

SCORED = {
    "multiple_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
}
GENERATED = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"max_gen_toks": 10, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of tasks over one local file."""
    data, folder = tmp_path / "questions.jsonl", tmp_path / "tasks"
    choices = letters(2 * QUESTIONS, 1, 6, seed=1)
    with data.open("w") as lines:
        for i, question in enumerate(letters(QUESTIONS, 2, 20)):
            record = {"question": question, "choices": choices[2 * i : 2 * i + 2], "answer": i % 2}
            lines.write(json.dumps(record) + "\n")
    folder.mkdir()
    for name, task in (SCORED | {"generated": GENERATED}).items():
        source = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
            "test_split": "test",
        }
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **source, **task}))  # JSON is YAML
    return folder


def evaluate(model: Any, tasks: Path, task: str, batch_size: int | str) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    results: dict[str, Any] = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer(), batch_size=batch_size),
        tasks=[task],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    return {"results": results["results"], "samples": [sample["resps"] for sample in results["samples"][task]]}


def probed(model: Any, tasks: Path, task: str, batch_size: int | str, **options: Any) -> tuple[Reading, list[Tensor]]:
    """The reading of an evaluation, which computes the same as without a probe, and the texts that were scored."""
    bare = evaluate(model, tasks, task, batch_size)
    texts: list[Tensor] = []

    def spy(decoder: Any, args: Any, kwargs: Any) -> None:
        if task != "generated":
            assert kwargs.get("attention_mask") is None
            texts.extend(row[: int((row != PAD).nonzero().max()) + 1].clone() for row in kwargs["input_ids"])

    hook = model.get_decoder().register_forward_pre_hook(spy, with_kwargs=True)
    with Probe(model, on_error="raise", **options) as probe:
        with_probe = evaluate(model, tasks, task, batch_size)
    hook.remove()
    assert with_probe == bare
    assert not hooks(model)
    return probe.read(), texts


@pytest.mark.parametrize("task", SCORED)
def test_with_the_padding_token_each_text_counts_as_alone(tasks: Path, task: str) -> None:
    scored = model()
    one, texts = probed(scored, tasks, task, 1, pad_token_id=PAD)
    many, same_texts = probed(scored, tasks, task, 16, pad_token_id=PAD)
    assert sorted(map(tuple, map(Tensor.tolist, texts))) == sorted(map(tuple, map(Tensor.tolist, same_texts)))
    assert len(set(map(len, texts))) > 3
    assert_same(one, alone(scored, texts))
    assert_same(many, alone(scored, texts))
    assert one.notes == many.notes == []


@pytest.mark.parametrize("task", SCORED)
def test_padding_without_a_mask_is_noted(tasks: Path, task: str) -> None:
    scored = model()
    many, texts = probed(scored, tasks, task, 16)
    assert many["tokens/final_norm"] > sum(map(len, texts))  # the padding is among them, and the note says so
    (note,) = many.notes
    assert f"pad_token_id={PAD}" in note
    one, texts = probed(scored, tasks, task, 1)
    assert one.notes == []
    assert_same(one, alone(scored, texts))


def test_padding_with_an_end_token_is_noted(tasks: Path) -> None:
    """GPT-NeoX ends texts with token 0, with which the harness pads: the first of each run counts, as an end of the text."""
    scored = model(eos_token_id=PAD)
    many, texts = probed(scored, tasks, "multiple_choice", 16, pad_token_id=PAD)
    assert sum(map(len, texts)) < many["tokens/final_norm"] < sum(map(len, texts)) + len(texts)
    (note,) = many.notes
    assert "both the padding token and an end token" in note


def test_trial_batches_are_noted(tasks: Path) -> None:
    """With ``batch_size="auto"`` the harness runs rows of ones to find a batch size."""
    scored = model()
    some, texts = probed(scored, tasks, "multiple_choice", "auto", pad_token_id=PAD)
    assert some["texts/final_norm"] == len(texts) > 5 * 64
    assert any("id 1" in note for note in some.notes)


def test_generated_answers_count_as_alone(tasks: Path) -> None:
    """Rows of a batch end at different times, by the end token."""
    generating = model()
    with torch.no_grad():
        generating.lm_head.weight[1] *= 3  # the end token is likely
    one, _ = probed(generating, tasks, "generated", 1)
    many, _ = probed(generating, tasks, "generated", 16)
    assert one["texts/final_norm"] == QUESTIONS
    assert_same(many, one)
    assert one.notes == many.notes == []
