"""The Lasso of every row on its past, against scikit-learn and against the conditions that only a solution meets."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso
from torch import Tensor

from geomprobe import GeomprobeError
from geomprobe.core import lasso
from geomprobe.core.lasso import LassoSolution, largest_penalty, literal_penalty, sklearn_penalty, solve_lasso

few = settings(max_examples=30, deadline=None, derandomize=True)


def unit(*shape: int, seed: int = 0, common: float = 1.0) -> Tensor:
    """Rows of length one around a ``common`` direction, as hidden states have one."""
    draw = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(draw + common, dim=-1)


def gram(z: Tensor) -> Tensor:
    return z @ z.mT


def objective(z: Tensor, row: int, weights: Tensor, penalty: float) -> float:
    residual = z[row] - weights[:row] @ z[:row]
    return float(residual.square().sum() / 2 + penalty * weights.abs().sum())


def assert_optimal(solution: LassoSolution, z: Tensor, penalty: float, tol: float) -> None:
    """Zero outside the past; and ``z_jᵀr = λ sign β_j`` where a row is picked, ``|z_jᵀr| ≤ λ`` where it is not."""
    weights = solution.coefficients
    assert solution.converged.all()
    assert not weights.triu().any()
    slope = ((z - weights @ z) @ z.mT).tril(-1)
    picked = weights != 0
    assert float((slope - penalty * weights.sign())[picked].abs().max() if picked.any() else 0) <= tol
    assert float(slope.abs().max()) <= penalty + tol


@few
@given(st.integers(1, 60), st.integers(2, 24), st.floats(0.005, 0.5), st.floats(0, 2), st.integers(0, 1000))
def test_active_sets_end_at_the_conditions_of_optimality(n: int, width: int, penalty: float, common: float, seed: int) -> None:
    z = unit(n, width, seed=seed, common=common)
    assert_optimal(solve_lasso(gram(z), penalty, tol=1e-9), z, penalty, 1e-4)


@pytest.mark.parametrize("alpha", [1e-3, 1e-2])
def test_weights_are_scikit_learns(alpha: float) -> None:
    z = unit(80, 48)
    solution = solve_lasso(gram(z), sklearn_penalty(alpha, 48), tol=1e-10)
    for t in range(1, 80):
        expected = Lasso(alpha, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(z[:t].T.numpy(), z[t].numpy()).coef_
        np.testing.assert_allclose(solution.coefficients[t, :t].numpy(), expected, atol=1e-5)


def test_the_literal_penalty_is_half_of_the_papers() -> None:
    z = unit(20, 8)
    weight = 0.1
    solution = solve_lasso(gram(z), literal_penalty(weight), tol=1e-12)
    # ‖z − Zβ‖² + λ‖β‖₁ divided by 2d is scikit-learn's with α = λ/(2d).
    for t in (5, 19):
        model = Lasso(weight / 2 / 8, fit_intercept=False, tol=1e-12, max_iter=100_000)
        expected = model.fit(z[:t].T.numpy(), z[t].numpy()).coef_
        np.testing.assert_allclose(solution.coefficients[t, :t].numpy(), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("penalty", [1e-5, 1e-3, 0.05])
def test_the_gap_is_a_bound(penalty: float) -> None:
    """No other weights are better by more than it says: not scikit-learn's, not the other method's."""
    z = unit(60, 24)
    solution = solve_lasso(gram(z), penalty, tol=1e-5)
    assert solution.converged.all()
    for t in range(1, 60):
        ours = objective(z, t, solution.coefficients[t], penalty)
        model = Lasso(penalty / 24, fit_intercept=False, tol=1e-10, max_iter=10_000)
        theirs = torch.as_tensor(model.fit(z[:t].T.numpy(), z[t].numpy()).coef_)
        assert ours <= objective(z, t, theirs, penalty) + float(solution.gap[t]) + 1e-12


def test_both_methods_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    z = unit(2, 70, 24)
    sparse = solve_lasso(gram(z), 0.02, tol=1e-9)
    monkeypatch.setattr(lasso, "_SMALL", math.inf)
    dense = solve_lasso(gram(z), 0.02, tol=1e-9, max_rounds=20_000)
    assert dense.converged.all()
    torch.testing.assert_close(dense.coefficients, sparse.coefficients, rtol=0, atol=1e-4)


def test_sets_that_grow_too_large_go_on_by_the_other_method(monkeypatch: pytest.MonkeyPatch) -> None:
    z = unit(60, 48)
    expected = solve_lasso(gram(z), 0.02, tol=1e-8)
    assert int((expected.coefficients != 0).sum(-1).max()) > 6
    monkeypatch.setattr(lasso, "_DENSE", 6)
    mixed = solve_lasso(gram(z), 0.02, tol=1e-8, max_rounds=20_000)
    assert mixed.converged.all()
    torch.testing.assert_close(mixed.coefficients, expected.coefficients, rtol=0, atol=1e-3)


def test_sequences_with_few_targets_are_solved_together(monkeypatch: pytest.MonkeyPatch) -> None:
    z = unit(8, 40, 16)
    which = torch.arange(40).expand(8, 40) % 4 == 3
    which = which & (torch.arange(8) != 5).unsqueeze(1)  # a sequence without a target
    together: list[int] = []
    solve = lasso._solve

    def counted(problem: lasso._Problem, *others: Any) -> Any:
        together.append(len(problem.gram))
        return solve(problem, *others)

    monkeypatch.setattr(lasso, "_solve", counted)
    found = solve_lasso(gram(z), 0.05, which=which)
    assert together == [4, 4]
    every = solve_lasso(gram(z), 0.05)
    assert together[2:] == [1] * 8
    assert found.converged[which].all()
    torch.testing.assert_close(found.coefficients[which], every.coefficients[which], rtol=0, atol=1e-12)
    assert not found.coefficients[~which].any()


@pytest.mark.parametrize("shape", [(3,), (2, 2)], ids=str)
def test_a_batch_is_its_sequences_one_by_one(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    z = unit(*shape, 40, 16)
    for penalty in (1e-4, 0.05):
        for whole in (False, True):
            if whole:  # as a GPU does it
                monkeypatch.setattr(lasso, "_parts", lambda stack, targets: iter([slice(0, len(stack))]))
                monkeypatch.setattr(lasso, "_products", lasso._products_together)
            batch = solve_lasso(gram(z), penalty, tol=1e-6)
            monkeypatch.undo()
            assert batch.gap.shape == z.shape[:-1]
            for got, gap, rows in zip(
                batch.coefficients.flatten(0, -3), batch.gap.flatten(0, -2), z.flatten(0, -3), strict=True
            ):
                alone = solve_lasso(gram(rows), penalty, tol=1e-6)
                assert float(gap.max()) <= 1e-6
                for t in range(40):
                    assert objective(rows, t, got[t], penalty) == pytest.approx(
                        objective(rows, t, alone.coefficients[t], penalty), abs=2e-6
                    )


@pytest.mark.parametrize("common", [0.0, 1.0])
def test_at_the_largest_penalty_and_above_all_is_zero_and_just_below_it_is_not(common: float) -> None:
    z = unit(30, 8, common=common)
    most = largest_penalty(gram(z))
    np.testing.assert_allclose(most.numpy(), np.abs(np.tril(gram(z).numpy(), -1)).max(-1))  # also in opposite directions
    assert float(most[0]) == 0
    for t in (1, 7, 29):
        assert not solve_lasso(gram(z), float(most[t])).coefficients[t].any()
        assert solve_lasso(gram(z), float(most[t]) * 0.99, tol=1e-9).coefficients[t].count_nonzero() == 1
    assert not solve_lasso(gram(z), float(most.max())).coefficients.any()


@few
@given(st.integers(0, 1000), st.sampled_from([1e-3, 0.03]))
def test_permuting_the_context_permutes_the_solution_and_scaling_scales_it(seed: int, penalty: float) -> None:
    z = unit(20, 32, seed=seed)  # more dimensions than rows: the solution is unique
    order = torch.randperm(19, generator=torch.Generator().manual_seed(seed))
    last = solve_lasso(gram(z), penalty, tol=1e-10).coefficients[19, :19]
    shuffled = solve_lasso(gram(torch.cat([z[:19][order], z[19:]])), penalty, tol=1e-10).coefficients[19, :19]
    torch.testing.assert_close(shuffled, last[order], rtol=0, atol=1e-5)
    scaled = solve_lasso(gram(3 * z), 9 * penalty, tol=9e-10).coefficients[19, :19]
    torch.testing.assert_close(scaled, last, rtol=0, atol=1e-5)


@pytest.mark.parametrize("penalty", [0.01, 0.05])
def test_equal_rows_share_what_one_of_them_would_get(penalty: float) -> None:
    z = unit(12, 16)
    one = solve_lasso(gram(z), penalty, tol=1e-9).coefficients[11]
    twice = solve_lasso(gram(torch.cat([z[:11], z[:11], z[11:]])), penalty, tol=1e-9)
    assert twice.converged.all()
    torch.testing.assert_close(twice.coefficients[22, :11] + twice.coefficients[22, 11:22], one[:11], rtol=0, atol=1e-4)
    again = solve_lasso(gram(torch.cat([z[:11], z[:11], z[11:]])), penalty, tol=1e-9)
    assert torch.equal(again.coefficients, twice.coefficients)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_the_shortest_texts(n: int) -> None:
    z = unit(n, 8)
    solution = solve_lasso(gram(z), 0.1)
    assert solution.coefficients.shape == (n, n)
    assert solution.converged.all()
    if n == 2:
        assert float(solution.coefficients[1, 0]) == pytest.approx(float(z[0] @ z[1]) - 0.1)


@pytest.mark.parametrize("penalty", [1e-4, 0.05])
def test_padding_and_other_texts_are_not_there(penalty: float) -> None:
    first, second = unit(10, 12, seed=1), unit(8, 12, seed=2)
    matrix = torch.zeros(20, 20, dtype=torch.float64)
    matrix[1:11, 1:11], matrix[12:, 12:] = gram(first), gram(second)  # places 0 and 11 are padding
    solution = solve_lasso(matrix, penalty, tol=1e-8)
    assert not solution.coefficients[[0, 11]].any()
    assert not solution.coefficients[:, [0, 11]].any()
    assert not solution.coefficients[12:, :12].any()
    for places, z in ((slice(1, 11), first), (slice(12, 20), second)):
        alone = solve_lasso(gram(z), penalty, tol=1e-8).coefficients
        torch.testing.assert_close(solution.coefficients[places, places], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("penalty", [1e-4, 0.05])
def test_a_warm_start_ends_at_the_same_place_and_a_solution_stays(penalty: float) -> None:
    z = unit(40, 16)
    solution = solve_lasso(gram(z), penalty, tol=1e-6)
    warm = solve_lasso(gram(z), penalty, tol=1e-6, start=solution.coefficients)
    assert warm.converged.all()
    for t in range(40):
        assert objective(z, t, warm.coefficients[t], penalty) == pytest.approx(
            objective(z, t, solution.coefficients[t], penalty), abs=2e-6
        )
    elsewhere = solve_lasso(gram(z), penalty, tol=1e-6, start=unit(40, 40, seed=3))
    assert elsewhere.converged.all()


@pytest.mark.parametrize("penalty", [1e-4, 0.05])
def test_targets_that_were_not_chosen_keep_their_start(penalty: float) -> None:
    z, start = unit(2, 40, 16), 0.1 * unit(2, 40, 40, seed=3)
    which = torch.rand(2, 40, generator=torch.Generator().manual_seed(0)) < 0.5
    which[:, 0] = False
    every, some = (solve_lasso(gram(z), penalty, which=chosen, start=start) for chosen in (None, which))
    assert torch.equal(some.coefficients[~which], start.tril(-1)[~which])
    assert some.converged[which].all()
    reached = [lasso.lasso_objective(gram(z), solution.coefficients, penalty) for solution in (every, some)]
    torch.testing.assert_close(reached[1][which], reached[0][which], rtol=0, atol=2e-6)
    assert (reached[1] - some.gap <= reached[0] + 1e-12).all()  # the gap is that of what is returned


def test_a_target_that_did_not_improve_gets_one_row_at_a_time() -> None:
    """Of several that were added at once, all might leave again, round after round."""
    slope = torch.tensor([0.3, -0.5, 0.05, 0.2]).expand(2, 4).double()
    sets = lasso._Sets.of(torch.zeros(2, 4, dtype=torch.float64))
    sets.admit(slope.clone(), 0.1, torch.tensor([True, False]), 4)
    assert [sets.column[i, active].tolist() for i, active in enumerate(sets.active)] == [[1], [1, 0, 3]]
    assert sets.sign[1, :3].tolist() == [-1, 1, 1]


def test_what_did_not_converge_says_so() -> None:
    solution = solve_lasso(gram(unit(60, 24)), 1e-5, tol=1e-12, max_rounds=3)
    assert not solution.converged.all()
    assert float(solution.gap.max()) > 1e-12


def test_bad_arguments_name_what_was_expected() -> None:
    with pytest.raises(GeomprobeError, match="penalty=0"):
        solve_lasso(torch.eye(3), 0)
    with pytest.raises(GeomprobeError, match="square"):
        solve_lasso(torch.ones(3, 2), 0.1)
    with pytest.raises(GeomprobeError, match="finite"):
        solve_lasso(torch.full((2, 2), torch.nan), 0.1)
