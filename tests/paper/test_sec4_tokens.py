"""Section 4.2's table: against scikit-learn and the printed rows, in any vocabulary, and what it says of the claims."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.linear_model import Lasso

from geomprobe import GeomprobeError
from geomprobe.models.loading import load, tokenize
from geomprobe.paper.errata import ERRATA
from geomprobe.paper.experiment import Experiment, Outcome, Request, Verdict, plain
from geomprobe.paper.run import run_experiment
from geomprobe.paper.sec4_tokens import TOKENS
from geomprobe.paper.token_picks import PRINTED, SENTENCE, WORDS, Agreement, Model, Row, Telling, TokenPicks, matched, numbered
from tests import reference
from tests.sweeps.conftest import save_checkpoint

pytestmark = pytest.mark.slow  # it draws figures


@pytest.fixture(scope="module")
def english(smollm2_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome[TokenPicks]:
    return run_experiment(TOKENS, Request(out=tmp_path_factory.mktemp("tokens"), models=(str(smollm2_model),)))


def shared(first: Sequence[str], second: Sequence[str]) -> int:
    """How many tokens two multisets share."""
    return sum(min(first.count(token), second.count(token)) for token in {*first})


def test_the_picks_are_scikit_learns(english: Outcome[TokenPicks], smollm2_model: Path) -> None:
    (model,) = english.numbers.models
    loaded = load(str(smollm2_model))
    ids = tokenize(loaded, SENTENCE)
    with torch.no_grad():
        z = reference.unit(loaded.model.model(ids, use_cache=False).last_hidden_state[0].numpy())
    for row in model.rows.values():
        t = row.position
        weights = Lasso(1e-4, fit_intercept=False, tol=1e-12, max_iter=1_000_000).fit(z[:t].T, z[t]).coef_
        picks = row.picks["lasso"] or []
        assert [weight for _, weight in picks] == pytest.approx(sorted(weights[weights > 0.01])[::-1], abs=1e-4)
        assert row.r2 == pytest.approx(1 - ((z[t] - weights @ z[:t]) ** 2).sum(), abs=1e-4)
        telling = [weight for j, weight in picks if model.tokens[int(j)].strip() in WORDS]
        assert row.telling.lasso == pytest.approx(sum(telling) / sum(weight for _, weight in picks))


def test_the_printed_lasso_picks_carry_the_weight(english: Outcome[TokenPicks]) -> None:
    """What SmolLM2 picks, as it was first seen."""
    (model,) = english.numbers.models
    found = {
        name: [(numbered(model.tokens[int(j)], int(j)), weight) for j, weight in (row.picks["lasso"] or [])]
        for name, row in model.rows.items()
    }
    assert [weight for _, weight in found["No"][:3]] == pytest.approx([0.58, 0.15, 0.09], abs=0.01)
    assert [token for token, _ in found["No"][:3]] == ["Yes₂₅", "?₆", "Yes₁₆"]
    assert [weight for _, weight in found["?"][:2]] == pytest.approx([0.65, 0.21], abs=0.01)
    assert [token for token, _ in found["?"][:2]] == ["?₂₄", "?₁₅"]
    assert [token for token, _ in found["China"]] == ["Russia₁₄", "France₂₃", "Beijing₂₈", "of₃₁", "capital₃₀"]
    for name, row in model.rows.items():
        printed = PRINTED[name]["lasso"]
        texts = [model.tokens[int(j)].strip() for j, _ in (row.picks["lasso"] or [])]
        against = (row.printed["lasso"] or {})[""]
        assert len(against.which) == shared(printed, texts) == len(printed)
        assert against.overlap == pytest.approx(len(printed) / len(texts))  # it has them all
        assert against.share > 0.7 > 0.35 > against.chance


def test_the_attention_rows_with_and_without_the_comma(english: Outcome[TokenPicks]) -> None:
    (model,) = english.numbers.models
    assert "," not in SENTENCE
    for name, row in model.rows.items():
        texts = [model.tokens[int(j)].strip() for j, _ in (row.picks["attention"] or [])]
        readings = row.printed["attention"] or {}
        printed = PRINTED[name]["attention"]
        stops = ["." if token == "," else token for token in printed]
        for label, tokens in (("", printed), ("without [,]", [t for t in printed if t != ","]), ("[,] read as [.]", stops)):
            assert len(readings[label].which) == shared(tokens, texts)
            assert readings[label].printed == len(tokens)
        assert readings[""].overlap < readings["without [,]"].overlap
        assert readings[""].share == readings["without [,]"].share


def test_what_it_says_of_the_claims(english: Outcome[TokenPicks]) -> None:
    lasso, attention, usually, sometimes, telling = english.verdicts
    assert [verdict.holds for verdict in english.of_kind("paper")] == [True, None, True, True]
    assert "[No]: [Yes] [Yes]; [?]: [?] [?]; [China]: [Russia] [France] [Beijing] [of] [capital]" in lasso.claim
    assert "for [China] 5 of 5, with 100% of the weight" in lasso.evidence
    assert "Without [,], which the sentence does not contain, 2 of 2" in attention.evidence
    assert "usually" in usually.claim
    assert "sometimes" in sometimes.claim
    assert (telling.kind, telling.holds) == ("ours", None)
    printed = str(english)
    assert max(map(len, printed.splitlines())) <= 80
    assert "Russia France Beijing of capital" in printed
    assert "Russia₁₄* .43" in printed
    assert "capital₃₀*" in printed


def test_chance_is_that_of_every_draw() -> None:
    """Every way to put three weights on three of six tokens, one as likely as another."""
    earlier, printed, weights = ["a", " b", "a", "c", " a", "b"], ("a", "a", "b", ","), [0.5, 0.3, 0.2]
    shares, counts = [], []
    for places in permutations(range(6), 3):
        left, share, count = Counter(printed), 0.0, 0
        for j, weight in zip(places, weights, strict=True):
            if left[earlier[j].strip()]:
                left[earlier[j].strip()] -= 1
                share, count = share + weight, count + 1
        shares.append(share)
        counts.append(count)
        found = matched(list(zip(places, weights, strict=True)), earlier, printed)
        assert found.share == pytest.approx(share)
        assert len(found.which) == count
        assert found.chance == pytest.approx(matched([(0, 0.5), (1, 0.3), (2, 0.2)], earlier, printed).chance)
    assert found.chance == pytest.approx(sum(shares) / len(shares))
    assert found.chance_matches == pytest.approx(sum(counts) / len(counts))


def test_of_equal_tokens_the_heaviest_match_and_nothing_is_no_share() -> None:
    earlier = ["Yes", "?", "Yes", "Yes"]
    found = matched([(2, 0.5), (1, 0.3), (0, 0.2), (3, 0.1)], earlier, ("Yes", "Yes"))
    assert found.which == [2, 0]
    assert found.overlap == 2 / 4
    nothing = matched([], earlier, ("Yes",))
    assert math.isnan(nothing.share)
    assert math.isnan(nothing.chance)
    assert nothing.overlap == 0


def test_where_words_are_cut_into_parts(stories_model: Path, tmp_path: Path) -> None:
    outcome = run_experiment(TOKENS, Request(out=tmp_path, models=(str(stories_model), str(stories_model))))
    first, second = outcome.numbers.models
    assert first.rows == second.rows
    assert list(first.rows) == list(PRINTED)
    assert not first.rows["China"].whole
    assert outcome.verdicts[0].holds is None
    assert "(the end of 'China' in this vocabulary)" in str(outcome)
    assert max(map(len, str(outcome).splitlines())) <= 80
    again = run_experiment(TOKENS, Request(out=tmp_path, models=(str(stories_model), str(stories_model))))
    assert again.kept
    assert plain(again.numbers) == plain(outcome.numbers)


def row(*, lasso: float, attention: float, telling: float) -> Row:
    """Of one token: what the printed picks carry of either's weight."""
    ours, other, listed = (Agreement(2, [0], 0.5, share, 0.1, 0.9) for share in (lasso, 0.6, attention))
    printed = {"lasso": {"": ours, "lasso": ours}, "attention": {"": other, "without [,]": other, "lasso": listed}}
    return Row(0, True, 1.0, {kind: [[0, 1.0]] for kind in printed}, printed, Telling(telling, 0.5, 0.4))


