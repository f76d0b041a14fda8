"""The folder of a sweep while it is written: locked against other sweeps, and resumed only by the same arguments."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from geomprobe.errors import GeomprobeError
from geomprobe.files import mend_lines, write_whole
from geomprobe.sweeps.config import SweepConfig
from geomprobe.sweeps.dataset import Documents
from geomprobe.sweeps.records import FORMAT, MANIFEST, READINGS, Run

__all__ = ["opened"]


@contextmanager
def opened(folder: Path, config: SweepConfig, documents: Documents) -> Iterator[Run]:
    """A context manager for the run in ``folder``, new or existing, which is locked while it is written.

    Raises:
        GeomprobeError: if the folder contains a run with other arguments, is being written by another process, or cannot be
            written.
    """
    from filelock import FileLock, Timeout

    manifest = _manifest(config, documents)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise GeomprobeError(f"{folder} is being written by another sweep: wait for it, or give another folder") from error
    except OSError as error:
        raise GeomprobeError(f"cannot write {folder}: {error}; give a writable folder with enough free space") from error
    try:
        for path in folder.glob(".*.part"):  # of a process that was killed
            path.unlink(missing_ok=True)
        if os.path.lexists(folder / MANIFEST):
            run = Run.open(folder)
            _check_same(folder, run.manifest, manifest)
            mend_lines(folder / READINGS)
        elif os.path.lexists(folder / READINGS):
            raise GeomprobeError(
                f"{folder} contains {READINGS} but no {MANIFEST}, which names the arguments and the data of these records: "
                "restore it, or give another folder to start a new run"
            )
        else:
            write_whole(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))
            run = Run(folder, manifest, [])
        yield run
    finally:
        lock.release()


def _manifest(config: SweepConfig, documents: Documents) -> dict[str, Any]:
    import transformers

    versions = {"geomprobe": version("geomprobe"), "torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "format": FORMAT,
        "arguments": config.identity,
        "data": {
            "name": config.data,
            "hash": documents.digest,
            "documents": len(documents.texts),
            "skipped": documents.skipped,
            "tokens": config.tokens,
            "sample_tokens": min(config.sample, config.tokens),
        },
        "versions": versions | {"python": platform.python_version()},
    }


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that an existing run has the same version of geomprobe, arguments and data."""
    ours, theirs = (manifest["versions"]["geomprobe"] for manifest in (now, before))
    if ours != theirs:
        raise GeomprobeError(
            f"{folder} was written by geomprobe {theirs}, and this is {ours}, whose numbers may differ: finish it with that "
            f"version (pip install geomprobe=={theirs}), or give another folder to start a new run"
        )
    parts = [(before.get(part, {}), now[part]) for part in ("arguments", "data")]
    changed = {
        name: f"{name}: {old.get(name)!r} before, {new.get(name)!r} now"
        for old, new in parts
        for name in [*old, *new]
        if old.get(name) != new.get(name)
    }
    if changed:
        raise GeomprobeError(
            f"{folder} contains a run with other arguments ({'; '.join(changed.values())}). Give the same arguments to resume "
            "it, or another folder to start a new run"
        )
