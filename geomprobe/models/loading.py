"""Models and tokenizers from a hub id, a local directory or a GGUF file: one way for every command."""

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
        gguf_file: the file to read inside ``model``.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto`` (what the checkpoint has).
        device: where to; CUDA when there is one, else the CPU.
        device_map: ``auto`` and its like, for a model that one device does not hold; in place of ``device``.
        tokenizer: where to take the tokenizer from, if not from ``model``.
        trust_remote_code: run the model's own code. Only when you trust whoever wrote it.

    Raises:
        GeomprobeError: it cannot be had or read; the message holds the cause.
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
        raise GeomprobeError(f"{model}: a directory without a config.json; expected one that save_pretrained() wrote")
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
        if not reads("a", add_special_tokens=False).input_ids:  # Transformers makes one up, which reads nothing
            raise OSError("no tokenizer there: save one beside the weights, or say where to take it from (tokenizer)")
    except Exception as error:  # whatever a hub, a disk or a file format can do wrong
        first_line = str(error).strip().split("\n")[0].rstrip(".")
        raise GeomprobeError(
            f"cannot load {model!r}: {type(error).__name__}: {first_line}. Expected a hub id, a directory with config.json, "
            "tokenizer and safetensors weights, or a GGUF file"
        ) from error
    return Loaded(loaded, reads)


def untrained(loaded: Loaded, *, seed: int = 0) -> Loaded:
    """The same architecture with the random weights that a training starts from, in evaluation mode, on the same device.

    Raises:
        GeomprobeError: the model cannot be made from its configuration.
    """
    model = loaded.model
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fresh = type(model)(model.config)
    except Exception as error:  # code of the model's own
        raise GeomprobeError(f"cannot make an untrained {type(model).__name__}: {type(error).__name__}: {error}") from error
    return Loaded(fresh.to(device=model.device, dtype=model.dtype).eval(), loaded.tokenizer)


def tokenize(loaded: Loaded, text: str) -> torch.Tensor:
    """Token ids of one text ``(1, length)`` on the model's device.

    Raises:
        GeomprobeError: the text has no token, or more than the model reads.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise GeomprobeError(f"the text is not Unicode: {error}") from error
    ids: torch.Tensor = loaded.tokenizer(text, return_tensors="pt").input_ids
    if not text or not ids.shape[1]:
        raise GeomprobeError("the text is empty: give at least one token to look at")
    limit = getattr(loaded.model.config, "max_position_embeddings", None) or ids.shape[1]
    if ids.shape[1] > limit:
        raise GeomprobeError(f"the text has {ids.shape[1]:,} tokens and this model reads {limit:,}: give a shorter text")
    return ids.to(loaded.model.device)
