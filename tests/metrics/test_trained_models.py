"""The probe on trained models and real text, against float64 NumPy on ``output_hidden_states``: every site, every token."""

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sklearn.linear_model import Lasso
from torch import Tensor

from geomprobe import InformationGain, Metric, Probe, Reading, RepresentationEntropy
from geomprobe.core.lasso import sklearn_penalty, solve_lasso
from geomprobe.core.precision import PRECISIONS
from geomprobe.core.rows import Rows
from geomprobe.core.similarity import effective_rank_difference
from geomprobe.models.loading import load, tokenize
from tests import reference
from tests.tiny_models import padded, prose

pytestmark = pytest.mark.slow  # it reads trained models

LENGTHS = (256, 61, 180, 7, 128, 33)
ENTROPIES: tuple[Metric, ...] = (
    RepresentationEntropy(text_spectrum=True),
    RepresentationEntropy(text_spectrum=True, center="text"),
)
RELATIVE = 1e-4  # entropies
NOISE = 2.0**-26  # share of the largest eigenvalue by which float32 products may move the smallest: three times what was seen
ABSOLUTE = ("centered_anisotropy", "rankme_left_out", "alpha_req_left_out")  # these are 0 but for rounding
NATS = 1e-3  # information gain, every token
SPLIT_NATS, SPLIT_RELATIVE = 2e-6, 1e-5  # the same, and entropies, from float32 parts
STREAM = 1e-6  # the whole stream's information gain, relative


@dataclass
class Case:
    """A trained model, six texts as token ids, and by text and site what NumPy makes of their hidden states."""

    model: Any
    texts: list[Tensor]
    hidden: list[dict[str, reference.Array]]

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.hidden[0])

    def run(self, text: Tensor) -> None:
        with torch.no_grad():
            self.model(input_ids=text.unsqueeze(0))

    def unit_rows(self, site: str, center: bool) -> list[reference.Array]:
        return [reference.unit(hidden[site][0], center) for hidden in self.hidden]

    @cached_property
    def entropies(self) -> dict[str, float]:
        """Every entropy by ``metric/site``."""
        expected: dict[str, float] = {}
        for site in self.sites:
            for prefix, center in (("", False), ("centered_", True)):
                rows, floor = self.unit_rows(site, center), reference.EXACT_FLOOR if center else reference.FLOOR
                stream = reference.entropies(np.concatenate(rows), missing=center * len(rows), floor=floor)
                values = stream | reference.text_entropies(rows, missing=center)
                expected |= {f"{prefix}{name}/{site}": value for name, value in values.items()}
        assert len(expected) == 44 * len(self.sites)
        return expected

    @cached_property
    def rounded(self) -> dict[str, float]:
        """How far noise on the eigenvalues moves what weighs the smallest as much as the largest: relative, four deviations.

        A fit of logarithms to a spectrum that falls to the floor has no more digits, however exact its arithmetic.
        """
        moved: dict[str, float] = {}
        generator = np.random.default_rng(0)
        for site in self.sites:
            for prefix, center in (("", False), ("centered_", True)):
                values = reference.spectrum(np.concatenate(self.unit_rows(site, center)))
                # Products of centred rows are exact, so their noise is that of rows in float32.
                share, floor = (NOISE**2, reference.EXACT_FLOOR) if center else (NOISE, reference.FLOOR)
                noise = share * values.max() * generator.standard_normal((16, len(values)))
                for name, function in (("rankme", reference.rankme), ("alpha_req", reference.alpha_req)):
                    numbers = [function(np.abs(values + one), floor) for one in noise]
                    moved[f"{prefix}{name}/{site}"] = 4 * float(np.std(numbers)) / abs(function(values, floor))
        return moved

    def tolerance(self, key: str) -> float:
        """Relative, of an entropy by ``metric/site``."""
        return max(RELATIVE, self.rounded.get(key, 0))

    def check_entropies(self, reading: Reading) -> float:
        """Hold a reading to the expected entropies; the worst relative error."""
        errors: dict[str, float] = {
            key: abs(reading[key] - value) / (1 if key.partition("/")[0].endswith(ABSOLUTE) else abs(value))
            for key, value in self.entropies.items()
        }
        assert {key: error for key, error in errors.items() if not error <= self.tolerance(key)} == {}
        return max(errors.values())


