"""What a sweep measures of one model: every token cheaply, a sample of them closely."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from geomprobe.accumulators.state import Accumulator, ReadsAttention, State, TokenCount, zeros
from geomprobe.core.rows import Rows, full_precision
from geomprobe.errors import GeomprobeError
from geomprobe.metrics.activations import MassiveActivations
from geomprobe.metrics.attention import AttentionProfile
from geomprobe.metrics.base import Metric
from geomprobe.metrics.context_lasso import ContextLasso
from geomprobe.metrics.curvature import Curvature
from geomprobe.metrics.entropy import RepresentationEntropy
from geomprobe.metrics.information_gain import InformationGain
from geomprobe.models.loading import Loaded
from geomprobe.probe import Probe
from geomprobe.reading import Reading
from geomprobe.recording.state_store import StateStore
from geomprobe.sweeps.dataset import Batch
from geomprobe.sweeps.processes import Team

__all__ = ["Measured", "gaussian", "measure", "sample_metrics", "token_metrics"]

_ROWS = 64
"""Rows of logits whose loss is computed at once."""


@dataclass(frozen=True)
class Measured:
    """What one model read.

    Attributes:
        reading: the numbers.
        loss: in nats per predicted token.
        grams: of every site the Gram matrix ``(n, n)`` of the unit rows of the first batch, float32: what CKA compares. In the
            main process only.
    """

    reading: Reading
    loss: float
    grams: dict[str, Tensor]


def token_metrics(sketch: int | None = None) -> tuple[Metric, ...]:
    """What is measured of every token: running covariances, which cost a few percent of the forward."""
    return (RepresentationEntropy(texts=False, sketch=sketch),)


def sample_metrics(sketch: int | None = None) -> tuple[Metric, ...]:
    """What is measured of a sample: it costs more than the forward. Of a name that both give, all tokens' number is taken."""
    return (
        RepresentationEntropy(text_spectrum=True, sketch=sketch),
        RepresentationEntropy(text_spectrum=True, center=True, sketch=sketch),
        InformationGain(),
        ContextLasso(attention=True, rate=0.25),
        AttentionProfile(),
        Curvature(),
        MassiveActivations(),
    )


def measure(
    loaded: Loaded,
    sample: Sequence[Batch],
    rest: Sequence[Batch],
    *,
    close: Sequence[Metric],
    wide: Sequence[Metric],
    team: Team,
    advance: Callable[[int], object],
) -> Measured:
    """Run every batch through the model once, ``sample`` under the ``close`` metrics, all under the ``wide``; a collective.

    Args:
        loaded: model and tokenizer.
        sample: batches to measure closely; of the first the Gram matrices are kept.
        rest: the others.
        close: metrics of the sample.
        wide: metrics of all; what they accumulate, ``close`` accumulates too, so that the sums of both parts add.
        team: the processes that share the batches.
        advance: told how many tokens were read.

    Raises:
        GeomprobeError: the model cannot be measured, or gives no finite row at a site.
    """

    def run() -> tuple[Probe, Probe, Tensor, dict[str, Tensor], list[str]]:
        metrics, notes = _supported(loaded, close)
        mine = team.share(sample)
        first = mine[: int(team.main)]  # which is the first of all
        anchored, loss = _run(loaded, [*metrics, _Anchor()], first, {}, advance)
        state = anchored.state_dict()
        near, more = _run(loaded, metrics, mine[len(first) :], state, advance)
        far, rest_loss = _run(loaded, wide, team.share(rest), near.state_dict(), advance)
        return near, far, loss + more + rest_loss, _grams(state, first), notes

    near, whole, loss, grams, notes = team.all_do(run)
    reading = _joined(whole.read("eval"), near.read("eval"))
    reading.notes += notes
    if silent := [site for site in reading.sites if not reading.values.get(f"tokens/{site}")]:
        raise GeomprobeError(
            f"not one finite row at {', '.join(silent[:2])}{' …' * (len(silent) > 2)}: weights hold NaN or Inf, or overflow "
            "in this dtype; look at the checkpoint, or try dtype float32"
        )
    total, predicted = team.sum(loss).tolist()
    return Measured(reading, total / predicted, grams)


