"""The figures and the page of one text that are logged at the end of the W&B run of a sweep."""

from typing import TYPE_CHECKING

from geomprobe.inspection.inspect import inspect_tokens
from geomprobe.models.loading import load
from geomprobe.report.figures import gain_curves, heatmap
from geomprobe.sweeps.dataset import read_documents, text_length, tokenize_documents
from geomprobe.sweeps.records import Run

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["closing_figures", "closing_page"]

_PAGE = 96
"""Number of tokens of the text whose page is logged at the end of a sweep."""


def closing_figures(run: Run) -> dict[str, "Figure"]:
    """Return the figures to log at the end of a sweep: a heatmap of layers × checkpoints for every metric, and the curves of
    information gain."""
    metrics = dict.fromkeys(name for record in run.checkpoints if record.reading for name in record.reading.metrics)
    drawn = {f"map/{name}": heatmap(run, name) for name in metrics if name not in ("tokens", "texts", "sample_tokens")}
    drawn |= {"gain/so_far": gain_curves([run]), "gain/of_each_token": gain_curves([run], increments=True)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def closing_page(run: Run, *, device: str | None = None, trust_remote_code: bool = False) -> dict[str, str]:
    """Return the page of one text under the last checkpoint, with the picks of each token at every layer: the first tokens that
    the sweep read, as it read them."""
    if not run.checkpoints:
        return {}
    last, arguments = run.checkpoints[-1], run.manifest["arguments"]
    last.checkpoint.check_there()
    loaded = load(
        last.model,
        revision=last.revision,
        dtype=arguments["dtype"],
        device=device,
        device_map=arguments["device_map"],
        tokenizer=arguments["tokenizer"],
        trust_remote_code=trust_remote_code,
    )
    names = ("field", "split", "seed")
    documents = read_documents(arguments["data"], **{name: arguments[name] for name in names})
    length = text_length(loaded.model, arguments["length"])
    texts = tokenize_documents(
        loaded.tokenizer,
        documents.texts,
        tokens=arguments["tokens"],
        length=length,
        truncate=arguments.get("truncate", False),
    )
    return {"tokens": inspect_tokens(loaded, texts.ids[0][:_PAGE], all_sites=True).to_html()}
