"""The accumulator harness: streams of texts, and the list of accumulators that ``tests/accumulators/test_harness.py`` runs.

To have a new accumulator proved, add a line to :data:`CASES`. ``readings`` turns its state into numbers that no rotation of the
rows changes (the state itself, unless it keeps directions); ``bounds`` gives chains of numbers that must not decrease.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from geomprobe.accumulators.activations import ActivationSum
from geomprobe.accumulators.attention import AttentionSum
from geomprobe.accumulators.context_lasso import ContextLassoSum
from geomprobe.accumulators.covariance import Covariance, Which, eigenvalues, mean_cosine, outer, rounding
from geomprobe.accumulators.covariance_sketch import CovarianceSketch
from geomprobe.accumulators.curvature import CurvatureSum
from geomprobe.accumulators.information_gain import InformationGainSum
from geomprobe.accumulators.mean_row import MeanRowSum
from geomprobe.accumulators.residual_growth import ResidualGrowthSum
from geomprobe.accumulators.routing import RoutingSum
from geomprobe.accumulators.state import Accumulator, ReadsAttention, ReadsRouting, State, TokenCount, add, pad_to
from geomprobe.accumulators.text_entropy import TextEntropySum
from geomprobe.core import spectrum
from geomprobe.core.attention_summary import PICKED, AttentionRows
from geomprobe.core.layer_rows import RouterRows
from geomprobe.core.rows import Rows

WIDTH = 8
EXPERTS, CHOSEN = 5, 2
FIRST = 3  # tokens at the start of a text whose weights are kept
LENGTHS = (5, 1, 12, 3, 8, 2)  # of one row, fewer than, as many as, and more than WIDTH

Chain = Sequence[Tensor | float]


@dataclass(frozen=True)
class Case:
    """An accumulator and what is known about it.

    ``float64`` is the error, relative and absolute, that another order of the same float64 sums may make; ``float32`` the error
    of float32 rows against float64 rows of the same values, but for sums that are left ``open`` where rows are equal.
    """

    accumulator: Accumulator
    readings: Callable[[State], State] = dict
    bounds: Callable[[State], list[Chain]] = field(default=lambda state: [])
    float64: float = 1e-12
    float32: float = 1e-6
    open: tuple[str, ...] = ()

    def __str__(self) -> str:
        return repr(self.accumulator)

    def of(self, *stream: Rows, into: State | None = None) -> State:
        """The state after ``stream``."""
        state = self.accumulator.new_state(WIDTH, torch.device("cpu")) if into is None else into
        for rows in stream:
            if isinstance(self.accumulator, ReadsAttention) and rows.attention is None and rows.hidden.numel():
                rows.attention = attended(rows)
            if isinstance(self.accumulator, ReadsRouting) and rows.routing is None and rows.hidden.numel():
                rows.routing = routed(rows)
            if rows.input_norms is None:
                rows.input_norms = rows.norms.square() + 1
            add(state, self.accumulator.contribution(rows))
        return state

    def one_by_one(self, texts: Iterable[Tensor]) -> State:
        """The state after texts ``(length, WIDTH)``, each in a forward of its own."""
        return self.of(*(Rows(text.unsqueeze(0)) for text in texts))


def covariance_readings(state: State) -> State:
    """The sums of ``Covariance`` that have no direction, and the readings of those that do."""
    directionless = {name: state[name] for name in ("n", "texts", "norm", "norm_sq")}
    return directionless | {"eigenvalues": eigenvalues(state), "length": state["sum"].norm(), "cosine": mean_cosine(state)}


def covariance_bounds(state: State) -> list[Chain]:
    n, values = state["n"], eigenvalues(state)
    chains: list[Chain] = [
        (0, state["texts"], n),
        (0, outer(state).trace(), n),
        (state["norm"].square(), n * state["norm_sq"]),
    ]
    if values.sum() > 0:
        ranks = spectrum.stable_rank(values), spectrum.participation_ratio(values), spectrum.effective_rank(values)
        chains.append((1, *ranks, spectrum.rankme(values, rounding(exact=False)), min(float(n), WIDTH)))
    if n > 1:
        chains.append((-1 / (float(n) - 1), mean_cosine(state), 1))
    return chains


def any_rows_readings(state: State) -> State:
    """The sums that have no direction, the length of Σz, and the spectrum where it is known."""
    directionless = {name: state[name] for name in ("n", "texts", "norm", "norm_sq", "trace") if name in state}
    return directionless | {"length": state["sum"].norm()} | ({} if "trace" in state else {"eigenvalues": eigenvalues(state)})


def any_rows_bounds(state: State) -> list[Chain]:
    """Of rows that need not have length one: the Cauchy-Schwarz inequality, for Σz and for the spectrum."""
    n, trace = state["n"], state["trace"] if "trace" in state else outer(state).trace()
    chains: list[Chain] = [(0, state["texts"], n), (0, trace), (state["sum"].square().sum(), n * trace)]
    if "trace" not in state and trace > 0:
        values = eigenvalues(state).clamp_min(0)
        ranks = spectrum.stable_rank(values), spectrum.participation_ratio(values), spectrum.effective_rank(values)
        chains.append((1, *ranks, spectrum.rankme(values, rounding(exact=True)), min(float(n), WIDTH)))
    return chains


def sketch_readings(state: State) -> State:
    """The sums of ``CovarianceSketch`` that have no direction."""
    return {name: state[name] for name in ("n", "texts", "norm", "norm_sq", "trace")}


def sketch_bounds(state: State) -> list[Chain]:
    return [
        (0, state["texts"], state["n"]),
        (0, state["trace"], state["n"]),
        (state["norm"].square(), state["n"] * state["norm_sq"]),
    ]


def entropy_bounds(state: State) -> list[Chain]:
    texts = state["texts"]
    chains: list[Chain] = [(0, state["entropy"], texts), (0, state["entropy_nats"])]
    if "effective_rank" in state:
        chains += [(0, state["matrix_entropy"], texts * math.log(WIDTH)), (texts, state["effective_rank"], texts * WIDTH)]
        chains += [(0, state["matrix_entropy_log_n"], state["log_n_texts"], texts)]
    return chains


def unclipped(state: State) -> State:
    """Without what clips entries of a d×d matrix, which depend on the axes."""
    return {name: value for name, value in state.items() if name != "clipped_matrix_entropy"}


def gain_case(sigma: float) -> Case:
    def bounds(state: State) -> list[Chain]:
        most = math.log1p(sigma**-2) / 2
        chains: list[Chain] = [(0, state["failed"], 0), (state["total"].square(), state["texts"] * state["total_sq"])]
        chains += [(state["total"], state["gain"].sum(), state["total"])]
        for gain, squared, variance, count in zip(*(state[k] for k in ("gain", "gain_sq", "variance", "count")), strict=True):
            chains += [(0, gain, count * most), (0, squared, gain * most), (0, variance, count, state["texts"])]
            chains += [(gain.square(), count * squared)]
        return chains

    # Rounding of K is multiplied by σ⁻².
    return Case(InformationGainSum(sigma=sigma), bounds=bounds, float64=1e-12 + 1e-15 * sigma**-2)


def context_bounds(state: State) -> list[Chain]:
    targets = state["targets"]
    chains: list[Chain] = [(0, state["unsolved"], 0), (0, state["picks"], state["nonzero"]), (0, state["r2"], targets)]
    chains += [(0, state["first"], state["weighted"], targets)]
    chains += [(0, reach, targets) for reach in state["reach"]]
    return chains


def compared_bounds(state: State) -> list[Chain]:
    attended = state["attended"]
    chains: list[Chain] = [(0, attended, state["targets"]), (state["eq5_r2"], attended), (0, state["rank_count"], attended)]
    chains += [(0, state[name], state[f"{name}_count"], attended) for name in ("jaccard", "precision", "chance")]
    chains += [(-state["rank_count"], state["rank"], state["rank_count"])]
    chains += [(0, weight, attended) for weight in state["attention_weight"]]
    return [*context_bounds(state), *chains]


def attention_bounds(state: State) -> list[Chain]:
    targets, longest = state["targets"], len(state["count"])
    chains: list[Chain] = [(0, state["entropy"], targets * math.log(max(1, longest))), (0, state["first"], targets)]
    chains += [(0, entropy, state["targets"]) for entropy in (state["normalised"], *state["head_normalised"])]
    chains += [(0, state["distance"], targets * max(0, longest - 1)), (0, state["picks"], targets * longest)]
    chains += [(targets - 1e-6, state["octaves"].sum(), targets + 1e-6)] if len(state["octaves"]) else [(0, targets, 0)]
    chains += [
        (0, entropy, count * math.log(t + 1))
        for t, (entropy, count) in enumerate(zip(state["entropy_at"], state["count"], strict=True))
    ]
    return chains


def logit_bounds(state: State) -> list[Chain]:
    """Of the cosines of unit rows and of −3 times these, with the row itself among them."""
    return [*attention_bounds(state), *((-3 * state["targets"], top, 3 * state["targets"]) for top in state["head_top"])]


def sink_bounds(state: State) -> list[Chain]:
    chains = attention_bounds(state)
    chains += [(0, later, earlier) for earlier, later in itertools.pairwise(state["sink_texts"])]
    return chains + [
        (0, sinks, texts) for head in state["head_sinks"] for sinks, texts in zip(head, state["sink_texts"], strict=True)
    ]


def curvature_bounds(state: State) -> list[Chain]:
    chains: list[Chain] = [(0, state["still"])]
    for angle, squared, count in zip(*(state[k] for k in ("angle", "angle_sq", "count")), strict=True):
        chains += [(0, angle, count * math.pi), (angle.square(), count * squared), (squared, math.pi * angle)]
    return chains


def mean_bounds(state: State) -> list[Chain]:
    return [(0, state["sum"].norm(), state["n"])]


def growth_bounds(state: State) -> list[Chain]:
    """Of a layer that makes rows at least twice as short: ‖h‖ / (‖h‖² + 1) is at most ½."""
    return [(0, state["rows"]), (0, state["zero"]), (state["growth"], -state["rows"] * math.log(2))]


def activation_bounds(state: State) -> list[Chain]:
    half = max(LENGTHS) * WIDTH / 2  # of a text's numbers are at most the median
    chains: list[Chain] = [(0, state["median"], state["max"]), (0, state["massive"], half * state["texts"])]
    return [*chains, (0, state["ratio_texts"], state["ratio"]), (state["ratio_texts"], state["texts"])]


def routing_bounds(state: State) -> list[Chain]:
    routed, experts = state["routed"], len(state["load"])
    chains: list[Chain] = [(0, load, routed) for load in state["load"]]
    chains += [(CHOSEN * routed, state["load"].sum(), CHOSEN * routed)]
    chains += [(0, entropy, routed * math.log(max(1, experts)) + 1e-6) for entropy in state["entropy"]]
    chains += [(0, p, routed + 1e-6) for way in state["probability"] for p in way]
    return [*chains, (0, state["misfit"][1], 1e-5 * routed), *((0, misfit) for misfit in state["misfit"])]


_SHARED = ("first", "weight")
WHICH: tuple[Which, ...] = ("all", "last", "mean")

CASES = (
    Case(ActivationSum(), lambda state: {"texts": state["texts"]}, activation_bounds),  # every other number is by coordinate
    Case(MeanRowSum(), lambda state: {"n": state["n"], "length": state["sum"].norm()}, mean_bounds),
    Case(ResidualGrowthSum(), bounds=growth_bounds),
    Case(CurvatureSum(), bounds=curvature_bounds),
    Case(AttentionSum(), bounds=attention_bounds, float32=1e-4),
    Case(AttentionSum(logits=True), bounds=logit_bounds, float32=1e-4),
    Case(AttentionSum(sink_tokens=FIRST, sink_threshold=0.25), bounds=sink_bounds, float32=1e-4),
    Case(RoutingSum(), lambda state: {"routed": state["routed"]}, routing_bounds, float32=1e-5),  # the others are by coordinate
    # How weight is shared between equal rows, the objective leaves open: rounding decides.
    Case(ContextLassoSum(penalty=0.01, compare=True), bounds=compared_bounds, float64=1e-6, float32=1e-5, open=_SHARED),
    Case(ContextLassoSum(penalty=0.01), bounds=context_bounds, float64=1e-6, float32=1e-5, open=_SHARED),
    Case(ContextLassoSum(penalty=0.05, convention="literal"), bounds=context_bounds, float64=1e-6, float32=1e-5, open=_SHARED),
    Case(TokenCount(), bounds=lambda state: [(0, state["texts"], state["tokens"])], float32=0),
    Case(Covariance(), covariance_readings, covariance_bounds),
    Case(Covariance(exact=True), covariance_readings, covariance_bounds),
    Case(Covariance(center=True), covariance_readings, covariance_bounds),
    *(
        Case(Covariance(center=center, exact=True, unit=unit, rows=rows), any_rows_readings, any_rows_bounds)
        for center, unit, rows in itertools.product((False, True), (False, True), WHICH)
        if not (unit and rows == "all") and not (center and not unit and rows == "mean")
    ),
    Case(CovarianceSketch(rank=3), sketch_readings, sketch_bounds),
    Case(CovarianceSketch(rank=3, unit=False, rows="last"), any_rows_readings, any_rows_bounds),
    Case(CovarianceSketch(rank=WIDTH, center=True, seed=1), sketch_readings, sketch_bounds),
    Case(TextEntropySum(), bounds=entropy_bounds),
    Case(TextEntropySum(epsilon=1e-3, spectrum=True), bounds=entropy_bounds, float64=1e-11),  # rounding of K times d/ε²
    Case(TextEntropySum(center=True, spectrum=True), bounds=entropy_bounds),
    Case(TextEntropySum(center=True, spectrum=True, clipped=True), unclipped, entropy_bounds),
    gain_case(sigma=0.01),
    gain_case(sigma=1.0),
    gain_case(sigma=1e-4),
)


def texts(seed: int = 0, lengths: Sequence[int] = LENGTHS, *, common: float = 1.0) -> list[Tensor]:
    """Float64 texts ``(length, WIDTH)`` of Gaussian rows around a ``common`` direction, as hidden states have one."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(n + 1, WIDTH, generator=generator, dtype=torch.float64) for n in lengths]
    return [3 * draw[1:] + 3 * common * draws[0][0] for draw in draws]