def judged(*rows: Row) -> list[Verdict]:
    return TOKENS.judge(TokenPicks([Model("m", ["Russia"], dict(zip(PRINTED, rows, strict=True)))]))


@pytest.mark.parametrize(
    ("better", "table", "usually", "sometimes"),
    [(3, True, True, True), (2, None, True, True), (1, None, False, True), (0, False, False, False)],
)
def test_the_verdicts_count_tokens(better: int, table: bool | None, usually: bool, sometimes: bool) -> None:
    good, bad = row(lasso=0.8, attention=0.2, telling=0.9), row(lasso=0.15, attention=0.2, telling=0.1)
    verdicts = judged(*(good if number < better else bad for number in range(3)))
    assert [verdict.holds for verdict in verdicts] == [table, True, usually, sometimes, {0: False, 3: True}.get(better)]


def test_weight_without_matches_beyond_chance_is_no_row_of_the_table() -> None:
    good = row(lasso=0.8, attention=0.2, telling=0.9)
    agreements = good.printed["lasso"] or {}
    few = {**agreements, "": replace(agreements[""], chance_matches=1.0)}
    lucky = replace(good, printed={**good.printed, "lasso": few})
    assert [judged(good, good, last)[0].holds for last in (good, lucky)] == [True, None]
    assert judged(lucky, lucky, lucky)[0].holds is False


def test_no_better_than_chance_is_not_better() -> None:
    below = row(lasso=0.05, attention=0.01, telling=0.1)
    assert [verdict.holds for verdict in judged(below, below, below)[2:4]] == [False, False]


def test_without_attention_there_is_no_comparison() -> None:
    alone = row(lasso=0.8, attention=0.2, telling=0.9)
    telling = replace(alone.telling, attention=math.nan)
    alone = replace(alone, printed={**alone.printed, "attention": None}, telling=telling)
    assert [verdict.holds for verdict in judged(alone, alone, alone)] == [True, None, None, None]


def test_a_model_that_gives_nan_is_refused(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "broken", 1)
    model = load(str(folder)).model
    with torch.no_grad():
        model.gpt_neox.embed_in.weight[:] = torch.nan
    model.save_pretrained(folder)
    experiments: tuple[Experiment[Any], ...] = (TOKENS, ERRATA)
    for experiment in experiments:
        with pytest.raises(GeomprobeError, match=r"broken gives hidden states that are not finite .* look for NaN"):
            run_experiment(experiment, Request(out=tmp_path / "out", models=(str(folder),)))
