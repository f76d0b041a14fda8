"""Section 4.2's table: against scikit-learn and the paper's own row, in any vocabulary, and what it says of the claims."""

from pathlib import Path

import pytest
import torch
from sklearn.linear_model import Lasso

from geomprobe import GeomprobeError
from geomprobe.models.loading import load, tokenize
from geomprobe.paper.errata import ERRATA
from geomprobe.paper.experiment import Numbers, Request, plain
from geomprobe.paper.run import run_experiment
from geomprobe.paper.sec4_tokens import NAMES, PRINTED, SENTENCE, TOKENS, WORDS
from tests import reference
from tests.sweeps.conftest import save_checkpoint


def test_the_table_on_a_model_that_reads_english(smollm2_model: Path, tmp_path: Path) -> None:
    outcome = run_experiment(TOKENS, Request(out=tmp_path, models=(str(smollm2_model),)))
    (model,) = outcome.numbers["models"]
    loaded = load(str(smollm2_model))
    ids = tokenize(loaded, SENTENCE)
    with torch.no_grad():
        z = reference.unit(loaded.model.model(ids, use_cache=False).last_hidden_state[0].numpy())
    for row in model["rows"].values():
        t = row["position"]
        weights = Lasso(1e-4, fit_intercept=False, tol=1e-12, max_iter=1_000_000).fit(z[:t].T, z[t]).coef_
        picks = row["picks"]["lasso"]
        assert [weight for _, weight in picks] == pytest.approx(sorted(weights[weights > 0.01])[::-1], abs=1e-4)
        assert row["r2"] == pytest.approx(1 - ((z[t] - weights @ z[:t]) ** 2).sum(), abs=1e-4)
        attention = {j for j, _ in row["picks"]["attention"]}
        both = attention & {j for j, _ in picks}
        assert row["jaccard"] == pytest.approx(len(both) / len(attention | {j for j, _ in picks}))
        telling = [weight for j, weight in picks if model["tokens"][j].strip() in WORDS]
        assert row["telling"]["lasso"] == pytest.approx(sum(telling) / sum(weight for _, weight in picks))
    china = model["rows"]["China"]
    assert [model["tokens"][j].strip() for j, _ in china["picks"]["lasso"]] == list(PRINTED["China"])
    as_printed, against_attention = outcome.verdicts
    assert as_printed.holds is True
    print(against_attention)
    assert max(map(len, str(outcome).splitlines())) <= 80
    assert "paper      Russia France Beijing of capital  (Lasso, Pythia 1.4B)" in str(outcome)


def test_where_words_are_cut_into_parts(stories_model: Path, tmp_path: Path) -> None:
    outcome = run_experiment(TOKENS, Request(out=tmp_path, models=(str(stories_model), str(stories_model))))
    first, second = outcome.numbers["models"]
    assert first["rows"] == second["rows"]
    assert list(first["rows"]) == list(NAMES)
    assert not first["rows"]["China"]["whole"]
    assert outcome.verdicts[0].holds is None
    assert "(this vocabulary's end of 'China')" in str(outcome)
    assert max(map(len, str(outcome).splitlines())) <= 80
    again = run_experiment(TOKENS, Request(out=tmp_path, models=(str(stories_model), str(stories_model))))
    assert again.kept
    assert again.numbers == plain(outcome.numbers)


@pytest.mark.parametrize(("more", "holds"), [(3, True), (1, None), (0, False)])
def test_the_verdict_counts_tokens(more: int, holds: bool | None) -> None:
    def row(lasso: float) -> Numbers:
        telling = {"lasso": lasso, "attention": 0.5, "chance": 0.4}
        return {"whole": True, "picks": {"lasso": [[0, 1.0]]}, "telling": telling, "jaccard": 0.1}

    rows = {name: row(0.9 if number < more else 0.1) for number, name in enumerate(NAMES)}
    verdict = TOKENS.judge({"models": [{"name": "m", "tokens": ["Russia"], "rows": rows}]})[1]
    assert verdict.holds is holds


def test_a_model_that_gives_nan_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "broken", 1)
    model = load(str(folder)).model
    with torch.no_grad():
        model.gpt_neox.embed_in.weight[:] = torch.nan
    model.save_pretrained(folder)
    for experiment in (TOKENS, ERRATA):
        with pytest.raises(GeomprobeError, match=r"broken gives hidden states that are not finite .* look for NaN"):
            run_experiment(experiment, Request(out=tmp_path / "out", models=(str(folder),)))
