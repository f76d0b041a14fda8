"""Sweeps over the checkpoints of a training run, or over models of several sizes, on the same tokens."""

import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from geomprobe.accumulators.covariance import Which
from geomprobe.core.similarity import debiased_cka, effective_rank_difference
from geomprobe.errors import GeomprobeError
from geomprobe.files import append_line, mend_lines, write_whole
from geomprobe.metrics.base import Metric
from geomprobe.models.loading import Loaded, load, untrained
from geomprobe.protocols import find_protocol
from geomprobe.reading import Reading
from geomprobe.sweeps.checkpoints import Checkpoint, find_checkpoints, read_ahead, weights_hash
from geomprobe.sweeps.dataset import Batch, Documents, TokenizedTexts, read_documents, text_length, tokenize_documents
from geomprobe.sweeps.measure import Measured, anchor_grams, gaussian, measure, sample_metrics, token_metrics
from geomprobe.sweeps.processes import Team
from geomprobe.sweeps.records import FORMAT, MANIFEST, READINGS, Place, Record, Run, place

__all__ = ["COMPARISONS", "sweep"]

COMPARISONS = ("diff_erank", "cka_first", "cka_previous")
"""Numbers that compare a checkpoint with another one: with the untrained model, with the first checkpoint, and with the
previous checkpoint."""

_ANCHOR = 512
"""Number of tokens of the sample whose Gram matrices are kept for CKA: one megabyte per site."""

_ANCHORS = "anchor-*.safetensors"
"""The files of these Gram matrices, by a hash of the name of the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The arguments that identify a run. A run cannot be resumed with other ones."""

    models: tuple[str, ...]
    revisions: tuple[str, ...]
    data: str
    field: str
    split: str
    tokens: int
    length: int | None
    sample: int
    batch_tokens: int
    texts: int | None
    truncate: bool
    seed: int
    sketch: int | None
    rows: Which
    cka_rows: Literal["unit", "raw"]
    protocol: str | None
    baselines: bool
    dtype: str
    device_map: str | None
    tokenizer: str | None
    trust_remote_code: bool

    def __post_init__(self) -> None:
        for name, least in (
            ("tokens", 2),
            ("sample", 2),
            ("batch_tokens", 2),
            ("length", 2),
            ("texts", 1),
            ("sketch", 1),
            ("seed", None),
        ):
            value = getattr(self, name)
            if value is None and name in ("length", "texts", "sketch"):
                continue
            whole = isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)
            _expect(name, value, whole, "a whole number" if least is None else f"a whole number, {least} or more")
        for name in ("data", "field", "split"):
            value = getattr(self, name)
            _expect(name, value, isinstance(value, str) and value != "", "a text that is not empty")
        for name in ("device_map", "tokenizer"):
            _expect(name, getattr(self, name), isinstance(getattr(self, name), str | None), "a text or None")
        for name in ("truncate", "baselines", "trust_remote_code"):
            _expect(name, getattr(self, name), isinstance(getattr(self, name), bool), "True or False")
        known = ("float32", "bfloat16", "float16", "auto")
        _expect("dtype", self.dtype, self.dtype in known, f"one of {', '.join(known)}")
        _expect("rows", self.rows, self.rows in get_args(Which), f"one of {', '.join(get_args(Which))}")
        _expect("cka_rows", self.cka_rows, self.cka_rows in ("unit", "raw"), "'unit' or 'raw'")
        if self.protocol is not None:
            find_protocol(self.protocol)

    @property
    def metrics(self) -> dict[str, Sequence[Metric]]:
        """The metrics of the sample, and those of all tokens."""
        options: dict[str, Any] = {"rows": self.rows, "protocol": self.protocol and find_protocol(self.protocol)}
        return {
            "sample_metrics": sample_metrics(self.sketch, **options),
            "token_metrics": token_metrics(self.sketch, **options),
        }


def _expect(name: str, value: object, holds: bool, expected: str) -> None:
    """Check an argument of :func:`sweep`."""
    if not holds:
        raise GeomprobeError(f"sweep({name}={value!r}): expected {expected}")


def _texts(name: str, value: object) -> tuple[str, ...]:
    """An argument that is a sequence of names or paths."""
    expected = "a sequence of names" + (" or paths" if name == "models" else ", such as ['step1', 'step512']")
    _expect(name, value, isinstance(value, Sequence) and not isinstance(value, str | bytes), expected)
    parts = tuple(os.fspath(part) if isinstance(part, os.PathLike) else part for part in value)  # type: ignore[attr-defined]
    _expect(name, value, all(isinstance(part, str) and part for part in parts), expected)
    return parts


