"""One command over the checkpoints of a training, or over the sizes of a model: the same tokens through each, and records."""

import gc
import json
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
from geomprobe.sweeps.dataset import Batch, TokenizedTexts, read_documents, tokenize_documents
from geomprobe.sweeps.measure import Measured, gaussian, measure, sample_metrics, token_metrics
from geomprobe.sweeps.processes import Team
from geomprobe.sweeps.records import MANIFEST, READINGS, Record, Run

__all__ = ["COMPARISONS", "sweep"]

COMPARISONS = ("diff_erank", "cka_first", "cka_previous")
"""Numbers of a checkpoint beside another: its untrained self, the first one, the one before."""

_LENGTH = 256
"""Of texts, unless told: what is measured closely costs up to the cube of it, and many texts say more than a few long ones."""

_ANCHOR = 512
"""Tokens of the sample whose Gram matrices are kept for CKA: a megabyte a site."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The arguments of a run: with others it would be another run."""

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
        for name in ("tokens", "length", "sample", "batch_tokens"):
            if (value := getattr(self, name)) is not None and value < 2:
                raise GeomprobeError(f"sweep({name}={value}): expected 2 or more")


def sweep(
    models: Sequence[str] | str,
    *,
    data: str,
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
    """Read the geometry of many checkpoints on the same tokens, into a folder of records that a crash does not harm.

    Of every token: the running covariances (entropy, effective rank and their neighbours) and the loss. Of a sample, the first
    ``sample`` of the tokens: what costs more than the forward (information gain, per-text entropies, Lasso, attention,
    curvature). Of the first 512 of those: the Gram matrices that CKA compares, with the first and with the checkpoint before.

    Called again on the same folder, it reads what is not there yet. A checkpoint that fails is recorded with its error, and the
    others go on. Under ``accelerate launch`` or ``torchrun`` every process calls it, and reads its share.

    Args:
        models: a directory with folders ``checkpoint-*``, or one or more hub ids or directories of models.
        data: a ``.txt``, ``.jsonl[.gz]`` or ``.parquet`` file, or a data set's id on the hub.
        out: the folder of the run; made if it is not there.
        revisions: of one model on the hub; ``step512`` is read as step 512.
        field: where the text of a document stands.
        split: of a data set on the hub.
        tokens: how many tokens every checkpoint reads.
        length: the longest text; by default 256, or what the model reads if that is less.
        sample: how many of the tokens are measured closely.
        batch_tokens: places per forward, padding included.
        seed: of the order of documents, of the untrained models, and of Gaussian rows.
        sketch: keep covariances by this many random directions (:class:`~geomprobe.RepresentationEntropy`).
        baselines: read an untrained model of each configuration too, and Gaussian rows as many and as wide.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``.
        device: where to; CUDA when there is one.
        device_map: ``auto`` for models that one device does not hold.
        tokenizer: where to take the tokenizer from, for checkpoints that were saved without.
        trust_remote_code: run the models' own code. Only when you trust whoever wrote it.
        progress: show a bar on stderr.
        on_record: called in the main process with every record, also with those that were there.

    Returns:
        the run, with the records of all checkpoints. Look at ``run.failed``.

    Raises:
        GeomprobeError: no checkpoint, no text, or a folder that holds a run of other arguments, is being written by another
            process, or cannot be written. What is recorded by then stays.
    """
    plan = _Plan(
        models=(models,) if isinstance(models, str) else tuple(models),
        revisions=tuple(revisions),
        data=data,
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
    documents = team.all_do(lambda: read_documents(data, field=field, split=split, seed=seed))
    with ExitStack() as stack:
        folder = Path(out)
        run = team.all_do(lambda: stack.enter_context(_opened(folder, plan, documents)) if team.main else None)
        bar = stack.enter_context(_bar(plan.tokens, shown=progress and team.main))
        records = {(record.kind, record.name): record for record in run.records} if run is not None else {}
        work = _Sweep(plan, team, folder, documents, device or team.device, team.told(records), on_record, bar)
        work.run(checkpoints)
    team.all_do(lambda: None)
    return Run.open(folder)


class _Sweep:
    """The loop, and what it has to know from one checkpoint to the next."""

    def __init__(
        self,
        plan: _Plan,
        team: Team,
        folder: Path,
        documents: Sequence[str],
        device: str | None,
        records: dict[Any, Record],
        on_record: Callable[[Record], object] | None,
        bar: "_Bar",
    ) -> None:
        self.plan, self.team, self.folder = plan, team, folder
        self.documents, self.device, self.records, self.on_record, self.bar = documents, device, records, on_record, bar
        self.wanted: set[Path] = set()

    def run(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Read those that are not recorded yet."""
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
        """Whether what is recorded is of the weights that are there now; those that are not on this disk are not looked at."""
        done = [(c, self.records["checkpoint", c.name].weights) for c in checkpoints if self._done("checkpoint", c.name)]
        changed = [c.name for c, before in done if before and (now := weights_hash(c.model)) and now != before]
        if changed:
            raise GeomprobeError(
                f"{', '.join(changed)}: other weights than {self.folder} holds readings of: give another folder to read them"
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
            raise GeomprobeError(f"texts of {length:,} tokens are longer than this model reads, {reads:,}: give a length")
        return tokenize_documents(loaded.tokenizer, self.documents, tokens=plan.tokens, length=length)

    def _batches(self, texts: TokenizedTexts) -> tuple[list[Batch], list[Batch]]:
        """Of the sample, what CKA compares as one batch and then the others; of the rest."""
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
        """The null baselines of a configuration, once: before the first of its checkpoints."""
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

    # -- beside others --------------------------------------------------------------------------------------------------------

    def _compare(self, grams: dict[str, Tensor], record: Record, order: Sequence[str]) -> None:
        """Set what compares this checkpoint with its untrained self, the first and the one before; where it is written."""
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
        # Pruned once the record is written: until then the next attempt may need them. The one before stays, too.
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
def _opened(folder: Path, plan: _Plan, documents: Sequence[str]) -> Iterator[Run]:
    """The run in ``folder``, new or begun before, locked while it is written."""
    from filelock import FileLock, Timeout

    manifest = _manifest(plan, documents)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise GeomprobeError(f"{folder} is being written by another sweep: wait for it, or give another folder") from error
    except OSError as error:
        raise GeomprobeError(f"cannot write {folder}: {error}; give a folder that can be written and has room") from error
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


def _manifest(plan: _Plan, documents: Sequence[str]) -> dict[str, Any]:
    import transformers

    hashed = sha256()
    for document in documents:
        hashed.update(f"{len(document)}:".encode() + document.encode("utf-8", "surrogatepass"))
    versions = {"geomprobe": version("geomprobe"), "torch": torch.__version__, "transformers": transformers.__version__}
    arguments = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(plan).items()}
    return {
        "arguments": arguments,
        "data": {"name": plan.data, "hash": hashed.hexdigest(), "documents": len(documents), "tokens": plan.tokens}
        | {"sample_tokens": min(plan.sample, plan.tokens)},
        "versions": versions | {"python": platform.python_version()},
    }


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Whether a run that was begun is this one."""
    parts = [(before.get(part, {}), now[part]) for part in ("arguments", "data")]
    changed = {
        name: f"{name}: {old.get(name)!r} then, {new.get(name)!r} now"
        for old, new in parts
        for name in [*old, *new]
        if old.get(name) != new.get(name)
    }
    if changed:
        raise GeomprobeError(
            f"{folder} holds a run with other arguments ({'; '.join(changed.values())}). Give those again to go on with it, or "
            "another folder to begin a new one"
        )


def _facts(loaded: Loaded, texts: TokenizedTexts) -> dict[str, Any]:
    """What a record says of a model and its tokens."""
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
    """Progress over all checkpoints in tokens, so that the time left is right for the whole sweep."""

    def __init__(self, tokens: int, bar: Any) -> None:
        self._tokens, self._bar = tokens, bar

    def start(self, checkpoints: int) -> None:
        self._bar.reset(total=checkpoints * self._tokens)

    def say(self, what: str, *, tokens: int = 0) -> None:
        """What is being read; ``tokens`` more than were planned."""
        self._bar.total += tokens
        self._bar.set_description(what)

    def advance(self, tokens: int) -> None:
        self._bar.update(tokens)


@contextmanager
def _bar(tokens: int, *, shown: bool) -> Iterator[_Bar]:
    from tqdm import tqdm
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    enabled = is_progress_bar_enabled()
    disable_progress_bar()  # of shards being loaded, many times a sweep
    try:
        with tqdm(total=0, unit="tok", unit_scale=True, disable=not shown, leave=False, dynamic_ncols=True) as bar:
            yield _Bar(tokens, bar)
    finally:
        if enabled:
            enable_progress_bar()
