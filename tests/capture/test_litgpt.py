"""litgpt's GPT, as a GPT-NeoX and as a Llama: readings are those of the same weights in Transformers, and of plain PyTorch.

litgpt asks for an older ``huggingface_hub`` than Transformers does, so it is in no extra, and ``.ci/run`` installs it alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("litgpt", reason="needs litgpt: pip install --no-deps --target DIR litgpt==0.5.13, with PYTHONPATH=DIR")

from litgpt import GPT, Config
from litgpt.generate.base import generate
from litgpt.scripts.convert_hf_checkpoint import copy_weights_gpt_neox, copy_weights_hf_llama

from geomprobe import Decoder, GeomprobeError, Probe, Reading
from tests import reference
from tests.tiny_models import hooks, tiny, token_batch

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_neox": {"use_parallel_residual": True},
    "gpt_neox-sequential": {"use_parallel_residual": False},
    "llama": {},
}


def pair(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A model of Transformers, and litgpt's with its weights, which litgpt copies from the checkpoint."""
    theirs = tiny(family.partition("-")[0], **FAMILIES[family])
    theirs.save_pretrained(folder)
    saved = safetensors.torch.load_file(folder / "model.safetensors")
    given = theirs.config
    weights: dict[str, Tensor] = {}
    options = {
        "block_size": given.max_position_embeddings,
        "n_layer": given.num_hidden_layers,
        "n_embd": given.hidden_size,
        "n_head": given.num_attention_heads,
        "padded_vocab_size": given.vocab_size,
        "intermediate_size": given.intermediate_size,
    }
    if family == "llama":
        shape = {"bias": False, "norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "parallel_residual": False}
        shape |= {"rotary_percentage": 1.0, "norm_eps": given.rms_norm_eps, "n_query_groups": given.num_key_value_heads}
        config = Config(**options, **shape)
        copy_weights_hf_llama(config, {}, weights, saved)
    else:
        config = Config(**options, parallel_residual=given.use_parallel_residual, norm_eps=given.layer_norm_eps)
        copy_weights_gpt_neox(config, weights, saved)
    ours = GPT(config)
    ours.load_state_dict(weights)
    return theirs.to(dtype), ours.to(dtype).eval()


def named(gpt: Any) -> Decoder:
    part = gpt.transformer
    return Decoder(base=gpt, layers=part.h, embed=part.wte, final_norm=part.ln_f)


def read(model: Any, call: Callable[[Tensor], Any], decoder: Decoder | None = None) -> Reading:
    """The reading of two batches of different lengths."""
    with torch.no_grad(), Probe(model, decoder=decoder, on_error="raise") as probe:
        for seed, length in enumerate((12, 9)):
            call(token_batch(3, length, seed=seed))
    assert probe.read().notes == []
    return probe.read()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["float32", "float64"])
def test_readings_are_those_of_transformers(family: str, dtype: torch.dtype, relative: float, tmp_path: Path) -> None:
    theirs, ours = pair(family, tmp_path, dtype)
    one, other = read(theirs, theirs), read(ours, lambda ids: ours(idx=ids), named(ours))
    assert other.sites == one.sites
    assert other["tokens/final_norm"] == 3 * (12 + 9)
    assert dict(other) == reference.like(dict(one), relative)
    for name, curve in one.curves.items():
        assert other.curves[name].mean == pytest.approx(curve.mean, rel=relative)
        assert other.curves[name].count == curve.count


@pytest.mark.parametrize("family", FAMILIES)
def test_readings_are_those_of_plain_pytorch(family: str, tmp_path: Path) -> None:
    """Hooks set here, and float64 NumPy."""
    _, ours = pair(family, tmp_path, torch.float64)
    reading = read(ours, ours, named(ours))
    part = ours.transformer
    rows: dict[str, list[Tensor]] = {}
    modules = {"embed": part.wte, **{f"layer_{i:02d}": block for i, block in enumerate(part.h)}, "final_norm": part.ln_f}
    for site, module in modules.items():
        module.register_forward_hook(lambda _, args, output, site=site: rows.setdefault(site, []).extend(output.detach()))
    for seed, length in enumerate((12, 9)):
        ours(token_batch(3, length, seed=seed))
    for site, texts in rows.items():
        units = [reference.unit(text.numpy()) for text in texts]
        twin = reference.entropies(np.concatenate(units), floor=reference.EXACT_FLOOR)
        for metric in ("entropy", "effective_rank", "matrix_entropy", "anisotropy"):
            assert reading[f"{metric}/{site}"] == pytest.approx(twin[metric], rel=1e-6), (metric, site)
        gain = sum(reference.gains(text).sum() for text in units)
        assert reading[f"information_gain/{site}"] == pytest.approx(gain / len(units), rel=1e-6)


def train(gpt: Any, **options: Any) -> list[float]:
    optimizer, losses = torch.optim.SGD(gpt.train().parameters(), lr=0.1), []
    for seed in range(3):
        ids = token_batch(2, 12, seed=seed)
        logits = gpt(ids, **options)
        logits = torch.cat(logits, 1) if isinstance(logits, list) else logits
        loss: Any = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("options", [{}, {"lm_head_chunk_size": 5}], ids=["logits", "chunks of logits"])
def test_training_computes_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    (_, bare), (_, probed) = pair("gpt_neox", tmp_path), pair("gpt_neox", tmp_path)
    with Probe(probed, decoder=named(probed), on_error="raise") as probe:
        losses = train(probed, **options)
    assert losses == train(bare, **options)
    assert not hooks(probed)
    assert {probe.read("train")[f"tokens/{site}"] for site in probe.sites} == {3 * 2 * 12}


def test_generation_on_its_own_cache_is_left_out_and_noted(tmp_path: Path) -> None:
    _, gpt = pair("llama", tmp_path)
    prompt = token_batch(1, 12)

    def text() -> Tensor:
        gpt.set_kv_cache(batch_size=1)
        tokens: Tensor = generate(gpt, prompt[0], 20, temperature=0.0)
        gpt.clear_kv_cache()
        return tokens

    bare = text()
    with Probe(gpt, decoder=named(gpt)) as probe, torch.no_grad():
        gpt(prompt)
        with pytest.warns(RuntimeWarning, match="with input_pos .* left out"):
            assert torch.equal(text(), bare)
        gpt(prompt)
    reading = probe.read()
    assert {reading[f"tokens/{site}"] for site in reading.sites} == {2 * 12}
    (note,) = reading.notes
    assert note.endswith("run whole texts without input_pos")


def test_the_error_contains_a_line_that_works(tmp_path: Path) -> None:
    _, model = pair("llama", tmp_path)
    with pytest.raises(GeomprobeError) as caught:
        Probe(model)
    line = str(caught.value).rpartition(": ")[2]
    with eval(line, {"Probe": Probe, "Decoder": Decoder, "model": model}) as probe:
        model(token_batch())
    assert probe.read().sites[-1] == "final_norm"
