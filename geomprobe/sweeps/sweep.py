"""Sweeps over the checkpoints of a training run, or over models of several sizes, on the same tokens."""

import gc
import inspect
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial, wraps
from hashlib import sha256
from pathlib import Path
from typing import Any, ParamSpec

from torch import Tensor

from geomprobe.errors import GeomprobeError
from geomprobe.files import append_line
from geomprobe.metrics.base import Metric
from geomprobe.models.loading import Loaded, load, untrained
from geomprobe.protocols import find_protocol
from geomprobe.reading import Reading
from geomprobe.sweeps.checkpoints import Checkpoint, find_checkpoints, read_ahead, weights_hash
from geomprobe.sweeps.comparisons import Comparisons
from geomprobe.sweeps.config import SweepConfig, arguments
from geomprobe.sweeps.dataset import Batch, Documents, TokenizedTexts, read_documents, text_length, tokenize_documents
from geomprobe.sweeps.folder import opened
from geomprobe.sweeps.measure import Measured, anchor_grams, gaussian, measure, sample_metrics, token_metrics
from geomprobe.sweeps.processes import Team
from geomprobe.sweeps.records import READINGS, Kind, Record, Run, place

__all__ = ["sweep"]

_ANCHOR = 512
"""Number of tokens of the sample whose Gram matrices are kept for CKA: one megabyte per site."""

P = ParamSpec("P")


def _takes(config: Callable[P, SweepConfig]) -> Callable[[Callable[[SweepConfig], Run]], Callable[P, Run]]:
    """A decorator for a function of a configuration, which is then called with the arguments of the configuration. Their list
    is in :class:`SweepConfig` only; type checkers and editors see it through ``P``, and ``help`` through the signature."""

    def decorate(function: Callable[[SweepConfig], Run]) -> Callable[P, Run]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Run:
            return function(config(*args, **kwargs))

        listed = arguments(SweepConfig)
        kinds = {argument.name: argument.kind for argument in listed}
        signature = inspect.signature(config)
        bare = [parameter.replace(annotation=kinds[name]) for name, parameter in signature.parameters.items()]
        call.__signature__ = signature.replace(parameters=bare, return_annotation=Run)  # type: ignore[attr-defined]
        lines = (f"    {a.name}: " + re.sub(r"--(\w+)", r"``\1``", a.says.text) for a in listed)
        before, returns, after = inspect.cleandoc(function.__doc__ or "").partition("Returns:")
        call.__doc__ = "\n".join([f"{before}Args:", *lines, "", returns + after])
        return call

    return decorate


@_takes(SweepConfig)
def sweep(config: SweepConfig) -> Run:
    """Measure many checkpoints on the same tokens, and write their records to a folder, which remains usable after a crash.

    The running covariances (entropy, effective rank and related numbers) and the loss are measured on all tokens. Expensive
    metrics (information gain, entropies of single texts, Lasso, attention, curvature) are measured on a sample, the first
    ``sample`` tokens. CKA with the first and with the previous checkpoint is measured on the first 512 tokens. If some
    activations are massive, CKA of raw rows depends on these only.

    If it is called again with the same folder, only checkpoints that have no record yet are measured. A checkpoint that fails
    is recorded with its error, and the sweep continues. Under ``accelerate launch`` or ``torchrun``, call it in every process;
    each measures its share of the batches.

    Code that comes with a model is run only with ``trust_remote_code``: use it only if you trust the authors.

    Returns:
        The run with the records of all checkpoints. Those that failed are in ``run.failed``.

    Raises:
        GeomprobeError: if an argument is not as described in :class:`SweepConfig`; if there is no checkpoint or no text; or if
            the folder contains a run with other arguments, is being written by another process, or cannot be written. Records
            that were written before are kept.
    """
    identity, team = config.identity, Team()
    checkpoints = team.all_do(lambda: find_checkpoints(identity["models"], identity["revisions"]))
    documents = team.all_do(lambda: read_documents(identity["data"], field=config.field, split=config.split, seed=config.seed))
    with ExitStack() as stack:
        folder = Path(config.out)
        run = team.all_do(lambda: stack.enter_context(opened(folder, config, documents)) if team.main else None)
        bar = stack.enter_context(_bar(config.tokens, shown=config.progress and team.main))
        records = {(record.kind, record.name): record for record in run.records} if run is not None else {}
        _Sweep(config, team, documents, team.told(records), bar).run(checkpoints)
    team.all_do(lambda: None)
    return Run.open(folder)


