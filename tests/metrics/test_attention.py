"""AttentionProfile, and what ContextLasso says of attention, against NumPy and SciPy on eager's maps of a trained model."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import Lasso

from geomprobe import AttentionProfile, ContextLasso, GeomprobeError, Probe
from geomprobe.accumulators.attention import AttentionSum
from geomprobe.models.loading import Loaded, load, tokenize
from tests import reference
from tests.accumulators.harness import assert_same, attended, padded, texts
from tests.tiny_models import tiny, token_batch

TEXTS = (
    "Once upon a time there was a little dog who lived in a big house by the river.",
    "Lily and Tom went to the park. They saw a red ball, and Tom said: it is mine!",
)
SITE, LAYER = "layer_02", 2


@pytest.fixture(scope="module")
def stories(stories_model: Path) -> Loaded:
    return load(str(stories_model))


@torch.no_grad()
def targets(stories: Loaded, stories_model: Path) -> Iterator[tuple[Any, Any, int]]:
    """Unit rows ``(t + 1, d)`` and weights ``(heads, t + 1)`` of every token that has a past."""
    eager = load(str(stories_model)).model
    eager.set_attn_implementation("eager")
    for text in TEXTS:
        output = eager.model(tokenize(stories, text), output_attentions=True, output_hidden_states=True, use_cache=False)
        z = reference.unit(output.hidden_states[LAYER + 1][0].numpy())
        weights = output.attentions[LAYER][0].double().numpy()
        for t in range(1, len(z)):
            yield z, weights, t


def read(stories: Loaded, metric: AttentionProfile | ContextLasso) -> Any:
    with torch.no_grad(), Probe(stories.model, [metric], sites=[SITE], on_error="raise") as probe:
        for text in TEXTS:
            stories.model.model(tokenize(stories, text), use_cache=False)
    return probe.read()


def test_profile(stories: Loaded, stories_model: Path) -> None:
    reading = read(stories, AttentionProfile())
    entropy, sink, distance, picks, octaves = [], [], [], [], []
    for _, weights, t in targets(stories, stories_model):
        a = weights[:, t, : t + 1]
        entropy.append(-(a * np.log(np.maximum(a, 1e-300))).sum(-1))
        sink.append(a[:, 0])
        distance.append((a * (t - np.arange(t + 1))).sum(-1))
        picks.append((a.mean(0) > 0.01).sum())
        back = a.mean(0)[::-1]
        octaves.append([back[:1].sum(), *(back[2**k : 2 ** (k + 1)].sum() for k in range(5))])
    assert reading[f"attention_entropy/{SITE}"] == pytest.approx(np.mean(entropy), rel=1e-5)
    assert reading[f"attention_sink/{SITE}"] == pytest.approx(np.mean(sink), rel=1e-5)
    assert reading[f"attention_distance/{SITE}"] == pytest.approx(np.mean(distance), rel=1e-5)
    assert reading[f"attention_picks/{SITE}"] == pytest.approx(np.mean(picks))
    for name, values in (("entropy", entropy), ("sink", sink), ("distance", distance)):
        curve = reading.curve(f"attention_{name}_by_head", SITE)
        assert curve.mean == pytest.approx(np.mean(values, axis=0), rel=1e-5)
        assert curve.count == (len(values),) * len(curve)
    assert reading.curve("attention_octaves", SITE).mean[:6] == pytest.approx(np.mean(octaves, axis=0), abs=1e-6)
    assert sum(reading.curve("attention_octaves", SITE).mean) == pytest.approx(1, abs=1e-5)
    by_position = reading.curve("attention_entropy", SITE)
    assert np.isnan(by_position.mean[0])  # the first token of a text has no past
    assert by_position.count[1] == len(TEXTS)
    assert np.dot(np.nan_to_num(by_position.mean), by_position.count) == pytest.approx(np.mean(entropy, -1).sum(), rel=1e-5)


@torch.no_grad()
def test_normalised_entropy(stories: Loaded, stories_model: Path) -> None:
    reading = read(stories, AttentionProfile())
    shares = []
    for _, weights, t in targets(stories, stories_model):
        a = weights[:, t, : t + 1]
        shares.append(-(a * np.log(np.maximum(a, 1e-300))).sum(-1) / np.log(t + 1))
    assert 0 < np.min(shares) < np.max(shares) <= 1 + 1e-6
    assert reading[f"attention_entropy_normalised/{SITE}"] == pytest.approx(np.mean(shares), rel=1e-5)
    curve = reading.curve("attention_entropy_normalised_by_head", SITE)
    assert curve.mean == pytest.approx(np.mean(shares, axis=0), rel=1e-5)


@torch.no_grad()
def top_logits(stories: Loaded, text: str) -> Any:
    """The largest score of each token with a past, ``(tokens, heads)``, written out from the weights of the layer."""
    config, layer = stories.model.config, stories.model.model.layers[LAYER]
    weight = {name: each.double().numpy() for name, each in layer.named_parameters()}
    hidden = reference.hidden_states(stories.model, {"input_ids": tokenize(stories, text)})[f"layer_{LAYER - 1:02d}"][0]
    scale = np.sqrt(np.square(hidden).mean(-1, keepdims=True) + config.rms_norm_eps)
    x, length, width = hidden / scale * weight["input_layernorm.weight"], len(hidden), config.head_dim
    turn = np.arange(length)[:, None, None] * 10_000.0 ** (-np.arange(0, width, 2) / width)

    def rotated(name: str) -> Any:
        heads = (x @ weight[f"self_attn.{name}.weight"].T).reshape(length, -1, width)
        pairs = heads[..., : width // 2] + 1j * heads[..., width // 2 :]
        return pairs * np.exp(1j * turn)

    query, key = rotated("q_proj"), rotated("k_proj")
    key = key.repeat(query.shape[1] // key.shape[1], axis=1)
    scores = np.einsum("thd,jhd->htj", query, key.conj()).real / np.sqrt(width)
    return np.array([scores[:, t, : t + 1].max(-1) for t in range(1, length)])


def test_largest_logits(stories: Loaded) -> None:
    reading = read(stories, AttentionProfile(logits=True))
    top = np.concatenate([top_logits(stories, text) for text in TEXTS])
    assert reading[f"attention_top_logit/{SITE}"] == pytest.approx(top.mean(), rel=1e-5)
    assert reading[f"attention_top_logit_max_head/{SITE}"] == pytest.approx(top.mean(0).max(), rel=1e-5)
    assert reading.curve("attention_top_logit_by_head", SITE).mean == pytest.approx(top.mean(0), rel=1e-5)
    plain = read(stories, AttentionProfile())
    assert {*reading.metrics} - {*plain.metrics} == {"attention_top_logit", "attention_top_logit_max_head"}


@torch.no_grad()
def test_sink_shares(stories: Loaded, stories_model: Path) -> None:
    """From eager's maps and the definition, for each text and head."""
    threshold, most = 0.2, 4
    reading = read(stories, AttentionProfile(sink_tokens=most, sink_threshold=threshold))
    eager = load(str(stories_model)).model
    eager.set_attn_implementation("eager")
    by_head = []  # (texts, heads, K)
    for text in TEXTS:
        output = eager.model(tokenize(stories, text), output_attentions=True, use_cache=False)
        weights = output.attentions[LAYER][0].double().numpy()
        received = [[head[k:, k].sum() / (len(head) - k) for k in range(most)] for head in weights]
        assert np.min(np.abs(np.array(received) - threshold)) > 1e-6
        by_head.append(np.array(received) > threshold)
    shares = np.mean(by_head, axis=(0, 1))
    assert 0 < shares[0] < 1
    for k in range(most):
        assert reading[f"attention_sink_share_{k + 1}/{SITE}"] == pytest.approx(shares[k], rel=1e-12)
    curve = reading.curve("attention_sink_share_by_head", SITE)
    assert curve.mean == pytest.approx(np.mean(by_head, axis=0)[:, 0], rel=1e-12)
    plain = read(stories, AttentionProfile())
    assert {name for name in reading.metrics if name not in plain.metrics} == {
        f"attention_sink_share_{k + 1}" for k in range(most)
    }


