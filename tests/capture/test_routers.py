"""Which mixtures of experts the router tap reads, and how: measured on a tiny random model of each, held to the architecture's
rule in NumPy, and shown in a table of geomprobe/capture/README.md.

``python -m tests.capture.test_routers`` writes the table.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from geomprobe import Decoder, GeomprobeError, Probe, Reading, RouterProfile
from geomprobe.capture.decoder import find_decoder
from geomprobe.capture.router_tap import find_routers
from tests.readme_block import ROOT, ReadmeBlock, markdown_table
from tests.tiny_models import padded, tiny, token_batch
from tests.versions import pins

pytestmark = pytest.mark.slow  # it runs every architecture

BLOCK = ReadmeBlock(ROOT / "geomprobe" / "capture" / "README.md", "routers")
COLUMNS = ("Architecture", "Router", "Scores", "Choice of the largest", "Logits of the model", "Padding", "KV cache")
NEWEST = transformers.__version__ == pins("newest")["transformers"]
LENGTH, EXPERTS, K = 12, 8, 2


@dataclass(frozen=True)
class Mixture:
    """A tiny mixture, and its rule as its paper or its source tells.

    Attributes:
        family: its name in Transformers.
        options: those of its configuration.
        score: how logits become scores: ``softmax``, ``sigmoid`` or ``√softplus``; "" if none explains the weights.
        groups: how many groups of experts there are, of which half are kept: by their ``best`` score, or by that of two.
        best: number of scores of a group that are added.
        by: what a bias is added to before the choice: ``scores`` or ``logits``.
        named: name of the router in its layer, if it must be named.
        cached: whether a probe can follow its KV cache.
        refused: what the error says, if the mixture is refused.
    """

    family: str
    options: dict[str, Any] = field(default_factory=dict)
    score: str = "softmax"
    groups: int = 1
    best: int = 2
    by: str = "scores"
    named: str = ""
    cached: bool = True
    refused: str = ""


OWN = {"num_experts_per_tok": K, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "head_dim": 8}
LOCAL, PLAIN = OWN | {"num_local_experts": EXPERTS}, OWN | {"num_experts": EXPERTS}
ROUTED = OWN | {"n_routed_experts": EXPERTS, "n_shared_experts": 1}
GROUPED = ROUTED | {"n_group": 2, "topk_group": 1}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
MLA |= {"num_key_value_heads": 4}
FULL = {"layer_types": ["full_attention"] * 3, "shared_expert_intermediate_size": 16}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
INDEX = {"index_head_dim": 8, "index_n_heads": 2, "index_topk": 2 * LENGTH}
INKLING = {
    "scoring_func": "sqrtsoftplus",
    "swa_head_dim": 8,
    "rel_extent": 16,
    "unpadded_vocab_size": 64,
    "num_experts": EXPERTS,
}
SPARSE = {"mlp_layer_types": ["dense", "sparse", "sparse"]}

MIXTURES = {
    "Mixtral": Mixture("mixtral", LOCAL),
    "Qwen2-MoE": Mixture("qwen2_moe", PLAIN | {"shared_expert_intermediate_size": 16}),
    "Qwen3-MoE": Mixture("qwen3_moe", PLAIN),
    "Qwen3-Next": Mixture("qwen3_next", PLAIN | FULL | LINEAR),
    "Qwen3.5-MoE": Mixture("qwen3_5_moe_text", PLAIN | FULL | LINEAR),
    "OLMoE": Mixture("olmoe", PLAIN),
    "FlexOlmo": Mixture("flex_olmo", PLAIN),
    "GPT-OSS": Mixture("gpt_oss", LOCAL),
    "DeepSeek-V2": Mixture("deepseek_v2", ROUTED | MLA),
    "DeepSeek-V2 in groups": Mixture("deepseek_v2", GROUPED | MLA | {"topk_method": "group_limited_greedy"}, groups=2, best=1),
    "DeepSeek-V3": Mixture("deepseek_v3", GROUPED | MLA, score="sigmoid", groups=2),
    "GLM-4-MoE": Mixture("glm4_moe", GROUPED, score="sigmoid", groups=2),
    "dots.llm1": Mixture("dots1", GROUPED, score="sigmoid", groups=2),
    "Solar Open": Mixture("solar_open", GROUPED, score="sigmoid", groups=2),
    "EXAONE-MoE": Mixture("exaone_moe", PLAIN | GROUPED, score="sigmoid", groups=2),
    "MiMo-V2-Flash": Mixture("mimo_v2_flash", GROUPED | {"num_local_experts": EXPERTS}, score="sigmoid", groups=2),
    "LongCat-Flash": Mixture(
        "longcat_flash",
        OWN
        | MLA
        | {"num_layers": 2, "num_hidden_layers": 4, "n_routed_experts": 6, "zero_expert_num": 2, "moe_topk": K}
        | {"expert_ffn_hidden_size": 16, "ffn_hidden_size": 64},
    ),
    "A.X K1": Mixture("axk1", GROUPED | MLA, score="sigmoid", groups=2),
    "GLM-4.7-Flash": Mixture("glm4_moe_lite", GROUPED | MLA, score="sigmoid", groups=2),
    "Beam": Mixture("beam", GROUPED | SPARSE, score="sigmoid", groups=2),
    "DeepSeek-V3.2": Mixture("deepseek_v32", GROUPED | MLA | INDEX, score="sigmoid", groups=2),
    "GLM-5": Mixture("glm_moe_dsa", GROUPED | MLA | INDEX, score="sigmoid", groups=2),
    "Inkling 2, `sqrtsoftplus`": Mixture("inkling2_text", ROUTED | INKLING, score="√softplus"),
    "Granite-MoE hybrid": Mixture(
        "granitemoehybrid",
        LOCAL | {"shared_intermediate_size": 16, "layer_types": ["attention"] * 3, "mamba_n_heads": 4, "mamba_d_head": 16},
    ),
    "Granite-MoE SWA": Mixture("granitemoe_swa", LOCAL),
    "Kolibri": Mixture("kolibri1", PLAIN, score="sigmoid", by="logits"),
    "Laguna": Mixture("laguna", PLAIN, score="sigmoid"),
    "Flint": Mixture("flint", PLAIN | {"n_routed_experts": EXPERTS} | SPARSE, score="sigmoid"),
    "Mellum": Mixture("mellum", PLAIN),
    "MiniMax": Mixture("minimax", LOCAL, cached=False),
    "Granite-MoE": Mixture("granitemoe", LOCAL),
    "Granite-MoE shared": Mixture("granitemoeshared", LOCAL | {"shared_intermediate_size": 16}),
    "Phi-MoE": Mixture("phimoe", LOCAL, score=""),
    "MiniMax-M2": Mixture("minimax_m2", LOCAL, score="sigmoid"),
    "Ernie 4.5 MoE": Mixture("ernie4_5_moe", {"moe_num_experts": EXPERTS, "moe_k": K, "moe_intermediate_size": 16}),
    "Hunyuan-MoE": Mixture("hunyuan_v1_moe", PLAIN | {"moe_topk": K}),
    "Hy3": Mixture("hy_v3", PLAIN, score="sigmoid"),
    "AFMoE": Mixture("afmoe", PLAIN | {"num_dense_layers": 1}, score="sigmoid"),
    "LFM2-MoE": Mixture("lfm2_moe", PLAIN | FULL | {"num_dense_layers": 1}, score="sigmoid"),
    "Cohere2-MoE": Mixture("cohere2_moe", PLAIN),
    "Aria (text)": Mixture("aria_text", {"moe_num_experts": EXPERTS, "moe_topk": K}),
    "Gemma 4 (text)": Mixture(
        "gemma4_text",
        PLAIN
        | {"global_head_dim": 8, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8}
        | {"enable_moe_block": True, "top_k_experts": K, "num_kv_shared_layers": 0},
    ),
    "DBRX": Mixture(
        "dbrx",
        {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 256}
        | {"ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": EXPERTS, "moe_top_k": K, "hidden_size": 32}}
        | {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    ),
    "Jamba": Mixture(
        "jamba",
        PLAIN
        | {"attn_layer_offset": 0, "attn_layer_period": 1, "expert_layer_period": 1, "expert_layer_offset": 0}
        | {"use_mamba_kernels": False},
    ),
    "JetMoE": Mixture("jetmoe", {"num_local_experts": EXPERTS, "kv_channels": 8, "num_experts_per_tok": K}, named="mlp.router"),
    "Llama 4 (text)": Mixture("llama4_text", LOCAL, score="sigmoid"),
    "Doge": Mixture("doge", {"is_moe": True, "num_experts": 16, "num_experts_per_tok": K}, refused="nor its experts tell"),
    "ZAYA": Mixture(
        "zaya", {"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "head_dim": 8}, refused="among 5"
    ),
}


def bare(mixture: Mixture) -> Any:
    return tiny(mixture.family, **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0} | mixture.options)


def build(mixture: Mixture) -> tuple[Any, Decoder]:
    """The tiny model of a mixture with large router weights, and biases where it has them; no token ends a text."""
    model = bare(mixture)
    decoder = find_decoder(model)
    if mixture.named:
        routers = [layer.get_submodule(mixture.named) for layer in decoder.layers]
        decoder = Decoder(base=decoder.base, layers=decoder.layers, routers=routers)
    with torch.no_grad():
        for _, router in routers_of(decoder):
            for part in router.modules():
                if (weight := getattr(part, "weight", None)) is not None and weight.dim() == 2:
                    weight.normal_(0, 0.5)
        for _, bias in biases(model):
            bias.normal_(0, 0.3)
    return model, decoder


def routers_of(decoder: Decoder) -> list[tuple[int, nn.Module]]:
    return [(layer, router.module) for layer, router in find_routers(decoder, range(len(decoder.layers))).items()]


def biases(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The biases that are added before the choice."""
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if name.endswith(("score_correction_bias", "expert_bias")):
            yield name, value


