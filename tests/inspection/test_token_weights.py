"""What tokens are made of, against the definitions, and on the page."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, Ridge

from geomprobe import GeomprobeError
from geomprobe.capture.decoder import find_decoder
from geomprobe.inspection.inspect import Inspection, inspect_text
from geomprobe.inspection.token_weights import Pick, pick_tokens
from geomprobe.models.loading import load
from tests import reference
from tests.browser import Viewer, chromium
from tests.capture.test_architectures import build
from tests.tiny_models import VOCABULARY, hooks, tiny

IDS = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(0))[:20].unsqueeze(0)  # equal ones share weight


def dense(rows: tuple[tuple[Pick, ...], ...]) -> np.ndarray:
    weights = np.zeros((len(rows), len(rows)))
    for t, row in enumerate(rows):
        assert [abs(weight) for _, weight in row] == sorted((abs(weight) for _, weight in row), reverse=True)
        for j, weight in row:
            weights[t, j] = weight
    return weights


def above(weights: np.ndarray) -> np.ndarray:
    """Weights that count as picked, with some room for rounding at the threshold."""
    return np.where(np.abs(weights) > 0.01, weights, 0)


def test_picks_are_those_of_scikit_learn_and_of_eager_attention() -> None:
    model = tiny("llama")
    eager = tiny("llama", attn_implementation="eager")
    done: list[int] = []
    picks, why = pick_tokens(model, IDS, progress=done.append, decoder=find_decoder(model))
    assert why == ""
    assert sum(done) == len(picks) == 5
    with torch.no_grad():
        maps = eager.model(IDS, output_attentions=True, use_cache=False).attentions
    hidden = reference.hidden_states(model, {"input_ids": IDS})
    for n, here in enumerate(picks):
        (rows,) = hidden[here.site]
        z = reference.unit(rows)
        lasso, ridge = dense(here.lasso), dense(here.ridge)
        for t in range(1, len(z)):
            made = Lasso(1e-4, fit_intercept=False, tol=1e-12, max_iter=1_000_000).fit(z[:t].T, z[t])
            assert lasso[t, :t] == pytest.approx(above(np.maximum(made.coef_, 0)), abs=1e-3)
            assert here.r2[t] == pytest.approx(1 - np.square(z[t] - made.coef_ @ z[:t]).sum(), abs=1e-4)
            regressed = Ridge(alpha=1e-4, fit_intercept=False).fit(z[:t].T, z[t]).coef_
            assert ridge[t, :t] == pytest.approx(above(regressed), abs=1.1e-2)
        assert np.isnan(here.r2[0])
        if here.site == "embed":
            assert here.attention is None
        else:
            weights = maps[min(n, 3) - 1][0].mean(0).tril(-1).numpy()
            assert here.attention is not None
            assert dense(here.attention) == pytest.approx(above(weights), abs=1e-6)


def test_without_attention_it_is_said_why() -> None:
    picks, why = pick_tokens(build("Mamba"), IDS, ["layer_01"], decoder=find_decoder(build("Mamba")))
    assert [here.site for here in picks] == ["layer_01"]
    assert picks[0].attention is None
    assert "MambaModel has no attention" in why
    assert any(picks[0].lasso)


def test_nothing_stays_on_a_model_that_raises() -> None:
    model = tiny("llama")
    with pytest.raises(GeomprobeError, match="unknown site"):
        pick_tokens(model, IDS, ["layer_77"], decoder=find_decoder(model))
    with pytest.raises(IndexError):
        pick_tokens(model, IDS + 10_000, decoder=find_decoder(model))
    assert hooks(model) == []


def test_the_page_shows_the_picks_of_the_layer(stories_model: Path, tmp_path: Path) -> None:
    text = "Once upon a time\nthere was <script>alert(1)</script> 🙂 a dog. The dog was big."
    inspection = inspect_text(load(str(stories_model)), text, all_sites=True)
    with chromium() as browser:
        look_at_page(inspection, Viewer(browser, tmp_path))
    assert all(f"<script>{what}" not in inspection.to_html() for what in ("alert", " alert"))


def look_at_page(inspection: Inspection, viewer: Viewer) -> None:
    page = viewer.open(inspection.to_html())
    tokens = page.locator(".t")
    assert tokens.count() == len(inspection.tokens)
    dog = len(inspection.tokens) - 4
    assert inspection.tokens[dog:] == ("g", " was", " big", ".")
    for number in (-1, 2):
        site = inspection.picks[number]
        page.locator("input[type=range]").evaluate(
            "(slider, n) => { slider.value = n; slider.dispatchEvent(new Event('input', {bubbles: true})) }",
            number % len(inspection.picks),
        )
        assert page.get_by_text(site.site, exact=True).count()
        tokens.nth(dog).hover()
        shown = page.locator("body").inner_text()
        for rows in (site.lasso, site.attention):
            assert rows is not None
            for j, weight in rows[dog][:3]:
                assert f"#{j}" in shown
                assert f"{weight:.3f}" in shown
    viewer.close()
    assert viewer.faults == []
