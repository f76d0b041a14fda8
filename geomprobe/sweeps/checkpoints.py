"""Checkpoints to sweep over, and their files before they are needed."""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from geomprobe.errors import GeomprobeError

__all__ = ["Checkpoint", "find_checkpoints", "read_ahead", "weights_hash"]

_CHUNK = 1 << 24
_END = 1 << 20
_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
"""What a model is loaded from."""


@dataclass(frozen=True)
class Checkpoint:
    """One model to read.

    Attributes:
        name: what it is called in the run.
        model: hub id, directory, or path of a ``.gguf`` file.
        revision: on the hub.
        step: the training step, as far as its name tells.
    """

    name: str
    model: str
    revision: str | None = None
    step: int | None = None


def find_checkpoints(models: Sequence[str], revisions: Sequence[str] = ()) -> list[Checkpoint]:
    """What to sweep over, in the order in which it is read: by step, or as given.

    Args:
        models: a directory with folders ``checkpoint-*`` in it, as Trainer writes them; or hub ids or directories of models.
        revisions: of one model: ``step1``, ``step512`` … as Pythia has them, tags or commits.

    Raises:
        GeomprobeError: there is nothing, or it is not clear what is meant.
    """
    if not models:
        raise GeomprobeError("no model: give a directory of checkpoints, or one or more model ids")
    if revisions:
        if len(models) > 1:
            raise GeomprobeError("revisions are of one model: make a run for each, and one report of them all")
        found = [Checkpoint(revision, models[0], revision, _step(revision)) for revision in revisions]
        return _sorted(found)
    found = [checkpoint for model in models for checkpoint in _of_model(model)]
    return _sorted(found) if len(models) == 1 else _distinct(found)


@contextmanager
def read_ahead(checkpoints: Sequence[Checkpoint]) -> Iterator[None]:
    """While the caller works, fetch and read the files of ``checkpoints``, so that loading them finds them in memory.

    Only files are touched in the other thread: loading sets PyTorch's default dtype for the whole process. What goes wrong here
    goes wrong again where the checkpoint is loaded, and is told there.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="geomprobe-read-ahead") as pool:
        waiting: list[Future[None]] = [pool.submit(_read, checkpoint) for checkpoint in checkpoints]
        try:
            yield
        finally:
            for future in waiting:
                future.cancel()


def weights_hash(model: str) -> str | None:
    """A hash that other weights under the same name do not have: of the names, sizes and both ends of the weights' files.

    A whole file need not be read for it: a training moves every weight. ``None`` for what is not on this disk.
    """
    hashed, files = sha256(), _weights(Path(model))
    try:
        for path in files:
            hashed.update(f"{path.name}:{path.stat().st_size}:".encode())
            with path.open("rb") as file:
                hashed.update(file.read(_END))
                file.seek(-min(_END, path.stat().st_size), os.SEEK_END)
                hashed.update(file.read())
    except OSError:  # gone meanwhile, or not to be read: told where it is loaded
        return None
    return hashed.hexdigest() if files else None


def _weights(path: Path) -> list[Path]:
    """The files of weights of a directory, or a file of its own."""
    return [path] if path.is_file() else sorted(path.glob("*.safetensors"))


def _of_model(model: str) -> list[Checkpoint]:
    path = Path(model)
    inside = [folder for folder in path.glob("checkpoint-*") if folder.is_dir()] if path.is_dir() else []
    if inside:
        return [Checkpoint(folder.name, str(folder), None, _step(folder.name)) for folder in inside]
    return [Checkpoint(path.name if path.exists() else model, model, None, _step(path.name) if path.exists() else None)]


def _sorted(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """By step; those without one stand behind, as given (``main`` is the end of a training)."""
    return _distinct(sorted(checkpoints, key=lambda c: (c.step is None, c.step or 0)))


def _distinct(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    names = [checkpoint.name for checkpoint in checkpoints]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        where = ", ".join(checkpoint.model for checkpoint in checkpoints if checkpoint.name in twice)
        raise GeomprobeError(
            f"{', '.join(twice)}: named twice ({where}); give each checkpoint once, in a folder of a name of its own"
        )
    return checkpoints


def _step(name: str) -> int | None:
    """``step512``, ``checkpoint-400``, ``stage1-step1000-tokens5B``.

    >>> _step("stage1-step1000-tokens5B"), _step("checkpoint-400"), _step("main")
    (1000, 400, None)
    """
    found = re.search(r"(?:step|checkpoint|iter|ckpt)[-_]?0*(\d+)", name)
    return int(found.group(1)) if found else None


def _read(checkpoint: Checkpoint) -> None:
    folder = Path(checkpoint.model)
    if not folder.exists():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(checkpoint.model, revision=checkpoint.revision, allow_patterns=_FILES))
    for path in _weights(folder):
        with path.open("rb") as file:
            while file.read(_CHUNK):
                pass
