"""The page of a text that closes the W&B run of a sweep: of the tokens that were read, and never in the way of the sweep."""

import json
import shutil
from pathlib import Path

import pytest

from geomprobe import GeomprobeError, sweep
from geomprobe.inspection import inspect as module
from geomprobe.models.loading import load
from geomprobe.sweeps.dataset import read_documents, tokenize_documents
from geomprobe.sweeps.records import Run
from geomprobe.tracking.closing import closing_page
from tests.sweeps.conftest import save_checkpoint
from tests.tiny_models import prose

pytestmark = pytest.mark.slow  # it sweeps a checkpoint


def swept(folder: Path, *, length: int | None, bos: bool = False, **options: int) -> Run:
    model = save_checkpoint(folder / "checkpoint-1", 1, **options)
    if bos:  # a tokenizer that puts a token before every text
        path = model / "tokenizer.json"
        content = json.loads(path.read_text("utf-8"))
        single = [{"SpecialToken": {"id": "Q", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
        number = content["model"]["vocab"]["Q"]
        special = {"Q": {"id": "Q", "ids": [number], "tokens": ["Q"]}}
        content["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
        path.write_text(json.dumps(content), "utf-8")
    (folder / "texts.txt").write_text(prose(3000), "utf-8")
    return sweep(
        str(model), data=str(folder / "texts.txt"), out=folder / "run", tokens=300, sample=60, length=length, baselines=False
    )


@pytest.mark.parametrize("length", [None, 20])
@pytest.mark.parametrize("bos", [False, True])
def test_the_page_shows_the_tokens_that_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int | None, bos: bool
) -> None:
    run = swept(tmp_path, length=length, bos=bos, max_position_embeddings=40)
    seen: list[list[int]] = []
    inspect = module._inspect

    def watched(loaded: object, ids: object, **options: object) -> object:
        seen.append(ids.tolist()[0])  # type: ignore[attr-defined]
        return inspect(loaded, ids, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_inspect", watched)
    assert "<!DOCTYPE html>" in closing_page(run)["tokens"]
    tokenizer = load(str(tmp_path / "checkpoint-1")).tokenizer
    documents = read_documents(str(tmp_path / "texts.txt")).texts
    texts = tokenize_documents(tokenizer, documents, tokens=300, length=length or 40)
    assert seen == [list(texts.ids[0])]
    assert len(seen[0]) == (length or 40)


def test_a_checkpoint_that_was_removed_is_not_looked_for_on_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a request was sent")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "training").mkdir()
    run = swept(Path("training"), length=20)
    shutil.rmtree("training/checkpoint-1")  # as a training does that keeps only the latest
    monkeypatch.setattr("huggingface_hub.file_download.get_hf_file_metadata", refuse)
    with pytest.raises(GeomprobeError, match="training/checkpoint-1 was removed: copy it back"):
        closing_page(run)
