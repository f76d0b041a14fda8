"""Where a model is loaded from, and what is refused before Transformers opens any of its files."""

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from geomprobe.errors import GeomprobeError

__all__ = ["Source", "check_source", "find_source", "printable"]

_WEIGHTS, _INDEX, _ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class Source:
    """The place of a model or tokenizer.

    Attributes:
        name: what the user gave, in printable characters.
        place: a hub id, or a directory.
        gguf_file: the GGUF file in it.
        revision: branch, tag or commit on the hub.
    """

    name: str
    place: str
    gguf_file: str | None = None
    revision: str | None = None

    @property
    def local(self) -> bool:
        """Whether the place is a directory on this disk."""
        return Path(self.place).is_dir()

    def options(self, trust_remote_code: bool) -> dict[str, Any]:
        """The keywords of ``from_pretrained``.

        ``trust_remote_code`` is always among them: where it is missing, Transformers asks on the terminal.
        """
        given = {"revision": self.revision, "gguf_file": self.gguf_file}
        return {name: value for name, value in given.items() if value} | {"trust_remote_code": bool(trust_remote_code)}


def find_source(model: str | os.PathLike[str], *, revision: str | None = None, gguf_file: str | None = None) -> Source:
    """Return the place of a model. A local place is checked; no request is sent to a hub.

    Raises:
        GeomprobeError: if there can be no model of this name, if a local one lacks its configuration, or if a local one has a
            revision.
    """
    if not model or not isinstance(model, (str, os.PathLike)):
        raise GeomprobeError(f"model={model!r}: expected a hub id, a directory or a .gguf file")
    model = os.fspath(model)
    name, path = printable(model), Path(model)
    try:
        there, folder = path.exists(), path.is_dir()
    except OSError as error:  # a name that no file can have, or a folder that must not be looked into
        raise GeomprobeError(f"cannot load '{_short(name)}': {error.strerror}; expected a hub id or a directory") from error
    try:
        model.encode()
    except UnicodeEncodeError as error:  # bytes of a file name that are not UTF-8, which the libraries in Rust cannot open
        raise GeomprobeError(f"cannot load '{_short(name)}': its name is not UTF-8; rename it") from error
    if "\0" in model:
        raise GeomprobeError(f"cannot load '{_short(name)}': a name cannot contain NUL; expected a hub id or a directory")
    if gguf_file is None and path.suffix == ".gguf":
        if folder or not path.is_file():
            raise GeomprobeError(f"{name}: no such file; expected a GGUF file, a directory or a hub id")
        # Transformers looks for the name of a GGUF file in the current folder first, so it is given the whole path.
        return Source(name, str(path.parent), gguf_file=str(path.absolute()))
    if not there and (path.is_absolute() or model.startswith((".", "~"))):
        raise GeomprobeError(f"{_short(name)}: no such directory; expected one that save_pretrained() wrote, or a hub id")
    if there and not folder:
        raise GeomprobeError(f"{name} is a file: expected a directory with config.json and weights, or a .gguf file")
    if folder and revision is not None:
        raise GeomprobeError(f"{name} is a directory, which has no revisions: leave {revision!r} out, or give a hub id")
    if gguf_file is None:
        return Source(name, model, revision=revision)
    if folder:
        return find_source(path / gguf_file)
    if Path(gguf_file).exists():
        raise GeomprobeError(
            f"{gguf_file}: a file of this name in the current folder would be read instead of that of {name}; run the command "
            "in another folder"
        )
    return Source(f"{name}/{gguf_file}", model, gguf_file, revision)


