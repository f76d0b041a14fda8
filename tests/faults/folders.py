"""Hostile and broken checkpoints. Each function makes one of them in an empty folder, and returns what a user would load.

``HOSTILE`` are checkpoints that try to run code: whatever of theirs runs creates the file :func:`ran_in`. ``BROKEN`` are
checkpoints that cannot be read. Each has the one-line error that loading it gives.
"""

import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from geomprobe.models.toy import byte_tokenizer
from tests.tiny_models import tiny

__all__ = ["BROKEN", "HARMLESS", "HOSTILE", "Fault", "good", "ran_in"]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Fault:
    """A checkpoint that must be refused.

    Attributes:
        make: makes it in an empty folder, and returns the hub id, directory or file to load.
        error: the error, in which ``…`` stands for any text: a path, or words of another library.
    """

    make: Callable[[Path], str]
    error: str

    def tells(self, error: str) -> bool:
        """Whether ``error`` is, or contains, the one of this fault."""
        return re.search(".*".join(map(re.escape, self.error.split("…"))), error) is not None


def good(folder: Path, **options: Any) -> str:
    """A checkpoint with nothing wrong: a random Llama of two layers that reads bytes."""
    tiny("llama", layers=2, vocabulary=256, **options).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def ran_in(folder: Path) -> bool:
    """Whether code of the checkpoint in ``folder`` was run."""
    return (folder / "RAN").exists()


# -- hostile ----------------------------------------------------------------------------------------------------------------


class _Touch:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return eval, (f"open({str(self.path)!r}, 'w').close()",)


def _pickle(path: Path) -> None:
    """Write a pickle that creates the file ``RAN`` in the folder of the checkpoint when it is opened."""
    path.write_bytes(pickle.dumps(_Touch(path.parent / "RAN")))


def _module(path: Path, *names: str, marker: Path | None = None) -> None:
    """Write a Python file that creates the file ``RAN`` when it is imported."""
    path.parent.mkdir(exist_ok=True)
    classes = "".join(f"class {name}: pass\n" for name in names)
    path.write_text(f"open({str(marker or path.parent / 'RAN')!r}, 'w').close()\n{classes}", encoding="utf-8")


def _edit(path: Path, **values: Any) -> None:
    """Change values of a JSON file; ``None`` removes them."""
    content = json.loads(path.read_text("utf-8")) | values
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}), encoding="utf-8")


def code_for_config(folder: Path) -> str:
    """The configuration is a class of the checkpoint's own."""
    good(folder)
    _module(folder / "evil.py", "EvilConfig", "EvilModel")
    auto = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    _edit(folder / "config.json", model_type="evil", auto_map=auto)
    return str(folder)


def code_for_model(folder: Path) -> str:
    """The model is a class of the checkpoint's own, for a configuration that has no causal language model in Transformers."""
    good(folder)
    _module(folder / "evil.py", "EvilModel")
    _edit(folder / "config.json", model_type="vit", auto_map={"AutoModelForCausalLM": "evil.EvilModel"})
    return str(folder)