def padded(texts: Sequence[Tensor], side: str, length: int | None = None) -> Rows:
    """``texts`` as one batch, padded on the ``"left"``, the ``"right"`` or in ``"mixed"`` places with large numbers."""
    length = length or max(len(text) for text in texts) + 2
    generator = torch.Generator().manual_seed(1)
    hidden = texts[0].new_full((len(texts), length, WIDTH), 1e4)
    mask = torch.zeros(len(texts), length, dtype=torch.bool)
    for i, text in enumerate(texts):
        free = torch.randperm(length, generator=generator)[: len(text)].sort().values
        places = {"left": torch.arange(length - len(text), length), "right": torch.arange(len(text)), "mixed": free}[side]
        mask[i, places] = True
        hidden[i, places] = text
    return Rows(hidden, mask)


def packed(texts: Sequence[Tensor], seed: int = 0) -> Rows:
    """``texts`` as two batch rows, each holding half of them, their rows shuffled into one another, with padding between."""
    generator = torch.Generator().manual_seed(seed)
    half = max(sum(map(len, texts[0::2])), sum(map(len, texts[1::2]))) + 3
    hidden, text, position = (
        torch.full((2, half, WIDTH), 1e4).double(),
        torch.zeros(2, half).long(),
        torch.zeros(2, half).long(),
    )
    mask = torch.zeros(2, half, dtype=torch.bool)
    for i in range(2):
        owner = torch.cat([torch.full((len(rows),), 2 * j + i) for j, rows in enumerate(texts[i::2])])
        places = torch.randperm(half, generator=generator)[: len(owner)].sort().values
        owner = owner[torch.randperm(len(owner), generator=generator)]
        for j in sorted(set(owner.tolist())):
            mine = places[owner == j]
            hidden[i, mine], text[i, mine], position[i, mine], mask[i, mine] = texts[j], j, torch.arange(len(mine)), True
    return Rows(hidden, mask, text=text, position=position, texts=len(texts) + 1)


