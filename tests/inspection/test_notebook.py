"""``show_tokens``: the page of a text as the result of a notebook cell."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from playwright.sync_api import expect

from geomprobe import GeomprobeError, Probe, show_tokens
from geomprobe.models.loading import Loaded, load
from tests.browser import Viewer, chromium

TEXT = "Once upon a time <b>there</b> was a cat. The cat was red."


@pytest.fixture(scope="module")
def stories(stories_model: Path) -> Loaded:
    return load(str(stories_model), device="cpu")


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[Viewer]:
    (tmp_path / "pages").mkdir()
    with chromium() as browser:
        yield Viewer(browser, tmp_path / "pages")


@pytest.mark.slow
def test_the_page_works_inside_a_notebook(stories: Loaded, viewer: Viewer, tmp_path: Path) -> None:
    view = show_tokens(stories.model, stories.tokenizer, TEXT)
    frame = viewer.open(view._repr_html_()).frame_locator("iframe")
    expect(frame.locator("#name")).to_have_text("final_norm")
    expect(frame.locator("#word")).to_have_text(".")  # the last token
    expect(frame.get_by_label("Attention of").locator("option")).to_have_count(1 + stories.model.config.num_attention_heads)
    assert viewer.faults == []
    view.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    assert "<b>there</b>" not in view._repr_html_()
    assert len(repr(view)) < 200


@pytest.mark.slow
def test_the_heads_are_those_of_the_model(stories: Loaded) -> None:
    from geomprobe.capture.decoder import find_decoder
    from geomprobe.inspection.token_weights import pick_tokens

    ids = stories.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    found, why = pick_tokens(stories.model, ids, decoder=find_decoder(stories.model), heads=True)
    assert why == ""
    stories.model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = stories.model(ids, output_attentions=True).attentions
    stories.model.set_attn_implementation("sdpa")
    assert found[0].heads is None  # embed
    for picks, weights in zip(found[1:-1], maps, strict=True):
        assert picks.heads is not None
        assert len(picks.heads) == weights.shape[1]
        for head, rows in enumerate(picks.heads):
            for t, row in enumerate(rows):
                expected = weights[0, head, t, :t].argsort(descending=True).tolist()[:5]
                above = [j for j in expected if weights[0, head, t, j] > 0.01]
                assert {j for j, _ in row} == set(above)
                for j, weight in row:
                    assert weight == pytest.approx(float(weights[0, head, t, j]), abs=1e-5)
    assert found[-1].heads == found[-2].heads
    assert "heads" not in found[-1].to_dict()


@pytest.mark.slow
def test_the_model_is_left_as_it_was(stories: Loaded) -> None:
    ids = stories.tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = stories.model(ids).logits
        show_tokens(stories.model, stories.tokenizer, TEXT)
        assert torch.equal(stories.model(ids).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in stories.model.modules())


@pytest.mark.slow
def test_what_cannot_be_shown(stories: Loaded) -> None:
    model, tokenizer = stories.model, stories.tokenizer
    with pytest.raises(GeomprobeError, match=r"the model is in training mode, .*: call model.eval\(\)"):
        show_tokens(model.train(), tokenizer, TEXT)
    model.eval()
    with pytest.raises(GeomprobeError, match="another probe is already attached"), Probe(model):
        show_tokens(model, tokenizer, TEXT)
    with pytest.raises(GeomprobeError, match="text"):
        show_tokens(model, tokenizer, "")
    wrong: Any = SimpleNamespace()
    with pytest.raises(GeomprobeError, match="expected a model of Transformers"):
        show_tokens(wrong, tokenizer, TEXT)
    with pytest.raises(GeomprobeError, match="expected the tokenizer of the model"):
        show_tokens(model, wrong, TEXT)
    with pytest.raises(GeomprobeError, match="height=3"):
        show_tokens(model, tokenizer, TEXT, height=3)
