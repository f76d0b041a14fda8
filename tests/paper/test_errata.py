"""The errata in numbers: on random rows, on a random model that reads bytes, and on trained ones."""

import math
from dataclasses import replace
from pathlib import Path

import mpmath  # type: ignore[import-untyped]  # comes with torch
import numpy as np
import pytest
import torch

from geomprobe.core.cholesky import exact_increment, theorem_4_1_as_printed
from geomprobe.paper import errata, sec4_errata
from geomprobe.paper.errata import ERRATA, Errata
from geomprobe.paper.experiment import Outcome, Request
from geomprobe.paper.run import run_experiment
from geomprobe.paper.sec4_errata import Case, Objectives, Pick
from tests.sweeps.conftest import save_checkpoint

pytestmark = pytest.mark.slow  # it draws figures


@pytest.fixture(scope="module")
def request_of_bytes(tmp_path_factory: pytest.TempPathFactory) -> Request:
    folder = tmp_path_factory.mktemp("errata")
    return Request(out=folder / "out", models=(str(save_checkpoint(folder / "model", 4)),), device="cpu")


@pytest.fixture(scope="module")
def outcome(request_of_bytes: Request) -> Outcome[Errata]:
    return run_experiment(ERRATA, request_of_bytes)


def rows(n: int = 12, width: int = 6) -> torch.Tensor:
    drawn = torch.randn(n, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


def check_case(case: Case) -> None:
    """What is true of any rows."""
    assert case.error == pytest.approx(0, abs=1e-12)
    assert case.float64_error == pytest.approx(0, abs=1e-9)
    assert case.exact == pytest.approx(case.determinant, rel=1e-6)
    assert max(np.subtract(case.printed, case.exact)) > 0.1
    assert case.printed[0] == pytest.approx(case.exact[0])  # without a context there is no off-diagonal
    assert case.without_half / case.gain == pytest.approx(2, rel=1e-9)
    assert case.gain == pytest.approx(sum(case.determinant), rel=1e-9)
    stable, participation, effective, rank = case.ranks
    assert 1 <= stable <= participation <= effective <= rank
    assert stable < rank - 1
    log = math.log1p(case.rows / stable / 1e-4)
    assert case.stable_rank_term == pytest.approx(stable * log, rel=1e-9)
    assert case.rank_bound == pytest.approx(rank * log, rel=1e-9)
    assert case.gain <= case.without_half <= case.rank_bound  # the bound before the "~"


def test_of_random_rows_and_of_a_random_model(outcome: Outcome[Errata]) -> None:
    near, random, model = outcome.numbers.cases
    for case in (near, random, model):
        check_case(case)
    assert model.rows == 144  # a byte each
    assert [v.holds for v in outcome.verdicts] == [False, True, False, False, False, None, True, False, True]
    assert [v.kind for v in outcome.verdicts] == ["erratum"] * 5 + ["ours", "paper"] + ["erratum"] * 2
    assert [case.name for case in outcome.numbers.appendix_a] == [random.name, model.name]
    assert outcome.numbers.picks[0].literal is None  # bytes are no words
    assert "no token [China]" in outcome.of_kind("ours")[0].evidence


def test_of_a_trained_model(stories_model: Path, tmp_path: Path) -> None:
    numbers = ERRATA.measure(Request(out=tmp_path, models=(str(stories_model),), device="cpu"))
    case = numbers.cases[-1]
    check_case(case)
    assert [v.holds for v in ERRATA.judge(numbers)][:5] == [False, True, False, False, False]
    assert sum(case.printed) > 1.5 * sum(case.exact)


def test_of_a_model_that_reads_english(smollm2_model: Path, tmp_path: Path) -> None:
    """The paper's own list under scikit-learn's convention, and about fifteen picks under the formula as printed."""
    numbers = ERRATA.measure(Request(out=tmp_path, models=(str(smollm2_model),), device="cpu"))
    check_case(numbers.cases[-1])
    picks = numbers.picks[0]
    assert [token.strip() for token, _, _ in picks.sklearn or []] == ["Russia", "France", "Beijing", "of", "capital"]
    assert 12 <= len(picks.literal or []) <= 18
    assert [v.holds for v in ERRATA.judge(numbers)] == [False, True, False, False, False, False, True, False, True]
    assert ERRATA.draw(numbers) is not None


@pytest.mark.parametrize("n", [1, 2, 12])
def test_fifty_digits_are_mpmaths(n: int) -> None:
    z = rows(n)
    determinants, by_form = sec4_errata._in_fifty_digits(z.numpy())
    with mpmath.workdps(60):
        numbers = mpmath.matrix(z.tolist())
        gram, noise = numbers * numbers.T, mpmath.mpf("0.0001")
        halves = [mpmath.log(mpmath.det(mpmath.eye(t) + gram[:t, :t] / noise)) / 2 for t in range(1, n + 1)]
        for t in range(n):
            increment = halves[t] - (halves[t - 1] if t else 0)
            for ours in (determinants[t], by_form[t]):
                assert abs(mpmath.mpf(str(ours)) / increment - 1) < mpmath.mpf("1e-40")


def test_a_wrong_exact_form_does_not_pass(monkeypatch: pytest.MonkeyPatch, outcome: Outcome[Errata]) -> None:
    monkeypatch.setattr(sec4_errata, "exact_increment", lambda variance, sigma: 1.0001 * exact_increment(variance, sigma))
    numbers = replace(outcome.numbers, cases=[Case.of("rows", rows())] * 2)
    assert [v.holds for v in ERRATA.judge(numbers)][:2] == [False, False]


def test_a_right_print_would_pass(monkeypatch: pytest.MonkeyPatch, outcome: Outcome[Errata]) -> None:
    monkeypatch.setattr(
        sec4_errata, "theorem_4_1_as_printed", lambda variance, norm_sq, sigma: exact_increment(variance, sigma)
    )
    numbers = replace(outcome.numbers, cases=[Case.of("rows", rows())] * 2)
    assert ERRATA.judge(numbers)[0].holds


def test_the_printed_form_is_the_cores(outcome: Outcome[Errata]) -> None:
    case = Case.of("rows", rows())
    variance = torch.expm1(2 * torch.tensor(case.determinant, dtype=torch.float64)) * 1e-4
    assert case.printed == pytest.approx(theorem_4_1_as_printed(variance).tolist(), rel=1e-9)


def test_a_rank_that_nearly_is_the_stable_rank_would_pass(outcome: Outcome[Errata]) -> None:
    alike = [replace(case, rank_bound=1.5 * case.stable_rank_term) for case in outcome.numbers.cases]
    assert ERRATA.judge(replace(outcome.numbers, cases=alike))[3].holds


def test_nearly_equal_rows_have_every_rank_and_a_stable_rank_of_one() -> None:
    singular = np.linalg.svd(sec4_errata.near_one_direction(40, seed=0).numpy(), compute_uv=False)
    assert np.square(singular).sum() / singular[0] ** 2 == pytest.approx(1, abs=1e-2)
    assert (singular > 1e-8).all()


def test_the_comma_is_not_in_the_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = errata._comma()
    assert verdict.holds is False
    assert "lists it 5 times" in verdict.evidence
    monkeypatch.setattr(errata, "SENTENCE", "Yes, no")
    assert errata._comma().holds is True


def picked(*tokens: str) -> list[Pick]:
    return [(f" {token}", i, 0.5) for i, token in enumerate(tokens)]


def test_the_papers_list_decides_between_the_two_objectives() -> None:
    listed, others = picked("capital", "of", "Beijing", "France", "Russia"), picked("Yes", "the", "of")
    assert errata._objective([Objectives("m", listed, others)]).holds is False
    assert errata._objective([Objectives("m", others, listed)]).holds is True
    neither = errata._objective([Objectives("m", others, others)])
    assert neither.holds is None
    assert "neither is the paper's list" in neither.evidence


def test_tables_fit_a_terminal(outcome: Outcome[Errata]) -> None:
    picks = Objectives("a-model-with-a-name-that-is-long", picked("of"), picked("of", "capital"))
    whole = replace(outcome, numbers=replace(outcome.numbers, picks=[picks]))
    assert max(map(len, str(whole).splitlines())) <= 80


def test_kept_numbers_draw_the_same_files(outcome: Outcome[Errata], request_of_bytes: Request) -> None:
    out = request_of_bytes.out
    first = {form: (out / f"errata.{form}").read_bytes() for form in ("json", "png", "html")}
    again = run_experiment(ERRATA, request_of_bytes)
    assert again.kept
    assert {form: (out / f"errata.{form}").read_bytes() for form in first} == first
