"""The probe on models that are not plain float32 modules: adapted, quantised, read from GGUF, run in autocast."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from geomprobe import Probe, Reading
from tests import reference
from tests.tiny_models import padded, snapshot, tiny, token_batch

# PEFT asks Transformers for what Transformers has renamed.
pytestmark = [
    pytest.mark.slow,  # it builds adapted and quantized models
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

LENGTHS = (12, 7, 19)
TEXTS = [token_batch(1, length, seed=length)[0] for length in LENGTHS]
HIDDEN = 1e-5  # between the probe and float64 on the same hidden states, relative and in nats
FORWARD = 1e-4  # between two forwards that round differently, relative and in nats
PROJECTIONS = {"gpt_neox": ["query_key_value", "dense_4h_to_h"], "llama": ["q_proj", "down_proj"]}


def lora(model: Any) -> Any:
    """LoRA, with dropout and with weights that do something from the start."""
    peft = pytest.importorskip("peft", reason="LoRA adapters need peft")
    torch.manual_seed(1)
    targets = PROJECTIONS[model.config.model_type]
    config = peft.LoraConfig(r=4, target_modules=targets, lora_dropout=0.1, init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config).eval()


def torchao(model: Any, directory: Path) -> Any:
    """Weights in int8 tensors of torchao."""
    quantization = pytest.importorskip("torchao.quantization", reason="int8 weights of torchao need torchao")
    return quantised(model, directory, transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig()))


def quanto(model: Any, directory: Path) -> Any:
    """Weights in int8 tensors of quanto, and layers of its own."""
    pytest.importorskip("optimum.quanto", reason="int8 weights of quanto need optimum-quanto")
    return quantised(model, directory, transformers.QuantoConfig(weights="int8"))


def quantised(model: Any, directory: Path, config: Any) -> Any:
    model.save_pretrained(directory)
    load = transformers.AutoModelForCausalLM.from_pretrained
    loaded = load(directory, quantization_config=config, dtype=torch.float32)
    assert any(type(weight) not in (nn.Parameter, Tensor) for weight in loaded.parameters())
    return loaded


CHANGES: dict[str, Any] = {
    "lora": lambda model, directory: lora(model),
    "merged": lambda model, directory: lora(model).merge_and_unload(),
    "torchao": torchao,
    "quanto": quanto,
    "lora on torchao": lambda model, directory: lora(torchao(model, directory)),
}


@pytest.fixture(params=["llama", "gpt_neox"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=CHANGES)
def model(request: pytest.FixtureRequest, family: str, tmp_path: Path) -> Any:
    """A changed model, which computes something else than the plain one."""
    changed = CHANGES[request.param](tiny(family), tmp_path)
    assert not torch.equal(changed(token_batch()).logits, tiny(family)(token_batch()).logits)
    return changed


def run(model: Any) -> None:
    with torch.no_grad():
        for text in TEXTS:
            model(input_ids=text.unsqueeze(0))


def read(model: Any) -> Reading:
    with Probe(model, on_error="raise") as probe:
        run(model)
    return probe.read()


def check(reading: Reading, model: Any, tolerance: float) -> None:
    """Hold a reading of ``TEXTS`` to float64 NumPy on the model's hidden states of each text alone."""
    hidden = [reference.hidden_states(model, {"input_ids": text.unsqueeze(0)}) for text in TEXTS]
    assert reading.sites == tuple(hidden[0])
    for site in reading.sites:
        texts = [reference.unit(states[site][0]) for states in hidden]
        gains = [reference.gains(rows) for rows in texts]
        values = reference.entropies(np.concatenate(texts)) | reference.text_entropies(texts)
        values["information_gain"] = float(np.mean([gain.sum() for gain in gains]))
        values["gain_per_token"] = float(np.concatenate(gains).mean())
        values = {name: value for name, value in values.items() if f"{name}/{site}" in reading}
        assert len(values) == 19
        # Products in float32 may move an eigenvalue by FLOOR of the largest, and α-ReQ takes the logarithms of small ones.
        alpha = reference.FLOOR * reference.alpha_condition(reference.spectrum(np.concatenate(texts)))
        for name in ("alpha_req", "alpha_req_r2"):
            assert reading[f"{name}/{site}"] == pytest.approx(values.pop(name), rel=tolerance, abs=alpha), site
        for name in reference.LEFT_OUT:
            assert reading[f"{name}/{site}"] == pytest.approx(values.pop(name), abs=1e-3), site
        assert {name: reading[f"{name}/{site}"] for name in values} == pytest.approx(values, rel=tolerance), site
        by_position = [np.mean([gain[t] for gain in gains if len(gain) > t]) for t in range(max(LENGTHS))]
        assert reading.curve("gain", site).mean == pytest.approx(by_position, abs=tolerance), site
        assert reading[f"tokens/{site}"] == sum(LENGTHS)


def check_equal(reading: Reading, expected: Reading) -> None:
    """Hold a reading to another, whose forwards rounded differently."""
    assert set(reading) == set(expected)
    for key, value in expected.items():  # what is left out as rounding is a share of at most 1, whose own rounding is not small
        rounded = key.startswith(reference.LEFT_OUT)
        assert reading[key] == pytest.approx(value, rel=FORWARD, abs=1e-3 if rounded else None), key
    for site in expected.sites:
        assert reading.curve("gain", site).mean == pytest.approx(expected.curve("gain", site).mean, abs=FORWARD), site


