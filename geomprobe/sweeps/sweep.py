"""Sweeps over the checkpoints of a training run, or over models of several sizes, on the same tokens."""

import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geomprobe.core.similarity import debiased_cka, effective_rank_difference
from geomprobe.errors import GeomprobeError
from geomprobe.files import append_line, mend_lines, write_whole
from geomprobe.models.loading import Loaded, load, untrained
from geomprobe.sweeps.checkpoints import Checkpoint, find_checkpoints, read_ahead, weights_hash
from geomprobe.sweeps.dataset import Batch, Documents, TokenizedTexts, read_documents, tokenize_documents
from geomprobe.sweeps.measure import Measured, gaussian, measure, sample_metrics, token_metrics
from geomprobe.sweeps.processes import Team
from geomprobe.sweeps.records import MANIFEST, READINGS, Record, Run

__all__ = ["COMPARISONS", "sweep"]

COMPARISONS = ("diff_erank", "cka_first", "cka_previous")
"""Numbers that compare a checkpoint with another one: with the untrained model, with the first checkpoint, and with the
previous checkpoint."""

_LENGTH = 256
"""Default length of texts. The metrics of the sample cost up to the cube of the length, and many texts are more informative
than a few long ones."""

_ANCHOR = 512
"""Number of tokens of the sample whose Gram matrices are kept for CKA: one megabyte per site."""


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
    seed: int
    sketch: int | None
    baselines: bool
    dtype: str
    device_map: str | None
    tokenizer: str | None
    trust_remote_code: bool

    def __post_init__(self) -> None:
        for name, least in (("tokens", 2), ("sample", 2), ("batch_tokens", 2), ("length", 2), ("sketch", 1), ("seed", None)):
            value = getattr(self, name)
            if value is None and name in ("length", "sketch"):
                continue
            whole = isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)
            _expect(name, value, whole, "a whole number" if least is None else f"a whole number, {least} or more")
        for name in ("data", "field", "split"):
            value = getattr(self, name)
            _expect(name, value, isinstance(value, str) and value != "", "a text that is not empty")
        for name in ("device_map", "tokenizer"):
            _expect(name, getattr(self, name), isinstance(getattr(self, name), str | None), "a text or None")
        for name in ("baselines", "trust_remote_code"):
            _expect(name, getattr(self, name), isinstance(getattr(self, name), bool), "True or False")
        known = ("float32", "bfloat16", "float16", "auto")
        _expect("dtype", self.dtype, self.dtype in known, f"one of {', '.join(known)}")


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
    sketch: int | None = None,
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
        sketch: number of random directions by which covariances are approximated (see
            :class:`~geomprobe.RepresentationEntropy`). Default: they are stored whole.
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
        seed=seed,
        sketch=sketch,
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
        self.wanted: set[Path] = set()

    def run(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Measure the checkpoints that have no record yet."""
        self.team.all_do(lambda: self._check_weights(checkpoints))
        for record in self.records.values():
            if record.error is None:
                self._tell(record)
        todo = [c for c in checkpoints if not self._done("checkpoint", c.name)]
        self.bar.start(len(todo))
        for number, checkpoint in enumerate(todo, 1):
            self.bar.say(f"checkpoint {number} of {len(todo)} · {checkpoint.name}")
            with read_ahead(todo[number : number + 1]):
                self._read(checkpoint, [c.name for c in checkpoints])
            gc.collect()

    def _check_weights(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Check that recorded checkpoints still have the same weights. Those that are not on this disk are not checked."""
        done = [(c, self.records["checkpoint", c.name].weights) for c in checkpoints if self._done("checkpoint", c.name)]
        changed = [c.name for c, before in done if before and (now := weights_hash(c.model)) and now != before]
        if changed:
            raise GeomprobeError(
                f"{', '.join(changed)}: the weights have changed since {self.folder} was written: give another folder to "
                "measure the new ones"
            )

    def _read(self, checkpoint: Checkpoint, order: Sequence[str]) -> None:
        began = time.monotonic()
        record = Record(name=checkpoint.name, model=checkpoint.model, revision=checkpoint.revision, step=checkpoint.step)
        try:
            loaded = self.team.all_do(lambda: self._load(checkpoint))
            texts = self.team.all_do(lambda: self._cut(loaded))
            record = replace(record, **_facts(loaded, texts), weights=_weights(checkpoint, loaded))
            if self.plan.baselines:
                apart = time.monotonic()
                self._read_baselines(loaded, texts, record)
                began += time.monotonic() - apart
            measured = self._measured(loaded, texts)
            record = replace(record, reading=measured.reading, loss=measured.loss)
            self.team.all_do(lambda: self._compare(measured.grams, record, order) if self.team.main else None)
        except GeomprobeError as error:
            record = replace(record, error=str(error), reading=None, loss=None)
        self._add(replace(record, seconds=time.monotonic() - began))
        if record.error is None and self.team.main:
            for path in set(self.folder.glob("anchor-*.safetensors")) - self.wanted:
                path.unlink(missing_ok=True)

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
        plan, reads = self.plan, getattr(loaded.model.config, "max_position_embeddings", None)
        length = plan.length or min(_LENGTH, reads or _LENGTH)
        if reads is not None and length > reads:
            raise GeomprobeError(
                f"texts of {length:,} tokens are longer than this model accepts ({reads:,}): give a smaller length (--length)"
            )
        return tokenize_documents(loaded.tokenizer, self.documents.texts, tokens=plan.tokens, length=length)

    def _batches(self, texts: TokenizedTexts) -> tuple[list[Batch], list[Batch]]:
        """The batches of the sample, of which the first contains the tokens that CKA compares, and the batches of the rest."""
        (sample, rest), places = texts.split(self.plan.sample), self.plan.batch_tokens
        anchor, others = sample.split(_ANCHOR)
        return [*anchor.batches(sys.maxsize), *others.batches(places)], rest.batches(places)

    def _measured(self, loaded: Loaded, texts: TokenizedTexts) -> Measured:
        sample, rest = self._batches(texts)
        sketch = self.plan.sketch
        return measure(
            loaded,
            sample,
            rest,
            sample_metrics=sample_metrics(sketch),
            token_metrics=token_metrics(sketch),
            team=self.team,
            advance=self.bar.advance,
        )

    def _read_baselines(self, loaded: Loaded, texts: TokenizedTexts, of: Record) -> None:
        """Measure the null baselines of a configuration, once, before the first of its checkpoints."""
        sketch, name = self.plan.sketch, str(of.config)
        of = replace(of, step=None, revision=None, weights=None)
        if not self._done("untrained", name):
            self.bar.say(f"{of.name} untrained", tokens=self.plan.tokens)
            began, record = time.monotonic(), replace(of, name=name, kind="untrained")
            try:
                null = self._measured(self.team.all_do(lambda: untrained(loaded, seed=self.plan.seed)), texts)
                record = replace(record, reading=null.reading, loss=null.loss)
            except GeomprobeError as error:
                record = replace(record, error=str(error))
            self._add(replace(record, seconds=time.monotonic() - began))
        if not self._done("gaussian", name) and of.width is not None:
            width, began = of.width, time.monotonic()
            sample, rest = self._batches(texts)
            reading = self.team.all_do(
                lambda: gaussian(
                    width,
                    sample,
                    rest,
                    sample_metrics=sample_metrics(sketch),
                    token_metrics=token_metrics(sketch),
                    seed=self.plan.seed,
                )
            )
            record = replace(of, name=name, kind="gaussian", parameters=None, reading=reading)
            self._add(replace(record, seconds=time.monotonic() - began))

    # -- comparisons ----------------------------------------------------------------------------------------------------------

    def _compare(self, grams: dict[str, Tensor], record: Record, order: Sequence[str]) -> None:
        """Add the comparisons of this checkpoint with the untrained model, the first checkpoint and the previous checkpoint."""
        reading = record.reading
        assert reading is not None
        name = "centered_text_matrix_entropy/final_norm"
        start = self.records.get(("untrained", record.config))
        if start is not None and start.reading is not None:
            reading.add("final_norm", "diff_erank", float(effective_rank_difference(start.reading[name], reading[name])))
        before = [self.records.get(("checkpoint", name)) for name in order[: order.index(record.name)]]
        same = (None, record.config, record.tokens)
        earlier = [r for r in before if r is not None and (r.error, r.config, r.tokens) == same]
        for what, other in (("cka_first", earlier[:1]), ("cka_previous", earlier[-1:])):
            kept = self._load_grams(other[0]) if other else {}
            for site in [site for site in reading.sites if site in kept]:
                reading.add(site, what, float(debiased_cka(grams[site].double(), kept[site].double())))
        self._keep_grams(record, grams)
        # Other files are removed after the record is written, because until then the next attempt may need them.
        self.wanted = {self._grams(r.name) for r in (*earlier[:1], *earlier[-1:], record)}

    def _grams(self, name: str) -> Path:
        return self.folder / f"anchor-{sha256(name.encode()).hexdigest()[:12]}.safetensors"

    def _load_grams(self, record: Record) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        path = self._grams(record.name)
        return load_file(path) if path.exists() else {}

    def _keep_grams(self, record: Record, grams: dict[str, Tensor]) -> None:
        from safetensors.torch import save

        write_whole(self._grams(record.name), save({site: gram.contiguous() for site, gram in grams.items()}))

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
        if (folder / MANIFEST).exists():
            mend_lines(folder / READINGS)
            run = Run.open(folder)
            _check_same(folder, run.manifest, manifest)
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
    """Check that an existing run has the same arguments and data."""
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
