"""Figures 4 to 6: the paper's texts, silhouettes and p against twins, verdicts, what is drawn, models that cannot be read."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.spatial.distance import cdist, pdist
from scipy.stats import kstest
from sklearn.metrics import silhouette_samples
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from geomprobe import GeomprobeError
from geomprobe.models.loading import Loaded, load, tokenize, untrained
from geomprobe.models.toy import byte_tokenizer
from geomprobe.paper import context_texts as texts
from geomprobe.paper import fig4_6_contexts as contexts
from geomprobe.paper.context_texts import CONTEXTS, COUNTRIES
from geomprobe.paper.experiment import Request
from geomprobe.paper.fig4_6_contexts import FIG4, FIG5, FIG6, Embedded, Figure4, Figures5And6, Mapped
from geomprobe.paper.models import load_readers
from geomprobe.paper.run import run_experiment
from geomprobe.paper.silhouette import Score, Separation, as_well, better, classical_mds, permutation_p, separates, silhouettes
from tests.browser import Viewer, chromium
from tests.tiny_models import tiny

pytestmark = pytest.mark.slow  # it draws figures

Array = npt.NDArray[np.float64]

TEXTS = [context.format(country) for context in CONTEXTS.values() for country in COUNTRIES]
LABELS = np.repeat(np.arange(3), 15)
EVIL = "<script>x<b> $x_1$ &"


def word_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """A token for every word of the texts: a country alone is one token."""
    words = ["a", "<s>", *sorted({word for text in TEXTS for word in text.split()})]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    made.pre_tokenizer = WhitespaceSplit()
    if bos:
        made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", words.index("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=made, **({"bos_token": "<s>"} if bos else {}))


def saved(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 1, **options: int) -> str:
    """A tiny random model that reads what ``tokenizer`` gives."""
    model = tiny("gpt_neox", layers=2, **({"vocabulary": 256} | options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Models as small as these gain nothing from more, and lose much where other processes use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed."""
    monkeypatch.setitem(sys.modules, "umap", None)


def embeddings(loaded: Loaded) -> dict[str, Array]:
    """Mean and last unit rows of the texts, by NumPy, one forward a text."""
    vectors = []
    for text in TEXTS:
        with torch.no_grad():
            hidden = loaded.model(tokenize(loaded, text), output_hidden_states=True).hidden_states[-1][0].double().numpy()
        unit = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
        vectors.append((unit.mean(0), unit[-1]))
    mean, last = zip(*vectors, strict=True)
    return {"mean": np.array(mean), "last": np.array(last)}


def between(points: Array) -> Array:
    """Euclidean distances of all pairs."""
    return np.asarray(cdist(points, points))


def clusters(rng: np.random.Generator, apart: float, country: float = 1.0) -> Array:
    """Distances of three contexts × 15 countries: noise, what texts of a country share, and how far contexts lie apart."""
    points = rng.normal(size=(3, 15, 4)) + country * rng.normal(size=(1, 15, 4)) + apart * rng.normal(size=(3, 1, 4))
    return between(points.reshape(45, 4))


def test_countries_are_those_of_appendix_b() -> None:
    paper = Path(__file__).resolve().parents[2].parent / "shared" / "paper.txt"
    if not paper.exists():
        pytest.skip("../shared/paper.txt is not beside this checkout")
    appendix = paper.read_text("utf-8").split("The names used are:")[1]
    assert re.findall(r'"([^"]+)"', appendix) == list(COUNTRIES)
    assert len(COUNTRIES) == 15
    assert TEXTS[0] == "He is the king of Australia."
    assert TEXTS[-1] == "Spain."


