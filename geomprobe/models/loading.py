"""Loads models and tokenizers from a hub id, a local directory or a GGUF file, for all commands."""

import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from geomprobe.errors import GeomprobeError
from geomprobe.models.source import check_source, find_source, printable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Loaded", "check_arguments", "load", "reason", "tokenize", "untrained"]

_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode and its tokenizer.

    Attributes:
        model: the model.
        tokenizer: its tokenizer.
        notes: what a reader of its numbers should know about its files.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    notes: tuple[str, ...] = ()


def load(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    device_map: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
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
        trust_remote_code: whether to run Python code that comes with the model and its tokenizer. Use it only if you trust the
            author. Pickled weights are not opened in either case.

    Raises:
        GeomprobeError: if the model cannot be found or read, or if its files lack weights. The message contains the cause.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    check_arguments(dtype=dtype, device=device, device_map=device_map)
    if trust_remote_code not in (True, False):  # "no" would be true
        raise GeomprobeError(f"trust_remote_code={trust_remote_code!r}: expected True or False")
    source = find_source(model, revision=revision, gguf_file=gguf_file)
    text = source if tokenizer is None else find_source(tokenizer)
    options = source.options(trust_remote_code)
    weights = {} if source.gguf_file else {"use_safetensors": True}
    with _told(source.name, trust_remote_code):
        check_source(source)
        config = AutoConfig.from_pretrained(source.place, **options)
        check_source(source, config)
    with _told(source.name, trust_remote_code, "the tokenizer" if text is source else f"the tokenizer {text.name}"):
        reads = AutoTokenizer.from_pretrained(text.place, **text.options(trust_remote_code))
        if not reads("a", add_special_tokens=False).input_ids:  # Transformers creates one without a vocabulary
            raise OSError("there is no tokenizer: save one beside the weights, or name another source of it (tokenizer)")
    with _told(source.name, trust_remote_code):
        loaded, info = AutoModelForCausalLM.from_pretrained(
            source.place,
            dtype=dtype,
            device_map=device_map,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are an error below, which names them
            **options,
            **weights,
        )
        _check_whole(source.name, loaded, info)
        if device_map is None:
            loaded = loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if source.gguf_file is not None:
        loaded.config.name_or_path = source.name
    return Loaded(loaded.eval(), reads, _notes(loaded, info))


def check_arguments(*, dtype: str, device: str | None, device_map: str | None) -> None:
    """Check arguments of :func:`load` that do not depend on the model.

    Raises:
        GeomprobeError: if one of them is wrong. The message names it.
    """
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise GeomprobeError(f"dtype={dtype!r}: expected float32, bfloat16, float16 or auto")
    placed: dict[str, Any] = {"device": device, "device_map": None if device_map in _DEVICE_MAPS else device_map}
    for name, value in placed.items():
        if value is None or (name == "device_map" and isinstance(value, dict)):
            continue
        expected = "a device of this machine, such as cpu or cuda"
        if name == "device_map":
            expected = f"{', '.join(_DEVICE_MAPS)}, or {expected}"
        try:
            usable = torch.empty(0, device=value).device.type != "meta"
        except (RuntimeError, TypeError, AssertionError, ImportError) as error:
            raise GeomprobeError(f"{name}={value!r}: {reason(error)}; expected {expected}") from error
        if not usable:
            raise GeomprobeError(f"{name}={value!r} holds no numbers: expected {expected}")


def reason(error: BaseException, most: int = 300) -> str:
    """Return what a library's exception says, in one line of printable characters.

    >>> reason(OSError("no such\\n  file."))
    'OSError: no such file'
    """
    said = textwrap.shorten(printable(" ".join(str(error).split())), most, placeholder=" …")
    return f"{type(error).__name__}: {said}".rstrip(".: ")


@contextmanager
def _told(name: str, trusted: bool, part: str = "") -> Iterator[None]:
    """A context in which an exception of any library becomes an error that names the model, and the ``part`` of it."""
    of = f"{part} of '{name}'" if part else f"'{name}'"
    try:
        yield
    except GeomprobeError:
        raise
    except Exception as error:  # a hub, a disk or a file format can raise errors of many kinds
        if not trusted and "trust_remote_code" in str(error):
            raise GeomprobeError(
                f"cannot load {of}: it needs Python code that comes with it, which is run only if you allow it: "
                "trust_remote_code=True, or --trust-remote-code where the command has it"
            ) from error
        if "use_safetensors" in str(error):
            raise GeomprobeError(
                f"cannot load {of}: it has no weights in safetensors, and pickles are not opened, because they could run code; "
                "save the model as safetensors (save_pretrained())"
            ) from error
        raise GeomprobeError(
            f"cannot load {of}: {reason(error)}. Expected a hub id, a directory with config.json, tokenizer and safetensors "
            "weights, or a GGUF file"
        ) from error


def _check_whole(name: str, model: "PreTrainedModel", info: dict[str, Any]) -> None:
    """Check that every weight came from the files: Transformers fills gaps with random numbers.

    Tied weights, and buffers that are not saved, are not among those that it reports.
    """
    missing = sorted(info["missing_keys"])
    shapes = sorted((key, tuple(there), tuple(expected)) for key, there, expected in info["mismatched_keys"])
    if not missing and not shapes and not info["error_msgs"]:
        return
    total = len(model.state_dict())
    faults = [f"{_count(missing, total)} missing from the files: {_listed(missing)}"] if missing else []
    if shapes:
        told = [f"{key}: {there} instead of {expected}" for key, there, expected in shapes]
        faults.append(f"{_count(told, total)} of another shape than the configuration says: {_listed(told)}")
    faults += [printable(" ".join(str(message).split())) for message in info["error_msgs"][:1]]
    raise GeomprobeError(
        f"cannot load '{name}': {'; '.join(faults)}. Random numbers would take their place: expected the files of a whole "
        f"{type(model).__name__} with its own config.json"
    )


def _notes(model: "PreTrainedModel", info: dict[str, Any]) -> tuple[str, ...]:
    """A note if the files have weights that the model has no place for."""
    unused = sorted(info["unexpected_keys"])
    if not unused:
        return ()
    return (
        f"{len(unused)} tensors in the files have no place in this {type(model).__name__} and were not loaded: "
        f"{_listed(unused)}",
    )


def _count(faults: Sequence[str], total: int) -> str:
    return f"{len(faults)} of {total} tensors {'is' if len(faults) == 1 else 'are'}"


def _listed(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(map(printable, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


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
