"""RepresentationEntropy against NumPy on the rows themselves."""

import itertools
import math
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.typing import NDArray

from geomprobe import Probe, Reading
from geomprobe.accumulators.covariance import Covariance
from geomprobe.core.rows import Rows
from geomprobe.errors import GeomprobeError
from geomprobe.metrics.entropy import RepresentationEntropy
from geomprobe.metrics.information_gain import InformationGain
from tests import reference
from tests.accumulators.harness import WIDTH, packed, padded, texts
from tests.metrics.measure import curves_of, scalars_of
from tests.tiny_models import tiny, token_batch

Array = NDArray[np.float64]

STREAM = {
    "entropy",
    "entropy_nats",
    "matrix_entropy",
    "matrix_entropy_log_d",
    "matrix_entropy_log_n",
    "effective_rank",
    "rank_ratio",
    "stable_rank",
    "participation_ratio",
    "rankme",
    "rankme_left_out",
    "alpha_req",
    "alpha_req_r2",
    "alpha_req_left_out",
    "anisotropy",
}
TEXT = {"text_entropy", "text_entropy_nats"}
TEXT_SPECTRUM = {
    "text_matrix_entropy",
    "text_matrix_entropy_log_d",
    "text_matrix_entropy_log_n",
    "text_effective_rank",
    "text_rank_ratio",
}


def unit(text: Array, center: bool) -> Array:
    rows = text - text.mean(0) * center
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 1e-12))


def twin(z: Array, epsilon: float, rank: int, floor: float = reference.FLOOR) -> dict[str, float]:
    """By the definitions, from unit rows: the determinant, singular values, and the cosine of every pair."""
    (n, d), singular = z.shape, np.asarray(np.linalg.svd(z, compute_uv=False), np.float64)
    nats = (d + n) / 2 * np.linalg.slogdet(np.eye(d) + d / epsilon**2 * z.T @ z / n).logabsdet
    shares = singular[singular > 1e-9] ** 2 / np.sum(singular**2)
    entropy = -float(np.sum(shares * np.log(shares)))
    return {
        "entropy": nats / ((d + n) / 2 * d * np.log(1 + epsilon**-2)),
        "entropy_nats": nats,
        "matrix_entropy": entropy,
        "matrix_entropy_log_d": entropy / np.log(d),
        "matrix_entropy_log_n": entropy / np.log(rank) if rank > 1 else math.nan,
        "effective_rank": np.exp(entropy),
        "rank_ratio": np.exp(entropy) / d,
        "stable_rank": np.sum(singular**2) / singular[0] ** 2,
        "participation_ratio": np.sum(singular**2) ** 2 / np.sum(singular**4),
        "rankme": reference.rankme(singular**2, floor),
        **reference.left_out(np.pad(singular**2, (0, d - len(singular))), floor, rank),
        **reference.alpha_fit(np.pad(singular**2, (0, d - len(singular))), floor),
        "anisotropy": (z @ z.T)[~np.eye(n, dtype=bool)].mean() if n > 1 else math.nan,
    }


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("epsilon", [0.1, 0.5])
@pytest.mark.parametrize("lengths", [(5, 12, 3, 8, 2), (3, 2), (4,)], ids=str)
def test_every_number_is_numpys(center: bool, epsilon: float, lengths: tuple[int, ...]) -> None:
    stream = texts(lengths=lengths)
    metric = RepresentationEntropy(epsilon=epsilon, center="text" if center else False, text_spectrum=True)
    prefix = "centered_" if center else ""
    actual = scalars_of(metric, padded(stream, "left"))
    units = [unit(text.numpy(), center) for text in stream]
    n = sum(lengths)
    floor = reference.EXACT_FLOOR if center else reference.FLOOR
    expected = twin(np.concatenate(units), epsilon, min(n - len(lengths) * center, WIDTH), floor)
    by_text = [twin(z, epsilon, min(len(z) - center, WIDTH)) for z in units]
    per_text = ("entropy", "entropy_nats", "matrix_entropy", "matrix_entropy_log_d", "effective_rank", "rank_ratio")
    expected |= {f"text_{name}": float(np.mean([one[name] for one in by_text])) for name in per_text}
    expected["text_matrix_entropy_log_n"] = float(np.nanmean([one["matrix_entropy_log_n"] for one in by_text]))
    assert actual.keys() == {prefix + name for name in expected}
    for name, value in expected.items():
        assert actual[prefix + name] == pytest.approx(value, rel=1e-11, abs=1e-12, nan_ok=True), name


