"""The commands ``geomprobe …``. Each imports what it needs when it runs, so that ``--help`` is printed without delay."""

import io
import json
import os
import sys
from contextlib import nullcontext
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from geomprobe.cli.console import VERBOSE, Command, keeps, say, show, without_loading_bars
from geomprobe.cli.options import Device, Dtype, arguments_as_options
from geomprobe.cli.paper import app as paper
from geomprobe.errors import GeomprobeError
from geomprobe.files import check_writable, read_text, write_whole

__all__ = ["main"]

_MOST_CHARACTERS = 1 << 26
"""Limit of the text of ``inspect --file``, which is longer than what any model reads."""

app = typer.Typer(
    help="Measure the geometry of a language model's representations inside the forward pass.",
    epilog=f"Results are written to stdout, and everything else to stderr. Set {VERBOSE}=1 to see the warnings, log messages "
    "and progress bars of other libraries.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes leave a description 20 of the 80 columns, and cut off the names of options
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"geomprobe {version('geomprobe')}")
        raise typer.Exit


@app.callback()
def options(
    shown: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """The options of ``geomprobe`` itself."""


@app.command(cls=Command, short_help="Train and measure a small model, and write a report.")
def demo(
    out: Annotated[Path, typer.Option(help="Output folder for checkpoints, readings, W&B runs and the report.")] = Path(
        "geomprobe-demo"
    ),
    steps: Annotated[int, typer.Option(help="Number of optimizer steps.", min=1)] = 400,
) -> None:
    """Train a small GPT-NeoX under a probe, measure its checkpoints again in a sweep, and write a report. This needs no network
    and no GPU, and takes two to four minutes."""
    from geomprobe.cli.demo import run

    keeps(f"The checkpoints that were saved are kept in {out}; the same command starts the demo from its beginning")
    run(out, steps=steps)


@app.command(cls=Command, short_help="Measure one text at every layer of a model.")
def inspect(
    model: Annotated[str, typer.Argument(help="Hub id, directory or .gguf file of a model.")],
    text: Annotated[str | None, typer.Argument(help="The text to run.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Read the text from this file.")] = None,
    site: Annotated[
        str | None,
        typer.Option(
            help="Also print the earlier tokens from which the Lasso reproduces each token at this site, such as final_norm or "
            "layer_05."
        ),
    ] = None,
    token: Annotated[
        list[str] | None,
        typer.Option(
            help="With --site: print the Lasso, ridge and attention weights of this token only. Give its number or its text; "
            "may be repeated."
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            "--html", help="Write a page that shows each token's weights on earlier tokens, at every layer, to this file."
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option("--wandb", help="Log the page that --html writes, with the text itself, to this W&B project."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers, curves, tokens and weights as JSON.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    gguf_file: Annotated[str | None, typer.Option(help="Name of the GGUF file inside MODEL.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the weights; auto keeps the dtype of the checkpoint.")] = Dtype.float32,
    device: Device = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
) -> None:
    """Run one text through a model, and print a table of all sites (the layers, embed and final_norm) and the information gain
    of each token."""
    if (text is None) == (file is None):
        raise GeomprobeError("expected one text: give either TEXT or --file FILE")
    if token and site is None:
        raise GeomprobeError("--token needs the site at which to print the weights: give --site SITE too, such as final_norm")
    check_writable(page)
    from tqdm import tqdm

    from geomprobe.inspection.inspect import inspect_text
    from geomprobe.models.loading import load

    content = text if file is None else read_text(file, most=_MOST_CHARACTERS)
    with without_loading_bars():
        loaded = load(
            model, revision=revision, gguf_file=gguf_file, dtype=dtype.value, device=device, trust_remote_code=trust_remote_code
        )
    every = page is not None or project is not None
    with tqdm(desc="layers", unit="", leave=False, disable=None if every else True) as bar:
        inspection = inspect_text(loaded, content or "", site=site, all_sites=every, tokens=token or None, progress=bar.update)
    show(json.dumps(inspection.to_dict(), allow_nan=False) if as_json else inspection)
    document = inspection.to_html() if every else ""
    if page is not None:
        write_whole(page, document)
        say(f"\nwrote {page}: open it in a browser")
    if project is not None:
        from geomprobe.integrations import WandbSink

        say(f"logging the page, with the text itself, to the W&B project {project}")
        with WandbSink(project) as sink:
            sink.log_html("tokens", document)


@app.command(cls=Command, short_help="Measure many checkpoints or models on the same tokens.")
@arguments_as_options(
    {"models": list[str], "data": str, "out": Path, "revisions": str}, without=("progress", "on_record"), before="dtype"
)
def sweep(
    *,
    wandb: Annotated[
        str | None,
        typer.Option("--wandb", help="Log to this W&B project: the numbers, and a page of the first tokens of the data."),
    ] = None,
    **arguments: Any,
) -> None:
    """Measure many checkpoints, or models of several sizes, on the same tokens. To resume a sweep that was stopped, run the
    same command again."""
    from geomprobe.sweeps.checkpoints import find_checkpoints
    from geomprobe.sweeps.sweep import sweep as run_sweep
    from geomprobe.sweeps.table import table
    from geomprobe.tracking.closing import closing_figures, closing_page
    from geomprobe.tracking.sweep_run import SweepTracker

    keeps(f"The records that were finished are kept in {arguments['out']}; run the same command to go on")
    arguments["revisions"] = [name.strip() for name in arguments["revisions"].split(",") if name.strip()]
    main = os.environ.get("RANK", "0") == "0"
    tracker = None
    if wandb is not None and main:
        say(f"logging to the W&B project {wandb}: the numbers, and at the end a page of the first tokens of the data")
        steps = [checkpoint.step for checkpoint in find_checkpoints(arguments["models"], arguments["revisions"])]
        shown = {name: arguments[name] for name in ("models", "revisions", "data", "tokens")}
        tracker = SweepTracker(arguments["out"], wandb, shown, axis="parameters" if None in steps else "step")
    with tracker or nullcontext():
        run = run_sweep(**arguments, progress=True, on_record=None if tracker is None else tracker.record)
        if tracker is not None:
            chosen = {name: arguments[name] for name in ("device", "trust_remote_code")}
            tracker.finish(lambda: closing_figures(run), lambda: closing_page(run, **chosen))
    if not main:
        return
    show(table(run))
    if run.failed:
        raise GeomprobeError(
            f"{len(run.failed)} of {len(run.records)} records failed (see above); run the same command to try these again"
        )
    say(f"\nmake a report of it:  geomprobe report {arguments['out']}")


@app.command(cls=Command, short_help="Write all numbers of a sweep to one table.")
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a sweep.")],
    to: Annotated[Path, typer.Option(help="Output file, .csv or .parquet.")],
) -> None:
    """Write all numbers of a sweep to one table, with one number per row."""
    check_writable(to)
    from geomprobe.sweeps.export import export as write_table
    from geomprobe.sweeps.records import Run

    opened = Run.open(run)
    rows = write_table(opened, to)
    say(f"wrote {to}: {rows:,} numbers of {len(opened.records) - len(opened.failed)} records, one per row")


@app.command(cls=Command, short_help="Write a page of figures of sweeps or of a training.")
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of sweeps; or, for a training, its geomprobe.jsonl or the output folder that contains it.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output file. Default: RUN/report.html for one sweep, report.html for several, and geomprobe.html next to the "
            "geomprobe.jsonl of a training."
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write a page with figures. For sweeps, it shows every metric by layer, training step and model size, with null baselines.
    For a training that a callback measured, it shows what changed, the loss, a map of all layers, and the numbers that
    trackers get."""
    from geomprobe.report.page import report_page
    from geomprobe.report.training_file import Training, find_training
    from geomprobe.report.training_page import training_page
    from geomprobe.sweeps.records import Run

    files = [file for run in runs if (file := find_training(run)) is not None]
    if files and len(runs) > 1:
        raise GeomprobeError(f"{files[0]} is the file of a training: give it alone, because a page shows one training")
    if files:
        training = Training.open(files[0])
        page = out or files[0].with_suffix(".html")
        check_writable(page)
        write_whole(page, training_page(training))
    else:
        opened = [Run.open(run) for run in runs]
        page = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
        check_writable(page)
        write_whole(page, report_page(opened))
    say(f"wrote {page}: open it in a browser")
    if show:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())


@app.command(cls=Command, short_help="Save a view of a W&B project with a panel per metric.")
def dashboard(
    project: Annotated[str, typer.Option(help="W&B project.")],
    entity: Annotated[str | None, typer.Option(help="User or team of the project. Default: the user who is logged in.")] = None,
    name: Annotated[str, typer.Option(help="Name of the view.")] = "geomprobe",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the view as JSON without saving it.")] = False,
) -> None:
    """Save a view of a W&B project with one panel per metric, for trainings and for sweeps over steps or model sizes."""
    from geomprobe.tracking import workspace as views

    show(views.to_json(project, entity, name) if dry_run else views.save(project, entity, name))


app.add_typer(paper, name="paper", short_help="Compute the figures and tables of Tan, Li, Huang (2024).")


class Bench(StrEnum):
    """The benchmarks of ``geomprobe bench``."""

    overhead = "overhead"
    decode = "decode"
    memory = "memory"
    lasso = "lasso"
    attention = "attention"
    sweep = "sweep"
    precision = "precision"
    alarms = "alarms"


_MODEL, _SIZE = {"model", "device", "dtype"}, {"batch", "length"}
_OPTIONS = {
    "overhead": {*_MODEL, *_SIZE, "rounds"},
    "overhead --every": {*_MODEL, *_SIZE, "rounds", "every"},
    "overhead --budget": {*_MODEL, *_SIZE, "budget", "steps"},
    "overhead --shapes": {"device", "dtype", "rounds", "shapes"},
    "decode": {*_MODEL, "rounds"},
    "memory": _MODEL,
    "lasso": {"model", "device", "length", "rounds"},
    "attention": {*_MODEL, *_SIZE, "rounds"},
    "sweep": {"model", "device", "length", "tokens", "rounds"},
    "precision": {*_MODEL, *_SIZE},
    "alarms": {"seeds", "quick", "calibrate", "keep"},
}
"""The options that each benchmark uses, besides ``--json``. All others are refused if they are given."""


@app.command(cls=Command, short_help="Measure the cost of geomprobe.")
def bench(
    context: typer.Context,
    what: Annotated[
        Bench,
        typer.Argument(
            help="overhead: the cost of a measured forward and training step. decode: the cost during generation, with the "
            "gain of each new token. memory: how the memory grows with the number of tokens. lasso: the Lasso solver compared "
            "with those of other libraries. attention: the cost of summaries of attention weights. sweep: a sweep compared "
            "with only loading and running the models. precision: rounding errors of the ways to compute Gram matrices. "
            "alarms: how often and how early alarms ring in small trainings, with and without a fault."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="Hub id, directory or .gguf file of a model. Default: random weights. lasso and sweep need one."),
    ] = None,
    device: Device = None,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the weights; auto keeps the dtype of the checkpoint.")] = Dtype.float32,
    batch: Annotated[int, typer.Option(help="Number of texts per forward.", min=1)] = 2,
    length: Annotated[
        int | None, typer.Option(help="Number of tokens per text. Default: 256, or 512 for lasso.", min=1)
    ] = None,
    tokens: Annotated[int, typer.Option(help="For sweep: number of tokens per checkpoint.", min=64)] = 65_536,
    rounds: Annotated[
        int, typer.Option(help="Number of rounds. In each of them, everything that is compared runs once.", min=3)
    ] = 9,
    every: Annotated[
        int | None, typer.Option(help="For overhead: measure only every N-th forward, as when=every(N) does.", min=1)
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="For overhead: train with when=budget(SHARE), where 0.01 is 1% of the time.")
    ] = None,
    steps: Annotated[int, typer.Option(help="For --budget: number of training steps.", min=250)] = 300,
    shapes: Annotated[
        bool, typer.Option("--shapes", help="For overhead: compare several widths, numbers of texts, and lengths of texts.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="For alarms: number of seeds of the trainings.", min=1)] = 20,
    quick: Annotated[bool, typer.Option("--quick", help="For alarms: run only a few trainings, to try the benchmark.")] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="For alarms: print the largest changes in healthy trainings, which limits must exceed."
        ),
    ] = False,
    keep: Annotated[
        Path | None,
        typer.Option(help="For alarms: folder for the readings of each training. Trainings that are in it are not run again."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measure the cost of geomprobe. The programs that are compared take turns, and their ratio is given in wall time and in
    CPU time, with its quartiles. The benchmarks precision and alarms measure other things than cost."""
    keeps("Nothing is kept; run the same command to start again" if keep is None else "Run the same command to go on")
    given = {name for name in context.params if _is_given(context, name)} - {"what", "as_json"}
    form = next((f" --{name}" for name in ("every", "budget", "shapes") if what is Bench.overhead and name in given), "")
    if unused := given - _OPTIONS[f"{what}{form}"]:
        raise GeomprobeError(
            f"bench {what}{form} does not use {', '.join(f'--{name}' for name in sorted(unused))}: run it without"
        )
    from geomprobe.bench import alarms, lasso, overhead, precision, schedules, timing
    from geomprobe.bench import sweep as checkpoints

    size = {"batch": batch, "length": length or 256}

    def run() -> dict[str, Any]:
        if what is Bench.alarms:
            chosen = alarms.bench_calibration if calibrate else alarms.bench_alarms
            return chosen(seeds=seeds, quick=quick, keep=keep)
        if what is Bench.lasso:
            return lasso.bench_lasso(model, length=length or 512, rounds=rounds, device=device)
        if what is Bench.sweep:
            return checkpoints.bench_sweep(model, tokens=tokens, length=length or 256, rounds=rounds, device=device)
        if what is Bench.precision:
            return precision.bench_precision(model, **size, device=device, dtype=dtype.value)
        if shapes:
            return schedules.bench_shapes(device=device, dtype=dtype.value, rounds=rounds)
        measured = overhead.bench_model(what, model=model, device=device, dtype=dtype.value)
        if budget is not None:
            return schedules.bench_budget(measured, share=budget, **size, steps=steps)
        if every is not None:
            return schedules.bench_every(measured, every_nth=every, **size, rounds=rounds)
        if what is Bench.memory:
            return overhead.bench_memory(measured)
        if what is Bench.decode:
            return overhead.bench_decode(measured, rounds=rounds)
        of_forward = overhead.bench_overhead if what is Bench.overhead else overhead.bench_attention
        return of_forward(measured, **size, rounds=rounds)

    with without_loading_bars():
        results = run()
    of_alarms = alarms.calibration_table if calibrate else alarms.table
    tables = {Bench.lasso: lasso.table, Bench.precision: precision.table, Bench.alarms: of_alarms}
    table = tables.get(what, timing.table)
    show(json.dumps(results) if as_json else table(results))


def _is_given(context: typer.Context, option: str) -> bool:
    """Whether an option stands in the command."""
    source = context.get_parameter_source(option)
    return source is not None and source.name != "DEFAULT"


def main() -> None:
    """Run the command line. A :class:`GeomprobeError` is printed as one line without a traceback, with exit code 1."""
    for stream in (sys.stdout, sys.stderr):  # an ASCII terminal shows question marks for other characters
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app(prog_name="geomprobe")
    except GeomprobeError as error:
        print(f"geomprobe: {error}", file=sys.stderr)
        sys.exit(1)