def test_silhouettes_are_those_of_scikit_learn_and_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    distances = clusters(rng, 1.0)
    many = np.stack([LABELS, rng.permutation(LABELS), np.repeat([0, 1, 2], [2, 3, 40])])
    ours = silhouettes(distances, many)
    for labels, samples in zip(many, ours, strict=True):
        assert samples == pytest.approx(silhouette_samples(distances, labels, metric="precomputed"), abs=1e-12)
        own = [distances[i, (labels == labels[i]) & (np.arange(45) != i)].mean() for i in range(45)]
        near = [min(distances[i, labels == c].mean() for c in range(3) if c != labels[i]) for i in range(45)]
        assert samples == pytest.approx([(b - a) / max(a, b) for a, b in zip(own, near, strict=True)], abs=1e-12)
    assert silhouettes(np.zeros((4, 4)), np.array([0, 0, 1, 1])).tolist() == [0, 0, 0, 0]


def test_p_is_uniform_where_contexts_do_not_matter_and_small_where_they_do() -> None:
    rng = np.random.default_rng(1)
    null = [permutation_p(clusters(rng, 0.0, country=2.0), 3, seed=i, permutations=99) for i in range(300)]
    assert kstest(null, "uniform").pvalue > 0.01
    assert np.mean(np.array(null) <= 0.05) < 0.1
    assert permutation_p(clusters(rng, 5.0), 3, seed=0) == 0.001
    assert permutation_p(clusters(rng, 5.0)[:30, :30], 2, seed=1) <= 0.003  # of 2**15 deals, two are the true one
    assert permutation_p(np.zeros((45, 45)), 3, seed=0) == 1


def test_p_counts_deals_within_countries() -> None:
    """Three countries of two contexts have eight deals; p is the share that separates as well, by going through all."""
    points = np.array([0.0, 10.0, 20.0, 1.0, 11.5, 22.0])
    distances = np.abs(points[:, None] - points)
    deals = [[(deal >> i & 1) for i in range(3)] for deal in range(8)]
    scores = [silhouette_samples(distances, [*deal, *(1 - d for d in deal)], metric="precomputed").mean() for deal in deals]
    exact = np.mean(np.array(scores) >= scores[0] - 1e-12)
    assert permutation_p(distances, 2, seed=0, permutations=20_000) == pytest.approx(exact, abs=0.02)


def test_mds_gives_a_plane_back_and_says_what_it_leaves_out() -> None:
    rng = np.random.default_rng(2)
    points = rng.normal(size=(20, 2)) * [3, 1]
    plane, share = classical_mds(between(points))
    assert pdist(plane) == pytest.approx(pdist(points), abs=1e-9)
    assert share == pytest.approx(1)
    points = rng.normal(size=(20, 5))
    plane, share = classical_mds(between(points))
    singular = np.linalg.svd(points - points.mean(0), compute_uv=False) ** 2
    assert share == pytest.approx(singular[:2].sum() / singular.sum())
    assert np.ptp(plane, axis=0)[0] > np.ptp(plane, axis=0)[1]
    assert classical_mds(np.zeros((5, 5)))[0].tolist() == [[0, 0]] * 5


@pytest.mark.usefixtures("no_umap")
def test_embeddings_against_numpy(tmp_path: Path) -> None:
    """Of a model whose tokenizer gives one token for a country alone."""
    name = saved(tmp_path / "model", word_tokenizer())
    outcome = run_experiment(FIG4, Request(out=tmp_path / "out", models=(name,), seed=3))
    (model,) = outcome.numbers.models
    assert model.tokens == {"king": [6] * 15, "queen": [6] * 15, "none": [1] * 15}
    assert model.last_tokens == sorted(COUNTRIES)  # this tokenizer does not keep the full stop apart
    loaded = load(name)
    twins = {"model": embeddings(loaded), "untrained": embeddings(untrained(loaded, seed=3))}
    for which in ("mean", "last"):
        for source, twin in twins.items():
            found, distances = model.separation[which][source], between(twin[which])
            samples = silhouette_samples(distances, LABELS, metric="precomputed")
            assert found.all.silhouette == pytest.approx(samples.mean(), abs=1e-4)
            assert found.all.by_country == pytest.approx(samples.reshape(3, 15).mean(0), abs=1e-4)
            pair = silhouette_samples(distances[:30, :30], LABELS[:30], metric="precomputed")
            assert found.king_queen.silhouette == pytest.approx(pair.mean(), abs=1e-4)
        shuffled = model.separation[which]["shuffled"].all.silhouette
        assert shuffled != model.separation[which]["model"].all.silhouette
        vectors = twins["model"][which]
        centred = vectors - vectors.mean(0)
        left, singular, _ = np.linalg.svd(centred, full_matrices=False)
        plane = np.array(model.planes[which].pca)
        assert np.abs(plane) == pytest.approx(np.abs(left[:, :2] * singular[:2]), abs=1e-4)
        assert model.planes[which].shares == pytest.approx(singular[:2] ** 2 / (singular**2).sum(), abs=1e-4)
        assert model.planes[which].umap is None
    plane = np.array(model.planes["mean"].pca)
    drawn = silhouette_samples(between(plane), LABELS, metric="precomputed")
    assert model.shown["pca"].all.silhouette == pytest.approx(drawn.mean(), abs=1e-4)
    assert list(model.shown) == ["pca"]
    assert "pip install 'geomprobe[umap]'" in str(outcome)
    assert "geomprobe[umap]" in (tmp_path / "out" / "fig4.html").read_text("utf-8").split("</svg>")[0]