def sweep(
    models: Sequence[str | Path] | str | Path,
    *,
    data: str | Path,
    out: str | Path,
    revisions: Sequence[str] = (),
    field: str = "text",
    split: str = "train",
    tokens: int = 65_536,
    length: int | None = None,
    sample: int = 1024,
    batch_tokens: int = 2048,
    seed: int = 0,
    texts: int | None = None,
    truncate: bool = False,
    sketch: int | None = None,
    rows: Which = "all",
    cka_rows: Literal["unit", "raw"] = "unit",
    protocol: str | None = None,
    baselines: bool = True,
    dtype: str = "float32",
    device: str | None = None,
    device_map: str | None = None,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
    progress: bool = False,
    on_record: Callable[[Record], object] | None = None,
) -> Run:
    """Measure many checkpoints on the same tokens, and write their records to a folder, which stays valid after a crash.

    The running covariances (entropy, effective rank and related numbers) and the loss are measured on all tokens. Expensive
    metrics (information gain, entropies of single texts, Lasso, attention, curvature) are measured on a sample, the first
    ``sample`` tokens. CKA with the first and with the previous checkpoint is measured on the first 512 tokens.

    If it is called again with the same folder, only checkpoints that have no record yet are measured. A checkpoint that fails
    is recorded with its error, and the sweep continues. Under ``accelerate launch`` or ``torchrun``, call it in every process;
    each measures its share of the batches.

    Args:
        models: a directory that contains folders ``checkpoint-*``, or one or more hub ids or directories of models.
        data: a ``.txt``, ``.jsonl[.gz]`` or ``.parquet`` file, or the id of a dataset on the hub.
        out: output folder, which is created if needed; an existing run is resumed.
        revisions: revisions of one model on the hub. The step of ``step512`` is 512.
        field: name of the field that contains the text of a document.
        split: split of a dataset on the hub.
        tokens: number of tokens that every checkpoint reads.
        length: maximum length of a text in tokens. Default: 256, or the maximum of the model if that is less.
        sample: number of tokens on which expensive metrics are measured.
        batch_tokens: maximum number of tokens per batch, padding included.
        seed: seed of the order of documents, of the untrained models, and of the Gaussian rows.
        texts: number of texts that every checkpoint reads. Default: as many as ``tokens`` are enough for.
        truncate: whether only the first ``length`` tokens of each document are read, instead of dividing it into several texts.
        sketch: number of random directions by which covariances are approximated (see
            :class:`~geomprobe.RepresentationEntropy`). Default: they are stored whole.
        rows: ``"last"`` or ``"mean"`` to measure entropies and ranks of one row for each text too (see
            :class:`~geomprobe.RepresentationEntropy`).
        cka_rows: whether CKA compares rows of length one (``"unit"``) or rows as they are (``"raw"``), as in most papers. Where
            activations are massive, CKA of raw rows depends on them alone.
        protocol: name of a published protocol whose numbers are measured too (:mod:`geomprobe.protocols`).
        baselines: whether to measure null baselines too: an untrained model of each configuration, and Gaussian rows of the
            same number and width.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``.
        device: device of the models. Default: CUDA if available.
        device_map: ``auto`` for models that do not fit on one device.
        tokenizer: hub id or directory of the tokenizer, for checkpoints that were saved without one.
        trust_remote_code: whether to run Python code that comes with the models. Use it only if you trust the authors.
        progress: whether to show a progress bar on stderr, if that is a terminal.
        on_record: a function that is called in the main process with every record, including those of an earlier session.

    Returns:
        The run with the records of all checkpoints. Those that failed are in ``run.failed``.

    Raises:
        GeomprobeError: if there is no checkpoint or no text; or if the folder contains a run with other arguments, is being
            written by another process, or cannot be written. Records that were written before are kept.
    """
    _expect("out", out, isinstance(out, str | os.PathLike) and str(out) != "", "the path of a folder")
    _expect("on_record", on_record, on_record is None or callable(on_record), "a function or None")
    _expect("device", device, _is_device(device), "the name of a device, such as 'cpu' or 'cuda:0', or None")
    plan = _Plan(
        models=_texts("models", [models] if isinstance(models, str | os.PathLike) else models),
        revisions=_texts("revisions", revisions),
        data=os.fspath(data) if isinstance(data, os.PathLike) else data,
        field=field,
        split=split,
        tokens=tokens,
        length=length,
        sample=sample,
        batch_tokens=batch_tokens,
        texts=texts,
        truncate=truncate,
        seed=seed,
        sketch=sketch,
        rows=rows,
        cka_rows=cka_rows,
        protocol=protocol,
        baselines=baselines,
        dtype=dtype,
        device_map=device_map,
        tokenizer=tokenizer,
        trust_remote_code=trust_remote_code,
    )
    team = Team()
    checkpoints = team.all_do(lambda: find_checkpoints(plan.models, plan.revisions))
    documents = team.all_do(lambda: read_documents(plan.data, field=field, split=split, seed=seed))
    with ExitStack() as stack:
        folder = Path(out)
        run = team.all_do(lambda: stack.enter_context(_opened(folder, plan, documents)) if team.main else None)
        bar = stack.enter_context(_bar(plan.tokens, shown=progress and team.main))
        records = {(record.kind, record.name): record for record in run.records} if run is not None else {}
        work = _Sweep(plan, team, folder, documents, device or team.device, team.told(records), on_record, bar)
        work.run(checkpoints)
    team.all_do(lambda: None)
    return Run.open(folder)


