"""A view of a W&B project: every metric a panel with one line for each site, over training, checkpoints and sizes."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from geomprobe.errors import GeomprobeError
from geomprobe.metrics.base import Metric
from geomprobe.metrics.entropy import RepresentationEntropy
from geomprobe.metrics.information_gain import InformationGain
from geomprobe.probe import Probe
from geomprobe.sweeps.measure import sample_metrics
from geomprobe.sweeps.sweep import COMPARISONS

__all__ = ["Panel", "Section", "save", "sections", "to_json"]


@dataclass(frozen=True)
class Panel:
    """One chart of lines.

    Attributes:
        title: what stands above it.
        x: the step metric it stands over.
        metrics: a regular expression (what RE2, JavaScript and Python agree on) for the whole names of its lines.
    """

    title: str
    x: str
    metrics: str


@dataclass(frozen=True)
class Section:
    """Panels that belong together."""

    name: str
    panels: tuple[Panel, ...]


_KINDS = {
    "training": ("train/global_step", "geomprobe", "train/loss"),
    "evaluation": ("train/global_step", "geomprobe/eval[^/]*", "eval/([^/]+_)?loss"),  # of several evaluation sets too
    "checkpoints": ("checkpoint/step", "geomprobe", "geomprobe/loss"),
    "model sizes": ("checkpoint/parameters", "geomprobe", "geomprobe/loss"),
}
"""What numbers of each kind stand over, how they are called before ``/<metric>/<site>``, and what their loss is called."""


def sections() -> list[Section]:
    """What the view shows: the losses, then for each kind of numbers a section for each metric that gives them."""
    losses = Section("Loss", tuple(Panel(f"loss, {kind}", x, f"^{loss}$") for kind, (x, _, loss) in _KINDS.items()))
    trained, swept = _named([RepresentationEntropy(), InformationGain()]), _named(sample_metrics())
    swept["Comparisons"] = COMPARISONS
    return [losses] + [
        Section(f"{title}, {kind}", tuple(Panel(name, x, f"^{prefix}/{name}/[^/]+$") for name in names))
        for kind, (x, prefix, _) in _KINDS.items()
        for title, names in (trained if x.startswith("train/") else swept).items()
    ]


def to_json(project: str, entity: str | None, name: str) -> str:
    """The view as text, without a login."""
    view = {"project": project, "entity": entity, "name": name, "sections": [asdict(section) for section in sections()]}
    return json.dumps(view, indent=1)


def save(project: str, entity: str | None, name: str) -> str:
    """Save a new view in W&B.

    Args:
        project: W&B project.
        entity: user or team; who is logged in by default.
        name: what the view is called.

    Returns:
        Its URL.

    Raises:
        GeomprobeError: wandb-workspaces is not installed, nobody is logged in, or W&B refuses.
    """
    try:
        from wandb_workspaces import workspaces
        from wandb_workspaces.reports.v2 import LinePlot
    except ImportError as error:
        raise GeomprobeError("a view of a W&B project needs wandb-workspaces: pip install 'geomprobe[dashboard]'") from error
    import wandb

    try:
        if not wandb.login(prompt=False, verify=False):
            raise GeomprobeError(
                "W&B is offline here, and views are kept on its server: run `wandb login`, unset WANDB_MODE, or look at the "
                "view with --dry-run"
            )
        workspace = workspaces.Workspace(
            entity=entity or wandb.Api().default_entity or "",
            project=project,
            name=name,
            sections=[
                workspaces.Section(
                    name=section.name,
                    panels=[LinePlot(title=panel.title, x=panel.x, metric_regex=panel.metrics) for panel in section.panels],
                    is_open=True,
                )
                for section in sections()
            ],
        ).save()
    except GeomprobeError:
        raise
    except Exception as error:  # of W&B, of the network, of the package that checks names
        raise GeomprobeError(
            f"W&B did not save the view {name!r} of {project!r}: {type(error).__name__}: {error}; expected a project that "
            "exists (give --entity if it is a team's) and a login that may write there"
        ) from error
    return str(workspace.url)


def _named(metrics: Sequence[Metric]) -> dict[str, tuple[str, ...]]:
    """The names of each metric's numbers, as it gives them of a model of no meaning, under the metric's own."""
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
    """``RepresentationEntropy()`` is "Representation entropy"."""
    title = re.sub(r"\B[A-Z]", lambda letter: f" {letter[0].lower()}", type(metric).__name__)
    return f"{title}, centred" if getattr(metric, "center", False) else title