def code_elsewhere(folder: Path) -> str:
    """The code is that of another repository on the hub."""
    good(folder)
    _edit(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil/code--evil.EvilConfig"})
    return str(folder)


def code_for_tokenizer(folder: Path) -> str:
    """The tokenizer is a class of the checkpoint's own, and the model an unknown one."""
    good(folder)
    _module(folder / "evil.py", "EvilTokenizer")
    auto = {"AutoTokenizer": ["evil.EvilTokenizer", None]}
    _edit(folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=auto)
    _edit(folder / "config.json", model_type="vit")
    return str(folder)


def code_for_attention(folder: Path) -> str:
    """The attention is code from the hub."""
    good(folder)
    _edit(folder / "config.json", attn_implementation="evil/attention")
    return str(folder)


def pickled_weights(folder: Path) -> str:
    """The weights are a pickle."""
    good(folder)
    (folder / WEIGHTS).unlink()
    _pickle(folder / "pytorch_model.bin")
    return str(folder)


def pickled_shards(folder: Path) -> str:
    """The weights are several pickles."""
    good(folder)
    names = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    _pickle(folder / "pytorch_model-00001-of-00001.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "pytorch_model-00001-of-00001.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    return str(folder)


def pickles_in_the_index(folder: Path) -> str:
    """The index of safetensors files names a pickle."""
    good(folder)
    names = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    _pickle(folder / "pytorch_model.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "pytorch_model.bin")}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return str(folder)


def pickle_in_the_config(folder: Path) -> str:
    """``config.json`` names a pickle as the file of weights."""
    good(folder)
    _pickle(folder / "adapter_model.bin")
    _edit(folder / "config.json", transformers_weights="adapter_model.bin")
    return str(folder)


def _adapter(folder: Path, base: Path) -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    _pickle(folder / "adapter_model.bin")


def pickled_adapter(folder: Path) -> str:
    """A PEFT adapter in a pickle, as its own checkpoint."""
    good(folder / "base")
    adapter = folder / "adapter"
    adapter.mkdir()
    byte_tokenizer().save_pretrained(adapter)
    _adapter(adapter, folder / "base")
    return str(adapter)


def pickled_adapter_beside_weights(folder: Path) -> str:
    """A PEFT adapter in a pickle beside whole weights, which Transformers would load too."""
    good(folder)
    _adapter(folder, folder)
    return str(folder)


HOSTILE = {
    "code for the config": Fault(
        code_for_config,
        "cannot load '…': it needs Python code that comes with it, which is run only if you allow it: "
        "trust_remote_code=True, or --trust-remote-code where the command has it",
    ),
    "code for the model": Fault(
        code_for_model,
        "cannot load '…': it needs Python code that comes with it, which is run only if you allow it: "
        "trust_remote_code=True, or --trust-remote-code where the command has it",
    ),
    "code elsewhere": Fault(
        code_elsewhere,
        "cannot load '…': it needs Python code that comes with it, which is run only if you allow it: "
        "trust_remote_code=True, or --trust-remote-code where the command has it",
    ),
    "code for the tokenizer": Fault(
        code_for_tokenizer,
        "cannot load the tokenizer of '…': it needs Python code that comes with it, which is run only if "
        "you allow it: trust_remote_code=True, or --trust-remote-code where the command has it",
    ),
    "code for attention": Fault(
        code_for_attention,
        "…: config.json asks for code of evil/attention on the hub, which is not run; remove it from config.json",
    ),
    "pickled weights": Fault(
        pickled_weights,
        "cannot load '…': its weights are in pytorch_model.bin, which is not safetensors, and is not opened "
        "because a pickle could run code; save the model as safetensors (save_pretrained())",
    ),
    "pickled shards": Fault(
        pickled_shards,
        "cannot load '…': its weights are in pytorch_model-00001-of-00001.bin, which is not safetensors, and "
        "is not opened because a pickle could run code; save the model as safetensors (save_pretrained())",
    ),
    "pickles in the index": Fault(
        pickles_in_the_index,
        "cannot load '…': its weights are in pytorch_model.bin, which is not safetensors, and is not opened "
        "because a pickle could run code; save the model as safetensors (save_pretrained())",
    ),
    "pickle in the config": Fault(
        pickle_in_the_config,
        "cannot load '…': its weights are in adapter_model.bin, which is not safetensors, and is not opened "
        "because a pickle could run code; save the model as safetensors (save_pretrained())",
    ),
    "pickled adapter": Fault(
        pickled_adapter,
        "…/adapter has a PEFT adapter, and geomprobe reads whole models: merge the adapter into its model "
        "(merge_and_unload(), then save_pretrained())",
    ),
    "pickled adapter beside weights": Fault(
        pickled_adapter_beside_weights,
        "… has a PEFT adapter, and geomprobe reads whole models: merge the adapter into its model "
        "(merge_and_unload(), then save_pretrained())",
    ),
}
"""Checkpoints that need what is not done without the user's word."""


def code_that_is_not_needed(folder: Path) -> str:
    """Transformers has the configuration, the model and the tokenizer, although the checkpoint brings its own."""
    good(folder)
    _module(folder / "evil.py", "EvilConfig", "EvilModel", "EvilTokenizer")
    auto = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    _edit(folder / "config.json", auto_map=auto)
    _edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.EvilTokenizer", None]})
    return str(folder)


def code_for_generation(folder: Path) -> str:
    """The checkpoint brings its own way to generate."""
    good(folder)
    _module(folder / "custom_generate" / "generate.py", "generate", marker=folder / "RAN")
    return str(folder)


def pickles_beside_weights(folder: Path) -> str:
    """The states of a training beside good weights."""
    good(folder)
    names = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin", "vocab.pkl", "x.npy")
    for name in names:
        _pickle(folder / name)
    return str(folder)


HARMLESS = {
    "code that is not needed": code_that_is_not_needed,
    "code for generation": code_for_generation,
    "pickles beside weights": pickles_beside_weights,
}
"""Checkpoints that are read without the code and the pickles in them."""


# -- broken weights -----------------------------------------------------------------------------------------------------------


def _loaded(path: Path) -> dict[str, torch.Tensor]:
    """Copies of the tensors in a file: older versions of safetensors map the file, which is then written anew."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _weights(change: Callable[[dict[str, torch.Tensor]], object], **options: Any) -> Callable[[Path], str]:
    """Makes a checkpoint whose weights ``change`` changes."""

    def make(folder: Path) -> str:
        good(folder, **options)
        tensors = _loaded(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
        return str(folder)

    return make


def _without(*parts: str) -> Callable[[dict[str, torch.Tensor]], object]:
    """Removes the tensors that have one of ``parts`` in their name."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if any(part in name for part in parts)]:
            del tensors[name]

    return change


def _configured(**values: Any) -> Callable[[Path], str]:
    """Makes a checkpoint with other values in ``config.json``."""

    def make(folder: Path) -> str:
        good(folder)
        _edit(folder / "config.json", **values)
        return str(folder)

    return make


def _file(name: str, content: bytes | None) -> Callable[[Path], str]:
    """Makes a checkpoint in which one file has another content, or is missing."""

    def make(folder: Path) -> str:
        good(folder)
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        return str(folder)

    return make


def _cut(name: str, share: float) -> Callable[[Path], str]:
    """Makes a checkpoint in which only the start of one file is left."""

    def make(folder: Path) -> str:
        good(folder)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(share * len(whole))])
        return str(folder)

    return make


def sharded(folder: Path) -> Path:
    """A good checkpoint in several files of weights."""
    tiny("llama", layers=2, vocabulary=256).save_pretrained(folder, max_shard_size="20KB")
    byte_tokenizer().save_pretrained(folder)
    return folder


def missing_shard(folder: Path) -> str:
    """One of the files of weights is missing."""
    sorted(sharded(folder).glob("model-*.safetensors"))[1].unlink()
    return str(folder)


def short_shard(folder: Path) -> str:
    """One of the files of weights lacks a tensor that the index promises."""
    shard = sorted(sharded(folder).glob("model-*.safetensors"))[1]
    tensors = _loaded(shard)
    tensors.popitem()
    save_file(tensors, shard, {"format": "pt"})
    return str(folder)


def _index(content: bytes) -> Callable[[Path], str]:
    """Makes a checkpoint in several files with another index."""

    def make(folder: Path) -> str:
        (sharded(folder) / INDEX).write_bytes(content)
        return str(folder)

    return make


def outside_index(folder: Path) -> str:
    """The index names a file outside the folder."""
    good(folder / "other")
    _edit(sharded(folder / "model") / INDEX, weight_map={"lm_head.weight": f"../other/{WEIGHTS}"})
    return str(folder / "model")


def folder_for_weights(folder: Path) -> str:
    """A folder stands where the file of weights should be."""
    good(folder)
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    return str(folder)


# -- names --------------------------------------------------------------------------------------------------------------------


def _named(name: str, *, made: bool = False) -> Callable[[Path], str]:
    """A path with an unusual last part, which exists if ``made``."""

    def make(folder: Path) -> str:
        path = os.path.join(folder, name)
        if made:
            os.mkdir(path)
        return path

    return make


# -- GGUF ---------------------------------------------------------------------------------------------------------------------


def gguf(folder: Path, *, without: str = "nothing") -> Path:
    """A good GGUF file of a random Llama beside a tokenizer, or one that lacks the tensors with ``without`` in their names."""
    library = pytest.importorskip("gguf", reason="GGUF files need gguf")
    byte_tokenizer().save_pretrained(folder)
    plain = tiny("llama", layers=2, vocabulary=256)
    config, path = plain.config, folder / "tiny.gguf"
    writer = library.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    vocabulary = byte_tokenizer().get_vocab()
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_types([1] * len(vocabulary))
    writer.add_token_merges([])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = library.get_tensor_name_map(library.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in plain.state_dict().items():
        if without not in name:
            writer.add_tensor(names.get_name(name, (".weight",)), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_without_tensors(folder: Path) -> str:
    """A GGUF file that lacks the weights of the second layer's MLP."""
    return str(gguf(folder, without="layers.1.mlp"))


def cut_gguf(folder: Path) -> str:
    """The first half of a GGUF file."""
    path = gguf(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return str(path)


def _gguf_file(content: bytes | None) -> Callable[[Path], str]:
    """Makes a file that is called GGUF and is not, or no file."""

    def make(folder: Path) -> str:
        byte_tokenizer().save_pretrained(folder)
        if content is not None:
            (folder / "tiny.gguf").write_bytes(content)
        return str(folder / "tiny.gguf")

    return make


def adapter_beside_gguf(folder: Path) -> str:
    """A PEFT adapter beside a GGUF file, which Transformers would load too."""
    path = gguf(folder)
    _adapter(folder, folder)
    return str(path)


DEEP = b"[" * 200_000

BROKEN = {
    "a tensor is missing": Fault(
        _weights(_without("layers.1.mlp.up_proj")),
        "cannot load '…': 1 of 21 tensors is missing from the files: model.layers.1.mlp.up_proj.weight. "
        "Random numbers would take their place: expected the files of a whole LlamaForCausalLM with its own "
        "config.json",
    ),
    "many tensors are missing": Fault(
        _weights(_without("layers.1.")),
        "cannot load '…': 9 of 21 tensors are missing from the files: model.layers.1.input_layernorm.weight, "
        "model.layers.1.mlp.down_proj.weight, model.layers.1.mlp.gate_proj.weight and 6 more. Random numbers "
        "would take their place: expected the files of a whole LlamaForCausalLM with its own config.json",
    ),
    "no tensor": Fault(
        _weights(_without("")),
        "cannot load '…': 21 of 21 tensors are missing from the files: lm_head.weight, "
        "model.embed_tokens.weight, model.layers.0.input_layernorm.weight and 18 more. Random numbers would "
        "take their place: expected the files of a whole LlamaForCausalLM with its own config.json",
    ),
    "no head": Fault(
        _weights(_without("lm_head")),
        "cannot load '…': 1 of 21 tensors is missing from the files: lm_head.weight. Random numbers would "
        "take their place: expected the files of a whole LlamaForCausalLM with its own config.json",
    ),
    "tied, and neither is there": Fault(
        _weights(_without("lm_head", "embed_tokens"), tie_word_embeddings=True),
        "cannot load '…': 2 of 21 tensors are missing from the files: lm_head.weight, "
        "model.embed_tokens.weight. Random numbers would take their place: expected the files of a whole "
        "LlamaForCausalLM with its own config.json",
    ),
    "more layers than weights": Fault(
        _configured(num_hidden_layers=3),
        "cannot load '…': 9 of 30 tensors are missing from the files: model.layers.2.input_layernorm.weight, "
        "model.layers.2.mlp.down_proj.weight, model.layers.2.mlp.gate_proj.weight and 6 more. Random numbers "
        "would take their place: expected the files of a whole LlamaForCausalLM with its own config.json",
    ),
    "another width": Fault(
        _configured(intermediate_size=96),
        "cannot load '…': 6 of 21 tensors are of another shape than the configuration says: "
        "model.layers.0.mlp.down_proj.weight: (32, 64) instead of (32, 96), "
        "model.layers.0.mlp.gate_proj.weight: (64, 32) instead of (96, 32), "
        "model.layers.0.mlp.up_proj.weight: (64, 32) instead of (96, 32) and 3 more. Random numbers would "
        "take their place: expected the files of a whole LlamaForCausalLM with its own config.json",
    ),
    "another vocabulary": Fault(
        _configured(vocab_size=300),
        "cannot load '…': 2 of 21 tensors are of another shape than the configuration says: lm_head.weight: "
        "(256, 32) instead of (300, 32), model.embed_tokens.weight: (256, 32) instead of (300, 32). Random "
        "numbers would take their place: expected the files of a whole LlamaForCausalLM with its own "
        "config.json",
    ),
    "no weights": Fault(
        _file(WEIGHTS, None),
        "cannot load '…': …. Expected a hub id, a directory with config.json, tokenizer and safetensors "
        "weights, or a GGUF file",
    ),
    "empty weights": Fault(
        _file(WEIGHTS, b""),
        "cannot load '…': …. Expected a hub id, a directory with config.json, tokenizer and safetensors "
        "weights, or a GGUF file",
    ),
    "weights are text": Fault(
        _file(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "cannot load '…': …. Expected a hub id, a directory with config.json, tokenizer and safetensors "
        "weights, or a GGUF file",
    ),
    "half of the weights": Fault(
        _cut(WEIGHTS, 0.5),
        "cannot load '…': …. Expected a hub id, a directory with config.json, tokenizer and safetensors "
        "weights, or a GGUF file",
    ),
    "weights are a folder": Fault(
        folder_for_weights,
        "cannot load '…': …. Expected a hub id, a directory with config.json, tokenizer and safetensors "
        "weights, or a GGUF file",
    ),
    "a shard is missing": Fault(
        missing_shard,
        "cannot load '…': model.safetensors.index.json names 7 files, of which "
        "model-00002-of-00007.safetensors is missing; copy or save the model again",
    ),
    "a shard lacks a tensor": Fault(
        short_shard,
        "cannot load '…': 1 of 21 tensors is missing from the files: model.layers.0.self_attn.v_proj.weight. "
        "Random numbers would take their place: expected the files of a whole LlamaForCausalLM with its own "
        "config.json",
    ),
    "the index is not JSON": Fault(
        _index(b"{"),
        "cannot load '…': model.safetensors.index.json is no index of weights (JSONDecodeError); save the model again",
    ),
    "the index is a list": Fault(
        _index(b"[]"), "cannot load '…': model.safetensors.index.json is no index of weights (TypeError); save the model again"
    ),
    "the index maps nothing": Fault(
        _index(b'{"weight_map": 5}'),
        "cannot load '…': model.safetensors.index.json is no index of weights (AttributeError); save the model again",
    ),
    "the index is deep": Fault(
        _index(DEEP),
        "cannot load '…': model.safetensors.index.json is no index of weights (RecursionError); save the model again",
    ),
    "the index is empty": Fault(
        _index(b'{"metadata": {}, "weight_map": {}}'),
        "cannot load '…': model.safetensors.index.json names no file of weights; save the model again",
    ),
    "the index leads outside": Fault(
        outside_index,
        "cannot load '…/model': model.safetensors.index.json names a file outside the model: ../other/model.safetensors",
    ),
    "no config": Fault(
        _file("config.json", None), "…: this directory has no config.json; expected one that save_pretrained() wrote"
    ),
    "empty config": Fault(
        _file("config.json", b""),
        "cannot load '…': …/config.json' is not a valid JSON file. Expected a hub id, a directory with config.json, "
        "tokenizer and safetensors weights, or a GGUF file",
    ),
    "the config is a list": Fault(
        _file("config.json", b"[]"),
        "cannot load '…': …. Expected a hub id, a directory with config.json, tokenizer and safetensors "
        "weights, or a GGUF file",
    ),
    "the config is deep": Fault(
        _file("config.json", DEEP),
        "cannot load '…': …. Expected a hub id, a directory with config.json, tokenizer and safetensors "
        "weights, or a GGUF file",
    ),
    "the config is binary": Fault(
        _file("config.json", b"\xff\xfe\x00"),
        "cannot load '…': …/config.json' is not a valid JSON file. Expected a hub id, a directory with config.json, "
        "tokenizer and safetensors weights, or a GGUF file",
    ),
    "no type of model": Fault(
        _configured(model_type=None),
        "cannot load '…': …. Expected a hub id, a directory with config.json, tokenizer and safetensors "
        "weights, or a GGUF file",
    ),
    "an unknown type of model": Fault(
        _configured(model_type="evil"),
        "cannot load '…': …. Expected a hub id, a directory with config.json, tokenizer and safetensors "
        "weights, or a GGUF file",
    ),
    "not a language model": Fault(
        _configured(model_type="vit"),
        "cannot load '…': …. Expected a hub id, a directory with config.json, tokenizer and safetensors "
        "weights, or a GGUF file",
    ),
    "a width of text": Fault(
        _configured(hidden_size="wide"),
        "cannot load '…': …. Expected a hub id, a directory with config.json, tokenizer and safetensors "
        "weights, or a GGUF file",
    ),
    "no heads": Fault(
        _configured(num_attention_heads=0),
        "cannot load '…': …. Expected a hub id, a directory with config.json, tokenizer and safetensors "
        "weights, or a GGUF file",
    ),
    "no tokenizer": Fault(
        _file("tokenizer.json", None),
        "cannot load the tokenizer of '…': …. Expected a hub id, a directory with config.json, tokenizer and "
        "safetensors weights, or a GGUF file",
    ),
    "empty tokenizer": Fault(
        _file("tokenizer.json", b""),
        "cannot load the tokenizer of '…': …. Expected a hub id, a directory with config.json, tokenizer and "
        "safetensors weights, or a GGUF file",
    ),
    "half of the tokenizer": Fault(
        _cut("tokenizer.json", 0.5),
        "cannot load the tokenizer of '…': …. Expected a hub id, a directory with config.json, tokenizer and "
        "safetensors weights, or a GGUF file",
    ),
    "the tokenizer is a list": Fault(
        _file("tokenizer.json", b"[]"),
        "cannot load the tokenizer of '…': …. Expected a hub id, a directory with config.json, tokenizer and "
        "safetensors weights, or a GGUF file",
    ),
    "the tokenizer has no model": Fault(
        _file("tokenizer.json", b"{}"),
        "cannot load the tokenizer of '…': …. Expected a hub id, a directory with config.json, tokenizer and "
        "safetensors weights, or a GGUF file",
    ),
    "the tokenizer's config is not JSON": Fault(
        _file("tokenizer_config.json", b"{"),
        "cannot load the tokenizer of '…': …. Expected a hub id, a directory with config.json, tokenizer and "
        "safetensors weights, or a GGUF file",
    ),
    "no such folder": Fault(
        _named("nothing"), "…/nothing: no such directory; expected one that save_pretrained() wrote, or a hub id"
    ),
    "an empty folder": Fault(
        lambda folder: str(folder), "…: this directory has no config.json; expected one that save_pretrained() wrote"
    ),
    "a file": Fault(
        lambda folder: str(Path(good(folder)) / "config.json"),
        "…/config.json is a file: expected a directory with config.json and weights, or a .gguf file",
    ),
    "a long name": Fault(_named("é" * 300), "cannot load '…': File name too long; expected a hub id or a directory"),
    "a name that is not UTF-8": Fault(
        _named("caf\udce9", made=True), "cannot load '…/caf\\udce9': its name is not UTF-8; rename it"
    ),
    "a missing name that is not UTF-8": Fault(
        _named("nothing\udce9"), "cannot load '…/nothing\\udce9': its name is not UTF-8; rename it"
    ),
    "a name with NUL": Fault(
        _named("a\0b"), "cannot load '…/a\\x00b': a name cannot contain NUL; expected a hub id or a directory"
    ),
    "a long id": Fault(lambda folder: "é" * 300, "cannot load 'é…': File name too long; expected a hub id or a directory"),
    "an id that is not UTF-8": Fault(lambda folder: "caf\udce9", "cannot load 'caf\\udce9': its name is not UTF-8; rename it"),
    "no name": Fault(lambda folder: "", "model='': expected a hub id, a directory or a .gguf file"),
    "no GGUF file": Fault(_gguf_file(None), "…/tiny.gguf: no such file; expected a GGUF file, a directory or a hub id"),
    "an empty GGUF file": Fault(
        _gguf_file(b""),
        "cannot load '…/tiny.gguf': …. Expected a hub id, a directory with config.json, tokenizer and "
        "safetensors weights, or a GGUF file",
    ),
    "GGUF of text": Fault(
        _gguf_file(b"not a GGUF file, but long enough to have a header"),
        "cannot load '…/tiny.gguf': …. Expected a hub id, a directory with config.json, tokenizer and "
        "safetensors weights, or a GGUF file",
    ),
    "half of a GGUF file": Fault(
        cut_gguf,
        "cannot load '…/tiny.gguf': …. Expected a hub id, a directory with config.json, tokenizer and "
        "safetensors weights, or a GGUF file",
    ),
    "a tensor is missing in GGUF": Fault(
        gguf_without_tensors,
        "cannot load '…/tiny.gguf': 3 of 21 tensors are missing from the files: "
        "model.layers.1.mlp.down_proj.weight, model.layers.1.mlp.gate_proj.weight, "
        "model.layers.1.mlp.up_proj.weight. Random numbers would take their place: expected the files of a "
        "whole LlamaForCausalLM with its own config.json",
    ),
    "a pickled adapter beside GGUF": Fault(
        adapter_beside_gguf,
        "…/tiny.gguf has a PEFT adapter, and geomprobe reads whole models: merge the adapter into its model "
        "(merge_and_unload(), then save_pretrained())",
    ),
}
"""Checkpoints that cannot be read, or whose numbers would be those of random weights."""