def selected(stream: list[torch.Tensor], center: str | bool, unit: bool, rows: str) -> Array:
    """The rows of a covariance, text by text and from the definitions; a stream's mean is not subtracted yet."""
    chosen = []
    for text in (each.numpy() for each in stream):
        z = text - text.mean(0) * (center == "text")
        z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-300) if unit else z
        z = z * (np.linalg.norm(z, axis=1, keepdims=True) > 1e-9)
        chosen.append({"all": z, "last": z[-1:], "mean": z.mean(0, keepdims=True)}[rows])
    return np.concatenate(chosen)


OPTIONS = [
    (center, unit, rows)
    for center, unit, rows in itertools.product((False, "text", "stream"), (True, False), ("all", "last", "mean"))
    if (center, unit, rows) != ("text", False, "mean")
]


@pytest.mark.parametrize(("center", "unit", "rows"), OPTIONS)
@pytest.mark.parametrize("sketch", [None, WIDTH])
def test_other_rows_and_centres_are_numpys(center: Any, unit: bool, rows: Any, sketch: int | None) -> None:
    lengths = (7, 12, 5, 8, 9, 4, 11, 6, 10, 5, 4)
    stream = texts(lengths=lengths)
    metric = RepresentationEntropy(
        center=center, unit=unit, rows=rows, texts=False, alpha_range=(2, 6), sketch=sketch, clipped=sketch is None
    )
    actual = scalars_of(metric, padded(stream[:4], "left"), packed(stream[4:]))
    z = selected(stream, center, unit, rows)
    moment = z.T @ z / len(z)
    sigma = np.cov(z.T, bias=True) if center == "stream" else moment
    values = np.linalg.eigvalsh(sigma)[::-1].clip(0)
    p, q = (shares[shares > 1e-12] / shares.sum() for shares in (values, np.sqrt(values)))
    entropy = -(p * np.log(p)).sum()
    means = {"stream": 1, "text": len(lengths) * (rows == "all"), False: 0}[center]
    expected = {
        "matrix_entropy": entropy,
        "matrix_entropy_log_d": entropy / np.log(WIDTH),
        "matrix_entropy_log_n": entropy / np.log(min(len(z) - means, WIDTH)),
        "effective_rank": np.exp(entropy),
        "rank_ratio": np.exp(entropy) / WIDTH,
        "stable_rank": values.sum() / values[0],
        "participation_ratio": values.sum() ** 2 / (values**2).sum(),
        "rankme": np.exp(-(q * np.log(q)).sum()),
        "rankme_left_out": 0,
        **reference.alpha_fit(values, reference.EXACT_FLOOR, 2, 6),
    }
    if sketch is None:
        clipped = np.linalg.eigvalsh(sigma.clip(0)).clip(0)
        expected["clipped_matrix_entropy"] = float(scipy.stats.entropy(clipped))
    else:
        expected["sketch_residual"] = 0
    if unit and rows != "mean":
        nats = (WIDTH + len(z)) / 2 * np.linalg.slogdet(np.eye(WIDTH) + WIDTH / 0.01 * sigma).logabsdet
        expected |= {"entropy_nats": nats, "entropy": nats / ((WIDTH + len(z)) / 2 * WIDTH * np.log(101))}
        if center != "stream":
            expected["anisotropy"] = (z @ z.T)[~np.eye(len(z), dtype=bool)].mean()
    prefix = f"{rows}_" * (rows != "all") + "raw_" * (not unit)
    prefix += {False: "", "text": "centered_", "stream": "stream_centered_"}[center]
    assert actual.keys() == {prefix + name for name in expected}
    for name, value in expected.items():
        assert actual[prefix + name] == pytest.approx(value, rel=1e-7 if sketch else 1e-10, abs=1e-9), name