def test_a_text_without_a_kth_token_does_not_count_there(stories: Loaded) -> None:
    metric = AttentionProfile(sink_tokens=3, sink_threshold=0.01)
    with torch.no_grad(), Probe(stories.model, [metric], sites=[SITE], on_error="raise") as probe:
        stories.model.model(torch.tensor([[1, 300]]), use_cache=False)
    reading = probe.read()
    assert reading[f"attention_sink_share_2/{SITE}"] > 0
    assert np.isnan(reading[f"attention_sink_share_3/{SITE}"])


def test_rows_without_finite_weights_are_left_out() -> None:
    """One head of one row is enough."""
    rows, without = padded(texts(), "left"), padded(texts(), "left")
    seen = attended(rows)
    entropy = seen.entropy.clone()
    entropy[0, 1, -1] = torch.nan
    rows.attention = replace(seen, entropy=entropy)
    without.mask[0, -1] = False
    without.attention = seen
    assert_same(AttentionSum().contribution(rows), AttentionSum().contribution(without), 1e-12)


@pytest.mark.parametrize(
    "arguments",
    [
        {"sink_tokens": -1},
        {"sink_tokens": True},
        {"sink_tokens": 1.0},
        {"sink_threshold": 0},
        {"sink_threshold": "a"},
        {"logits": 1},
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(GeomprobeError, match=rf"AttentionProfile\({next(iter(arguments))}="):
        AttentionProfile(**arguments)


@pytest.mark.slow
def test_agreement_and_equation_5(stories: Loaded, stories_model: Path) -> None:
    alpha = 1e-3
    reading = read(stories, ContextLasso(penalty=alpha, tol=1e-12, attention=True))
    found: dict[str, list[float]] = {name: [] for name in ("jaccard", "precision", "chance", "rank", "eq5")}
    weight: dict[int, list[float]] = {}
    implied: dict[int, list[float]] = {}
    for z, weights, t in targets(stories, stories_model):
        a, own = weights.mean(0)[t, :t], np.diagonal(weights.mean(0))[:t]
        beta = Lasso(alpha, fit_intercept=False, tol=1e-14, max_iter=1_000_000).fit(z[:t].T, z[t]).coef_
        lasso, seen = set(np.flatnonzero(beta > 0.01)), set(np.flatnonzero(a > 0.01))
        if lasso | seen:
            found["jaccard"].append(len(lasso & seen) / len(lasso | seen))
        if lasso:
            top = np.argsort(-a.round(6), kind="stable")[: len(lasso)]
            found["precision"].append(len(lasso & set(top)) / len(lasso))
            found["chance"].append(len(lasso) / t)
        if len(set(beta.round(6))) > 1 and len(set(a.round(6))) > 1:
            found["rank"].append(spearmanr(beta.round(6), a.round(6)).statistic)
        found["eq5"].append(1 - np.square(z[t] - (a / own) @ z[:t]).sum())
        for j in range(t):
            weight.setdefault(t - j - 1, []).append(a[j])
            implied.setdefault(t - j - 1, []).append(a[j] / own[j])
    for name in ("jaccard", "precision", "chance"):
        assert reading[f"lasso_attention_{name}/{SITE}"] == pytest.approx(np.mean(found[name]), abs=1e-6), name
    assert reading[f"lasso_attention_rank/{SITE}"] == pytest.approx(np.mean(found["rank"]), abs=1e-3)
    assert reading[f"eq5_r2/{SITE}"] == pytest.approx(np.mean(found["eq5"]), rel=1e-4)
    for name, expected in (("attention_weight", weight), ("eq5_weight", implied)):
        curve = reading.curve(name, SITE)
        assert curve.mean == pytest.approx([np.mean(expected[d]) for d in sorted(expected)], rel=1e-4)


@torch.no_grad()
def test_sites_without_attention_have_none() -> None:
    model = tiny("llama")
    with Probe(model, [AttentionProfile(logits=True), ContextLasso(attention=True)], on_error="raise") as probe:
        model(token_batch(), use_cache=False)
    reading = probe.read()
    assert np.isnan(reading["attention_top_logit_max_head/embed"])
    assert np.isnan(reading["attention_entropy/embed"])
    assert np.isnan(reading["lasso_attention_jaccard/embed"])
    assert reading["lasso_r2/embed"] > 0
    assert reading["attention_entropy/final_norm"] == reading["attention_entropy/layer_02"]
    with pytest.raises(GeomprobeError, match="the site 'embed' comes before any attention: measure a layer"):
        Probe(model, [AttentionProfile()], sites=["embed"]).attach()
