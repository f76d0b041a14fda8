"""Measures one model of a sweep: inexpensive metrics on all tokens, and expensive metrics on a sample of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from geomprobe.accumulators.covariance import Which
from geomprobe.accumulators.state import Key, ReadsAttention, TokenCount, identity
from geomprobe.capture.decoder import Decoder, find_decoder
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
from geomprobe.probe import Mode, Probe, add_consumer, sums_of
from geomprobe.protocols import Protocol
from geomprobe.reading import Reading, compute_reading
from geomprobe.recording.recorder import Consumer
from geomprobe.recording.state_store import Bank, StateStore
from geomprobe.sweeps.dataset import Batch
from geomprobe.sweeps.processes import Team

__all__ = ["Measured", "anchor_grams", "gaussian", "measure", "sample_metrics", "token_metrics"]

_ROWS = 64
"""Number of rows of logits whose loss is computed at once."""


@dataclass(frozen=True)
class Measured:
    """The measurements of one model.

    Attributes:
        reading: the numbers.
        loss: loss in nats per predicted token.
        grams: for every site the Gram matrix ``(n, n)`` of the rows of the first batch, for CKA: in float32 for unit rows, in
            float64 for raw ones. Empty in other processes than the main process.
    """

    reading: Reading
    loss: float
    grams: dict[str, Tensor]


def token_metrics(sketch: int | None = None, *, rows: Which = "all", protocol: Protocol | None = None) -> tuple[Metric, ...]:
    """Return the metrics that are measured on all tokens: running covariances, which cost less than a tenth of a forward, and
    the metrics of a protocol."""
    chosen = () if rows == "all" else (RepresentationEntropy(texts=False, sketch=sketch, rows=rows),)
    return tuple(dict.fromkeys([_of_tokens(sketch), *chosen, *(() if protocol is None else protocol.metrics)]))


def sample_metrics(sketch: int | None = None, *, rows: Which = "all", protocol: Protocol | None = None) -> tuple[Metric, ...]:
    """Return the metrics that are measured on a sample, because they cost more than a forward. For a number that both groups of
    metrics have, that of all tokens is reported.

    They include those of all tokens, or metrics with the same sums, so that the sums of the sample can be continued.
    """
    expensive = (
        RepresentationEntropy(text_spectrum=True, sketch=sketch),
        RepresentationEntropy(text_spectrum=True, center="text", sketch=sketch),
        InformationGain(),
        ContextLasso(attention=True, rate=0.25),
        AttentionProfile(),
        Curvature(),
        MassiveActivations(),
    )
    more = [metric for metric in token_metrics(sketch, rows=rows, protocol=protocol) if metric != _of_tokens(sketch)]
    named = {_names(metric) for metric in more}
    return (*(metric for metric in expensive if _names(metric) not in named), *more)


def _of_tokens(sketch: int | None) -> Metric:
    return RepresentationEntropy(texts=False, sketch=sketch)


def _names(metric: Metric) -> tuple[object, ...]:
    """What two metrics have in common that have scalars of the same name."""
    options = (metric.center, metric.unit, metric.rows) if isinstance(metric, RepresentationEntropy) else ()
    return (type(metric), *options)


def measure(
    loaded: Loaded,
    sample: Sequence[Batch],
    rest: Sequence[Batch],
    *,
    sample_metrics: Sequence[Metric],
    token_metrics: Sequence[Metric],
    team: Team,
    cka_rows: Literal["unit", "raw"] = "unit",
    advance: Callable[[int], object],
) -> Measured:
    """Run every batch through the model once, with ``sample_metrics`` on the sample and ``token_metrics`` on all batches. This
    is a collective operation.

    Args:
        loaded: the model and its tokenizer.
        sample: the batches of the sample. The Gram matrices of the first one are kept.
        rest: all other batches.
        sample_metrics: metrics of the sample.
        token_metrics: metrics of all batches. The accumulators of ``sample_metrics`` include theirs, so that the sums of both
            parts can be added.
        team: the processes that share the batches.
        cka_rows: the rows of the Gram matrices: scaled to length one, or as they are.
        advance: a function that is called with the number of tokens that were read.

    Raises:
        GeomprobeError: if the model cannot be measured, or if a site has no finite row.
    """

    def run() -> tuple[Probe, Probe, Sequence[Metric], Tensor, dict[str, Tensor], list[str]]:
        decoder = find_decoder(loaded.model)
        metrics, notes = _supported(loaded, decoder, sample_metrics)
        of_all = _without_attention(token_metrics) if notes else token_metrics
        mine = team.share(sample)
        first = mine[: int(team.main)]  # the first batch of all, which belongs to the main process
        grams = _GramMatrices(raw=cka_rows == "raw")
        anchored, loss = _run(loaded, decoder, metrics, first, {}, advance, grams)
        near, more = _run(loaded, decoder, metrics, mine[len(first) :], anchored.state_dict(), advance)
        far, rest_loss = _run(loaded, decoder, of_all, team.share(rest), near.state_dict(), advance)
        return near, far, metrics, loss + more + rest_loss, grams.of(first), notes

    near, whole, metrics, loss, grams, notes = team.all_do(run)
    (of_all, remarks), (of_sample, more) = sums_of(whole, "eval"), sums_of(near, "eval")
    reading = _joined(whole.sites, metrics, of_all, of_sample, dict.fromkeys([*remarks, *more]))
    reading.notes += [*loaded.notes, *notes]
    if silent := [site for site in reading.sites if not reading.get(f"tokens/{site}")]:
        raise GeomprobeError(
            f"there is no finite row at {', '.join(silent[:2])}{' …' * (len(silent) > 2)}: the weights contain NaN or Inf, or "
            "overflow in this dtype; check the checkpoint, or try dtype float32"
        )
    total, predicted = team.sum(loss).tolist()
    return Measured(reading, total / predicted, grams)


def anchor_grams(loaded: Loaded, batch: Batch, cka_rows: Literal["unit", "raw"] = "unit") -> dict[str, Tensor]:
    """Return the Gram matrices of :class:`Measured` alone, bit for bit: ``batch`` is the first one of the sample."""
    grams = _GramMatrices(raw=cka_rows == "raw")
    _run(loaded, find_decoder(loaded.model), [], [batch], {}, lambda tokens: None, grams)
    return grams.of([batch])


def gaussian(
    width: int,
    sample: Sequence[Batch],
    rest: Sequence[Batch],
    *,
    sample_metrics: Sequence[Metric],
    token_metrics: Sequence[Metric],
    seed: int,
) -> Reading:
    """Return the reading of rows drawn from a Gaussian, of the same number and width, in texts of the same lengths. It has the
    single site ``"gaussian"``."""
    generator = torch.Generator().manual_seed(seed)
    banks = []
    for chosen, batches in ((token_metrics, [*sample, *rest]), (sample_metrics, sample)):
        metrics = _without_attention(chosen)
        accumulators = dict.fromkeys([TokenCount(), *(need for metric in metrics for need in metric.accumulators)])
        store = StateStore(tuple(accumulators), ("gaussian",))
        for batch in batches:
            with full_precision("cpu"):
                rows = torch.randn(1, *batch.ids.shape, width, generator=generator)
                store.measure("eval", slice(0, 1), Rows(rows, batch.mask.bool()))()
        banks.append(store.banks["eval"])
    return _joined(("gaussian",), metrics, *banks)


def _run(
    loaded: Loaded,
    decoder: Decoder,
    metrics: Sequence[Metric],
    batches: Sequence[Batch],
    before: Mapping[str, Tensor],
    advance: Callable[[int], object],
    *consumers: Consumer,
) -> tuple[Probe, Tensor]:
    """Run ``batches`` under a probe, which hands their rows to ``consumers`` too. Return the closed probe, and the sum of the
    loss over predicted tokens with their number.

    The probe continues from the sums ``before`` of another probe, of which it takes those that its metrics need.
    """
    kept = {identity(TokenCount()), *(identity(need) for metric in metrics for need in metric.accumulators)}
    loss = torch.zeros(2, dtype=torch.float64)
    probe = Probe(loaded.model, metrics, decoder=decoder, on_error="raise")
    for consumer in consumers:
        add_consumer(probe, consumer)
    with probe:
        probe.load_state_dict({name: value for name, value in before.items() if Key.parse(name).accumulator in kept})
        for batch in batches:
            loss += _forward(loaded, batch)
            advance(batch.tokens)
    return probe, loss


@torch.inference_mode()
def _forward(loaded: Loaded, batch: Batch) -> Tensor:
    """Run a batch through the model, and return the sum of the loss over predicted tokens with their number.

    The loss is computed in chunks of rows. For all rows at once, the logarithms are as large as the logits (400 MB for 2048
    tokens and a vocabulary of 49,152), and it took four times as long.
    """
    ids, mask = batch.ids.to(loaded.model.device), batch.mask.to(loaded.model.device)
    logits = loaded.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    losses, predicted = [], 0
    for rows, text, there in zip(logits, batch.ids, batch.mask.bool(), strict=True):
        following = text[1:][there[1:]].to(logits.device)  # padding is on the right, so the tokens come first
        predicted += len(following)
        for part, expected in zip(rows[: len(following)].split(_ROWS), following.split(_ROWS), strict=True):
            losses.append(cross_entropy(part.float(), expected, reduction="sum"))
    return torch.tensor([float(torch.stack(losses).double().sum()), predicted], dtype=torch.float64)


def _joined(sites: Sequence[str], metrics: Sequence[Metric], whole: Bank, sample: Bank, notes: Iterable[str] = ()) -> Reading:
    """The numbers of the metrics of a sample, from the sums over all tokens where there are any, and else from those over the
    sample, with the size of the sample as ``sample_tokens``. Eigenvalues of a sum that both have are computed once."""
    bank = {site: sample[site] | states for site, states in whole.items()}
    reading = compute_reading("eval", sites, metrics, bank, notes)
    counts = {f"sample_tokens/{site}": float(states[TokenCount()]["tokens"]) for site, states in sample.items()}
    return Reading(reading.mode, sites, {**reading, **counts}, reading.notes, reading.curves, reading.widths)


def _supported(loaded: Loaded, decoder: Decoder, metrics: Sequence[Metric]) -> tuple[Sequence[Metric], list[str]]:
    """``metrics`` without those of attention if the attention of the model cannot be read, and a note that says so."""
    probe = Probe(loaded.model, metrics, decoder=decoder, on_error="raise")
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


@dataclass
class _GramMatrices:
    """The Gram matrix of all rows of a forward at each site, for CKA."""

    raw: bool
    _found: dict[str, Tensor] = field(default_factory=dict)

    def consume(self, mode: Mode, sites: Sequence[str], rows: Rows) -> Callable[[], object]:
        z = (rows.raw() if self.raw else rows.unit().double()).flatten(-3, -2)
        grams = z @ z.mT
        return lambda: self._found.update(zip(sites, grams, strict=True))

    def of(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """The matrices by site, without padding, if ``batches`` is the one batch that was run; empty if it is none."""
        kind = torch.float64 if self.raw else torch.float32  # in float32 massive activations would hide the rest
        tokens = [batch.mask.flatten().bool() for batch in batches]
        return {site: gram.cpu()[mask][:, mask].to(kind) for mask in tokens for site, gram in self._found.items()}
