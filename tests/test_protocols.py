"""Published protocols on SmolLM2, against float64 NumPy written from the definitions, and the numbers that peers' code gave."""

import itertools
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from geomprobe import AttentionProfile, Curvature, GeomprobeError, Metric, Probe, Reading, RepresentationEntropy
from geomprobe.core.similarity import debiased_cka
from geomprobe.models.loading import Loaded, load
from geomprobe.protocols import PROTOCOLS, find_protocol
from geomprobe.sweeps.config import ProtocolName
from geomprobe.sweeps.dataset import Batch
from geomprobe.sweeps.measure import anchor_grams
from tests import reference
from tests.readme_block import ROOT, ReadmeBlock, markdown_table

Array = NDArray[np.float64]

MASSIVE, ORDINARY, LAST = "layer_14", "layer_00", "final_norm"  # layer_14 has massive activations
TEXTS, LENGTH = 128, 64
BLOCK = ReadmeBlock(ROOT / "geomprobe/metrics/README.md", "protocols")


def test_the_command_line_knows_the_same_protocols() -> None:
    assert list(get_args(ProtocolName)) == list(PROTOCOLS)
    with pytest.raises(GeomprobeError, match="there is no protocol 'two-phases': expected one of three-phases, "):
        find_protocol("two-phases")


def test_the_readme_tells_them() -> None:
    """``python -m tests.test_protocols`` writes the table anew."""
    assert BLOCK.told() == told()


def told() -> str:
    """The table of protocols in the README of metrics."""
    rows = [
        (
            f"`{protocol.name}`",
            f"{protocol.title}; {protocol.source}",
            ", ".join(f"`{name}`" for name in protocol.shown),
            f"{protocol.texts}. {protocol.differs}",
        )
        for protocol in PROTOCOLS.values()
    ]
    return markdown_table(("`--protocol`", "numbers, source", "names", "texts, and what is known to differ"), rows)


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_every_number_that_a_protocol_shows_is_there(name: str, stories_model: Path) -> None:
    loaded = load(str(stories_model))
    with torch.no_grad(), Probe(loaded.model, PROTOCOLS[name].metrics, on_error="raise") as probe:
        loaded.model.model(torch.arange(120).view(8, 15) + 3, use_cache=False)
    assert set(PROTOCOLS[name].shown) <= set(probe.read().metrics)


# -- SmolLM2 ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(smollm2_model: Path) -> Loaded:
    return load(str(smollm2_model))


@pytest.fixture(scope="module")
def ids(smollm2: Loaded, rlhf_documents: list[str]) -> torch.Tensor:
    """The first 64 tokens of the first texts of hh-rlhf that have so many: ``(128, 64)``."""
    texts = (smollm2.tokenizer(text).input_ids for text in rlhf_documents)
    return torch.tensor([text[:LENGTH] for text in itertools.islice((t for t in texts if len(t) >= LENGTH), TEXTS)])


METRICS = (
    *(PROTOCOLS[name].metrics[0] for name in ("three-phases", "prompt-entropy", "dataset-entropy")),
    *PROTOCOLS["rankme"].metrics,
    RepresentationEntropy(texts=False),
    RepresentationEntropy(unit=False, center="stream", alpha_range=(12, 100)),
    RepresentationEntropy(center="stream"),
    Curvature(),
)


@pytest.fixture(scope="module")
def reading(smollm2: Loaded, ids: torch.Tensor) -> Reading:
    return read(smollm2, ids, *METRICS)


def read(smollm2: Loaded, ids: torch.Tensor, *arguments: Metric | str) -> Reading:
    """A reading of metrics at sites, by default all three."""
    metrics = [argument for argument in arguments if isinstance(argument, Metric)]
    sites = [argument for argument in arguments if isinstance(argument, str)] or [ORDINARY, MASSIVE, LAST]
    with torch.no_grad(), Probe(smollm2.model, metrics, sites=sites, on_error="raise") as probe:
        for part in torch.split(ids, 32):
            smollm2.model.model(part, use_cache=False)
    return probe.read()


@pytest.fixture(scope="module")
def hidden(smollm2: Loaded, ids: torch.Tensor) -> dict[str, Array]:
    """The rows ``(128, 64, d)`` of each site, as Transformers returns them."""
    with torch.no_grad():
        parts = torch.split(ids, 32)
        outputs = [smollm2.model.model(part, output_hidden_states=True, use_cache=False).hidden_states for part in parts]
    places = {ORDINARY: 1, MASSIVE: 15, LAST: -1}
    return {site: np.concatenate([output[place].double().numpy() for output in outputs]) for site, place in places.items()}


