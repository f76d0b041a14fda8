"""``geomprobe paper …``: one command for every figure and table of the paper. Their modules are imported when they run."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geomprobe.cli.console import Command, keeps, say, show, without_loading_bars
from geomprobe.cli.options import Device, Dtype
from geomprobe.errors import GeomprobeError
from geomprobe.files import write_whole

if TYPE_CHECKING:
    from geomprobe.paper.experiment import Outcome, Request

__all__ = ["EXPERIMENTS", "app"]

EXPERIMENTS = {
    "fig1": ("fig1_entropy", "Figure 1: entropy against model size, from published numbers and for the given models."),
    "fig2": ("fig2_skill_graph", "Figure 2: the graph of texts and the skills that they use."),
    "theory": (
        "sec3_scaling_laws",
        "Section 3: exponents of the scaling laws, and a test of every statement on random distributions.",
    ),
    "fig3": ("fig3_information_gain", "Figure 3: information gain against length, for models of several sizes."),
    "tokens": ("sec4_tokens", "Section 4.2: what the Lasso and attention pick for [No], [?] and [China]."),
    "fig4": ("fig4_6_contexts", "Figure 4: mean and last-token embeddings of texts in two contexts and without one."),
    "fig5": ("fig4_6_contexts", "Figure 5: the same texts under the JS distance of covariances."),
    "fig6": ("fig4_6_contexts", "Figure 6: the same texts under the logdet, Riemannian and log-Euclidean distances."),
    "errata": ("errata", "Errors in the printed paper, shown with numbers."),
}
"""In the order of the paper, for every experiment its module, which contains it as ``FIG1`` and so on, and its help text."""

app = typer.Typer(
    help="Compute the figures and tables of the paper, The Information of Large Language Model Geometry (Tan, Li, Huang 2024), "
    "on any model. Each command writes a picture, a page and the numbers.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_Models = Annotated[
    list[str],
    typer.Option(help="Hub id, directory or .gguf file of a model; may be repeated. fig2 and theory use no model."),
]
_Out = Annotated[Path, typer.Option(help="Output folder for the pictures, pages and numbers.")]
_Data = Annotated[
    str | None, typer.Option(help="A .txt, .jsonl[.gz] or .parquet file, or the id of a dataset, for fig1 and fig3.")
]
_Field = Annotated[str, typer.Option(help="Field with the text of a document, or with its list of messages.")]
_Tokens = Annotated[int, typer.Option(help="Number of tokens of the data that each model reads.", min=256)]
_Steps = Annotated[
    int, typer.Option(help="Number of optimizer steps of the small models that are trained if no model is given.", min=1)
]
_Seed = Annotated[int, typer.Option(help="Seed of all random numbers.", min=0, max=2**32 - 1)]
_Dtype = Annotated[Dtype, typer.Option(help="Dtype of the weights; auto keeps the dtype of the checkpoint.")]
_Fresh = Annotated[bool, typer.Option("--fresh", help="Measure again, even if the folder has numbers of an earlier run.")]


def _command(run: "Callable[[Request], object]") -> Callable[..., None]:
    def command(
        models: _Models = [],  # noqa: B006
        out: _Out = Path("geomprobe-paper"),
        data: _Data = None,
        field: _Field = "text",
        tokens: _Tokens = 8192,
        steps: _Steps = 150,
        seed: _Seed = 0,
        dtype: _Dtype = Dtype.float32,
        device: Device = None,
        fresh: _Fresh = False,
    ) -> None:
        from geomprobe.paper.experiment import Request

        request = Request(
            out=out,
            models=tuple(models),
            data=data,
            field=field,
            tokens=tokens,
            steps=steps,
            seed=seed,
            dtype=dtype.value,
            device=device,
            fresh=fresh,
        )
        again = " (without --fresh)" if fresh else ""
        keeps(f"What was finished is kept in {out}; run the same command{again} to go on")
        with without_loading_bars():
            run(request)

    return command


def _one(name: str) -> "Callable[[Request], Outcome[Any]]":
    def run(request: "Request") -> "Outcome[Any]":
        from geomprobe.paper.run import run_experiment

        experiment = getattr(import_module(f"geomprobe.paper.{EXPERIMENTS[name][0]}"), name.upper())
        outcome = run_experiment(experiment, request)
        show(f"\n{outcome}\n")
        kept = " (with the numbers of an earlier run; use --fresh to measure again)" if outcome.kept else ""
        say(f"wrote {request.out / name}.html, .png, .json{kept}")
        return outcome

    return run


def _all(request: "Request") -> None:
    from tqdm import tqdm

    from geomprobe.paper.experiment import HEADINGS
    from geomprobe.paper.page import page

    outcomes, failed = [], {}
    with tqdm(EXPERIMENTS, unit="experiment", disable=None) as bar:
        for name in bar:
            bar.set_description(name)
            try:
                outcomes.append(_one(name)(request))
            except GeomprobeError as error:  # the other experiments continue
                failed[name] = error
    write_whole(request.out / "index.html", page("The paper, item by item", outcomes))
    for kind, heading in HEADINGS.items():
        show(f"{heading}\n")
        for outcome in outcomes:
            if found := outcome.of_kind(kind):
                show("\n".join([outcome.experiment.place, *map(str, found), ""]))
    show(f"open the results:  {request.out}/index.html")
    if failed:
        raise GeomprobeError("; ".join(f"{name} failed: {error}" for name, error in failed.items()))


@app.command(cls=Command, short_help="List the items of the paper and their code here.")
def concordance() -> None:
    """List every item of the paper in its order, with the code that computes it here, its test, and the verdict."""
    from geomprobe.paper.concordance import to_text

    show(to_text())


_SHORT = {
    "fig1": "Figure 1: entropy against model size.",
    "fig2": "Figure 2: the graph of texts and skills.",
    "theory": "Section 3: scaling laws, and tests of all statements.",
    "fig3": "Figure 3: information gain against length.",
    "tokens": "Section 4.2: what the Lasso and attention pick.",
    "fig4": "Figure 4: embeddings of texts in contexts.",
    "fig5": "Figure 5: JS distances of the texts of figure 4.",
    "fig6": "Figure 6: three other distances of these texts.",
    "errata": "Errors in the printed paper, shown with numbers.",
}
"""The description of each command in the list of commands, in one line of a terminal."""

for _name, (_, _help) in EXPERIMENTS.items():
    app.command(_name, cls=Command, help=_help, short_help=_SHORT[_name])(_command(_one(_name)))
app.command(
    "all",
    cls=Command,
    help="Run the commands of all figures and tables, and write one page with all pictures and verdicts. Without --models this "
    "needs no network and no GPU, and takes less than ten minutes.",
    short_help="Run all commands above except concordance; write one page.",
)(_command(_all))
