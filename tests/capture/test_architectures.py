"""Which architectures a probe works on, and how: measured on a tiny random model of each, and shown in a table of
geomprobe/capture/README.md.

``python -m tests.capture.test_architectures`` writes the table.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache

from geomprobe import AttentionProfile, ContextLasso, GeomprobeError, Metric, Probe, Reading
from geomprobe.capture.decoder import find_decoder
from geomprobe.core.attention_summary import AttentionRows
from tests import reference
from tests.capture.watching import on_capture
from tests.readme_block import ROOT, ReadmeBlock, markdown_table
from tests.tiny_models import padded, tiny, token_batch
from tests.versions import pins

pytestmark = pytest.mark.slow  # it runs every architecture

BLOCK = ReadmeBlock(ROOT / "geomprobe" / "capture" / "README.md", "architectures")
COLUMNS = ("Architecture", "Sites", "Hidden states", "Padding", "KV cache", "Attention")
SITES = ("embed", "layer_00", "layer_01", "layer_02", "final_norm")
LENGTH = 12  # longer than the window of the architectures that have one
WINDOW = {"sliding_window": 8}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-NeoX": ("gpt_neox", {}),
    "Llama": ("llama", {}),
    "Mistral": ("mistral", WINDOW),
    "Mixtral": ("mixtral", WINDOW),
    "Qwen2": ("qwen2", {}),
    "Qwen3": ("qwen3", {"head_dim": 8}),
    "Gemma 2": ("gemma2", {"head_dim": 8, **WINDOW}),
    "Gemma 3 (text)": (
        "gemma3_text",
        {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], **WINDOW},
    ),
    "Phi-3": ("phi3", WINDOW),
    "OLMo 2": ("olmo2", {}),
    "StarCoder2": ("starcoder2", WINDOW),
    "Cohere": ("cohere", {}),
    "GPT-OSS": ("gpt_oss", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, **WINDOW}),
    "Falcon": ("falcon", {}),
    "GPT-2": ("gpt2", {}),
    "OPT": ("opt", {}),
    "Mamba": ("mamba", {}),
}


def build(name: str, **options: Any) -> Any:
    """The tiny model of an architecture; no token ends a text."""
    family, own = ARCHITECTURES[name]
    return tiny(family, **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0} | own | options)


class Recording(Probe):
    """Keeps what the capture reports, as it was then."""

    def __init__(self, model: nn.Module, metrics: Sequence[Metric] | None = None) -> None:
        super().__init__(model, metrics, on_error="raise")
        self.seen: dict[str, Tensor] = {}
        self.attended: dict[str, Tensor] = {}
        on_capture(self, self._keep)

    def _keep(self, site: str, hidden: Tensor, attention: AttentionRows | None) -> None:
        self.seen[site] = hidden.clone()
        if attention is not None and attention.mean is not None:
            self.attended[site] = attention.mean


def sites(model: Any) -> str:
    """The decoder and its layers are found."""
    decoder = find_decoder(model)
    assert decoder.sites == SITES
    assert decoder.base is model.get_decoder()
    return f"all of `{type(decoder.base).__name__}`"


def hidden_states(model: Any) -> str:
    """Sites hold the tensors of ``output_hidden_states``, and watching them changes no logit, bit for bit."""
    ids = token_batch(2, LENGTH)
    bare = model(ids, output_hidden_states=True)
    with Recording(model) as probe:
        assert torch.equal(model(ids).logits, bare.logits)
    assert tuple(seen := probe.seen) == SITES
    # The last of theirs is what follows the final norm. Of the rest, all but Mamba give what enters each layer, and so not the
    # last layer's output; Mamba gives what leaves each, and so not what enters the first.
    leaves = model.config.model_type == "mamba"
    expected = dict(zip(SITES[1:] if leaves else (*SITES[:3], "final_norm"), bare.hidden_states, strict=True))
    if leaves:
        expected["embed"] = model.get_input_embeddings()(ids)
    for site, theirs in expected.items():
        assert torch.equal(seen[site], theirs), site
    assert torch.equal(final_norm(model)(seen["layer_02"]), seen["final_norm"])
    return "bit for bit (theirs lack `embed`)" if leaves else "bit for bit"


def final_norm(model: Any) -> nn.Module:
    """The norm after the last layer, which each family calls its own way."""
    parts: dict[str, nn.Module] = dict(model.get_decoder().named_children())
    return next(parts[name] for name in ("norm", "final_layer_norm", "ln_f", "norm_f") if name in parts)


def alone(model: Any, texts: list[Tensor]) -> Reading:
    """The reading of texts run one by one, in one forward each."""
    with Probe(model, on_error="raise") as probe:
        for text in texts:
            model(text.unsqueeze(0), use_cache=False)
    return probe.read()


def assert_same(reading: Reading, expected: Reading) -> None:
    # α-ReQ takes logarithms of eigenvalues, which count whole from 128 times FLOOR on and less below: one that is off by
    # ROUNDED of the largest moves it by that over 128 times FLOOR.
    alpha = reference.ROUNDED / (128 * reference.FLOOR)
    assert reading.keys() == expected.keys()
    for key, value in expected.items():
        near = 1e-3 if key.startswith(reference.LEFT_OUT) else alpha if key.startswith("alpha_req") else 1e-6
        assert reading[key] == pytest.approx(value, rel=1e-4, abs=near), key
    for site in SITES:
        ours, theirs = reading.curve("gain", site), expected.curve("gain", site)
        assert ours.count == theirs.count
        assert ours.mean == pytest.approx(theirs.mean, rel=1e-4, abs=1e-4)


def padding(model: Any) -> str:
    """A batch padded on either side gives the numbers of its texts alone. (So does Mamba, without its input bias.)"""
    texts = [token_batch(1, length, seed=length)[0] for length in (LENGTH, 7, 5)]
    expected = alone(model, texts)
    for side in ("left", "right"):
        with Probe(model, on_error="raise") as probe:
            model(**padded(texts, side))
        assert_same(probe.read(), expected)
    return "exact"


def kv_cache(model: Any) -> str:
    """Five tokens generated on the model's cache give the numbers of the finished texts. (The models agree with themselves.)"""
    ids = token_batch(2, LENGTH)
    how = {"do_sample": False, "max_new_tokens": 5, "output_logits": True, "return_dict_in_generate": True}
    with Probe(model, on_error="raise") as probe:
        output = model.generate(ids, attention_mask=torch.ones_like(ids), **how)
    texts = output.sequences[:, :-1]
    whole = model(texts, use_cache=False).logits[:, LENGTH - 1 :]
    # Where the model itself differs there is nothing to compare with.
    torch.testing.assert_close(torch.stack(output.logits, 1), whole, rtol=1e-5, atol=1e-4)
    assert_same(probe.read(), alone(model, list(texts)))
    return "exact"