@pytest.fixture(scope="module", params=["smollm2_model", "stories_model", "demo_model"])
def case(request: pytest.FixtureRequest) -> Case:
    directory: Path = request.getfixturevalue(request.param)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    if (directory / "tokenizer.json").is_file():
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        whole = [torch.tensor(tokenizer(text)["input_ids"]) for text in request.getfixturevalue("rlhf_texts")]
    else:  # byte-level: English of the kind it was trained on, from a part it was not
        whole = [torch.tensor(list(prose(300, 250_000 + 1000 * i).encode())) for i in range(len(LENGTHS))]
    texts = [text[:length] for text, length in zip(whole, LENGTHS, strict=True)]
    assert tuple(map(len, texts)) == LENGTHS
    return Case(model, texts, [reference.hidden_states(model, {"input_ids": text.unsqueeze(0)}) for text in texts])


@pytest.fixture(scope="module")
def one_by_one(case: Case) -> Reading:
    """All texts through one probe, each alone."""
    with Probe(case.model, [*ENTROPIES, InformationGain(stream=True)], on_error="raise") as probe:
        for text in case.texts:
            case.run(text)
    return probe.read()


def test_entropies_agree_with_float64_at_every_site(case: Case, one_by_one: Reading) -> None:
    assert one_by_one.sites == case.sites
    assert [one_by_one[f"tokens/{site}"] for site in case.sites] == [sum(LENGTHS)] * len(case.sites)
    print("worst relative error of an entropy:", case.check_entropies(one_by_one))
    for site in case.sites:
        stream = np.concatenate([reference.unit(hidden[site][0]) for hidden in case.hidden])
        expected = np.linalg.slogdet(np.eye(stream.shape[1]) + 1e4 * stream.T @ stream)[1] / 2
        assert one_by_one[f"stream_information_gain/{site}"] == pytest.approx(expected, rel=STREAM), site


def test_every_token_gain_agrees_with_float64_at_every_site(case: Case) -> None:
    worst = 0.0
    with Probe(case.model, [InformationGain(stream=True)], on_error="raise") as probe:
        for text, hidden in zip(case.texts, case.hidden, strict=True):
            case.run(text)
            reading = probe.read(reset=True)
            for site in case.sites:
                expected = reference.gains(reference.unit(hidden[site][0]))
                curve = reading.curve("gain", site)
                assert curve.count == (1,) * len(text)
                errors = np.abs(np.array(curve.mean) - expected)
                worst = max(worst, float(errors.max()))
                assert errors.max() <= NATS, f"{site}, text of {len(text)} tokens"
                assert reading[f"information_gain/{site}"] == pytest.approx(expected.sum(), rel=RELATIVE)
                assert reading[f"gain_per_token/{site}"] == pytest.approx(expected.mean(), rel=RELATIVE)
    print("worst error of a token's gain in nats:", worst)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_split_products_are_as_good_as_float64(case: Case, dtype: torch.dtype) -> None:
    model = case.model if dtype == torch.float32 else copy.deepcopy(case.model).to(dtype)
    texts = [case.texts[0], case.texts[1][:1].expand(100), case.texts[1][:3].repeat(50)]  # the others are constant and repeated
    worst = 0.0
    for text in texts:
        batch = {"input_ids": text.unsqueeze(0)}
        readings = []
        for kind in PRECISIONS[1:]:
            with torch.no_grad(), Probe(model, precision=kind, on_error="raise") as probe:
                model(**batch)
            readings.append(probe.read())
        exact, split = readings
        for site, hidden in reference.hidden_states(model, batch).items():
            errors = np.abs(np.array(split.curve("gain", site).mean) - reference.gains(reference.unit(hidden[0])))
            worst = max(worst, float(errors.max()))
            assert errors.max() <= SPLIT_NATS, f"{site}, {dtype}"
        for key in exact:
            if "entropy" in key:
                assert split[key] == pytest.approx(exact[key], rel=SPLIT_RELATIVE), key
    print("worst error of a token's gain in nats, split:", worst)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_gives_the_numbers_of_the_texts_one_by_one(case: Case, one_by_one: Reading, side: str) -> None:
    with Probe(case.model, [*ENTROPIES, InformationGain(stream=True)], on_error="raise") as probe, torch.no_grad():
        case.model(**padded(case.texts, side))
    batched = probe.read()
    assert set(batched) == set(one_by_one)
    for key in one_by_one:
        near_zero = key.partition("/")[0].endswith(ABSOLUTE)
        assert batched[key] == pytest.approx(one_by_one[key], rel=case.tolerance(key), abs=RELATIVE if near_zero else None), key
    case.check_entropies(batched)
    for site in case.sites:
        for name in ("gain", "posterior_variance"):
            expected, curve = one_by_one.curve(name, site), batched.curve(name, site)
            assert curve.count == expected.count
            assert np.abs(np.subtract(curve.mean, expected.mean)).max() <= NATS, f"{name}/{site}"
        spread, expected_spread = (reading.curve("gain", site).std for reading in (batched, one_by_one))
        assert spread == pytest.approx(expected_spread, abs=NATS)


