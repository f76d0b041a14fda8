"""``geomprobe …``: each command imports what it needs when it runs, so that help answers at once."""

import io
import json
import os
import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from geomprobe.cli.paper import app as paper
from geomprobe.errors import GeomprobeError
from geomprobe.files import check_writable, write_whole

__all__ = ["main"]

app = typer.Typer(
    help="Watch the geometry of a language model's representations from inside the forward pass.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, readings and the offline W&B run.")] = Path(
        "geomprobe-demo"
    ),
    steps: Annotated[int, typer.Option(help="Optimizer steps to train for.", min=1)] = 400,
) -> None:
    """Train a small GPT-NeoX under the probe, sweep its checkpoints, write a report. Offline, CPU, about three minutes."""
    from geomprobe.cli.demo import run

    run(out, steps=steps)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="Hub id, directory or .gguf file.")],
    text: Annotated[str | None, typer.Argument(help="The text to look at.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Read the text from a file instead.")] = None,
    site: Annotated[
        str | None, typer.Option(help="A site, such as final_norm: show which earlier tokens each token is made of there.")
    ] = None,
    token: Annotated[
        list[str] | None, typer.Option(help="With --site: only of this token, by number or as written; may be repeated.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--html", help="Write a page of its own: what each token is made of at every layer.")
    ] = None,
    project: Annotated[str | None, typer.Option("--wandb", help="Log that page to this W&B project.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: sites, curves, tokens, picks.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    gguf_file: Annotated[str | None, typer.Option(help="The GGUF file inside MODEL.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; CUDA when there is one.")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run the model's own code.")] = False,
) -> None:
    """Run one text through a model: a table of all sites, and what each token adds."""
    if (text is None) == (file is None):
        raise GeomprobeError("give either a TEXT or --file F")
    if token and site is None:
        raise GeomprobeError("--token says of which token to show the picks: give --site SITE with it, such as final_norm")
    check_writable(page)
    from tqdm import tqdm

    from geomprobe.inspection.inspect import inspect_text
    from geomprobe.models.loading import load

    try:
        content = text if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GeomprobeError(f"cannot read {file}: {error}; expected a text file in UTF-8") from error
    loaded = load(
        model, revision=revision, gguf_file=gguf_file, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )
    every = page is not None or project is not None
    with tqdm(desc="layers", unit="", leave=False, disable=None if every else True) as bar:
        inspection = inspect_text(loaded, content or "", site=site, all_sites=every, tokens=token or None, progress=bar.update)
    print(json.dumps(inspection.to_dict(), allow_nan=False) if as_json else inspection)
    document = inspection.to_html() if every else ""
    if page is not None:
        write_whole(page, document)
        print(f"\nwrote {page}: open it in a browser", file=sys.stderr)
    if project is not None:
        from geomprobe.integrations import WandbSink

        with WandbSink(project) as sink:
            sink.log_html("tokens", document)