def spectrum(rows: Array, center: bool) -> Array:
    """The eigenvalues of the covariance of ``(n, d)``, from singular values."""
    rows = rows - rows.mean(0) * center
    return np.asarray(np.linalg.svd(rows, compute_uv=False) ** 2 / len(rows))


def entropy(values: Array) -> float:
    shares = values[values > 0] / values[values > 0].sum()
    return float(-(shares * np.log(shares)).sum())


def unit_centered(text: Array) -> Array:
    rows = text - text.mean(0)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(
        np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 1e-6 * np.linalg.norm(text, axis=1, keepdims=True))
    )


SITES = pytest.mark.parametrize("site", [ORDINARY, MASSIVE, LAST])


@pytest.mark.slow
@SITES
def test_the_three_phases(reading: Reading, hidden: dict[str, Array], site: str) -> None:
    rows = hidden[site]
    for prefix, chosen in (("last_", rows[:, -1]), ("", rows.reshape(-1, rows.shape[-1]))):
        values = spectrum(chosen, center=True)
        name = f"{prefix}raw_stream_centered_"
        assert reading[f"{name}effective_rank/{site}"] == pytest.approx(math.exp(entropy(values)), rel=1e-6)
        fit = reference.alpha_fit(values, 0, 12, 100)
        assert reading[f"{name}alpha_req/{site}"] == pytest.approx(fit["alpha_req"], rel=1e-6)
        assert reading[f"{name}alpha_req_r2/{site}"] == pytest.approx(fit["alpha_req_r2"], rel=1e-6)
        assert reading[f"{name}alpha_req_left_out/{site}"] == 0


@pytest.mark.slow
def test_the_numbers_of_peers(reading: Reading, smollm2: Loaded, ids: torch.Tensor) -> None:
    """What others' own code gave on the same rows."""
    assert reading[f"last_raw_stream_centered_effective_rank/{LAST}"] == pytest.approx(35.19, abs=0.005)
    assert reading[f"raw_stream_centered_effective_rank/{LAST}"] == pytest.approx(57.62, abs=0.005)
    assert reading[f"raw_stream_centered_alpha_req/{LAST}"] == pytest.approx(1.2636, abs=5e-5)
    from_eleven = RepresentationEntropy(unit=False, center="stream", alpha_range=(11, 100))
    assert read(smollm2, ids, from_eleven, LAST)[f"raw_stream_centered_alpha_req/{LAST}"] == pytest.approx(1.2690, abs=5e-5)
    centered = read(smollm2, ids[:32], RepresentationEntropy(center="text"), MASSIVE)
    assert centered[f"centered_rankme/{MASSIVE}"] == pytest.approx(106.48, abs=0.005)
    assert reading[f"curvature/{MASSIVE}"] == pytest.approx(1.9762, abs=5e-5)
    assert reading[f"curvature_still/{MASSIVE}"] == pytest.approx(0.0161, abs=5e-5)


@pytest.mark.slow
@SITES
def test_prompt_and_dataset_entropy(reading: Reading, hidden: dict[str, Array], site: str) -> None:
    units = [unit_centered(text) for text in hidden[site]]
    grams = [z @ z.T for z in units]
    plain = np.mean([entropy(np.linalg.eigvalsh(gram).clip(0)) for gram in grams])
    clipped = np.mean([entropy(np.linalg.eigvalsh(gram.clip(0)).clip(0)) for gram in grams])
    assert reading[f"centered_text_matrix_entropy/{site}"] == pytest.approx(plain, rel=1e-6)
    assert reading[f"centered_clipped_text_matrix_entropy/{site}"] == pytest.approx(clipped, rel=1e-6)
    means = np.stack([z.mean(0) for z in units])
    moment = means.T @ means / len(means)
    assert reading[f"mean_centered_matrix_entropy/{site}"] == pytest.approx(
        entropy(np.linalg.eigvalsh(moment).clip(0)), rel=1e-6
    )
    of_clipped = entropy(np.linalg.eigvalsh(moment.clip(0)).clip(0))
    assert reading[f"mean_centered_clipped_matrix_entropy/{site}"] == pytest.approx(of_clipped, rel=1e-6)