def test_shuffling_keeps_every_token_and_leaves_added_ones_in_place(tmp_path: Path) -> None:
    loaded = load(saved(tmp_path, word_tokenizer(bos=True)))
    ids = texts._tokens("m", loaded)
    assert [len(text[0]) for text in ids] == [7] * 30 + [2] * 15
    shuffled = texts._shuffled(loaded, ids, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(shuffled, texts._shuffled(loaded, ids, seed=0), strict=True))
    assert sum(not torch.equal(a, b) for a, b in zip(ids, shuffled, strict=True)) > 25
    for text, other in zip(ids, shuffled, strict=True):
        assert text[0, 0] == other[0, 0] == 1
        assert sorted(text[0].tolist()) == sorted(other[0].tolist())


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What models were loaded for."""
    asked: list[Request] = []

    def counted(request: Request) -> list[tuple[str, Loaded]]:
        asked.append(request)
        return load_readers(request)

    monkeypatch.setattr(texts, "load_readers", counted)
    return asked


@pytest.mark.usefixtures("no_umap")
def test_three_figures_of_one_reading(tmp_path: Path, stories_model: Path, loads: list[Request]) -> None:
    request = Request(out=tmp_path, models=(str(stories_model),))
    outcomes = {experiment.name: run_experiment(experiment, request) for experiment in (FIG4, FIG5, FIG6)}
    assert len(loads) == 1
    for name, kinds in (("fig5", ["js"]), ("fig6", ["logdet", "riemann", "log_euclidean"])):
        (model,) = outcomes[name].numbers.models
        assert list(model.maps) == kinds
        for kind in kinds:
            distances = np.array(model.maps[kind])
            assert distances.shape == (45, 45)
            assert (distances == distances.T).all()
            assert (np.diag(distances) == 0).all()
            samples = silhouette_samples(distances, LABELS, metric="precomputed")
            assert model.separation[kind]["model"].all.silhouette == pytest.approx(samples.mean(), abs=1e-5)
            assert set(model.separation[kind]) == {"model", "shuffled", "untrained"}
            assert np.array(model.planes[kind].mds).shape == (45, 2)
            assert 0 < model.planes[kind].share <= 1
        assert model.last_tokens == ["."]
    assert set(outcomes["fig6"].numbers.models[0].separation) == {"js", "logdet", "riemann", "log_euclidean"}
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name, outcome in outcomes.items():
        picture = re.findall(r"<svg.*</svg>", files[f"{name}.html"].decode(), re.DOTALL)[0]
        assert f"{stories_model.name}: unit rows at final_norm of 45 texts" in picture
        assert ("δ = 1e-6" in picture) is (name == "fig6")
        assert max(map(len, str(outcome).splitlines())) <= 80
        assert files[f"{name}.png"].startswith(b"\x89PNG")
        assert files[f"{name}.png"].endswith(b"IEND\xaeB`\x82")
        assert files[f"{name}.html"].rstrip().endswith(b"</html>")
        assert "silhouette 0." in picture
    page, text = files["fig6.html"].decode(), str(outcomes["fig6"])
    verdict = outcomes["fig6"].verdicts[0]
    for called in ("logdet", "Riemann", "log-Euclidean"):
        assert page.count(f"{called} (δ = 1e-6)") >= 4  # the picture, and three rows of the table
        assert f"{called} (δ = 1e-6), untrained model" in text
    assert "δ = 1e-6" in verdict.claim
    assert "our choice" in FIG5.read
    assert run_experiment(FIG4, request).kept
    assert run_experiment(FIG5, request).kept
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files  # redrawn from the numbers alone
    assert len(loads) == 1


@pytest.mark.usefixtures("no_umap")
def test_several_models_of_any_name(tmp_path: Path, loads: list[Request]) -> None:
    names = (saved(tmp_path / EVIL, byte_tokenizer()), saved(tmp_path / "other", word_tokenizer(), seed=2))
    request = Request(out=tmp_path / "out", models=names)
    outcomes = [run_experiment(experiment, request) for experiment in (FIG4, FIG5)]
    assert len(loads) == 1
    for outcome in outcomes:
        each = len(outcome.verdicts) // 2
        assert each == {"fig4": 5, "fig5": 3}[outcome.experiment.name]
        assert [("(other)" in verdict.claim, EVIL in verdict.claim) for verdict in outcome.verdicts] == (
            [(False, True)] * each + [(True, False)] * each
        )
        assert max(map(len, str(outcome).splitlines())) <= 80
    saved(tmp_path / EVIL, byte_tokenizer(), seed=9, width=64)
    assert not run_experiment(FIG4, request).kept  # the model in that folder is another now
    assert len(loads) == 2
    with chromium() as browser:
        (tmp_path / "pages").mkdir()
        viewer = Viewer(browser, tmp_path / "pages")
        page = viewer.open((tmp_path / "out" / "fig5.html").read_text("utf-8"), width=390)
        assert EVIL in page.inner_text(".picture")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator(".picture image").count() == 0  # every colour has its partner for dark paper
        assert not viewer.faults
        viewer.close()


def test_umap_where_it_is_installed() -> None:
    pytest.importorskip("umap")
    vectors = np.repeat(np.eye(3), 15, 0) + 0.01 * np.random.default_rng(0).normal(size=(45, 3))
    points = contexts._umap(vectors, 0)
    assert np.array(points).shape == (45, 2)
    assert silhouette_samples(np.array(points), LABELS).mean() > 0.5
    assert contexts._umap(vectors, 0) == points


def ways(everything: float, pair: float, p: float = 0.001) -> Separation:
    """Silhouettes of all contexts, and of king and queen; countries differ a little."""
    return Separation(*(Score(value, p, [value + 0.001 * (i % 4) for i in range(15)]) for value in (everything, pair)))


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        ([ways(0.5, 0.4)], True),
        ([ways(0.5, 0.4), ways(0.1, 0.2)], True),
        ([ways(0.5, 0.4), ways(0.1, 0.2, p=0.3)], None),
        ([ways(0.5, -0.1)], False),
        ([ways(0.5, 0.4), ways(-0.1, 0.2)], False),
    ],
)
def test_contexts_separate_where_every_silhouette_is_above_zero(found: Any, holds: bool | None) -> None:
    named = {f"distance {i}": one for i, one in enumerate(found)}
    seen, evidence = separates(named)
    assert seen is holds
    assert f"distance 0 {found[0].all.silhouette:.2f}" in evidence


@pytest.mark.parametrize(
    ("first", "second", "holds"),
    [
        (ways(0.5, 0.4), ways(0.3, 0.1), True),
        (ways(0.5, 0.1), ways(0.3, 0.1), None),
        (ways(0.5, 0.1), ways(0.3, 0.2), False),
    ],
)
def test_better_is_better_in_both_ways(first: Any, second: Any, holds: bool | None) -> None:
    seen, evidence = better(first, second)
    assert seen is holds
    assert "0.50 against 0.30 (p = " in evidence


@pytest.mark.parametrize(
    ("control", "holds"),
    [
        (ways(0.6, 0.9), True),
        (ways(0.5, 0.4), True),  # neither is larger
        (ways(0.2, 0.1), False),
        (ways(0.2, 0.9), None),
        (ways(0.6, -0.1), False),
    ],
)
def test_a_control_does_as_well_where_the_model_is_not_better(control: Any, holds: bool | None) -> None:
    model = ways(0.5, 0.4)
    seen, evidence = as_well({"JS": control}, {"JS": model})
    assert seen is holds
    assert f"JS {control.all.silhouette:.2f} (model 0.50)" in evidence


def test_the_paper_and_our_controls_have_verdicts_of_their_own() -> None:
    """Random weights that separate better do not take the paper's claim away."""
    sources = {"model": ways(0.5, 0.4), "shuffled": ways(0.1, 0.1), "untrained": ways(0.6, 0.9)}
    verdicts = FIG5.judge(Figures5And6([], 0.0, [Mapped("m", 1, {}, [], {"js": []}, {}, {"js": sources})]))
    assert [(verdict.kind, verdict.holds) for verdict in verdicts] == [("paper", True), ("ours", True), ("ours", False)]
    last = {source: ways(0.2, 0.05) for source in sources}
    model = Embedded("m", 1, {}, [], {}, {"mean": sources, "last": last}, {"pca": ways(0.8, 0.8)})
    verdicts = FIG4.judge(Figure4([], [model]))
    assert [verdict.holds for verdict in verdicts] == [True, True, True, True, False]