@app.command()
def sweep(
    models: Annotated[
        list[str], typer.Argument(help="A folder of checkpoint-*; or hub ids or directories, several for sizes.")
    ],
    data: Annotated[str, typer.Option(help=".txt, .jsonl[.gz], .parquet, or a data set's id (name:configuration).")],
    out: Annotated[Path, typer.Option(help="Folder of the run; one that is there is gone on with.")],
    revisions: Annotated[str, typer.Option(help="Of one model on the hub: step1,step512,…")] = "",
    field: Annotated[str, typer.Option(help="Where the text of a document stands.")] = "text",
    split: Annotated[str, typer.Option(help="Split of a data set of the hub.")] = "train",
    tokens: Annotated[int, typer.Option(help="Tokens that every checkpoint reads.", min=2)] = 65_536,
    length: Annotated[int | None, typer.Option(help="Longest text: 256, or what the model reads.", min=2)] = None,
    sample: Annotated[int, typer.Option(help="How many of them are measured closely (gain, Lasso …).", min=2)] = 1024,
    batch_tokens: Annotated[int, typer.Option(help="Places per forward, padding included.", min=2)] = 2048,
    seed: Annotated[int, typer.Option(help="Of the order of documents and of the baselines.")] = 0,
    sketch: Annotated[int | None, typer.Option(help="Sketch covariances by this many directions.", min=1)] = None,
    baselines: Annotated[bool, typer.Option(help="Also an untrained model, and Gaussian rows.")] = True,
    wandb: Annotated[str | None, typer.Option("--wandb", help="Log to this W&B project.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "float32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; CUDA when there is one.")] = None,
    device_map: Annotated[str | None, typer.Option(help="auto, for models that one device does not hold.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Where to take it from, for checkpoints without.")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run the models' own code.")] = False,
) -> None:
    """Read many checkpoints, or sizes of a model, on the same tokens, into a folder that a crash does not harm."""
    from geomprobe.sweeps.checkpoints import find_checkpoints
    from geomprobe.sweeps.sweep import sweep as run_sweep
    from geomprobe.sweeps.table import table
    from geomprobe.tracking.closing import closing_figures, closing_page
    from geomprobe.tracking.sweep_run import SweepTracker

    of = [name.strip() for name in revisions.split(",") if name.strip()]
    main = os.environ.get("RANK", "0") == "0"
    tracker = None
    if wandb is not None and main:
        steps = [checkpoint.step for checkpoint in find_checkpoints(models, of)]
        config = {"models": models, "revisions": of, "data": data, "tokens": tokens}
        tracker = SweepTracker(out, wandb, config, axis="parameters" if None in steps else "step")
    with tracker or nullcontext():
        run = run_sweep(
            models,
            data=data,
            out=out,
            revisions=of,
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
            device=device,
            device_map=device_map,
            tokenizer=tokenizer,
            trust_remote_code=trust_remote_code,
            progress=True,
            on_record=None if tracker is None else tracker.record,
        )
        if tracker is not None:
            tracker.finish(closing_figures(run), closing_page(run, device=device, trust_remote_code=trust_remote_code))
    if not main:
        return
    print(table(run))
    if run.failed:
        raise GeomprobeError(
            f"{len(run.failed)} of {len(run.records)} failed (see above); run the same command to try those again"
        )
    print(f"\nlook at it:  geomprobe report {out}", file=sys.stderr)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a sweep.")],
    to: Annotated[Path, typer.Option(help="A .csv or .parquet file.")],
) -> None:
    """Write every number of a sweep as one long table."""
    check_writable(to)
    from geomprobe.sweeps.export import export as write_table
    from geomprobe.sweeps.records import Run

    write_table(Run.open(run), to)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of sweeps.", metavar="RUN...")],
    out: Annotated[Path | None, typer.Option(help="The page; RUN/report.html by default, of several runs report.html.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """One page of one or several sweeps: entropy and gain by layer, step and size, beside null baselines."""
    page = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    from geomprobe.report.page import report_page
    from geomprobe.sweeps.records import Run

    opened = [Run.open(run) for run in runs]
    check_writable(page)
    write_whole(page, report_page(opened))
    print(f"wrote {page}: open it in a browser", file=sys.stderr)
    if show:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


@app.command()
def dashboard(
    project: Annotated[str, typer.Option(help="W&B project.")],
    entity: Annotated[str | None, typer.Option(help="User or team it belongs to; by default yours.")] = None,
    name: Annotated[str, typer.Option(help="What the view is called.")] = "geomprobe",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the view as JSON, and save nothing.")] = False,
) -> None:
    """Save a view of a W&B project: every metric a panel, over training, checkpoints and model sizes."""
    from geomprobe.tracking import workspace as views

    print(views.to_json(project, entity, name) if dry_run else views.save(project, entity, name))


app.add_typer(paper, name="paper")


class Bench(StrEnum):
    """What ``geomprobe bench`` can measure."""

    overhead = "overhead"
    decode = "decode"
    memory = "memory"
    lasso = "lasso"
    attention = "attention"
    sweep = "sweep"


@app.command()
def bench(
    what: Annotated[
        Bench,
        typer.Argument(help="A forward and a training step; generation; growth of memory; the Lasso; attention; a sweep."),
    ],
    model: Annotated[str | None, typer.Option(help="Hub id, directory or .gguf file; by default random weights.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda …; CUDA when there is one.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "float32",
    batch: Annotated[int, typer.Option(help="Rows per forward.", min=1)] = 2,
    length: Annotated[int | None, typer.Option(help="Tokens per row: 256, 512 for the Lasso.", min=1)] = None,
    tokens: Annotated[int, typer.Option(help="Tokens that a checkpoint of the sweep reads.", min=64)] = 65_536,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds.", min=3)] = 9,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What the probe costs, as ratios to the bare model from one interleaved run."""
    from geomprobe.bench import lasso, overhead
    from geomprobe.bench import sweep as checkpoints
    from geomprobe.bench.timing import table

    if what is Bench.lasso:
        solved = lasso.bench_lasso(model, length=length or 512, rounds=rounds, device=device)
        print(json.dumps(solved) if as_json else lasso.table(solved))
        return
    if what is Bench.sweep:
        swept = checkpoints.bench_sweep(model, tokens=tokens, length=length or 256, rounds=rounds, device=device)
        print(json.dumps(swept) if as_json else table(swept))
        return
    random = overhead.bench_model(what, model=model, device=device, dtype=dtype)
    if what is Bench.overhead:
        results = overhead.bench_overhead(random, batch=batch, length=length or 256, rounds=rounds)
    elif what is Bench.attention:
        results = overhead.bench_attention(random, batch=batch, length=length or 256, rounds=rounds)
    elif what is Bench.decode:
        results = overhead.bench_decode(random, rounds=rounds)
    else:
        results = overhead.bench_memory(random)
    print(json.dumps(results) if as_json else table(results))


def main() -> None:
    """The console script: a :class:`GeomprobeError` is one line and exit code 1, never a traceback."""
    for stream in (sys.stdout, sys.stderr):  # bars and signs on a terminal that knows only ASCII become question marks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app(prog_name="geomprobe")
    except GeomprobeError as error:
        print(f"geomprobe: {error}", file=sys.stderr)
        sys.exit(1)