@pytest.mark.slow
@SITES
def test_rankme_and_stream_centred_unit_rows(reading: Reading, hidden: dict[str, Array], site: str) -> None:
    rows = hidden[site].reshape(-1, hidden[site].shape[-1])
    for prefix, chosen in (("", rows), ("last_", hidden[site][:, -1])):
        roots = np.sqrt(spectrum(chosen, center=False))
        expected = math.exp(entropy(roots))
        left_out = reading[f"{prefix}raw_rankme_left_out/{site}"]
        assert reading[f"{prefix}raw_rankme/{site}"] == pytest.approx(expected, rel=1e-6 + left_out)
        assert left_out < 1e-3
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    values = spectrum(units, center=True)
    assert reading[f"stream_centered_effective_rank/{site}"] == pytest.approx(math.exp(entropy(values)), rel=1e-6)
    assert reading[f"stream_centered_rankme/{site}"] == pytest.approx(math.exp(entropy(np.sqrt(values))), rel=1e-6)


@pytest.mark.slow
@SITES
def test_what_a_floor_leaves_out_is_said(reading: Reading, hidden: dict[str, Array], site: str) -> None:
    """RankMe of unit rows has float32 products: it misses no more than it says."""
    rows = hidden[site].reshape(-1, hidden[site].shape[-1])
    roots = np.sqrt(spectrum(rows / np.linalg.norm(rows, axis=1, keepdims=True), center=False))
    measured, left_out = reading[f"rankme/{site}"], reading[f"rankme_left_out/{site}"]
    missing = roots[roots < math.sqrt(2 * reference.FLOOR) * roots[0]].sum() / roots.sum()
    print(site, measured, math.exp(entropy(roots)), left_out, missing)
    assert missing <= left_out + 1e-6
    assert left_out < 0.5
    if left_out == 0:
        assert measured == pytest.approx(math.exp(entropy(roots)), rel=1e-4)
    else:
        assert site == MASSIVE


@pytest.mark.slow
def test_attention_sinks(smollm2: Loaded, smollm2_model: Path, ids: torch.Tensor) -> None:
    """Of 24 texts of 64 tokens, over all layers and heads (Gu et al. 2024)."""
    with torch.no_grad(), Probe(smollm2.model, [AttentionProfile(sink_tokens=2)], on_error="raise") as probe:
        smollm2.model.model(ids[:24], use_cache=False)
    reading = probe.read()
    layers = [site for site in reading.sites if site.startswith("layer_")]
    for k, published in ((1, 0.4799), (2, 0.4455)):
        share = float(np.mean([reading[f"attention_sink_share_{k}/{site}"] for site in layers]))
        assert share == pytest.approx(published, abs=5e-5)
    eager = load(str(smollm2_model)).model
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        maps = eager.model(ids[:24], output_attentions=True, use_cache=False).attentions
    for site, weights in zip(layers, maps, strict=True):
        for k in (1, 2):
            received = weights[:, :, k - 1 :, k - 1].double().mean(-1)
            share = float((received > 0.3).double().mean())
            assert reading[f"attention_sink_share_{k}/{site}"] == pytest.approx(share, abs=2e-3), (
                site
            )  # a head at the threshold


@pytest.mark.slow
@pytest.mark.parametrize("cka_rows", ["raw", "unit"])
def test_cka_of_raw_rows(smollm2: Loaded, ids: torch.Tensor, hidden: dict[str, Array], cka_rows: Any) -> None:
    part = ids[:8]
    grams = anchor_grams(smollm2, Batch(part, torch.ones_like(part)), cka_rows)
    rows = {site: hidden[site][:8].reshape(-1, hidden[site].shape[-1]) for site in (ORDINARY, MASSIVE, LAST)}
    if cka_rows == "unit":
        rows = {site: z / np.linalg.norm(z, axis=1, keepdims=True) for site, z in rows.items()}
    for one, other in ((ORDINARY, MASSIVE), (MASSIVE, LAST), (ORDINARY, LAST)):
        actual = float(debiased_cka(grams[one].double(), grams[other].double()))
        expected = unbiased(rows[one] @ rows[one].T, rows[other] @ rows[other].T)
        assert actual == pytest.approx(expected, abs=1e-10 if cka_rows == "raw" else 1e-5)


def unbiased(first: Array, second: Array) -> float:
    """CKA of the unbiased estimators of HSIC (Song et al. 2012), by loops' algebra on matrices without diagonals."""

    def hsic(a: Array, b: Array) -> float:
        a, b, n = a - np.diag(np.diag(a)), b - np.diag(np.diag(b)), len(a)
        whole = (a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a.sum(0) @ b.sum(0))
        return float(whole / (n * (n - 3)))

    return hsic(first, second) / math.sqrt(hsic(first, first) * hsic(second, second))


if __name__ == "__main__":
    BLOCK.write(told())