def _is_device(name: object) -> bool:
    try:
        return name is None or (isinstance(name, str) and torch.device(name) is not None)
    except RuntimeError:  # not the name of a device
        return False


class _Sweep:
    """The loop over checkpoints, with the records and settings that it needs."""

    def __init__(
        self,
        plan: _Plan,
        team: Team,
        folder: Path,
        documents: Documents,
        device: str | None,
        records: dict[Any, Record],
        on_record: Callable[[Record], object] | None,
        bar: "_Bar",
    ) -> None:
        self.plan, self.team, self.folder = plan, team, folder
        self.documents, self.device, self.records, self.on_record, self.bar = documents, device, records, on_record, bar

    def run(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Measure the checkpoints that have no record yet, and mend the comparisons of those that have one."""
        self.team.all_do(lambda: self._check_weights(checkpoints))
        for record in self.records.values():
            if record.error is None:
                self._tell(record)
        todo = self._todo(checkpoints)
        self.bar.start(len(todo))
        earlier = set(self.folder.glob(_ANCHORS))  # they are needed to mend comparisons
        for number, checkpoint in enumerate(todo, 1):
            self.bar.say(f"checkpoint {number} of {len(todo)} · {checkpoint.name}")
            with read_ahead(todo[number : number + 1]):
                self._read(checkpoint)
            self.team.all_do(lambda: self._remove_anchors(keep=earlier) if self.team.main else None)
            gc.collect()
        self._mend_comparisons()
        self.team.all_do(lambda: self._remove_anchors() if self.team.main else None)

    def _todo(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """The checkpoints that have no record, and one of each configuration whose baselines failed."""
        todo, retried = [], set[str]()
        for checkpoint in sorted(checkpoints, key=self._place):
            record = self.records.get(("checkpoint", checkpoint.name))
            if record is None or record.error is not None or record.config is None:
                todo.append(checkpoint)
            elif self.plan.baselines and record.config not in retried and not self._has_baselines(record.config):
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
        """Measure a checkpoint, or record its error. What concerns the folder, such as a full disk, ends the sweep."""
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
        if self.plan.baselines:
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
        record = self.team.told(self.team.all_do(lambda: self._keep(record, measured) if self.team.main else record))
        self._add(replace(record, seconds=time.monotonic() - began))

    def _load(self, checkpoint: Checkpoint) -> Loaded:
        plan = self.plan
        return load(
            checkpoint.model,
            revision=checkpoint.revision,
            dtype=plan.dtype,
            device=self.device,
            device_map=plan.device_map,
            tokenizer=plan.tokenizer,
            trust_remote_code=plan.trust_remote_code,
        )

    def _cut(self, loaded: Loaded) -> TokenizedTexts:
        plan, length = self.plan, text_length(loaded.model, self.plan.length)
        return tokenize_documents(
            loaded.tokenizer,
            self.documents.texts,
            tokens=plan.tokens,
            length=length,
            count=plan.texts,
            truncate=plan.truncate,
        )

    def _batches(self, texts: TokenizedTexts) -> tuple[list[Batch], list[Batch]]:
        """The batches of the sample, of which the first contains the tokens that CKA compares, and the batches of the rest."""
        (sample, rest), places = texts.split(self.plan.sample), self.plan.batch_tokens
        anchor, others = sample.split(_ANCHOR)
        return [*anchor.batches(sys.maxsize), *others.batches(places)], rest.batches(places)

    def _measured(self, loaded: Loaded, texts: TokenizedTexts) -> Measured:
        sample, rest = self._batches(texts)
        return measure(
            loaded,
            sample,
            rest,
            **self.plan.metrics,
            team=self.team,
            cka_rows=self.plan.cka_rows,
            advance=self.bar.advance,
        )

    def _read_baselines(self, loaded: Loaded, texts: TokenizedTexts, of: Record) -> None:
        """Measure the null baselines of a configuration, once, before the first of its checkpoints."""
        name = str(of.config)
        of = replace(of, name=name, model="", step=None, revision=None, weights=None)
        if not self._done("untrained", name):
            self.bar.say("untrained model", tokens=self.plan.tokens)
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
        null = self._measured(self.team.all_do(lambda: untrained(loaded, seed=self.plan.seed)), texts)
        return null.reading, null.loss

    def _gaussian(self, width: int, texts: TokenizedTexts) -> Reading:
        sample, rest = self._batches(texts)
        return gaussian(width, sample, rest, **self.plan.metrics, seed=self.plan.seed)

    # -- comparisons ----------------------------------------------------------------------------------------------------------

    def _partners(self, of: Record) -> dict[str, Record]:
        """What a checkpoint is compared with: the untrained model, and the first and the previous checkpoint of the run's list
        that were measured. They are the same whenever they were measured, and wherever their files are now."""
        start = self.records.get(("untrained", str(of.config)))
        found = {} if start is None or start.reading is None else {"diff_erank": start}
        same = [r for r in self._measured_records() if (r.config, r.tokens) == (of.config, of.tokens)]
        before = [r for r in same if self._place(r) < self._place(of)]
        return found | ({"cka_first": before[0], "cka_previous": before[-1]} if before else {})

    def _measured_records(self) -> list[Record]:
        """The records of the checkpoints that were measured, in the order of the run's list."""
        found = [r for r in self.records.values() if r.kind == "checkpoint" and r.reading is not None]
        return sorted(found, key=self._place)

    def _place(self, of: Record | Checkpoint) -> Place:
        return place(of, self.plan.models, self.plan.revisions)

    def _keep(self, record: Record, measured: Measured) -> Record:
        """Keep the Gram matrices of a checkpoint that was just measured, and return its record with its comparisons."""
        record = self._compared(record, measured.grams)
        _write_anchor(self._anchor(record.name), _anchor_file(record, measured.grams))
        return record

    def _compared(self, record: Record, grams: dict[str, Tensor] | None = None) -> Record:
        """The record with the comparisons that it should have. ``grams`` are its Gram matrices, if they are at hand."""
        assert record.reading is not None
        old, partners = record.reading, dict[str, str]()
        values = {key: value for key, value in old.items() if key.split("/")[0] not in COMPARISONS}
        notes = [note for note in old.notes if note.split(" ")[0] not in COMPARISONS]
        name = "centered_text_matrix_entropy/final_norm"
        for what, other in self._partners(record).items():
            assert other.reading is not None
            if what == "diff_erank":
                values[f"{what}/final_norm"] = float(effective_rank_difference(other.reading[name], old[name]))
                partners[what] = other.name
                continue
            try:
                grams = self._grams(record) if grams is None else grams
                theirs = self._grams(other)
            except GeomprobeError as error:
                notes.append(f"{what} was not measured: {error}")
                continue
            for site in old.sites:
                values[f"{what}/{site}"] = float(debiased_cka(grams[site].double(), theirs[site].double()))
            partners[what] = other.name
        return replace(record, reading=Reading(old.mode, old.sites, values, notes, old.curves), partners=partners)

    def _mend_comparisons(self) -> None:
        """Compare again those checkpoints whose partners have changed, because an earlier one was measured later than they
        were, and append their records anew."""
        for record in self._measured_records():
            if record.partners != {what: other.name for what, other in self._partners(record).items()}:
                self.bar.say(f"comparing {record.name}")
                mended = self.team.told(self.team.all_do(lambda: self._compared(record) if self.team.main else record))  # noqa: B023
                if mended.to_dict() != record.to_dict():
                    self._add(mended)

    def _anchor(self, name: str) -> Path:
        """The file of the Gram matrices of a checkpoint."""
        return self.folder / _ANCHORS.replace("*", sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12])

    def _grams(self, record: Record) -> dict[str, Tensor]:
        """The Gram matrices of a checkpoint: those that were kept, or else measured again.

        Raises:
            GeomprobeError: if there are none and the checkpoint cannot be read.
        """
        path = self._anchor(record.name)
        if (kept := _read_anchor(path, record)) is not None:
            return kept
        try:
            checkpoint = Checkpoint(record.name, record.model, record.revision, record.step)
            loaded = self._load(checkpoint)
            texts = self._cut(loaded)
            if texts.digest != record.tokens or _weights(checkpoint, loaded) != record.weights:
                raise GeomprobeError("its weights or its tokenizer have changed")
            grams = anchor_grams(loaded, self._batches(texts)[0][0], self.plan.cka_rows)
        except Exception as error:  # memory, or code of the model
            raise GeomprobeError(
                f"the file {path.name} is missing or damaged, and {record.name} cannot be measured again ({error})"
            ) from error
        with suppress(GeomprobeError):  # a full disk is reported when the record is written
            _write_anchor(path, _anchor_file(record, grams))
        return grams

    def _remove_anchors(self, keep: Collection[Path] = ()) -> None:
        """Remove the Gram matrices that no later comparison needs: those of all but the first and the last checkpoint that were
        measured and the neighbours of those that failed."""
        measured = self._measured_records()
        failed = [self._place(r) for r in self.records.values() if r.kind == "checkpoint" and r.reading is None]
        wanted = [*measured[:1], *measured[-1:]]
        for before, after in pairwise(measured):
            if any(self._place(before) < place < self._place(after) for place in failed):
                wanted += [before, after]
        for path in set(self.folder.glob(_ANCHORS)) - {self._anchor(record.name) for record in wanted} - set(keep):
            path.unlink(missing_ok=True)

    # -- records --------------------------------------------------------------------------------------------------------------

    def _done(self, kind: str, name: str) -> bool:
        record = self.records.get((kind, name))
        return record is not None and record.error is None

    def _add(self, record: Record) -> None:
        record = replace(record, seconds=round(record.seconds, 3), finished=datetime.now(UTC).isoformat(timespec="seconds"))
        self.records[record.kind, record.name] = record
        self.team.all_do(lambda: append_line(self.folder / READINGS, record.to_dict()) if self.team.main else None)
        self._tell(record)

    def _tell(self, record: Record) -> None:
        if self.on_record is not None and self.team.main:
            self.on_record(record)