def attended(rows: Rows) -> AttentionRows:
    """What two heads attend to that ask with unit rows for unit rows, written out from the definitions."""
    unit, back = rows.unit().double(), rows.position.unsqueeze(-1) - rows.position.unsqueeze(-2)
    sees = (rows.text.unsqueeze(-1) == rows.text.unsqueeze(-2)) & (back >= 0) & rows.valid.unsqueeze(-2)
    scores = torch.stack([unit @ unit.mT, -3 * (unit @ unit.mT)], 1).masked_fill(~sees.unsqueeze(1), -1e30)
    weights = scores.softmax(-1)
    mean = weights.mean(1)
    begins = torch.stack([(rows.position == k).unsqueeze(-2) & sees for k in range(FIRST)], 1)
    octave = torch.where(back > 0, back.clamp_min(1).double().log2().floor().long() + 1, 0)
    return AttentionRows(
        entropy=torch.special.entr(weights).sum(-1),
        first=(weights.unsqueeze(2) * begins.unsqueeze(1)).sum(-1),
        distance=(weights * back.unsqueeze(1)).sum(-1),
        picks=(mean > PICKED).sum(-1).double(),
        octaves=torch.stack([(mean * (octave == k)).sum(-1) for k in range(1 + int(octave.max()))], -1),
        mean=mean,
        top=scores.amax(-1),
    )


def routed(rows: Rows) -> RouterRows:
    """Two of five experts for each row: those with the largest coordinates, weighted by softmax."""
    logits = rows.hidden[..., :EXPERTS]
    largest = logits.topk(CHOSEN, -1)
    return RouterRows(logits, largest.indices, largest.values.softmax(-1))


def assert_same(actual: State, expected: State, tolerance: float = 0) -> None:
    """Equal names, float64, and equal values; a curve may be longer than the other by zeros."""
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        shape = torch.Size(map(max, zip(value.shape, expected[name].shape, strict=True)))
        assert value.dtype == expected[name].dtype == torch.float64, name
        torch.testing.assert_close(
            pad_to(value, shape),
            pad_to(expected[name], shape),
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=f"{{}}: {name}".format,
        )