def outputs(model: Any, decoder: Decoder, ids: Tensor) -> tuple[dict[int, np.ndarray], str]:
    """The logits of every layer in float64, of the model's own ``output_router_logits`` where it gives them, else by hooks."""
    caught: dict[int, Any] = {}
    handles = [
        module.register_forward_hook(lambda module, args, output, layer=layer: caught.update({layer: output}))
        for layer, module in routers_of(decoder)
    ]
    output = model(ids, output_router_logits=True, use_cache=False)
    for handle in handles:
        handle.remove()
    given = getattr(output, "router_logits", None)
    if given is not None and len(given) == len(caught):
        return {layer: each.double().numpy() for layer, each in zip(caught, given, strict=True)}, "`output_router_logits`"
    return {layer: widest(output).double().numpy() for layer, output in caught.items()}, "by hand"


def widest(output: Any) -> Tensor:
    """The widest table of numbers in an output that is narrower than hidden states."""
    several = output if isinstance(output, tuple) else (output,)
    tables = [
        value
        for value in several
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1 and value.shape[-1] < 32
    ]
    return max(tables, key=lambda value: value.shape[-1])


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def by_rule(mixture: Mixture, logits: np.ndarray, layer: nn.Module) -> tuple[np.ndarray, np.ndarray, str]:
    """The load ``(E,)`` and the probabilities ``(tokens, E)`` by the rule of the architecture, and the rule in words."""
    logits = logits.reshape(-1, logits.shape[-1])
    if np.allclose(logits.sum(-1), 1, atol=1e-5) and (logits >= 0).all():
        logits = np.log(logits)  # the model gives probabilities
    scores = {"sigmoid": 1 / (1 + np.exp(-logits)), "√softplus": np.sqrt(np.logaddexp(0, logits))}.get(
        mixture.score, softmax(logits)
    )
    bias = next((value.double().numpy().reshape(-1) for _, value in biases(layer)), None)
    ranked = (logits if mixture.by == "logits" else scores) + (0 if bias is None else bias)
    if mixture.groups > 1:
        grouped = ranked.reshape(len(ranked), mixture.groups, -1)
        strength = np.sort(grouped, -1)[..., -mixture.best :].sum(-1)
        kept = strength >= np.sort(strength, -1)[:, mixture.groups // 2][:, None]
        ranked = np.where(kept[..., None], grouped, -np.inf).reshape(ranked.shape)
    chosen = np.argsort(-ranked, -1)[:, :K]
    words = ("biased " * (bias is not None)) + mixture.by + f", in the best of {mixture.groups} groups" * (mixture.groups > 1)
    return np.bincount(chosen.flatten(), minlength=logits.shape[-1]), scores / scores.sum(-1, keepdims=True), words


def read(model: Any, decoder: Decoder, *texts: Tensor, **batch: Tensor) -> Reading:
    with Probe(model, [RouterProfile()], decoder=decoder, on_error="raise") as probe:
        for text in texts:
            model(text.unsqueeze(0), use_cache=False)
        if batch:
            model(**batch)
    return probe.read()


def assert_same(reading: Reading, expected: Reading) -> None:
    assert reading.keys() == expected.keys()
    for key, value in expected.items():
        assert reading[key] == pytest.approx(value, abs=1e-5, nan_ok=True), key
    for key in (key for key in expected.curves if key.startswith("router_load")):
        assert reading.curves[key] == expected.curves[key]


@cache
@torch.no_grad()
def measured(name: str) -> tuple[str, ...]:
    """One row of the table; what a mixture must hold is asserted on the way."""
    mixture = MIXTURES[name]
    model, decoder = build(mixture)
    ids = token_batch(4, LENGTH)
    router = f"`{type(routers_of(decoder)[0][1]).__name__}`" + ", named" * bool(mixture.named)
    if mixture.refused:
        with Probe(model, [RouterProfile()], on_error="raise"), pytest.raises(GeomprobeError, match=mixture.refused):
            model(ids)
        return name, router, "refused", *["–"] * (len(COLUMNS) - 3)
    plain = model(ids).logits
    with Probe(model, [RouterProfile()], decoder=decoder, on_error="raise") as probe:
        assert torch.equal(model(ids).logits, plain)
    reading = probe.read()
    logits, source = outputs(model, decoder, ids)
    words = ""
    for layer, theirs in logits.items():
        load, p, words = by_rule(mixture, theirs, decoder.layers[layer])
        site = f"layer_{layer:02d}"
        assert load.sum() == K * ids.numel()
        assert reading.curve("router_load", site).mean == pytest.approx(load / load.sum(), abs=1e-12)
        f = load[load > 0] / load.sum()
        even = np.log(len(load))
        assert reading[f"router_load_entropy/{site}"] == pytest.approx(-(f * np.log(f)).sum() / even, abs=1e-9)
        assert reading[f"router_dead_experts/{site}"] == (load == 0).mean()
        assert reading[f"router_largest_share/{site}"] == pytest.approx(load.max() / load.sum(), abs=1e-12)
        if mixture.score:
            entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(-1).mean()
            assert reading[f"router_entropy_nats/{site}"] == pytest.approx(entropy, abs=1e-5)
            assert reading[f"router_entropy/{site}"] == pytest.approx(entropy / even, abs=1e-5)
            assert reading.curve("router_probability", site).mean == pytest.approx(p.mean(0), abs=1e-5)
        else:
            assert np.isnan(reading[f"router_entropy/{site}"])
    without = [i for i in range(len(decoder.layers)) if i not in logits]
    assert all(np.isnan(reading[f"router_load_entropy/layer_{i:02d}"]) for i in without)
    texts = [token_batch(1, length, seed=length)[0] for length in (LENGTH, 7, 5)]
    expected = read(model, decoder, *texts)
    for side in ("left", "right"):
        assert_same(read(model, decoder, **padded(texts, side)), expected)
    how = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 5}
    if mixture.cached:
        with Probe(model, [RouterProfile()], decoder=decoder, on_error="raise") as probe:
            finished = model.generate(ids, **how)[:, :-1]
        assert_same(probe.read(), read(model, decoder, *finished))
    else:
        with Probe(model, on_error="raise"), pytest.raises(GeomprobeError, match="KV cache that the probe has not seen"):
            model.generate(ids, **how)
    return (
        name,
        router,
        mixture.score or "not explained: no `router_entropy`",
        words,
        source,
        "exact",
        "exact" if mixture.cached else "left out",
    )


def table() -> str:
    """The table of all mixtures in Markdown."""
    return markdown_table(COLUMNS, map(measured, MIXTURES))


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture(name: str) -> None:
    if not NEWEST and (why := why_not(MIXTURES[name])):
        pytest.skip(f"Transformers {transformers.__version__} does not run it: {why}")
    try:
        assert len(measured(name)) == len(COLUMNS)
    except GeomprobeError:  # in an earlier version a router may be refused, but it is not read wrongly
        if NEWEST:
            raise


def why_not(mixture: Mixture) -> str:
    """Why an earlier version of Transformers does not run a mixture, or nothing."""
    if mixture.family not in CONFIG_MAPPING_NAMES:
        return "it has none"
    try:
        bare(mixture).generate(token_batch(), max_new_tokens=2)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        return str(error)
    return ""


@pytest.mark.skipif(not NEWEST, reason="the table is that of the newest version")
def test_the_readme_tells_what_was_measured() -> None:
    assert BLOCK.told() == table(), "the README differs: python -m tests.capture.test_routers writes the table"


if __name__ == "__main__":
    BLOCK.write(table())