@pytest.mark.usefixtures("no_umap")
def test_smollm2_on_the_paper_s_texts(tmp_path: Path, smollm2_model: Path) -> None:
    request = Request(out=tmp_path, models=(str(smollm2_model),))
    found = {
        **run_experiment(FIG4, request).numbers.models[0].separation,
        **run_experiment(FIG6, request).numbers.models[0].separation,
    }
    expected = {"mean": 0.553, "last": 0.240, "js": 0.432, "logdet": 0.367, "riemann": 0.396, "log_euclidean": 0.428}
    seen = {kind: by_source["model"].all.silhouette for kind, by_source in found.items()}
    assert seen == pytest.approx(expected, abs=0.01)
    assert found["mean"]["untrained"].all.silhouette == pytest.approx(0.634, abs=0.01)
    assert run_experiment(FIG4, request).numbers.models[0].last_tokens == ["."]


@pytest.mark.usefixtures("no_umap")
def test_models_that_cannot_be_read(tmp_path: Path) -> None:
    letters = Tokenizer(BPE({"a": 0}, []))
    letters.normalizer = Replace(Regex("..+"), "")  # of longer texts nothing is left
    silent = saved(tmp_path / "silent", PreTrainedTokenizerFast(tokenizer_object=letters))
    with pytest.raises(GeomprobeError, match=r"silent cannot read 'He is the king of Australia\.': the text is empty"):
        run_experiment(FIG4, Request(out=tmp_path / "out", models=(silent,)))
    raising = saved(tmp_path / "raising", PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, "none"))))
    with pytest.raises(GeomprobeError, match=r"raising cannot read 'He is the king of Australia\.': "):
        run_experiment(FIG4, Request(out=tmp_path / "out", models=(raising,)))
    broken = load(saved(tmp_path / "broken", byte_tokenizer()))
    with torch.no_grad():
        broken.model.gpt_neox.layers[0].mlp.dense_h_to_4h.weight[0] = float("nan")
    broken.model.save_pretrained(tmp_path / "broken")
    with pytest.raises(GeomprobeError, match=r"broken gives hidden states that are not finite.*'Cuba\.'"):
        run_experiment(FIG5, Request(out=tmp_path / "out", models=(str(tmp_path / "broken"),)))
    few = saved(tmp_path / "few", byte_tokenizer(), vocabulary=64)
    with pytest.raises(GeomprobeError, match=r"few cannot run on the texts of \d tokens"):
        run_experiment(FIG6, Request(out=tmp_path / "out", models=(few,)))
    assert not list((tmp_path / "out").iterdir())
