"""Figures 1 and 3: Wei et al.'s numbers, models of several sizes, and what is said of them."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geomprobe import GeomprobeError, InformationGain, Probe, RepresentationEntropy
from geomprobe.models.loading import load, tokenize
from geomprobe.paper.experiment import Outcome, Request, plain
from geomprobe.paper.fig1_entropy import FIG1, _trend
from geomprobe.paper.fig3_information_gain import FIG3
from geomprobe.paper.models import trained_family
from geomprobe.paper.published import PUBLISHED
from geomprobe.paper.run import run_experiment
from geomprobe.paper.sec4_tokens import SENTENCE
from geomprobe.sweeps.dataset import read_documents, tokenize_documents
from tests.sweeps.conftest import save_checkpoint

WIDTHS = (32, 48, 64, 96)


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> Request:
    folder = tmp_path_factory.mktemp("sizes")
    models = [save_checkpoint(folder / f"width-{width}", 2, width=width) for width in WIDTHS]
    (folder / "text.txt").write_text("It was the best of times, it was the worst of times. " * 60)
    return Request(out=folder / "out", models=tuple(map(str, models)), data=str(folder / "text.txt"), tokens=1000)


@pytest.fixture(scope="module")
def entropy(request_: Request) -> Outcome:
    return run_experiment(FIG1, request_)


@pytest.fixture(scope="module")
def gain(request_: Request, entropy: Outcome) -> Outcome:
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


def test_figure_1_is_equation_1_of_those_ranks(entropy: Outcome) -> None:
    trends = entropy.numbers["published"]
    assert len(trends) == 8
    trend = trends["Pythia, wikipedia"]
    r = np.array(trend["ranks"]) / np.array(trend["widths"])
    expected = r * np.log(1 + 100 / r) / math.log(101)
    assert trend["entropy"] == pytest.approx(expected, rel=1e-12)
    same = np.exp(np.log(trend["ranks"]).mean()) / np.array(trend["widths"])
    flat = same * np.log(1 + 100 / same) / math.log(101)
    assert trend["same_rank"] == pytest.approx(flat, rel=1e-12)
    assert trend["share"] == pytest.approx(math.log(flat[0] / flat[-1]) / math.log(expected[0] / expected[-1]))
    assert all(1.0 < trend["share"] < 1.3 for trend in trends.values())  # width alone gives all of the fall, and more


def test_the_users_models_are_measured_as_wei_et_al_have_it(request_: Request, entropy: Outcome) -> None:
    own = entropy.numbers["own"]
    assert own["widths"] == list(WIDTHS)
    loaded = load(request_.models[1])
    documents = read_documents(str(request_.data))
    experiments = tokenize_documents(loaded.tokenizer, documents, tokens=1000, length=256)
    with torch.no_grad(), Probe(loaded.model, [RepresentationEntropy(center=True, text_spectrum=True)]) as probe:
        for ids in experiments.ids:
            loaded.model(input_ids=torch.tensor([ids]))
    reading = probe.read()
    assert own["ranks"][1] == pytest.approx(math.exp(reading["centered_text_matrix_entropy/final_norm"]), rel=1e-5)
    assert own["text_entropy"][1] == pytest.approx(reading["centered_text_entropy/final_norm"], rel=1e-5)
    assert own["law"]["best"] in ("power", "log-linear", "constant")
    assert len(own["untrained"]["ranks"]) == 4
    assert len(entropy.verdicts) == 4


def trend(share: float | None, power: float, sizes: int = 7, widths: tuple[int, int] = (100, 1000)) -> dict[str, Any]:
    law = {"best": "power", "weights": {"power": power}, "exponent": -0.3}
    return {"law": law, "share": share, "ranks": [50, 60], "widths": widths, "parameters": [*range(sizes)]}


@pytest.mark.parametrize(
    ("trends", "law", "width"),
    [
        ([trend(1.1, 0.95), trend(0.95, 0.99)], True, False),
        ([trend(0.4, 0.95), trend(0.3, 0.6)], None, True),
        ([trend(0.4, 0.1), trend(0.95, 0.6)], False, None),
        ([trend(1.1, 0.99, sizes=5)], None, False),  # too few to tell a logarithm from a power law
        ([trend(1.1, 0.99, widths=(64, 64))], True, None),
        ([trend(None, 0.99)], True, None),  # it rises
    ],
)
def test_verdicts_follow_their_rule(trends: list[dict[str, Any]], law: bool | None, width: bool | None) -> None:
    few = trend(0.7, 0.99) | {"law": None}
    verdicts = FIG1.judge({"published": dict(enumerate(trends)), "own": few})
    assert [verdict.holds for verdict in verdicts] == [law, width, None, None]
    assert "at least four sizes" in verdicts[2].evidence


def test_entropy_that_rises_has_no_share_of_a_fall() -> None:
    rising = plain(_trend([1e6, 1e7], [128, 256], [40, 100]))
    assert rising["entropy"][1] > rising["entropy"][0]
    assert rising["share"] is None


def test_models_stand_by_size_whatever_their_names_say(request_: Request, tmp_path: Path) -> None:
    for name, source in (("small-step200", request_.models[0]), ("big-step100", request_.models[3])):
        (tmp_path / name).symlink_to(source)
    models = (str(tmp_path / "small-step200"), str(tmp_path / "big-step100"))
    request = Request(out=tmp_path / "out", models=models, data=request_.data, tokens=400)
    numbers = run_experiment(FIG1, request).numbers["own"]
    assert numbers["names"] == ["small-step200", "big-step100"]
    assert run_experiment(FIG3, request).numbers["models"][0]["name"] == "small-step200"
    other = replace(request, models=models[::-1])  # another order is another sweep, not a refused one
    assert not run_experiment(FIG3, other).kept
    records = [path.stat().st_mtime_ns for path in request.out.glob("sizes-*/readings.jsonl")]
    run_experiment(FIG3, replace(other, fresh=True))
    assert records != [path.stat().st_mtime_ns for path in request.out.glob("sizes-*/readings.jsonl")]


def test_figure_3_is_the_gain_of_texts(request_: Request, gain: Outcome) -> None:
    assert [model["width"] for model in gain.numbers["models"]] == list(WIDTHS)
    loaded = load(request_.models[0])
    experiments = tokenize_documents(loaded.tokenizer, read_documents(str(request_.data)), tokens=1000, length=256)
    with torch.no_grad(), Probe(loaded.model, [InformationGain()]) as probe:
        for ids in experiments.ids:
            loaded.model(input_ids=torch.tensor([ids]))
    curve = probe.read().curve("gain", "final_norm")
    trained = gain.numbers["models"][0]["trained"]
    reached = len(trained["gain"])
    assert trained["gain"] == pytest.approx(curve.mean[:reached], abs=1e-3)
    assert min(curve.count[:reached]) >= max(curve.count) / 2
    assert trained["total"] == pytest.approx(np.cumsum(trained["gain"]))
    rises, falls = gain.verdicts
    assert rises.holds is True
    assert "tells nothing of training" in rises.evidence
    assert falls.holds in (True, False, None)


@pytest.mark.parametrize(("slope", "holds"), [(-0.01, True), (0.01, False), (0.0, None)])
def test_a_trend_of_increments_is_seen(slope: float, holds: bool | None) -> None:
    noise = np.random.default_rng(0).standard_normal(127)
    increments = 2 + slope * np.arange(127) + 0.05 * noise
    from scipy.stats import spearmanr

    found = spearmanr(np.arange(127), increments)
    curve = {"gain": [4.6, *increments], "first_quarter": 2.0, "last_quarter": 1.0, "rho": found.statistic, "p": found.pvalue}
    verdict = FIG3.judge({"models": [{"trained": curve, "untrained": None, "gaussian": None}]})[1]
    assert verdict.holds is holds


def test_they_share_one_sweep_and_print_narrowly(request_: Request, entropy: Outcome, gain: Outcome) -> None:
    assert len(list(request_.out.glob("sizes-*"))) == 1
    for outcome in (entropy, gain):
        assert max(map(len, str(outcome).splitlines())) <= 80
    assert run_experiment(FIG3, request_).kept


def test_one_model_is_no_trend(request_: Request, tmp_path: Path) -> None:
    single = Request(out=tmp_path, models=request_.models[:1], data=request_.data, tokens=400)
    verdicts = run_experiment(FIG1, single).verdicts
    assert [verdict.holds for verdict in verdicts[2:]] == [None, None]
    assert len(run_experiment(FIG3, single).verdicts) == 2


def test_a_model_that_cannot_be_read_is_said(request_: Request, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    models = (str(tmp_path / "empty"), request_.models[0])
    outcome = run_experiment(FIG3, Request(out=tmp_path / "out", models=models, data=request_.data, tokens=400))
    assert len(outcome.numbers["models"]) == 1
    assert "could not be read" in str(outcome)
    assert "this directory has no config.json" in " ".join(str(outcome).split())
    assert max(map(len, str(outcome).splitlines())) <= 80
    again = Request(out=tmp_path / "out", models=models, data=request_.data, tokens=400)
    assert not run_experiment(FIG3, again).kept  # what failed is tried again


def test_no_model_that_can_be_read_is_one_error(tmp_path: Path, request_: Request) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(GeomprobeError, match=r"no model was read: .*without a config\.json"):
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