@contextmanager
def _opened(folder: Path, plan: _Plan, documents: Documents) -> Iterator[Run]:
    """A context manager for the run in ``folder``, new or existing, which is locked while it is written."""
    from filelock import FileLock, Timeout

    manifest = _manifest(plan, documents)
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


def _manifest(plan: _Plan, documents: Documents) -> dict[str, Any]:
    import transformers

    versions = {"geomprobe": version("geomprobe"), "torch": torch.__version__, "transformers": transformers.__version__}
    arguments = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(plan).items()}
    return {
        "format": FORMAT,
        "arguments": arguments,
        "data": {
            "name": plan.data,
            "hash": documents.digest,
            "documents": len(documents.texts),
            "skipped": documents.skipped,
            "tokens": plan.tokens,
            "sample_tokens": min(plan.sample, plan.tokens),
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


def _anchor_file(record: Record, grams: dict[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({site: gram.contiguous() for site, gram in grams.items()}, _anchor_of(record))


def _anchor_of(record: Record) -> dict[str, str]:
    """What the metadata of the file of Gram matrices says."""
    return {"format": str(FORMAT), "of": f"{record.config} {record.tokens} {record.weights}"}


def _write_anchor(path: Path, content: bytes) -> None:
    write_whole(path, content)


def _read_anchor(path: Path, record: Record) -> dict[str, Tensor] | None:
    """The Gram matrices in a file, or ``None`` if they are not those of ``record``, or not whole."""
    from safetensors import SafetensorError, safe_open

    assert record.reading is not None
    try:
        with safe_open(path, "pt") as file:
            grams = {site: file.get_tensor(site) for site in file.keys()}  # noqa: SIM118
            same = file.metadata() == _anchor_of(record) and grams.keys() == set(record.reading.sites)
            return grams if same else None
    except (OSError, SafetensorError):
        return None


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
