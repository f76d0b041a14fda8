"""RouterProfile against its definition in NumPy, in float64, and on mixtures of experts under a probe."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from geomprobe import Decoder, GeomprobeError, Probe, Reading, RouterProfile
from geomprobe.core.layer_rows import RouterRows
from geomprobe.core.rows import Rows
from tests.metrics.measure import curves_of, scalars_of, states_of
from tests.tiny_models import hooks, padded, prose, tiny, token_batch

SCORES: dict[str, Callable[[Any], Any]] = {
    "given": lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "square root of softplus": lambda x: np.sqrt(np.log1p(np.exp(x))),
}
METRICS = [RouterProfile()]
SITES = ("layer_00", "layer_01", "layer_02")


def routed(logits: Any, scores: Any, k: int, *, normalised: bool = True, dtype: torch.dtype = torch.float64) -> Rows:
    """Rows ``(batch, length)`` of which each goes to the k experts with the largest scores, weighted by them."""
    chosen = np.argsort(-scores, -1, kind="stable")[..., :k]
    weights = np.take_along_axis(scores, chosen, -1)
    weights = weights / weights.sum(-1, keepdims=True) if normalised else weights
    rows = RouterRows(torch.from_numpy(logits).to(dtype), torch.from_numpy(chosen), torch.from_numpy(weights).to(dtype))
    return Rows(torch.ones(*logits.shape[:2], 4, dtype=torch.float64), routing=rows)


def drawn(seed: int, experts: int = 6, scale: float = 2) -> Any:
    return np.random.default_rng(seed).normal(size=(3, 7, experts), scale=scale)


@pytest.mark.parametrize("way", SCORES)
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_numbers_are_those_of_the_definition(way: str, k: int, dtype: torch.dtype) -> None:
    """The way in which a model computes scores is recognised; a single expert only if its weight is not divided by itself."""
    logits = torch.from_numpy(drawn(k)).to(dtype).double().numpy()  # what this precision holds
    scores = SCORES[way](logits)
    rows = routed(scores if way == "given" else logits, scores, k, normalised=k > 1, dtype=dtype)
    numbers, curves = scalars_of(RouterProfile(), rows), curves_of(RouterProfile(), rows)
    load = np.bincount(np.argsort(-scores, -1)[..., :k].flatten(), minlength=6)
    f, p = load / load.sum(), (scores / scores.sum(-1, keepdims=True)).reshape(-1, 6)
    spread, own = -sum(x * math.log(x) for x in f if x), -(p * np.log(p)).sum(-1).mean()
    near = 1e-2 if dtype == torch.bfloat16 and way == "given" else 1e-6
    assert numbers == pytest.approx(
        {
            "router_load_entropy": spread / math.log(6),
            "router_load_entropy_nats": spread,
            "router_entropy": own / math.log(6),
            "router_entropy_nats": own,
            "router_dead_experts": (load == 0).mean(),
            "router_largest_share": f.max(),
        },
        abs=near,
    )
    assert curves["router_load"].mean == pytest.approx(f, abs=1e-12)
    assert set(curves["router_load"].count) == {21 * k}
    assert curves["router_probability"].mean == pytest.approx(p.mean(0), abs=near)


def test_an_expert_that_nobody_chose_is_dead_and_the_load_of_one_is_not_even() -> None:
    logits = np.zeros((3, 7, 4))
    logits[..., 2] = 5
    numbers = scalars_of(RouterProfile(), routed(logits, SCORES["softmax"](logits), 1, normalised=False))
    assert numbers["router_dead_experts"] == 0.75
    assert numbers["router_load_entropy"] == 0
    assert numbers["router_largest_share"] == 1


@pytest.mark.parametrize(
    ("weights", "k"),
    [(lambda s: s**2, 2), (lambda s: s * np.nan, 2), (lambda s: np.ones_like(s), 1), (lambda s: s * 0, 2)],
    ids=["of another rule", "unknown", "one divided by itself", "zero"],
)
def test_weights_that_are_not_explained_leave_the_entropy_of_the_router_unknown(weights: Any, k: int) -> None:
    logits = drawn(0)
    scores = SCORES["softmax"](logits)
    rows = routed(logits, scores, k)
    assert rows.routing is not None
    rows.routing = RouterRows(rows.routing.logits, rows.routing.chosen, torch.from_numpy(weights(rows.routing.weights.numpy())))
    numbers = scalars_of(RouterProfile(), rows)
    assert math.isnan(numbers["router_entropy"])
    assert math.isnan(numbers["router_entropy_nats"])
    assert numbers["router_load_entropy"] > 0
    assert "router_probability" not in curves_of(RouterProfile(), rows)


def test_ways_that_explain_equally_well_are_told_apart_only_where_it_matters() -> None:
    """Among equal logits all ways agree. Weights of experts with equal logits say nothing about the others."""
    flat = np.zeros((3, 7, 4))
    assert scalars_of(RouterProfile(), routed(flat, SCORES["sigmoid"](flat), 2))["router_entropy"] == pytest.approx(1)
    tied = flat - 4
    tied[..., :2] = 2
    assert math.isnan(scalars_of(RouterProfile(), routed(tied, SCORES["sigmoid"](tied), 2))["router_entropy"])


@given(st.integers(0, 10**6), st.integers(2, 9), st.sampled_from(list(SCORES)))
@settings(max_examples=30, deadline=None)
def test_bounds_and_what_changes_nothing(seed: int, experts: int, way: str) -> None:
    """Numbers are in their bounds. Padding, NaN, the order of rows, and the names of the experts change none."""
    k = min(2, experts - 1)
    logits = drawn(seed, experts)
    rows = routed(SCORES[way](logits) if way == "given" else logits, SCORES[way](logits), k, normalised=k > 1)
    numbers = scalars_of(RouterProfile(), rows)
    assert 0 <= numbers["router_load_entropy"] <= 1 + 1e-12
    assert 0 <= numbers["router_entropy"] <= 1 + 1e-12
    assert 1 / experts <= numbers["router_largest_share"] <= 1 / k
    assert 0 <= numbers["router_dead_experts"] <= 1 - k / experts
    assert rows.routing is not None
    other = drawn(seed + 1, experts)
    extra = routed(np.concatenate([other, np.full_like(other, np.nan)], 1), np.concatenate([other, other], 1), k)
    assert extra.routing is not None
    seen, more = rows.routing, extra.routing
    wider = RouterRows(*(torch.cat([getattr(more, n), getattr(seen, n)], 1) for n in ("logits", "chosen", "weights")))
    mask = torch.arange(21).expand(3, -1) >= 7  # the first seven are padding, and the next have no router
    whole = Rows(torch.ones(3, 21, 4), mask, routing=wider)
    assert scalars_of(RouterProfile(), whole) == pytest.approx(numbers, abs=1e-12)
    turn = torch.randperm(experts, generator=torch.Generator().manual_seed(seed))
    renamed = RouterRows(seen.logits[..., turn], turn.argsort()[seen.chosen], seen.weights)
    assert scalars_of(RouterProfile(), Rows(rows.hidden, routing=renamed)) == pytest.approx(numbers, abs=1e-12)


def test_a_negative_number_stands_for_no_expert_and_one_beyond_them_leaves_no_number() -> None:
    rows = routed(drawn(0), SCORES["softmax"](drawn(0)), 2)
    assert rows.routing is not None
    (state,) = states_of(RouterProfile(), rows).values()
    rows.routing.chosen[0, 0] = torch.tensor([-1, -1])
    (fewer,) = states_of(RouterProfile(), rows).values()
    assert state["load"].sum() - fewer["load"].sum() == 2
    rows.routing.chosen[0, 0, 0] = 6
    assert all(map(math.isnan, scalars_of(RouterProfile(), rows).values()))
    assert not curves_of(RouterProfile(), rows)


# -- under a probe -----------------------------------------------------------------------------------------------------------


def mixture(**options: Any) -> Any:
    """A tiny Mixtral with large router weights."""
    model = tiny("mixtral", num_local_experts=6, num_experts_per_tok=2, **options)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.normal_(0, 0.5)
    return model


def read(model: nn.Module, *calls: dict[str, Any], **options: Any) -> Reading:
    with torch.no_grad(), Probe(model, METRICS, on_error="raise", **options) as probe:
        for call in calls:
            model(**call)
    return probe.read()


def assert_same(reading: Reading, expected: Reading) -> None:
    assert dict(reading) == pytest.approx(dict(expected), abs=1e-5, nan_ok=True)
    for site in SITES:
        assert reading.curve("router_load", site) == expected.curve("router_load", site)


TEXTS = [token_batch(1, length, seed=length)[0] for length in (9, 4, 6)]
ALONE = [{"input_ids": text[None], "use_cache": False} for text in TEXTS]


def test_a_model_and_its_losses_are_the_same_under_a_probe_and_nothing_is_left() -> None:
    ids = token_batch()
    losses, left = [], []
    for watched in (False, True):
        torch.manual_seed(0)
        model = mixture(router_aux_loss_coef=0.1, router_jitter_noise=0.1, output_router_logits=True).train()
        probe = Probe(model, METRICS, on_error="raise")
        if watched:
            probe.attach()
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(3):
            loss = model(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        probe.close()
        left.append(hooks(model))  # those with which Transformers records router logits
    assert left[0] == left[1]
    assert torch.equal(torch.stack(losses[:3]), torch.stack(losses[3:]))
    assert probe.read("train").curve("router_load", "layer_00").count[0] == 3 * 2 * ids.numel()


@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_that_run_again_in_backward_count_once_and_modes_are_apart(reentrant: bool) -> None:
    model, ids = mixture().train(), token_batch()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    with Probe(model, METRICS, on_error="raise") as probe:
        for _ in range(2):
            model(ids, labels=ids, use_cache=False).loss.backward()
        with torch.no_grad():
            model(ids, use_cache=False)
            model.eval()
            model(ids[:1], use_cache=False)
    for mode, tokens in (("train", 2 * ids.numel()), ("no_grad", ids.numel()), ("eval", ids[:1].numel())):
        assert probe.read(mode).curve("router_load", "layer_01").count[0] == 2 * tokens  # type: ignore[arg-type]


def test_packed_documents_and_generation_without_a_cache_are_their_texts() -> None:
    model, expected = mixture(), read(mixture(), *ALONE)
    packed = {"input_ids": torch.cat(TEXTS)[None], "position_ids": torch.cat([torch.arange(len(t)) for t in TEXTS])[None]}
    assert_same(read(model, packed | {"use_cache": False}), expected)
    assert_same(read(model, padded(TEXTS, "left")), expected)
    model.generation_config.eos_token_id = None
    for cached in (True, False):
        with torch.no_grad(), Probe(model, METRICS, on_error="raise") as probe:
            how = {"max_new_tokens": 4, "use_cache": cached, "do_sample": False}
            texts = model.generate(TEXTS[0][None], **how)[:, :-1]
        assert_same(probe.read(), read(model, {"input_ids": texts, "use_cache": False}))


@pytest.mark.slow
def test_a_compiled_graph_tells_the_same() -> None:
    model, calls = mixture(), ALONE[:1]
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), Probe(model, METRICS, on_error="raise") as probe:
        for call in calls:
            compiled(**call)
    assert_same(probe.read(), read(model, *calls))


def test_shards_add_and_a_state_is_saved_and_loaded() -> None:
    model = mixture()
    whole = read(model, *ALONE)
    with torch.no_grad(), Probe(model, METRICS, on_error="raise") as first:
        model(**ALONE[0])
    with torch.no_grad(), Probe(model, METRICS, on_error="raise") as second:
        second.load_state_dict(first.state_dict())
        for call in ALONE[1:]:
            model(**call)
    assert_same(second.read(), whole)
    assert read(copy.deepcopy(model), *ALONE) == whole


def test_layers_without_a_router_have_no_numbers() -> None:
    options = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    model = tiny("qwen3_moe", mlp_only_layers=[1], **options)
    reading = read(model, *ALONE)
    assert [math.isnan(reading[f"router_load_entropy/{site}"]) for site in SITES] == [False, True, False]
    assert reading["router_load_entropy/final_norm"] == reading["router_load_entropy/layer_02"]
    with pytest.raises(GeomprobeError, match="found no router of a mixture of experts in the measured layers of Qwen3MoeModel"):
        Probe(model, METRICS, sites=["embed", 1]).attach()
    assert not hooks(model)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_dense_model_is_refused(family: str) -> None:
    model = tiny(family)
    with pytest.raises(GeomprobeError, match=r"Decoder\(base=…, layers=…, routers=\[.*or leave RouterProfile\(\) out"):
        Probe(model, METRICS).attach()
    assert not hooks(model)


def trained(balancing: float, seed: int) -> dict[str, float]:
    """The numbers of the last ten of 80 steps, mean over layers, of a mixture that learns to spell."""
    model = tiny("mixtral", layers=2, vocabulary=128, num_local_experts=16, router_aux_loss_coef=balancing).train()
    optimizer, draw = torch.optim.AdamW(model.parameters(), lr=1e-2), torch.Generator().manual_seed(seed)
    text = torch.tensor([min(ord(character), 127) for character in prose(200_000)])
    with Probe(model, METRICS, when=lambda step: step >= 70, sites=[0, 1], on_error="raise") as probe:
        for _ in range(80):
            starts = torch.randint(0, len(text) - 32, (8, 1), generator=draw)
            ids = text[starts + torch.arange(32)]
            model(ids, labels=ids, output_router_logits=balancing > 0).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1)
            optimizer.step()
            optimizer.zero_grad()
    reading = probe.read()
    return {name: float(np.mean(list(reading[name].values()))) for name in reading.metrics if name.startswith("router_")}


@pytest.mark.slow
def test_a_mixture_that_is_trained_without_its_balancing_loss_collapses() -> None:
    seeds = range(3)  # one training depends on the last bits of its machine: the largest shares were 1.3 to 2 times as large
    without, balanced = ([trained(weight, seed) for seed in seeds] for weight in (0.0, 0.02))
    for one, other in zip(without, balanced, strict=True):
        assert one["router_load_entropy"] < other["router_load_entropy"] - 0.05
        assert one["router_largest_share"] > other["router_largest_share"]
    mean = {
        name: np.mean([one[name] - other[name] for one, other in zip(without, balanced, strict=True)]) for name in without[0]
    }
    assert mean["router_load_entropy"] < -0.1
    assert mean["router_entropy"] < -0.1
    assert mean["router_largest_share"] > 0.05
    assert mean["router_dead_experts"] > 0


class Gate(nn.Linear):
    """A router that tells what it chose."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        logits = super().forward(hidden)
        weights, chosen = logits.softmax(-1).topk(2)
        return logits, weights, chosen


