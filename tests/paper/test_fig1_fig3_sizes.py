"""Figures 1 and 3: Wei et al.'s numbers, models of several sizes, and what is said of them."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from geomprobe import GeomprobeError, InformationGain, Probe, RepresentationEntropy
from geomprobe.models.loading import load, tokenize
from geomprobe.paper.experiment import Outcome, Request, plain, restore
from geomprobe.paper.fig1_entropy import FIG1, Figure1, OwnTrend, Trend, _trend
from geomprobe.paper.fig3_information_gain import FIG3, Figure3, Gain, Model
from geomprobe.paper.models import trained_family
from geomprobe.paper.published import PUBLISHED
from geomprobe.paper.run import run_experiment
from geomprobe.paper.token_picks import SENTENCE
from geomprobe.sweeps.dataset import read_documents, tokenize_documents
from geomprobe.theory.power_law import PowerLaw
from tests.sweeps.conftest import save_checkpoint

pytestmark = pytest.mark.slow  # it trains and sweeps

WIDTHS = (32, 48, 64, 96)


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> Request:
    folder = tmp_path_factory.mktemp("sizes")
    models = [save_checkpoint(folder / f"width-{width}", 2, width=width) for width in WIDTHS]
    (folder / "text.txt").write_text("It was the best of times, it was the worst of times. " * 60)
    return Request(out=folder / "out", models=tuple(map(str, models)), data=str(folder / "text.txt"), tokens=1000)


@pytest.fixture(scope="module")
def entropy(request_: Request) -> Outcome[Figure1]:
    return run_experiment(FIG1, request_)


@pytest.fixture(scope="module")
def gain(request_: Request, entropy: Outcome[Figure1]) -> Outcome[Figure3]:
    return run_experiment(FIG3, request_)


def test_published_numbers_are_those_of_the_design() -> None:
    """e^H = d^(H / log d) on Cerebras-GPT, dolly."""
    known = PUBLISHED["Cerebras-GPT"]
    ranks = np.power(known.widths, known.entropies["dolly-15k"])
    assert ranks.round().tolist() == [53, 59, 60, 65, 61, 67, 63]
    for family in PUBLISHED.values():
        assert len(family.names) == len(family.parameters) == len(family.widths)
        assert all(len(entropies) == len(family.names) for entropies in family.entropies.values())
        for name, size in zip(family.names, family.parameters, strict=True):
            assert float(name[:-1]) * {"M": 1e6, "B": 1e9}[name[-1]] == size


def test_figure_1_is_equation_1_of_those_ranks(entropy: Outcome[Figure1]) -> None:
    trends = entropy.numbers.published
    assert len(trends) == 8
    trend = trends["Pythia, wikipedia"]
    r = np.array(trend.ranks) / np.array(trend.widths)
    expected = r * np.log(1 + 100 / r) / math.log(101)
    assert trend.entropy == pytest.approx(expected, rel=1e-12)
    same = np.exp(np.log(trend.ranks).mean()) / np.array(trend.widths)
    flat = same * np.log(1 + 100 / same) / math.log(101)
    assert trend.same_rank == pytest.approx(flat, rel=1e-12)
    assert trend.share == pytest.approx(math.log(flat[0] / flat[-1]) / math.log(expected[0] / expected[-1]))
    assert all(1.0 < trend.share < 1.3 for trend in trends.values())  # width alone gives all of the fall, and more


def test_the_users_models_are_measured_as_wei_et_al_have_it(request_: Request, entropy: Outcome[Figure1]) -> None:
    own = entropy.numbers.own
    assert own.widths == list(WIDTHS)
    loaded = load(request_.models[1])
    documents = read_documents(str(request_.data)).texts
    experiments = tokenize_documents(loaded.tokenizer, documents, tokens=1000, length=256)
    with torch.no_grad(), Probe(loaded.model, [RepresentationEntropy(center="text", text_spectrum=True)]) as probe:
        for ids in experiments.ids:
            loaded.model(input_ids=torch.tensor([ids]))
    reading = probe.read()
    assert own.ranks[1] == pytest.approx(math.exp(reading["centered_text_matrix_entropy/final_norm"]), rel=1e-5)
    assert own.text_entropy[1] == pytest.approx(reading["centered_text_entropy/final_norm"], rel=1e-5)
    assert own.law is not None
    assert own.law.best in ("power", "log-linear", "constant")
    assert len(own.untrained.ranks) == 4
    assert [verdict.kind for verdict in entropy.verdicts] == ["paper", "ours", "ours"] * 2


def test_the_paper_s_claim_holds_on_its_data_and_the_controls_are_apart(entropy: Outcome[Figure1]) -> None:
    """A power law fits all eight data sets; a logarithm fits two of them better, and the width alone falls as much in all."""
    assert [verdict.holds for verdict in entropy.verdicts[:3]] == [True, None, True]
    assert "another fits better in 2" in entropy.verdicts[1].evidence


def trend(share: float, power: float, r2: float = 0.99, sizes: int = 7, widths: tuple[int, int] = (100, 1000)) -> Trend:
    best = "power" if power > 0.5 else "log-linear"
    law = PowerLaw(0.0, 1.0, -0.3, (0.0, 0.0), (-0.3, -0.3), r2, {"power": power}, best)
    return Trend([*range(sizes)], [*widths], [50, 60], [0.9, 0.8], [0.9, 0.8], share, law)


@pytest.mark.parametrize(
    ("trends", "law", "logarithm", "width"),
    [
        ([trend(1.1, 0.95), trend(0.95, 0.99)], True, False, True),
        ([trend(0.4, 0.95), trend(0.3, 0.6)], True, None, False),
        ([trend(0.4, 0.1), trend(0.95, 0.6)], True, True, None),
        ([trend(0.4, 0.95, r2=0.8), trend(0.95, 0.99)], None, False, None),
        ([trend(0.4, 0.95, r2=0.8), trend(0.95, 0.99, r2=0.9)], False, False, None),
        ([trend(1.1, 0.99, sizes=5)], None, False, True),  # three numbers fit few points
        ([trend(1.1, 0.99, widths=(64, 64))], True, False, None),
        ([trend(math.nan, 0.99)], True, False, None),  # it rises
    ],
)
def test_verdicts_follow_their_rule(trends: list[Trend], law: bool | None, logarithm: bool | None, width: bool | None) -> None:
    few = {**vars(trend(0.7, 0.99)), "law": None}
    own = OwnTrend(**few, names=[], text_entropy=[], loss=[], untrained=trend(0.7, 0.99))
    verdicts = FIG1.judge(Figure1({str(i): one for i, one in enumerate(trends)}, own, "", []))
    assert [verdict.holds for verdict in verdicts] == [law, logarithm, width, None, True, None]
    assert "at least four sizes" in verdicts[3].evidence


def test_entropy_that_rises_has_no_share_of_a_fall() -> None:
    rising = _trend([1e6, 1e7], [128, 256], [40, 100])
    assert rising.entropy[1] > rising.entropy[0]
    assert math.isnan(rising.share)
    assert plain(rising)["share"] is None
    assert math.isnan(restore(Trend, plain(rising)).share)


def test_models_stand_by_size_whatever_their_names_say(request_: Request, tmp_path: Path) -> None:
    for name, source in (("small-step200", request_.models[0]), ("big-step100", request_.models[3])):
        (tmp_path / name).symlink_to(source)
    models = (str(tmp_path / "small-step200"), str(tmp_path / "big-step100"))
    request = Request(out=tmp_path / "out", models=models, data=request_.data, tokens=400)
    numbers = run_experiment(FIG1, request).numbers.own
    assert numbers.names == ["small-step200", "big-step100"]
    assert run_experiment(FIG3, request).numbers.models[0].name == "small-step200"
    other = replace(request, models=models[::-1])  # another order is another sweep, not a refused one
    assert not run_experiment(FIG3, other).kept
    records = [path.stat().st_mtime_ns for path in request.out.glob("sizes-*/readings.jsonl")]
    run_experiment(FIG3, replace(other, fresh=True))
    assert records != [path.stat().st_mtime_ns for path in request.out.glob("sizes-*/readings.jsonl")]


def test_figure_3_is_the_gain_of_texts(request_: Request, gain: Outcome[Figure3]) -> None:
    assert [model.width for model in gain.numbers.models] == list(WIDTHS)
    loaded = load(request_.models[0])
    experiments = tokenize_documents(loaded.tokenizer, read_documents(str(request_.data)).texts, tokens=1000, length=256)
    with torch.no_grad(), Probe(loaded.model, [InformationGain()]) as probe:
        for ids in experiments.ids:
            loaded.model(input_ids=torch.tensor([ids]))
    curve = probe.read().curve("gain", "final_norm")
    trained = gain.numbers.models[0].trained
    reached = len(trained.gain)
    assert trained.gain == pytest.approx(curve.mean[:reached], abs=1e-3)
    assert min(curve.count[:reached]) >= max(curve.count) / 2
    assert trained.total == pytest.approx(np.cumsum(trained.gain))
    assert [verdict.kind for verdict in gain.verdicts] == ["paper", "paper", "ours", "ours"] * 2
    assert gain.verdicts[0].holds is True


@pytest.mark.parametrize(("slope", "holds"), [(-0.01, True), (0.01, False), (0.0, None)])
def test_a_trend_of_increments_is_seen(slope: float, holds: bool | None) -> None:
    noise = np.random.default_rng(0).standard_normal(127)
    increments = 2 + slope * np.arange(127) + 0.05 * noise
    from scipy.stats import spearmanr

    found = spearmanr(np.arange(127), increments)
    curve = Gain([4.6, *increments], [], 1, 2.0, 1.0, rho=found.statistic, p=found.pvalue)
    verdict = FIG3.judge(Figure3([Model("m", 1, 8, curve, None, None)], "", []))[4]
    assert "Increments fall" in verdict.claim
    assert verdict.holds is holds


def sized(parameters: int, level: float, fall: float, tokens: int = 41) -> Model:
    """A model whose increments fall by ``fall`` nats in all, about ``level``, at one width."""
    gain = [4.6, *(level - fall * (np.arange(tokens - 1) / (tokens - 2) - 0.5))]
    curve = Gain(gain, [], 1, math.nan, math.nan, rho=-1.0 if fall else math.nan, p=0.0)
    return Model("m", parameters, 100, curve, None, curve)


@pytest.mark.parametrize(
    ("models", "rise", "fall"),
    [
        ([sized(1, 3, 2), sized(2, 2, 1), sized(3, 1, 0.5)], True, True),
        ([sized(1, 1, 0.5), sized(2, 2, 1), sized(3, 3, 2)], False, False),
        ([sized(3, 1, 2), sized(1, 3, 0.5), sized(2, 2, 1)], True, False),  # in whatever order they come
        ([sized(1, 3, 2), sized(2, 1, 0.5), sized(3, 2, 1)], None, None),
        ([sized(1, 3, 2), sized(2, 2, 1)], None, None),  # two are in some order whatever they are
        ([sized(1, 3, 2), sized(2, 2, 1), sized(3, 1, 0.5, tokens=6)], None, None),
    ],
)
def test_sizes_are_in_order_or_not(models: list[Model], rise: bool | None, fall: bool | None) -> None:
    verdicts = FIG3.judge(Figure3(models, "", []))
    assert [verdict.holds for verdict in verdicts[1:4]] == [rise, None, rise]  # the control with random weights is lacking
    assert [verdict.holds for verdict in verdicts[5:]] == [fall, None, fall]


def test_sizes_are_compared_over_the_lengths_that_all_reach() -> None:
    long = sized(3, 1, 0.5, tokens=81)
    verdict = FIG3.judge(Figure3([sized(1, 3, 2), sized(2, 2, 1), long], "", []))[5]
    steps = 1 - 0.5 * (np.arange(40) / 79 - 0.5)
    assert f"3 {steps[:10].mean() - steps[-10:].mean():.3g}" in verdict.evidence


def test_they_share_one_sweep_and_print_narrowly(request_: Request, entropy: Outcome[Figure1], gain: Outcome[Figure3]) -> None:
    assert len(list(request_.out.glob("sizes-*"))) == 1
    for outcome in (entropy, gain):
        assert max(map(len, str(outcome).splitlines())) <= 80
        page = (request_.out / f"{outcome.experiment.name}.html").read_text("utf-8")
        assert "width-32, width-48, width-64, width-96, on text.txt: 1,000 tokens" in page.split("</svg>")[0]
    assert run_experiment(FIG3, request_).kept


def test_one_model_is_no_trend(request_: Request, tmp_path: Path) -> None:
    single = Request(out=tmp_path, models=request_.models[:1], data=request_.data, tokens=400)
    verdicts = run_experiment(FIG1, single).verdicts
    assert [verdict.holds for verdict in verdicts[3:]] == [None, None, None]
    assert [verdict.holds for verdict in run_experiment(FIG3, single).verdicts[1:4]] == [None, None, None]


def test_a_model_that_cannot_be_read_is_said(request_: Request, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    models = (str(tmp_path / "empty"), request_.models[0])
    outcome = run_experiment(FIG3, Request(out=tmp_path / "out", models=models, data=request_.data, tokens=400))
    assert len(outcome.numbers.models) == 1
    assert "could not be read" in str(outcome)
    assert "this directory has no config.json" in " ".join(str(outcome).split())
    assert max(map(len, str(outcome).splitlines())) <= 80
    again = Request(out=tmp_path / "out", models=models, data=request_.data, tokens=400)
    assert not run_experiment(FIG3, again).kept  # what failed is tried again


def test_no_model_that_can_be_read_is_one_error(tmp_path: Path, request_: Request) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(GeomprobeError, match=r"no model was read: .*has no config\.json"):
        run_experiment(FIG1, Request(out=tmp_path / "out", models=(str(tmp_path / "empty"),), data=request_.data))


def test_the_family_is_trained_once(tmp_path: Path) -> None:
    request = Request(out=tmp_path, steps=2)
    (small,) = trained_family(request, [(32, 1)])
    before = (Path(small) / "model.safetensors").stat().st_mtime_ns
    assert trained_family(request, [(32, 1)]) == [small]
    assert (Path(small) / "model.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in (tmp_path / "family").iterdir()] == [Path(small).name]  # and nothing half made
    loaded = load(small)
    assert loaded.model.config.hidden_size == 32
    assert tokenize(loaded, SENTENCE).shape[1] == 144  # it reads the paper's sentence
