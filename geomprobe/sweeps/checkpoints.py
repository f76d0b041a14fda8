"""Finds the checkpoints of a sweep, and reads their files ahead of time."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Thread

from geomprobe.errors import GeomprobeError
from geomprobe.models.source import printable

__all__ = ["Checkpoint", "find_checkpoints", "is_of_files", "read_ahead", "weights_hash"]

_CHUNK = 1 << 24
_END = 1 << 20
_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
"""The files from which a model is loaded."""


@dataclass(frozen=True)
class Checkpoint:
    """One model of a sweep.

    Attributes:
        name: name of the checkpoint in the run.
        model: hub id, directory, or path of a ``.gguf`` file.
        revision: branch, tag or commit on the hub.
        step: the training step, if the name contains it.
        local: whether it is on this disk. If it is removed, a relative path must not be taken for a hub id.
    """

    name: str
    model: str
    revision: str | None = None
    step: int | None = None
    local: bool = False

    def check_there(self) -> None:
        """Check that a checkpoint that was on this disk still is.

        Raises:
            GeomprobeError: if it was removed.
        """
        if self.local and not Path(self.model).exists():
            raise GeomprobeError(f"{self.model} was removed: copy it back, or sweep over the checkpoints that are left")


def find_checkpoints(models: Sequence[str], revisions: Sequence[str] = ()) -> list[Checkpoint]:
    """Return the checkpoints of a sweep in the order in which they are measured: by step, or else as given.

    Args:
        models: a directory that contains folders ``checkpoint-*``, as Trainer writes them; or hub ids or directories of models.
        revisions: revisions of one model on the hub, such as the tags ``step1``, ``step512`` … of Pythia.

    Raises:
        GeomprobeError: if there is no checkpoint, or if several have the same name.
    """
    if not models:
        raise GeomprobeError("no model: give a directory of checkpoints, or one or more model ids")
    if revisions:
        if len(models) > 1:
            raise GeomprobeError("revisions belong to one model: run one sweep for each model, and one report of all sweeps")
        found = [Checkpoint(revision, models[0], revision, _step(revision)) for revision in revisions]
        return _sorted(found)
    found = [checkpoint for model in models for checkpoint in _of_model(model)]
    return _sorted(found) if len(models) == 1 else _distinct(found)


@contextmanager
def read_ahead(checkpoints: Sequence[Checkpoint]) -> Iterator[None]:
    """A context manager that downloads and reads the files of ``checkpoints`` in a thread, so that they are in memory when they
    are loaded.

    The thread only reads files and does not load models, because loading sets PyTorch's default dtype for the whole process.
    Errors are ignored here: they occur again, and are reported, when the checkpoint is loaded.
    """
    reader = Thread(target=_read_all, args=(checkpoints,), name="geomprobe-read-ahead", daemon=True)
    reader.start()
    yield
    reader.join()  # not after an error or Ctrl-C, which must not wait for a download


def weights_hash(model: str) -> str | None:
    """Return a hash that tells whether weights of the same name were replaced: of the names, sizes and both ends of the files.

    The files are not read whole, because training changes every weight. ``None`` if the files are not on this disk.
    """
    hashed = sha256()
    try:
        files = _weights(Path(model))
        for path in files:
            hashed.update(f"{path.name}:{path.stat().st_size}:".encode())
            with path.open("rb") as file:
                hashed.update(file.read(_END))
                file.seek(-min(_END, path.stat().st_size), os.SEEK_END)
                hashed.update(file.read())
    except OSError:  # removed meanwhile, not readable, or no name of a file: reported when the checkpoint is loaded
        return None
    return hashed.hexdigest() if files else None


def is_of_files(weights: str | None) -> bool:
    """Whether ``weights`` is a hash of files on a disk, and not the name of a commit on a hub, which has 40 digits."""
    return weights is not None and len(weights) == 2 * sha256().digest_size


def _weights(path: Path) -> list[Path]:
    """The files of weights in a directory, or the file itself."""
    return [path] if path.is_file() else sorted(path.glob("*.safetensors"))


def _of_model(model: str) -> list[Checkpoint]:
    path = Path(model)
    try:
        inside = [folder for folder in path.glob("checkpoint-*") if folder.is_dir()] if path.is_dir() else []
        there = path.exists()
    except OSError:  # a name that no file can have: reported when the checkpoint is loaded
        inside, there = [], False
    if inside:
        return [Checkpoint(printable(folder.name), str(folder), None, _step(folder.name), local=True) for folder in inside]
    # "." and ".." have no name of their own, and a link has that under which it was given.
    name = os.path.basename(os.path.abspath(path)) if there else ""
    return [Checkpoint(printable(name or model), model, None, _step(name), local=there)]


def _sorted(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints by step, followed by those without a step as given (``main`` is usually the end of training)."""
    return _distinct(sorted(checkpoints, key=lambda c: (c.step is None, c.step or 0)))


def _distinct(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    names = [checkpoint.name for checkpoint in checkpoints]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        where = ", ".join(checkpoint.model for checkpoint in checkpoints if checkpoint.name in twice)
        raise GeomprobeError(
            f"{', '.join(twice)}: there are several checkpoints of this name ({where}); give each checkpoint once, in a folder "
            "with a unique name"
        )
    return checkpoints


def _step(name: str) -> int | None:
    """The training step in a name such as ``step512`` or ``checkpoint-400``, or ``None``.

    >>> _step("stage1-step1000-tokens5B"), _step("checkpoint-400"), _step("main")
    (1000, 400, None)
    """
    found = re.search(r"(?:step|checkpoint|iter|ckpt)[-_]?0*(\d+)", name)
    return int(found.group(1)) if found else None


def _read_all(checkpoints: Sequence[Checkpoint]) -> None:
    for checkpoint in checkpoints:
        with suppress(Exception):  # of many kinds, from a hub or a disk
            _read(checkpoint)


def _read(checkpoint: Checkpoint) -> None:
    checkpoint.check_there()
    folder = Path(checkpoint.model)
    if not folder.exists():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(checkpoint.model, revision=checkpoint.revision, allow_patterns=_FILES))
    for path in _weights(folder):
        with path.open("rb") as file:
            while file.read(_CHUNK):
                pass