@pytest.mark.parametrize("name", ["smollm2_model", "stories_model"])
def test_effective_rank_and_its_difference_are_the_published_ones(
    name: str, rlhf_texts: list[str], request: pytest.FixtureRequest
) -> None:
    """Wei et al. 2024 on ``last_hidden_state``: less the mean of the text, unit rows, ``ZᵀZ/N``, natural log, e^mean of H."""
    directory: Path = request.getfixturevalue(name)
    trained = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    torch.manual_seed(0)
    untrained = transformers.AutoModelForCausalLM.from_config(trained.config).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    texts = [torch.tensor([tokenizer(text)["input_ids"][:256]]) for text in rlhf_texts]
    for prefix, center in (("", False), ("centered_", True)):
        measured, expected = [], []
        for model in (untrained, trained):
            metric = RepresentationEntropy(center="text" if center else False, text_spectrum=True)
            with torch.no_grad(), Probe(model, [metric], sites=["final_norm"], on_error="raise") as probe:
                last = [model(text, output_hidden_states=True).hidden_states[-1][0].double().numpy() for text in texts]
            measured.append(probe.read()[f"{prefix}text_matrix_entropy/final_norm"])
            shares = [np.linalg.eigvalsh((z := reference.unit(hidden, center)).T @ z / len(z)) for hidden in last]
            expected.append(float(np.mean([-(p[p > 0] * np.log(p[p > 0])).sum() for p in shares])))
        erank, erank_expected = np.exp(measured), np.exp(expected)
        print(prefix, "effective rank, untrained and trained:", erank, "relative error:", np.abs(erank / erank_expected - 1))
        assert erank == pytest.approx(erank_expected, rel=1e-6)
        difference = float(effective_rank_difference(*measured))
        assert difference == pytest.approx(erank_expected[0] - erank_expected[1], rel=1e-6)


def test_what_china_is_made_of(smollm2_model: Path) -> None:
    """Section 4.2 on another model than the paper's, with its own list; weights are scikit-learn's, run to the end."""
    sentence = (
        "Is London the capital of UK? Yes. Is Moscow the capital of Russia? Yes. Is Paris the capital of France? Yes. "
        "Is Beijing the capital of China? No"
    )
    loaded = load(str(smollm2_model))
    ids = tokenize(loaded, sentence)
    with torch.no_grad():
        hidden = loaded.model.base_model(ids, use_cache=False).last_hidden_state
    z = Rows(hidden).unit()[0].double()
    alpha, width = 1e-4, z.shape[1]
    weights = solve_lasso(z @ z.mT, sklearn_penalty(alpha, width)).coefficients
    tokens = [loaded.tokenizer.decode([token]).strip() for token in ids[0].tolist()]
    for t in (tokens.index("China"), len(tokens) - 2, len(tokens) - 1):  # [China], [?], [No]
        expected = Lasso(alpha, fit_intercept=False, tol=1e-12, max_iter=1_000_000).fit(z[:t].T.numpy(), z[t].numpy()).coef_
        np.testing.assert_allclose(weights[t, :t].numpy(), expected, atol=1e-4)
        assert ((weights[t, :t] > 0.01).numpy() == (expected > 0.01)).all()
    china = weights[tokens.index("China")]
    picks = [tokens[j] for j in china.argsort(descending=True).tolist() if china[j] > 0.01]
    assert picks == ["Russia", "France", "Beijing", "of", "capital"]