class Layer(nn.Module):
    """A layer whose router is a ``Gate``, or else a linear map that keeps the choice to itself."""

    def __init__(self, telling: bool, width: int = 8, experts: int = 4) -> None:
        super().__init__()
        self.route = (Gate if telling else nn.Linear)(width, experts)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(experts))

    def forward(self, hidden: Tensor) -> Tensor:
        routed = self.route(hidden)
        weights, chosen = routed[1:] if isinstance(routed, tuple) else routed.softmax(-1).topk(2)
        outputs = torch.stack([expert(hidden) for expert in self.experts], -2)
        picked = outputs.gather(-2, chosen.unsqueeze(-1).expand(*chosen.shape, hidden.shape[-1]))
        mixed: Tensor = hidden + (picked * weights.unsqueeze(-1)).sum(-2)
        return mixed


class Own(nn.Module):
    """A mixture of experts that Transformers does not know."""

    def __init__(self, telling: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(64, 8)
        self.layers: Any = nn.ModuleList(Layer(telling) for _ in range(2))

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden

    def decoder(self, routers: Any = None) -> Decoder:
        return Decoder(base=self, layers=self.layers, routers=routers)


def test_a_layer_that_is_used_at_two_depths_has_its_router_at_both() -> None:
    model, ids = Own(), token_batch()
    model.layers[1] = layer = model.layers[0]
    reading = read(model, {"input_ids": ids}, decoder=model.decoder())
    hidden = model.embedding(ids)
    for site in ("layer_00", "layer_01"):
        load = np.bincount(layer.route(hidden)[2].flatten().numpy(), minlength=4)
        assert reading.curve("router_load", site).mean == pytest.approx(load / load.sum())
        hidden = layer(hidden)


@pytest.mark.parametrize("named", [True, False])
def test_a_router_of_ones_own_is_found_by_its_form_or_named(named: bool) -> None:
    model, ids = Own(), token_batch()
    logits, _, chosen = model.layers[0].route(model.embedding(ids))
    routers = [layer.route for layer in model.layers] if named else None
    reading = read(model, {"input_ids": ids}, decoder=model.decoder(routers))
    load = np.bincount(chosen.flatten().numpy(), minlength=4)
    assert reading.curve("router_load", "layer_00").mean == pytest.approx(load / load.sum())
    entropy = torch.special.entr(logits.double().softmax(-1)).sum(-1).mean()
    assert reading["router_entropy_nats/layer_00"] == pytest.approx(float(entropy), abs=1e-5)


def test_a_router_that_keeps_its_choice_to_itself_is_left_out_with_the_way_out() -> None:
    model = Own(telling=False)
    with (
        torch.no_grad(),
        Probe(model, METRICS, decoder=model.decoder()) as probe,
        pytest.warns(RuntimeWarning, match="neither the router Linear nor its experts tell which experts were chosen"),
    ):
        model(token_batch())
    with pytest.raises(GeomprobeError, match=r"name routers that return \(logits, weights, numbers of the chosen experts\)"):
        probe.read()


@pytest.mark.parametrize(
    ("routers", "error"),
    [
        (lambda own: [own.embedding], r"Decoder\(routers=…\): expected a list of modules inside the layers"),
        (lambda own: own.layers[0].route, r"Decoder\(routers=…\): expected a list"),
        (lambda own: [own.layers[0].route, own.layers[0].experts[1]], r"layer 0 of Own has 2 routers \(route, experts.1\)"),
        (lambda own: [], "found no router"),
    ],
)
def test_routers_that_are_named_badly(routers: Any, error: str) -> None:
    model = Own()
    with pytest.raises(GeomprobeError, match=error):
        Probe(model, METRICS, decoder=model.decoder(routers(model))).attach()


def test_rows_that_cannot_be_told_apart_are_left_out() -> None:
    model = Own()
    layer: Any = model.layers[1]
    inner = layer.forward
    for forward, why in (
        (lambda hidden: (layer.route(hidden[:, 1:]), hidden)[1], r"returned \(2, 11, 4\) for 2 × 12 tokens"),
        (
            lambda hidden: (layer.route(hidden), inner(hidden))[1],
            "a router ran more often in one forward than there are layers",
        ),
        (lambda hidden: hidden, "the router Gate of layer 1 was not called"),
    ):
        layer.forward = forward
        with torch.no_grad(), Probe(model, METRICS, decoder=model.decoder()) as probe, pytest.warns(RuntimeWarning, match=why):
            model(token_batch())
        layer.forward = inner
        with torch.no_grad(), probe:
            model(token_batch())
        assert probe.read()["tokens/layer_00"] == token_batch().numel()  # the next forward is counted


@pytest.mark.parametrize("mark", [("_is_expert_parallel", True), ("_hf_tp_plan", "ep_router")])
def test_experts_on_several_ranks_are_refused(mark: tuple[str, Any]) -> None:
    model = mixture()
    setattr(model.model.layers[1].mlp.experts, *mark)
    with pytest.raises(GeomprobeError, match="this rank has only some of the experts of MixtralModel"):
        Probe(model, METRICS).attach()
