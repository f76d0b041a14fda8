"""``geomprobe bench sweep``: the cost of a sweep relative to loading the checkpoints and running the same tokens."""

import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import torch

from geomprobe.bench.timing import Seconds, ratios, spread, timed
from geomprobe.errors import GeomprobeError
from geomprobe.models.loading import load, reason
from geomprobe.models.source import find_source
from geomprobe.models.toy import prose
from geomprobe.sweeps.dataset import read_documents, tokenize_documents
from geomprobe.sweeps.sweep import sweep

__all__ = ["bench_sweep"]

_TEXT = 1 << 22
_WITHIN = 0.05
"""Largest distance between the quartiles, relative to the median, at which no more rounds are run."""
_MOST = 4


def bench_sweep(
    model: str | None, *, tokens: int = 65_536, length: int = 256, rounds: int = 3, device: str | None = None
) -> dict[str, Any]:
    """Compare a sweep over two checkpoints, including losses and records, to loading both and one bare forward of the same
    batches.

    For fewer tokens than the default of a sweep, the sample is reduced by the same factor. The final computation of the numbers
    does not depend on the number of tokens, so a benchmark with few tokens overestimates the cost of a sweep. Null baselines
    are not included, because a sweep measures them once for all checkpoints.

    Args:
        model: hub id or directory.
        tokens: number of tokens that each checkpoint reads.
        length: length of a text in tokens.
        rounds: number of times that both are run, in turn. They are run again, up to four times as often, until the quartiles
            of the ratio of CPU times are within 5%.
        device: device of the model. Default: CUDA if available.

    Raises:
        GeomprobeError: if no model is given.
    """
    if model is None:
        raise GeomprobeError("bench sweep loads a checkpoint from the disk: give a hub id or a directory with --model")
    local = find_source(model).local
    sample, batch_tokens = max(2, tokens // 64), 2048
    number, page = count(), prose()
    with tempfile.TemporaryDirectory() as scratch:
        folder, text = Path(scratch), Path(scratch) / "text.txt"
        text.write_text((page * (1 + _TEXT // len(page)))[:_TEXT], encoding="utf-8")
        checkpoints = []
        for name in ("checkpoint-1", "checkpoint-2"):  # two names of one model, because a sweep reads each name once
            (folder / name).symlink_to(Path(model).resolve() if local else _fetched(model))
            checkpoints.append(str(folder / name))

        def swept() -> None:
            out = folder / f"run-{next(number)}"
            run = sweep(
                scratch,
                data=str(text),
                out=out,
                tokens=tokens,
                length=length,
                sample=sample,
                batch_tokens=batch_tokens,
                baselines=False,
                device=device,
            )
            if run.failed:
                raise GeomprobeError(str(run.failed[0].error))

        def bare() -> None:
            documents = read_documents(str(text))
            for checkpoint in checkpoints:
                loaded = load(checkpoint, device=device)
                texts = tokenize_documents(loaded.tokenizer, documents.texts, tokens=tokens, length=length)
                for batch in texts.batches(batch_tokens):
                    _forward(loaded.model, batch.ids, batch.mask)

        text_of_ones = torch.ones((1, length), dtype=torch.long)
        _forward(load(model, device=device).model, text_of_ones, text_of_ones)  # so that both find files in memory
        times: dict[str, list[Seconds]] = {"bare": [], "sweep": []}
        while True:
            for name, more in timed({"bare": bare, "sweep": swept}, rounds, torch.device(device or "cpu")).items():
                times[name] += more
            found = ratios(times)
            if (apart := spread(found["sweep"])) <= _WITHIN or len(times["bare"]) >= _MOST * rounds:
                break
    shape = {"tokens": tokens, "length": length, "sample": sample, "batch_tokens": batch_tokens}
    results: dict[str, Any] = {
        "checkpoints": {name: vars(ratio) for name, ratio in found.items()},
        "rounds": len(times["bare"]),
        "quartiles_apart": apart,
        "shape": shape | {"threads": torch.get_num_threads()},
    }
    if apart > _WITHIN:
        results["note"] = (
            f"The quartiles of CPU time are {apart:.0%} apart after {results['rounds']} rounds: the machine is busy."
        )
    return results


@torch.inference_mode()
def _forward(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> None:
    float(model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits[0, 0, 0])


def _fetched(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model))
    except Exception as error:  # a hub can raise errors of many kinds
        raise GeomprobeError(f"cannot load {model!r}: {reason(error)}") from error