def gaussian(
    width: int, sample: Sequence[Batch], rest: Sequence[Batch], *, close: Sequence[Metric], wide: Sequence[Metric], seed: int
) -> Reading:
    """The reading of rows drawn from a Gaussian, as many and as wide, in texts as long: one site, ``"gaussian"``."""
    generator = torch.Generator().manual_seed(seed)
    readings = []
    alone = _without_attention(close)
    for metrics, batches in ((wide, [*sample, *rest]), (alone, sample)):
        needs = dict.fromkeys([TokenCount(), *(need for metric in metrics for need in metric.accumulators)])
        store = StateStore(tuple(needs), ("gaussian",))
        for batch in batches:
            with full_precision("cpu"):
                rows = torch.randn(1, *batch.ids.shape, width, generator=generator)
                store.add("eval", slice(0, 1), Rows(rows, batch.mask.bool()))
        reading = Reading(mode="eval", sites=("gaussian",))
        reading.measure("gaussian", metrics, store.banks["eval"]["gaussian"])
        readings.append(reading)
    return _joined(*readings)


def _run(
    loaded: Loaded,
    metrics: Sequence[Metric],
    batches: Sequence[Batch],
    before: Mapping[str, Tensor],
    advance: Callable[[int], object],
) -> tuple[Probe, Tensor]:
    """The probe after ``batches``, closed, and Σ of the loss over predicted tokens beside their number.

    It goes on from the sums of the probe before, of those that its own metrics need too.
    """
    needs = {repr(TokenCount()), *(repr(need) for metric in metrics for need in metric.accumulators)}
    loss = torch.zeros(2, dtype=torch.float64)
    with Probe(loaded.model, metrics, on_error="raise") as probe:
        probe.load_state_dict({name: value for name, value in before.items() if name.split("/")[2] in needs})
        for batch in batches:
            loss += _forward(loaded, batch)
            advance(batch.tokens)
    return probe, loss


@torch.inference_mode()
def _forward(loaded: Loaded, batch: Batch) -> Tensor:
    """Run a batch through the model; Σ of the loss over predicted tokens beside their number.

    In chunks of rows: a loss of all at once writes logarithms as large as the logits, 400 MB for 2048 tokens of 49,152, and was
    measured to take four times as long.
    """
    ids, mask = batch.ids.to(loaded.model.device), batch.mask.to(loaded.model.device)
    logits = loaded.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    losses, predicted = [], 0
    for rows, text, there in zip(logits, batch.ids, batch.mask.bool(), strict=True):
        following = text[1:][there[1:]].to(logits.device)  # padded on the right: what is there comes first
        predicted += len(following)
        for part, expected in zip(rows[: len(following)].split(_ROWS), following.split(_ROWS), strict=True):
            losses.append(cross_entropy(part.float(), expected, reduction="sum"))
    return torch.tensor([float(torch.stack(losses).double().sum()), predicted], dtype=torch.float64)


def _grams(state: Mapping[str, Tensor], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """What :class:`_Anchor` kept of a batch, without its padding."""
    grams = {name.split("/")[1]: value for name, value in state.items() if name.endswith("/gram")}
    tokens = [batch.mask.flatten().bool() for batch in batches]
    return {site: gram[mask][:, mask].float() for mask in tokens for site, gram in grams.items()}


def _joined(whole: Reading, sample: Reading) -> Reading:
    """The numbers of all tokens, and what only the sample has; how much that was, as ``sample_tokens``."""
    counts = {f"sample_{key}": value for key, value in sample.values.items() if key.startswith("tokens/")}
    joined = whole.merge_missing(sample)
    joined.values |= counts
    return joined


def _supported(loaded: Loaded, metrics: Sequence[Metric]) -> tuple[Sequence[Metric], list[str]]:
    """``metrics``, without attention where the model keeps it to itself, and the note that says so."""
    probe = Probe(loaded.model, metrics, on_error="raise")
    try:
        probe.attach()
    except GeomprobeError as error:
        if not any(map(_reads_attention, metrics)):
            raise
        return _without_attention(metrics), [f"attention was not measured: {error}"]
    finally:
        probe.close()
    return metrics, []


def _without_attention(metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    alone = [replace(metric, attention=False) if isinstance(metric, ContextLasso) else metric for metric in metrics]
    return tuple(metric for metric in alone if not _reads_attention(metric))


def _reads_attention(metric: Metric) -> bool:
    return any(isinstance(need, ReadsAttention) and need.attention is not None for need in metric.accumulators)


@dataclass(frozen=True)
class _Anchor(Metric):
    """The Gram matrix of all rows of one forward: of rows, not a sum over them, so it is kept out of every run's sums."""

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        return (self,)

    def new_state(self, width: int, device: torch.device) -> State:
        return zeros({"gram": (0, 0)}, device)

    def contribution(self, rows: Rows) -> State:
        z = rows.unit().double().flatten(-3, -2)
        return {"gram": z @ z.mT}

    def scalars(self, states: Mapping[Accumulator, State]) -> dict[str, float]:
        return {}