class _Sweep:
    """The loop over checkpoints, with the records and settings that it needs."""

    def __init__(
        self, config: SweepConfig, team: Team, documents: Documents, records: dict[tuple[Kind, str], Record], bar: "_Bar"
    ) -> None:
        self.config, self.team, self.documents, self.records, self.bar = config, team, documents, records, bar
        self.folder, self.device = Path(config.out), config.device or team.device
        identity = config.identity
        self.place = partial(place, models=identity["models"], revisions=identity["revisions"])
        self.comparisons = Comparisons(self.folder, records, self.place, self._grams)
        protocol = None if config.protocol is None else find_protocol(config.protocol)
        self.metrics: dict[str, Sequence[Metric]] = {
            "sample_metrics": sample_metrics(config.sketch, rows=config.rows, protocol=protocol),
            "token_metrics": token_metrics(config.sketch, rows=config.rows, protocol=protocol),
        }

    def run(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Measure the checkpoints that have no record yet, and mend the comparisons of those that have one."""
        self.team.all_do(lambda: self._check_weights(checkpoints))
        for record in self.records.values():
            if record.error is None:
                self._tell(record)
        todo = self._todo(checkpoints)
        self.bar.start(len(todo))
        earlier = self.comparisons.anchors()  # they are needed to mend comparisons
        for number, checkpoint in enumerate(todo, 1):
            self.bar.say(f"checkpoint {number} of {len(todo)} · {checkpoint.name}")
            with read_ahead(todo[number : number + 1]):
                self._read(checkpoint)
            self.team.all_do(lambda: self.comparisons.remove_anchors(keep=earlier) if self.team.main else None)
            gc.collect()
        self._mend_comparisons()
        self.team.all_do(lambda: self.comparisons.remove_anchors() if self.team.main else None)

    def _todo(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """The checkpoints that have no record, and one of each configuration whose baselines failed."""
        todo, retried = [], set[str]()
        for checkpoint in sorted(checkpoints, key=self.place):
            record = self.records.get(("checkpoint", checkpoint.name))
            if record is None or record.error is not None or record.config is None:
                todo.append(checkpoint)
            elif self.config.baselines and record.config not in retried and not self._has_baselines(record.config):
                retried.add(record.config)
                todo.append(checkpoint)
        return todo

    def _has_baselines(self, config: str) -> bool:
        return self._done("untrained", config) and self._done("gaussian", config)

    def _check_weights(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Check that recorded checkpoints still have the same weights. Those that are not on this disk are not checked."""
        done = [(c, self.records["checkpoint", c.name].weights) for c in checkpoints if self._done("checkpoint", c.name)]
        changed = [c.name for c, before in done if before and (now := weights_hash(c.model)) and now != before]
        if changed:
            raise GeomprobeError(
                f"{', '.join(changed)}: the weights have changed since {self.folder} was written: give another folder to "
                "measure the new ones"
            )

    def _read(self, checkpoint: Checkpoint) -> None:
        """Measure a checkpoint, or record its error. An error of the folder, such as a full disk, ends the sweep."""
        began = time.monotonic()
        record = Record(name=checkpoint.name, model=checkpoint.model, revision=checkpoint.revision, step=checkpoint.step)
        done = self._done("checkpoint", checkpoint.name)
        try:
            loaded = self.team.all_do(lambda: self._load(checkpoint))
            texts = self.team.all_do(lambda: self._cut(loaded))
            record = replace(record, **_facts(loaded, texts), weights=_weights(checkpoint, loaded))
        except GeomprobeError as error:
            if not done:
                self._add(replace(record, error=str(error), seconds=time.monotonic() - began))
            return
        if self.config.baselines:
            apart = time.monotonic()
            self._read_baselines(loaded, texts, record)
            began += time.monotonic() - apart
        if done:  # it was loaded for its baselines
            return
        try:
            measured = self._measured(loaded, texts)
            record = replace(record, reading=measured.reading, loss=measured.loss)
        except GeomprobeError as error:
            self._add(replace(record, error=str(error), seconds=time.monotonic() - began))
            return
        record = self.team.told(
            self.team.all_do(lambda: self.comparisons.keep(record, measured.grams) if self.team.main else record)
        )
        self._add(replace(record, seconds=time.monotonic() - began))

    def _load(self, checkpoint: Checkpoint) -> Loaded:
        config = self.config
        checkpoint.check_there()
        return load(
            checkpoint.model,
            revision=checkpoint.revision,
            dtype=config.dtype,
            device=self.device,
            device_map=config.device_map,
            tokenizer=config.tokenizer,
            trust_remote_code=config.trust_remote_code,
        )

    def _cut(self, loaded: Loaded) -> TokenizedTexts:
        config, length = self.config, text_length(loaded.model, self.config.length)
        return tokenize_documents(
            loaded.tokenizer,
            self.documents.texts,
            tokens=config.tokens,
            length=length,
            count=config.texts,
            truncate=config.truncate,
        )

    def _batches(self, texts: TokenizedTexts) -> tuple[list[Batch], list[Batch]]:
        """The batches of the sample, of which the first contains the tokens that CKA compares, and the batches of the rest."""
        (sample, rest), places = texts.split(self.config.sample), self.config.batch_tokens
        anchor, others = sample.split(_ANCHOR)
        return [*anchor.batches(sys.maxsize), *others.batches(places)], rest.batches(places)

    def _measured(self, loaded: Loaded, texts: TokenizedTexts) -> Measured:
        sample, rest = self._batches(texts)
        return measure(
            loaded,
            sample,
            rest,
            **self.metrics,
            team=self.team,
            cka_rows=self.config.cka_rows,
            advance=self.bar.advance,
        )

    def _read_baselines(self, loaded: Loaded, texts: TokenizedTexts, of: Record) -> None:
        """Measure the null baselines of a configuration, once, before the first of its checkpoints."""
        name = str(of.config)
        of = replace(of, name=name, model="", step=None, revision=None, weights=None)
        if not self._done("untrained", name):
            self.bar.say("untrained model", tokens=self.config.tokens)
            self._add(self._null(replace(of, kind="untrained"), lambda: self._untrained(loaded, texts)))
        if not self._done("gaussian", name):
            of = replace(of, kind="gaussian", parameters=None)
            self._add(self._null(of, lambda: (self.team.all_do(lambda: self._gaussian(of.width or 1, texts)), None)))

    def _null(self, record: Record, measured: Callable[[], tuple[Reading, float | None]]) -> Record:
        began = time.monotonic()
        try:
            reading, loss = measured()
            record = replace(record, reading=reading, loss=loss)
        except GeomprobeError as error:
            record = replace(record, error=str(error))
        return replace(record, seconds=time.monotonic() - began)

    def _untrained(self, loaded: Loaded, texts: TokenizedTexts) -> tuple[Reading, float]:
        null = self._measured(self.team.all_do(lambda: untrained(loaded, seed=self.config.seed)), texts)
        return null.reading, null.loss

    def _gaussian(self, width: int, texts: TokenizedTexts) -> Reading:
        sample, rest = self._batches(texts)
        return gaussian(width, sample, rest, **self.metrics, seed=self.config.seed)

    def _mend_comparisons(self) -> None:
        """Compare again those checkpoints whose partners have changed, and append their records."""
        for record in self.comparisons.outdated():
            self.bar.say(f"comparing {record.name}")
            mended = self.team.all_do(lambda: self.comparisons.compared(record) if self.team.main else record)  # noqa: B023
            mended = self.team.told(mended)
            if mended.to_dict() != record.to_dict():
                self._add(mended)

    def _grams(self, record: Record) -> dict[str, Tensor]:
        """The Gram matrices of a checkpoint that was measured, measured again."""
        checkpoint = record.checkpoint
        loaded = self._load(checkpoint)
        texts = self._cut(loaded)
        if texts.digest != record.tokens or _weights(checkpoint, loaded) != record.weights:
            raise GeomprobeError("its weights or its tokenizer have changed since it was measured")
        return anchor_grams(loaded, self._batches(texts)[0][0], self.config.cka_rows)

    # -- records --------------------------------------------------------------------------------------------------------------

    def _done(self, kind: Kind, name: str) -> bool:
        record = self.records.get((kind, name))
        return record is not None and record.error is None

    def _add(self, record: Record) -> None:
        record = replace(record, seconds=round(record.seconds, 3), finished=datetime.now(UTC).isoformat(timespec="seconds"))
        self.records[record.kind, record.name] = record
        self.team.all_do(lambda: append_line(self.folder / READINGS, record.to_dict()) if self.team.main else None)
        self._tell(record)

    def _tell(self, record: Record) -> None:
        if self.config.on_record is not None and self.team.main:
            self.config.on_record(record)


def _facts(loaded: Loaded, texts: TokenizedTexts) -> dict[str, Any]:
    """The fields of a record that describe a model and its tokens."""
    config = loaded.model.config
    left_out = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures")
    described = {name: value for name, value in config.to_dict().items() if name not in left_out}
    text = json.dumps(described, sort_keys=True, default=str)
    return {
        "parameters": loaded.model.num_parameters(),
        "width": config.get_text_config().hidden_size,
        "config": sha256(text.encode()).hexdigest()[:12],
        "tokens": texts.digest,
    }


def _weights(checkpoint: Checkpoint, loaded: Loaded) -> str | None:
    return weights_hash(checkpoint.model) or getattr(loaded.model.config, "_commit_hash", None)


class _Bar:
    """A progress bar over the tokens of all checkpoints, so that the remaining time is that of the whole sweep."""

    def __init__(self, tokens: int, bar: Any) -> None:
        self._tokens, self._bar = tokens, bar

    def start(self, checkpoints: int) -> None:
        self._bar.reset(total=checkpoints * self._tokens)

    def say(self, what: str, *, tokens: int = 0) -> None:
        """Show ``what`` is being measured, and add ``tokens`` to the total."""
        self._bar.total += tokens
        self._bar.set_description(what)

    def advance(self, tokens: int) -> None:
        self._bar.update(tokens)


@contextmanager
def _bar(tokens: int, *, shown: bool) -> Iterator[_Bar]:
    from tqdm import tqdm
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    enabled = is_progress_bar_enabled()
    disable_progress_bar()  # the bars of Transformers for loading shards, which would appear for every checkpoint
    try:
        with tqdm(
            total=0, unit="tok", unit_scale=True, disable=None if shown else True, leave=False, dynamic_ncols=True
        ) as bar:
            yield _Bar(tokens, bar)
    finally:
        if enabled:
            enable_progress_bar()
