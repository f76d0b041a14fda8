"""A saved view of a W&B project: an overview of a training, and in closed sections one panel for every metric, with one line
for every site, over training, checkpoints and model sizes."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from geomprobe.errors import GeomprobeError
from geomprobe.integrations.picture import PICTURE
from geomprobe.integrations.wandb_sink import logged_in
from geomprobe.metrics.base import Metric
from geomprobe.metrics.entropy import RepresentationEntropy
from geomprobe.metrics.information_gain import InformationGain
from geomprobe.probe import Probe
from geomprobe.sweeps.comparisons import COMPARISONS
from geomprobe.sweeps.measure import sample_metrics

__all__ = ["Panel", "Section", "save", "sections", "to_json"]


@dataclass(frozen=True)
class Panel:
    """One line chart, or one picture.

    Attributes:
        title: title of the chart.
        x: the step metric on its x axis.
        metrics: a regular expression that matches the whole names of its lines, in the syntax that RE2, JavaScript and Python
            have in common; or the name of the picture.
        picture: whether it is a picture, of the step that is chosen with a slider.
    """

    title: str
    x: str
    metrics: str
    picture: bool = False


@dataclass(frozen=True)
class Section:
    """A section of panels.

    Attributes:
        name: name of the section.
        panels: the panels.
        open: whether its panels are shown when the view is opened.
    """

    name: str
    panels: tuple[Panel, ...]
    open: bool = False


_KINDS = {
    "training": ("train/global_step", "geomprobe", "train/loss"),
    "evaluation": ("train/global_step", "geomprobe/eval[^/]*", "eval/([^/]+_)?loss"),  # of several evaluation sets too
    "checkpoints": ("checkpoint/step", "geomprobe", "geomprobe/loss"),
    "model sizes": ("checkpoint/parameters", "geomprobe", "geomprobe/loss"),
}
"""For each kind of numbers: the step metric, the prefix of names before ``/<metric>/<site>``, and the name of the loss."""

_WITH_COST = ("training", "evaluation")


def sections() -> list[Section]:
    """Return the sections of the view: an open overview of a training; and closed, the losses, and for each kind of numbers one
    section for every metric class."""
    losses = [Panel(f"loss, {kind}", x, f"^{loss}$") for kind, (x, _, loss) in _KINDS.items()]
    costs = [Panel(f"cost of measuring, {kind}", _KINDS[kind][0], f"^{_KINDS[kind][1]}/cost$") for kind in _WITH_COST]
    trained, swept = _named([RepresentationEntropy(), InformationGain()]), _named(sample_metrics())
    swept["Comparisons"] = COMPARISONS
    return [_overview(), Section("Loss and cost", (*losses, *costs))] + [
        Section(f"{title}, {kind}", tuple(Panel(name, x, f"^{prefix}/{name}/[^/]+$") for name in names))
        for kind, (x, prefix, _) in _KINDS.items()
        for title, names in (trained if x.startswith("train/") else swept).items()
    ]


def _overview() -> Section:
    x, start, loss = _KINDS["training"]
    names = ("effective_rank", "entropy", "anisotropy", "gain_per_token")
    lines = [Panel(name, x, f"^{start}/{name}/[^/]+$") for name in names]
    drawn = Panel("effective_rank of all layers", x, PICTURE, picture=True)
    return Section("Overview", (Panel("loss", x, f"^{loss}$"), drawn, *lines), open=True)


def to_json(project: str, entity: str | None, name: str) -> str:
    """Return the view as JSON. This needs no login."""
    view = {"project": project, "entity": entity, "name": name, "sections": [asdict(section) for section in sections()]}
    return json.dumps(view, indent=1)


def save(project: str, entity: str | None, name: str) -> str:
    """Save a new view in W&B.

    Args:
        project: W&B project.
        entity: user or team. Default: the user who is logged in.
        name: name of the view.

    Returns:
        The URL of the view.

    Raises:
        GeomprobeError: if wandb-workspaces is not installed, if nobody is logged in, or if W&B rejects the request.
    """
    try:
        from wandb_workspaces import workspaces
        from wandb_workspaces.reports.v2 import LinePlot, MediaBrowser
    except ImportError as error:
        raise GeomprobeError("a view of a W&B project needs wandb-workspaces: pip install 'geomprobe[dashboard]'") from error
    import wandb

    try:
        if not logged_in():
            raise GeomprobeError(
                "W&B is offline here, and views are stored on its server: run `wandb login`, unset WANDB_MODE, or print the "
                "view with --dry-run"
            )
        workspace = workspaces.Workspace(
            entity=entity or wandb.Api().default_entity or "",
            project=project,
            name=name,
            sections=[
                workspaces.Section(
                    name=section.name,
                    panels=[
                        MediaBrowser(title=panel.title, media_keys=[panel.metrics])
                        if panel.picture
                        else LinePlot(title=panel.title, x=panel.x, metric_regex=panel.metrics)
                        for panel in section.panels
                    ],
                    is_open=section.open,
                )
                for section in sections()
            ],
        ).save()
    except GeomprobeError:
        raise
    except Exception as error:  # from W&B, the network, or the package that validates names
        raise GeomprobeError(
            f"W&B did not save the view {name!r} of {project!r}: {type(error).__name__}: {error}; expected a project that "
            "exists (with --entity if it belongs to a team) and a login with write access to it"
        ) from error
    return str(workspace.url)


def _named(metrics: Sequence[Metric]) -> dict[str, tuple[str, ...]]:
    """The names of the scalars of each metric, found by running it on a tiny model, by the title of the metric."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
    model = LlamaForCausalLM(LlamaConfig(**size)).eval()
    named: dict[str, tuple[str, ...]] = {}
    for metric in metrics:
        with torch.no_grad(), Probe(model, [metric], on_error="raise") as probe:
            model(input_ids=torch.arange(8).unsqueeze(0), use_cache=False)
        named[_title(metric)] = tuple(name for name in probe.read().metrics if name not in ("tokens", "texts"))
    return named


def _title(metric: Metric) -> str:
    """The title of a metric, such as "Representation entropy" for ``RepresentationEntropy()``."""
    title = re.sub(r"\B[A-Z]", lambda letter: f" {letter[0].lower()}", type(metric).__name__)
    return f"{title}, centred" if getattr(metric, "center", False) else title