def check_source(source: Source, config: Any = None) -> None:
    """Check that Transformers will open no pickle and no adapter, and fetch no code for attention.

    Args:
        source: where the model is.
        config: its configuration, once it has been read; ``None`` before that.

    Raises:
        GeomprobeError: if it would do so.
    """
    if config is None and not source.local:
        return  # a hub that is not reachable is reported when the configuration is read
    if source.local:
        _check_folder(source)
    revision = getattr(config, "_commit_hash", None) or source.revision
    if _file(source, _ADAPTER, revision) is not None:
        raise GeomprobeError(
            f"{source.name} has a PEFT adapter, and geomprobe reads whole models: merge the adapter into its model "
            "(merge_and_unload(), then save_pretrained())"
        )
    if config is None or source.gguf_file is not None:
        return
    for named in _values(config, "_attn_implementation", "_experts_implementation"):
        if "/" in named:
            raise GeomprobeError(
                f"{source.name}: config.json asks for code of {printable(named)} on the hub, which is not run; "
                "remove it from config.json"
            )
    weights = getattr(config, "transformers_weights", None)
    if weights is not None and not str(weights).endswith((".safetensors", ".safetensors.index.json")):
        raise _pickled(source, str(weights))
    index = str(weights) if str(weights).endswith(".index.json") else _INDEX
    if weights is None and source.local and (Path(source.place) / _WEIGHTS).is_file():
        return
    if (path := _file(source, index, revision)) is not None:
        _check_index(source, path)


def printable(text: str) -> str:
    r"""Return ``text`` with every character that cannot be printed, such as a byte that is not UTF-8, as an escape.

    >>> print(printable("caf\udce9"))
    caf\udce9
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _short(name: str) -> str:
    return name if len(name) <= 100 else f"{name[:100]}…"


def _check_folder(source: Source) -> None:
    """Check that a directory has what it takes to load a model from it."""
    folder = Path(source.place)
    if source.gguf_file is not None or (folder / _ADAPTER).exists():
        return
    names = sorted(path.name for path in folder.iterdir())
    if "config.json" not in names:
        ggufs = [name for name in names if name.endswith(".gguf")]
        way = f"give the file in it: {ggufs[0]}" if ggufs else "expected one that save_pretrained() wrote"
        raise GeomprobeError(f"{source.name}: this directory has no config.json; {way}")
    pickles = [name for name in names if name.endswith(_PICKLES) and "model" in name]
    if pickles and not any(name.endswith((".safetensors", _INDEX)) for name in names):
        raise _pickled(source, pickles[0])


def _check_index(source: Source, path: Path) -> None:
    """Check that the index of a model in several files names files of safetensors that are there."""
    try:
        files = dict.fromkeys(json.loads(path.read_text("utf-8"))["weight_map"].values())
        parts = {file: PurePath(file) for file in files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise GeomprobeError(
            f"cannot load '{source.name}': {path.name} is no index of weights ({type(error).__name__}); save the model again"
        ) from error
    if not files:
        raise GeomprobeError(f"cannot load '{source.name}': {path.name} names no file of weights; save the model again")
    for file, part in parts.items():
        if part.is_absolute() or ".." in part.parts:
            raise GeomprobeError(f"cannot load '{source.name}': {path.name} names a file outside the model: {printable(file)}")
        if part.suffix != ".safetensors":
            raise _pickled(source, file)
    missing = [file for file in files if source.local and not (Path(source.place) / file).is_file()]
    if missing:
        raise GeomprobeError(
            f"cannot load '{source.name}': {path.name} names {len(files)} files, of which {_listed(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; copy or save the model again"
        )


def _pickled(source: Source, file: str) -> GeomprobeError:
    return GeomprobeError(
        f"cannot load '{source.name}': its weights are in {printable(file)}, which is not safetensors, and is not opened "
        "because a pickle could run code; save the model as safetensors (save_pretrained())"
    )


def _listed(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _values(config: Any, *names: str) -> list[str]:
    """Values of a configuration and of its parts that are text."""
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))]
    return [value for part in parts for name in names if isinstance(value := getattr(part, name, None), str)]


def _file(source: Source, name: str, revision: str | None) -> Path | None:
    """A file of a model, which is downloaded from a hub, or ``None`` if the model has no such file."""
    if source.local:
        path = Path(source.place) / name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    found = try_to_load_from_cache(source.place, name, revision=revision)
    if isinstance(found, str):
        return Path(found)
    if found is not None:  # the cache knows that there is none
        return None
    try:
        return Path(hf_hub_download(source.place, name, revision=revision))
    except EntryNotFoundError:  # also without a network, where Transformers finds nothing either
        return None