def attention(name: str) -> str:
    """Under which implementations attention can be read, its head means being those of eager's maps."""
    if name == "Mamba":
        with pytest.raises(GeomprobeError, match="has no attention"):
            Recording(build(name), [AttentionProfile()]).attach()
        return "none: a state-space model"
    eager, ids = build(name, attn_implementation="eager"), token_batch(2, LENGTH)
    maps = eager(ids, output_attentions=True, use_cache=False).attentions
    exact, refused = [], []
    for implementation in ("eager", "sdpa"):
        try:
            model = build(name, attn_implementation=implementation)
        except ValueError:
            continue  # Transformers has none for it
        model.load_state_dict(eager.state_dict())
        bare = model(ids, use_cache=False).logits
        try:
            with Recording(model, [ContextLasso(attention=True, rate=1e-6)]) as probe:
                assert torch.equal(model(ids, use_cache=False).logits, bare)
        except GeomprobeError:
            refused.append(implementation)
            continue
        for site, weights in zip(SITES[1:4], maps, strict=True):
            torch.testing.assert_close(probe.attended[site], weights.mean(1), rtol=0, atol=1e-6)
        exact.append(implementation)
    assert "eager" in exact
    return ", ".join(exact) + (f"; not {', '.join(refused)}: cannot be observed" if refused else "")


@cache
@torch.no_grad()
def measured(name: str) -> tuple[str, ...]:
    """One row of the table; what an architecture must hold is asserted on the way."""
    model = build(name)
    return name, sites(model), hidden_states(model), padding(model), kv_cache(model), attention(name)


def table() -> str:
    """The table of all architectures in Markdown."""
    return markdown_table(COLUMNS, map(measured, ARCHITECTURES))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture(name: str) -> None:
    assert len(measured(name)) == len(COLUMNS)


@pytest.mark.skipif(
    transformers.__version__ != pins("newest")["transformers"], reason="the table is that of the newest version"
)
def test_the_readme_tells_what_was_measured() -> None:
    assert BLOCK.told() == table(), "the README differs: python -m tests.capture.test_architectures writes the table"


@torch.no_grad()
def test_recurrent_states_that_were_filled_unseen_or_moved() -> None:
    """They are held to what is held of a KV cache, though they cannot say how many tokens made them."""
    model, ids = build("Mamba"), token_batch(2, LENGTH)
    states = DynamicCache(config=model.config)
    model(ids, cache_params=states)
    with Probe(model, on_error="raise"), pytest.raises(GeomprobeError, match="cache that the probe has not seen"):
        model(ids[:, :1], cache_params=states)
    with pytest.warns(RuntimeWarning, match="beam search"), Probe(model, on_error="raise") as probe:
        model.generate(ids, attention_mask=torch.ones_like(ids), num_beams=3, do_sample=False, max_new_tokens=5)
    with pytest.raises(GeomprobeError, match="nothing to read"):
        probe.read()


if __name__ == "__main__":
    BLOCK.write(table())
