"""``geomprobe paper …``: one command for every figure and table of the paper. Their modules are imported when they run."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geomprobe.errors import GeomprobeError
from geomprobe.files import write_whole

if TYPE_CHECKING:
    from geomprobe.paper.experiment import Outcome, Request

__all__ = ["EXPERIMENTS", "app"]

EXPERIMENTS = {
    "fig1": ("fig1_entropy", "Figure 1: entropy against model size, for the published numbers and for given models."),
    "fig2": ("fig2_skill_graph", "Figure 2: the graph of texts and the skills that they use."),
    "theory": ("sec3_scaling_laws", "Section 3: exponents of the scaling laws, and every statement on random distributions."),
    "fig3": ("fig3_information_gain", "Figure 3: information gain against length, for models of several sizes."),
    "tokens": ("sec4_tokens", "Section 4.2: what the Lasso and attention pick for [No], [?] and [China]."),
    "fig4": ("fig4_6_contexts", "Figure 4: mean and last-token embeddings of texts in two contexts and without one."),
    "fig5": ("fig4_6_contexts", "Figure 5: the same texts under the JS distance of covariances."),
    "fig6": ("fig4_6_contexts", "Figure 6: the same texts under the logdet, Riemannian and log-Euclidean distances."),
    "errata": ("errata", "Errors in the printed paper, shown with numbers."),
}
"""In the order of the paper, for every experiment its module, which contains it as ``FIG1`` and so on, and its help text."""

app = typer.Typer(help="Run the figures and tables of the paper on any model. Each gives a picture, a page and its numbers.")

_Models = Annotated[
    list[str],
    typer.Option(help="Hub id, directory or .gguf file of a model; may be repeated."),
]
_Out = Annotated[Path, typer.Option(help="Output folder for the pictures, pages and numbers.")]
_Data = Annotated[
    str | None, typer.Option(help="A .txt, .jsonl[.gz] or .parquet file, or the id of a dataset, for fig1 and fig3.")
]
_Field = Annotated[str, typer.Option(help="Name of the field that contains the text of a document.")]
_Tokens = Annotated[int, typer.Option(help="Number of tokens of the data that each model reads.", min=256)]
_Steps = Annotated[int, typer.Option(help="Optimizer steps of the models that are trained if no model is given.", min=1)]
_Seed = Annotated[int, typer.Option(help="Seed of all random numbers.", min=0, max=2**32 - 1)]
_Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")]
_Device = Annotated[str | None, typer.Option(help="Device, such as cpu or cuda. Default: CUDA if available.")]
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
        dtype: _Dtype = "float32",
        device: _Device = None,
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
            dtype=dtype,
            device=device,
            fresh=fresh,
        )
        run(request)

    return command


def _one(name: str) -> "Callable[[Request], Outcome]":
    def run(request: "Request") -> "Outcome":
        from geomprobe.paper.run import run_experiment

        experiment = getattr(import_module(f"geomprobe.paper.{EXPERIMENTS[name][0]}"), name.upper())
        outcome = run_experiment(experiment, request)
        print(f"\n{outcome}\n")
        kept = " (with the numbers of an earlier run; use --fresh to measure again)" if outcome.kept else ""
        print(f"wrote {request.out / name}.html, .png, .json{kept}", file=sys.stderr)
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
        print(f"{heading}\n")
        for outcome in outcomes:
            if found := outcome.of_kind(kind):
                print(outcome.experiment.place, *found, "", sep="\n")
    print(f"open the results:  {request.out}/index.html")
    if failed:
        raise GeomprobeError("; ".join(f"{name} failed: {error}" for name, error in failed.items()))


@app.command()
def concordance() -> None:
    """Every item of the paper in its order: what computes it here, the test of that, and the verdict."""
    from geomprobe.paper.concordance import to_text

    print(to_text())


for _name, (_, _help) in EXPERIMENTS.items():
    app.command(_name, help=_help)(_command(_one(_name)))
app.command("all", help="Run all of them, and write a page of all pictures and verdicts (offline, CPU, under ten minutes).")(
    _command(_all)
)