def test_numbers_are_those_of_the_models_own_hidden_states(model: Any) -> None:
    """Every number at every site agrees with float64 on ``output_hidden_states`` of the changed model."""
    check(read(model), model, HIDDEN)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model: Any, side: str) -> None:
    """A padded batch gives the numbers of its texts one by one."""
    with Probe(model, on_error="raise") as probe, torch.no_grad():
        model(**padded(TEXTS, side))
    check(probe.read(), model, FORWARD)


def test_logits_are_bit_identical_and_nothing_is_left(model: Any) -> None:
    """Logits are the same with the probe on and after it, and every hook of it goes."""
    batch, before = padded(TEXTS), snapshot(model)
    expected = model(**batch).logits
    with Probe(model, on_error="raise"):
        assert torch.equal(model(**batch).logits, expected)
        assert snapshot(model) != before
    assert snapshot(model) == before
    assert torch.equal(model(**batch).logits, expected)


def test_a_generated_text_counts_as_it_would_in_one_forward(model: Any) -> None:
    """Token by token on a KV cache, an adapted or quantised model gives the numbers of the finished text."""
    with Probe(model, on_error="raise") as generating:
        texts = model.generate(token_batch(), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    with Probe(model, on_error="raise") as probe, torch.no_grad():
        model(input_ids=texts[:, :-1])
    assert probe.read()["tokens/final_norm"] == 2 * (12 + 5)
    check_equal(generating.read(), probe.read())


@pytest.mark.parametrize("on_torchao", [False, True], ids=["float32", "torchao"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_training_an_adapter(family: str, on_torchao: bool, checkpointing: bool, tmp_path: Path) -> None:
    """Losses, logits, gradients and trained weights of LoRA are bit-identical with and without the probe."""

    def train(watched: bool) -> list[Tensor]:
        model = lora(torchao(tiny(family), tmp_path) if on_torchao else tiny(family)).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable()
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        assert all("lora_" in name for name in trained)
        optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
        kept, before, batch = [], snapshot(model), padded(TEXTS)
        probe = Probe(model, on_error="raise")
        if watched:
            probe.attach()
        for _ in range(2):
            optimizer.zero_grad()
            output = model(**batch, labels=batch["input_ids"].where(batch["attention_mask"].bool(), -100))
            output.loss.backward()
            assert all(weight.grad.any() for weight in trained.values())
            kept += [output.loss.detach(), output.logits.detach(), *(weight.grad.clone() for weight in trained.values())]
            optimizer.step()
        probe.close()
        assert snapshot(model) == before
        if watched:
            assert probe.read("train")["tokens/final_norm"] == 2 * sum(LENGTHS)
        return kept + list(trained.values())

    assert all(torch.equal(on, off) for on, off in zip(train(True), train(False), strict=True))


def test_a_probe_stays_on_while_its_adapter_is_switched_off_and_merged(family: str) -> None:
    """The decoder layers are the same modules before and after: one probe sees them all."""
    model = lora(tiny(family))
    adapted = read(model)
    with Probe(model, on_error="raise") as probe:
        with model.disable_adapter():
            run(model)
        assert probe.read(reset=True).to_dict() == read(tiny(family)).to_dict()
        run(model)
        assert probe.read(reset=True).to_dict() == adapted.to_dict()
        unloaded = model.merge_and_unload()
        assert Probe.on(unloaded) is probe
        run(unloaded)
    check_equal(probe.read(), adapted)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_a_gguf_file_reads_as_the_same_weights_do_in_an_ordinary_model(kind: str, tmp_path: Path) -> None:
    """The loaded model has the file's weights, dequantised, and every number is equal to the last bit."""
    gguf = pytest.importorskip("gguf", reason="reading GGUF files needs gguf")
    quantize, dequantize = gguf.quants.quantize, gguf.quants.dequantize
    plain = tiny("llama", rms_norm_eps=2**-20)  # GGUF keeps it in float32
    config = plain.config
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    weights = {}
    for name, weight in plain.state_dict().items():
        raw = gguf.GGMLQuantizationType[kind if weight.dim() == 2 else "F32"]
        values = dequantize(quantize(weight.numpy(), raw), raw)
        weights[name] = torch.from_numpy(values.copy())
        if "q_proj" in name or "k_proj" in name:  # llama.cpp interleaves the halves that rotate
            values = values.reshape(-1, 2, config.head_dim // 2, config.hidden_size).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), quantize(values, raw), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    plain.load_state_dict(weights)

    load = transformers.AutoModelForCausalLM.from_pretrained
    loaded = load(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.state_dict().items())
    reading = read(loaded)
    assert reading.to_dict() == read(plain).to_dict()
    check(reading, loaded, HIDDEN)


@pytest.mark.parametrize("adapter", [False, True], ids=["", "lora"])
def test_autocast(family: str, adapter: bool) -> None:
    """Under autocast the numbers are of the hidden states that bfloat16 products made, and logits stay as they were."""
    model = lora(tiny(family)) if adapter else tiny(family)
    batch = padded(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(**batch).logits
        reading = read(model)
        check(reading, model, HIDDEN)
        with Probe(model, on_error="raise"):
            assert torch.equal(model(**batch).logits, expected)
    assert expected.dtype == torch.bfloat16
    assert reading.to_dict() != read(model).to_dict()
