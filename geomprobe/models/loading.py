"""Loads models and tokenizers from a hub id, a local directory or a GGUF file, for all commands."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from geomprobe.errors import GeomprobeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Loaded", "load", "tokenize", "untrained"]


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode and its tokenizer."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"


def load(
    model: str,
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    device_map: str | None = None,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """Load a causal language model, from safetensors or GGUF only.

    Args:
        model: a hub id, a directory, or the path of a ``.gguf`` file.
        revision: branch, tag or commit on the hub.
        gguf_file: name of the GGUF file inside ``model``.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto`` (the dtype of the checkpoint).
        device: device of the model. Default: CUDA if available, else the CPU.
        device_map: device map of Accelerate, such as ``auto``, for a model that does not fit on one device. It replaces
            ``device``.
        tokenizer: hub id or directory of the tokenizer. Default: ``model``.
        trust_remote_code: whether to run Python code that comes with the model. Use it only if you trust the author.

    Raises:
        GeomprobeError: if the model cannot be found or read. The message contains the cause.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(model)
    if gguf_file is None and path.suffix == ".gguf":
        model, gguf_file = str(path.parent), path.name
    try:
        path.exists()
    except OSError as error:  # a name that no file can have
        raise GeomprobeError(f"cannot load {model[:80]!r}…: {error}; expected a hub id or a directory") from error
    if not path.exists() and (path.is_absolute() or model.startswith((".", "~"))):
        raise GeomprobeError(f"{model}: no such directory; expected one that save_pretrained() wrote, or a hub id")
    if gguf_file is None and path.is_dir() and not (path / "config.json").exists():
        raise GeomprobeError(f"{model}: this directory has no config.json; expected one that save_pretrained() wrote")
    source = {"revision": revision, "gguf_file": gguf_file, "trust_remote_code": trust_remote_code}
    source = {name: value for name, value in source.items() if value}
    weights = {} if gguf_file else {"use_safetensors": True}
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise GeomprobeError(f"dtype {dtype!r}: expected float32, bfloat16, float16 or auto")
    try:
        reads = AutoTokenizer.from_pretrained(tokenizer or model, **(source if tokenizer is None else {}))
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, device_map=device_map, **source, **weights).eval()
        if device_map is None:
            loaded = loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if not reads("a", add_special_tokens=False).input_ids:  # Transformers creates one without a vocabulary
            raise OSError("there is no tokenizer: save one beside the weights, or name another source of it (tokenizer)")
    except Exception as error:  # a hub, a disk or a file format can raise errors of many kinds
        first_line = str(error).strip().split("\n")[0].rstrip(".")
        raise GeomprobeError(
            f"cannot load {model!r}: {type(error).__name__}: {first_line}. Expected a hub id, a directory with config.json, "
            "tokenizer and safetensors weights, or a GGUF file"
        ) from error
    return Loaded(loaded, reads)


def untrained(loaded: Loaded, *, seed: int = 0) -> Loaded:
    """Return a model of the same configuration with newly initialised random weights, in evaluation mode, on the same device.

    Raises:
        GeomprobeError: if the model cannot be created from its configuration.
    """
    model = loaded.model
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fresh = type(model)(model.config)
    except Exception as error:  # raised by code of the model
        raise GeomprobeError(f"cannot create an untrained {type(model).__name__}: {type(error).__name__}: {error}") from error
    return Loaded(fresh.to(device=model.device, dtype=model.dtype).eval(), loaded.tokenizer)


def tokenize(loaded: Loaded, text: str) -> torch.Tensor:
    """Return the token ids of one text ``(1, length)`` on the device of the model.

    Raises:
        GeomprobeError: if the text has no token, or more tokens than the model accepts.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise GeomprobeError(f"the text is not valid Unicode: {error}; give a text that can be encoded as UTF-8") from error
    ids: torch.Tensor = loaded.tokenizer(text, return_tensors="pt").input_ids
    if not text or not ids.shape[1]:
        raise GeomprobeError("the text is empty: give a text of at least one token")
    limit = getattr(loaded.model.config, "max_position_embeddings", None) or ids.shape[1]
    if ids.shape[1] > limit:
        raise GeomprobeError(
            f"the text has {ids.shape[1]:,} tokens and this model accepts at most {limit:,}: give a shorter text"
        )
    return ids.to(loaded.model.device)
