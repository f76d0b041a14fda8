"""The models of the figures if no model is given: a family of small models that is trained here, or one that reads English."""

import json
import shutil
import tempfile
import textwrap
from collections.abc import Sequence
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import cast

from geomprobe.errors import GeomprobeError
from geomprobe.files import write_whole
from geomprobe.models.loading import Loaded, load
from geomprobe.models.toy import held_out_text, toy_trainer
from geomprobe.paper.experiment import Request, Table
from geomprobe.report.theme import si_format
from geomprobe.report.token_page import printable
from geomprobe.sweeps.config import DtypeName
from geomprobe.sweeps.records import Record, Run
from geomprobe.sweeps.sweep import sweep

__all__ = [
    "ENGLISH",
    "SIZES",
    "by_size",
    "default_models",
    "failure_tables",
    "failures",
    "load_readers",
    "read_from",
    "short_names",
    "swept",
    "trained_family",
]

SIZES = ((32, 2), (64, 3), (128, 4), (192, 5))
"""Widths and numbers of layers of the family, from small to large."""

_LENGTH = 160
"""Maximum number of bytes that the family reads. The sentence of the paper has 144."""

_SAMPLE = 4096
"""Number of tokens of the sample on which expensive metrics are measured."""

_LISTED = 4
"""Largest number of models that are named under a picture."""

ENGLISH = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model that reads the texts of the paper if no model is given and the hub, or its cache, has this one."""


def trained_family(request: Request, sizes: Sequence[tuple[int, int]] = SIZES) -> list[str]:
    """Return the directories of byte-level GPT-NeoX models of ``sizes``, from small to large, all trained in the same way for
    ``request.steps`` steps.

    Models that an earlier run has trained are used again.
    """
    return [str(_trained(request.out / "family", width, layers, request.steps)) for width, layers in sizes]


def default_models(of: str, request: Request) -> tuple[str, ...]:
    """Return the models of an experiment if none is given, for experiments ``of`` models of several ``sizes``, or of one model
    that reads ``texts``.

    For texts this is :data:`ENGLISH`, if it is in the cache or the hub answers, and otherwise the largest model of the family.
    """
    if of == "nothing":
        return ()
    if of == "texts" and (_cached(ENGLISH) is not None or _on_hub(ENGLISH)):
        return (ENGLISH,)
    return tuple(trained_family(request, SIZES if of == "sizes" else SIZES[-1:]))


def load_readers(request: Request) -> list[tuple[str, Loaded]]:
    """Return the models of a request, each with a name for titles."""
    loaded = [load(_cached(name) or name, dtype=request.dtype, device=request.device) for name in request.models]
    return list(zip(short_names(request.models), loaded, strict=True))


def short_names(names: Sequence[str], most: int = 22) -> list[str]:
    """Return ids and paths in the shortest form that distinguishes them, in printable characters.

    >>> short_names(["EleutherAI/pythia-70m", "runs/a/checkpoint-4", "runs/b/checkpoint-4"])
    ['pythia-70m', 'runs/a/checkpoint-4', 'runs/b/checkpoint-4']
    """
    last = [name.rstrip("/").rsplit("/", 1)[-1] for name in names]
    told = [printable(end if last.count(end) == 1 else name) for name, end in zip(names, last, strict=True)]
    cut = [name if len(name) <= most else f"…{name[1 - most :]}" for name in told]
    return [name if cut.count(name) == 1 else f"{name} #{number}" for number, name in enumerate(cut, 1)]


def swept(request: Request) -> Run:
    """Measure the models of a request on its data, each also with random weights. The records of an earlier run are kept.

    Raises:
        GeomprobeError: if none of them could be measured.
    """
    data = _data(request)
    return _swept(request, data, json.dumps([request.key("sizes"), data], sort_keys=True))


@lru_cache(maxsize=1)
def _swept(request: Request, data: str, key: str) -> Run:
    """One sweep in a process, even if everything is measured again. The ``key`` changes if files change."""
    folder = request.out / f"sizes-{sha256(key.encode()).hexdigest()[:8]}"
    if request.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    run = sweep(
        request.models,
        data=data,
        out=folder,
        field=request.field,
        tokens=request.tokens,
        sample=min(_SAMPLE, request.tokens),
        seed=request.seed,
        dtype=cast(DtypeName, request.dtype),  # which the sweep checks
        device=request.device,
        progress=True,
    )
    if not run.checkpoints:
        raise GeomprobeError(f"no model was read: {run.failed[0].error}")
    return run


def by_size(run: Run) -> list[Record]:
    """Return what was measured, from small to large models."""
    return sorted(run.checkpoints, key=lambda record: record.parameters or 0)


def read_from(request: Request, run: Run) -> str:
    """Return one line for under a picture, which says which models read which data."""
    names = [record.name for record in by_size(run)]
    if all(Path(model).parent == request.out / "family" for model in request.models):
        models = f"byte-level GPT-NeoX, trained here for {request.steps} steps"
    else:
        models = ", ".join(names) if len(names) <= _LISTED else f"{len(names)} models, {names[0]} to {names[-1]}"
    data = "Python's help pages, held out" if request.data is None else Path(request.data).name
    return printable(f"{models}, on {data}: {request.tokens:,} tokens")


def failures(run: Run) -> list[list[str]]:
    """Return the name of every model or baseline that could not be measured, and the reason."""
    return [[record.name, str(record.error)] for record in run.failed]


def failure_tables(failed: Sequence[Sequence[str]]) -> list[Table]:
    """Return the failures as a table, if there are any."""
    rows = [
        [textwrap.shorten(name, 24, placeholder="…") if number == 0 else "", line]
        for name, why in failed
        for number, line in enumerate(textwrap.wrap(why, 54))
    ]
    return [Table("could not be read", ("model", "why"), rows, words=2)] if rows else []


def _data(request: Request) -> str:
    """The dataset, or the text that the family was not trained on."""
    if request.data is not None:
        return request.data
    path, text = request.out / "held-out.txt", held_out_text(_LENGTH)
    if not path.exists() or path.read_bytes() != text:
        write_whole(path, text)
    return str(path)


def _cached(model: str) -> str | None:
    """The directory of :data:`ENGLISH` in the cache of the hub. From a directory a model loads without a request to the hub,
    whose retries take a minute if there is no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if model != ENGLISH:
        return None
    try:
        folder = Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError):
        return None
    return str(folder) if (folder / "model.safetensors").exists() and (folder / "tokenizer.json").exists() else None


@cache
def _on_hub(model: str) -> bool:
    """Whether the hub answers and has the model. It is asked once, and for at most a few seconds."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(model, timeout=5)
    except Exception:  # no network, no such model, a proxy's page: whatever it is, another model is taken
        return False
    return True


def _trained(folder: Path, width: int, layers: int, steps: int) -> Path:
    """The directory of one model of the family."""
    kept = folder / f"width-{width}-layers-{layers}-length-{_LENGTH}-steps-{steps}"
    if (kept / "config.json").exists():
        return kept
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            trainer = toy_trainer(Path(scratch), steps=steps, width=width, layers=layers, length=_LENGTH)
            print(f"training {si_format(trainer.model.num_parameters())} parameters for {steps} steps")
            trainer.train()
            trainer.save_model(scratch + "/whole")
            Path(scratch, "whole").rename(kept)  # whole or not at all
    except OSError as error:
        raise GeomprobeError(f"cannot write {kept}: {error}; give a writable folder with enough free space") from error
    return kept
