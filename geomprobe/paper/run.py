"""How an experiment is run: its numbers are measured, or taken from an earlier run, and its files are written."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from geomprobe.errors import GeomprobeError
from geomprobe.files import Format, check_shape, read_json, write_whole
from geomprobe.paper.experiment import Experiment, N, Outcome, Request, plain, restore
from geomprobe.paper.models import default_models
from geomprobe.paper.page import page
from geomprobe.paper.style import to_png

__all__ = ["run_experiment"]

_FORMAT = 1


def run_experiment(experiment: Experiment[N], request: Request) -> Outcome[N]:
    """Return the outcome of an experiment, whose numbers are measured, or taken from an earlier run with the same arguments.
    Its files ``<name>.json``, ``.png`` and ``.html`` are written to ``request.out``.

    Raises:
        GeomprobeError: if it cannot be measured, or its files cannot be written.
    """
    try:
        request.out.mkdir(parents=True, exist_ok=True)
        if not os.access(request.out, os.W_OK):
            raise PermissionError("it is not to be written")
    except OSError as error:
        raise GeomprobeError(f"cannot write {request.out}: {error}; give a folder that can be written") from error
    request = replace(request, models=request.models or default_models(experiment.of, request))
    path, key = request.out / f"{experiment.name}.json", request.key(experiment.of)
    outcome = None if request.fresh else _kept(path, key, experiment)
    if outcome is None:
        numbers: N = restore(experiment.numbers, plain(experiment.measure(request)))
        outcome = Outcome(experiment, numbers, False)
    content = {"format": _FORMAT, "experiment": experiment.name, "title": experiment.title, "of": key}
    content |= {"verdicts": outcome.verdicts, "numbers": outcome.numbers}
    write_whole(path, json.dumps(plain(content), indent=1, allow_nan=False, ensure_ascii=False))
    write_whole(path.with_suffix(".png"), to_png(outcome.figure))
    write_whole(path.with_suffix(".html"), page(experiment.title, [outcome]))
    return outcome


def _kept(path: Path, key: Mapping[str, Any], experiment: Experiment[N]) -> Outcome[N] | None:
    """The numbers in ``path``, if they belong to ``key`` and are complete; otherwise ``None``, and they are measured again.

    Raises:
        GeomprobeError: if a newer version wrote them, which would be overwritten.
    """
    try:
        content = read_json(path)
    except (FileNotFoundError, GeomprobeError):
        return None
    if isinstance(content, dict) and "format" in content:
        check_shape(content, {"format": Format(_FORMAT), str: object}, str(path))
    try:
        if content["of"] != plain(key) or content["numbers"].get("failed"):
            return None
        outcome = Outcome(experiment, restore(experiment.numbers, content["numbers"]), True)
        str(outcome)  # another version's may lack what this one shows
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
    return outcome