def test_the_clipped_gram_of_texts() -> None:
    stream = texts(lengths=(3, 8, 12, 1), common=0.1)
    actual = scalars_of(RepresentationEntropy(center="text", text_spectrum=True, clipped=True), padded(stream, "left"))
    entropies = []
    for text in stream:
        z = selected([text], "text", True, "all")
        gram = z @ z.T if len(z) <= WIDTH else z.T @ z
        entropies.append(float(scipy.stats.entropy(np.linalg.eigvalsh(gram.clip(0)).clip(0))) if len(z) > 1 else 0)
    assert actual["centered_clipped_text_matrix_entropy"] == pytest.approx(np.mean(entropies), rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"center": True}, "center"),
        ({"center": "mean"}, "center"),
        ({"unit": "no"}, "unit"),
        ({"rows": "first"}, "rows"),
        ({"alpha_range": (5, 5)}, "alpha_range"),
        ({"alpha_range": (0, 5)}, "alpha_range"),
        ({"alpha_range": 5}, "alpha_range"),
        ({"alpha_range": (4.0, 100)}, "alpha_range"),
        ({"sketch": 0}, "sketch"),
        ({"epsilon": "small"}, "epsilon"),
        ({"texts": True, "unit": False}, "texts"),
        ({"texts": "yes"}, "texts"),
        ({"text_spectrum": True, "rows": "last"}, "text_spectrum"),
        ({"text_spectrum": True, "texts": False}, "text_spectrum"),
        ({"text_spectrum": 1}, "text_spectrum"),
        ({"clipped": True, "sketch": 4}, "clipped"),
        ({"center": "text", "unit": False, "rows": "mean"}, "center"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(arguments: dict[str, Any], what: str) -> None:
    with pytest.raises(GeomprobeError, match=rf"RepresentationEntropy\({what}="):
        RepresentationEntropy(**arguments)


def test_names_are_the_designs() -> None:
    rows = padded(texts(), "right")
    assert scalars_of(RepresentationEntropy(), rows).keys() == STREAM | TEXT
    assert scalars_of(RepresentationEntropy(text_spectrum=True), rows).keys() == STREAM | TEXT | TEXT_SPECTRUM
    centered = scalars_of(RepresentationEntropy(center="text", text_spectrum=True), rows)
    assert centered.keys() == {f"centered_{name}" for name in STREAM | TEXT | TEXT_SPECTRUM}
    assert curves_of(RepresentationEntropy(), rows) == {}


def test_without_texts_there_are_the_numbers_of_the_stream_alone() -> None:
    rows, bare = padded(texts(), "left"), RepresentationEntropy(texts=False)
    assert bare.accumulators == (Covariance(),)
    whole = scalars_of(RepresentationEntropy(), rows)
    assert scalars_of(bare, rows) == {name: whole[name] for name in STREAM}


def test_defaults_are_the_papers() -> None:
    assert RepresentationEntropy() == RepresentationEntropy(epsilon=0.1, center=False, text_spectrum=False)


def test_one_text_is_its_own_stream() -> None:
    numbers = scalars_of(RepresentationEntropy(text_spectrum=True), Rows(texts()[2].unsqueeze(0)))
    for name in TEXT | TEXT_SPECTRUM:
        assert numbers[name] == pytest.approx(numbers[name.removeprefix("text_")], rel=1e-12), name


def test_rows_along_the_axes_reach_the_maximum() -> None:
    numbers = scalars_of(RepresentationEntropy(text_spectrum=True), Rows(3 * torch.eye(WIDTH).unsqueeze(0)))
    for name in ("entropy", "matrix_entropy_log_d", "matrix_entropy_log_n", "rank_ratio", "text_entropy", "text_rank_ratio"):
        assert numbers[name] == pytest.approx(1, rel=1e-12), name
    for name in ("effective_rank", "stable_rank", "participation_ratio", "rankme", "text_effective_rank"):
        assert numbers[name] == pytest.approx(WIDTH, rel=1e-12), name
    assert numbers["anisotropy"] == 0
    assert numbers["alpha_req"] == pytest.approx(0, abs=1e-12)


def test_one_row() -> None:
    """Undefined numbers are NaN, and only they."""
    numbers = scalars_of(RepresentationEntropy(text_spectrum=True), Rows(texts()[1].unsqueeze(0)))
    undefined = {"matrix_entropy_log_n", "text_matrix_entropy_log_n", "anisotropy", "alpha_req", "alpha_req_r2"}
    assert {name for name, value in numbers.items() if math.isnan(value)} == undefined
    assert numbers["effective_rank"] == pytest.approx(1, rel=1e-14)
    assert numbers["stable_rank"] == pytest.approx(1, rel=1e-14)
    assert numbers["rankme"] == 1


def test_one_centred_row_has_no_direction() -> None:
    numbers = scalars_of(RepresentationEntropy(center="text", text_spectrum=True), Rows(texts()[1].unsqueeze(0)))
    assert numbers["centered_entropy"] == numbers["centered_entropy_nats"] == numbers["centered_text_entropy"] == 0
    for name in ("matrix_entropy", "effective_rank", "stable_rank", "rankme", "alpha_req", "anisotropy"):
        assert math.isnan(numbers[f"centered_{name}"]), name


@pytest.mark.parametrize("text_spectrum", [False, True])
def test_width_one(text_spectrum: bool) -> None:
    numbers = scalars_of(RepresentationEntropy(text_spectrum=text_spectrum), Rows(torch.tensor([[[2.0], [-3.0]]])))
    assert numbers["entropy"] == pytest.approx(1, rel=1e-12)
    assert math.isnan(numbers["matrix_entropy_log_d"])


@pytest.mark.parametrize("epsilon", [0, -0.1, math.nan, math.inf, 1e-6, 1e4])
def test_bad_epsilon(epsilon: float) -> None:
    with pytest.raises(GeomprobeError, match=r"epsilon=.*expected a number"):
        RepresentationEntropy(epsilon=epsilon)


@pytest.mark.parametrize("epsilon", [1e-5, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_entropy_stays_a_share_at_the_ends_of_epsilon(epsilon: float, dtype: torch.dtype) -> None:
    stream = [text.to(dtype) for text in texts()]
    for rows in (padded(stream, "left"), Rows(stream[0][:1].expand(1, 50, WIDTH))):
        numbers = scalars_of(RepresentationEntropy(epsilon=epsilon), rows)
        for name in ("entropy", "text_entropy"):
            assert 0 < numbers[name] <= 1 + 1e-6, name


def test_equal_accumulators_are_shared() -> None:
    plain, other, centered = RepresentationEntropy(), RepresentationEntropy(epsilon=0.2), RepresentationEntropy(center="text")
    assert plain == RepresentationEntropy()
    assert hash(plain) == hash(RepresentationEntropy())
    assert set(plain.accumulators) & set(other.accumulators) == {Covariance()}
    assert set(RepresentationEntropy(epsilon=0.01).accumulators) & set(InformationGain(stream=True).accumulators) == {
        Covariance(exact=True)
    }
    assert not set(plain.accumulators) & set(centered.accumulators)
    assert len({*plain.accumulators, *other.accumulators, *centered.accumulators, *InformationGain().accumulators}) == 6


@pytest.mark.parametrize(("center", "unit", "rows"), [(False, True, "all"), ("text", True, "all"), ("stream", False, "mean")])
@pytest.mark.parametrize("sketch", [None, WIDTH])
def test_the_spectrum_is_numpys(center: Any, unit: bool, rows: Any, sketch: int | None) -> None:
    stream = texts()
    metric = RepresentationEntropy(center=center, unit=unit, rows=rows, spectrum=True, sketch=sketch)
    (curve,) = curves_of(metric, padded(stream, "left")).values()
    z = selected(stream, center, unit, rows)
    z = z - z.mean(0) * (center == "stream")
    expected = np.linalg.eigvalsh(z.T @ z / len(z))[::-1]
    assert curve.mean == pytest.approx(expected.tolist(), abs=2e-6 * expected[0])
    assert curve.count == (len(z),) * WIDTH
    assert curves_of(RepresentationEntropy(), padded(stream, "left")) == {}


def test_the_spectrum_costs_no_second_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Mock(wraps=torch.linalg.eigvalsh)
    monkeypatch.setattr(torch.linalg, "eigvalsh", counted)
    with Probe(model := tiny().eval(), [RepresentationEntropy(spectrum=True)], sites=["final_norm"]) as probe:
        model(token_batch())
    reading = probe.read()
    assert counted.call_count == 1
    assert sum(reading.curve("spectrum", "final_norm").mean) == pytest.approx(1)
    assert Reading.from_json(reading.to_json()) == reading
