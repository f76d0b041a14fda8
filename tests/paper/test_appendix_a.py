"""Theorem A.1 against its formulas as printed, in fifty digits, and its verdicts."""

from dataclasses import replace
from typing import Any

import mpmath  # type: ignore[import-untyped]  # comes with torch
import numpy as np
import pytest
import torch
from torch import Tensor

from geomprobe.paper.appendix_a import judge_theorem_a_1, measure_theorem_a_1, theorem_a_1_table


def unit(n: int, d: int, seed: int = 0) -> Tensor:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    unit_rows: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return unit_rows


def printed(rows: Tensor, share: float) -> tuple[Any, Any]:
    """``d_JS`` and ``√(γ²/8)‖A − B‖_F`` as the paper prints them, from determinants in fifty digits and all dimensions."""
    with mpmath.workdps(50):
        first, second = (mpmath.matrix(half.tolist()) for half in rows.tensor_split(2))
        a, b = (half.T * half / half.rows for half in (first, second))
        norms = [np.linalg.norm(half.numpy(), 2) ** 2 / len(half) for half in rows.tensor_split(2)]
        gamma, identity = mpmath.mpf(share / max(norms)), mpmath.eye(rows.shape[1])
        middle, *ends = (mpmath.log(mpmath.det(identity + gamma * m)) for m in ((a + b) / 2, a, b))
        return mpmath.sqrt(middle - sum(ends) / 2), mpmath.sqrt(gamma**2 / 8) * mpmath.mnorm(a - b, "f")


@pytest.mark.parametrize(("n", "d"), [(20, 6), (7, 12)], ids=["full-rank", "singular"])
def test_the_ratio_is_that_of_the_printed_formulas(n: int, d: int) -> None:
    rows = unit(n, d)
    case = measure_theorem_a_1("random", rows)
    for share, ratio in zip(case.shares, case.ratio, strict=True):
        js, leading = printed(rows, share)
        assert ratio == pytest.approx(float(js / leading), rel=1e-11)
    assert case.order == pytest.approx(2, abs=0.02)
    assert case.order_of_square == pytest.approx(3, abs=0.02)
    assert case.coefficient == pytest.approx(case.predicted, rel=1e-3)
    assert case.predicted < 0


def test_the_claim_holds_and_its_printed_remainder_does_not() -> None:
    cases = [measure_theorem_a_1("random", unit(20, 6)), measure_theorem_a_1("others", unit(9, 40, seed=1))]
    assert [verdict.holds for verdict in judge_theorem_a_1(cases)] == [True, False, True]
    table = theorem_a_1_table(cases)
    assert max(map(len, str(table).splitlines())) <= 80
    assert [row[3:5] for row in table.rows] == [("2.00", "3.00")] * 2


def test_verdicts_follow_the_orders() -> None:
    case = measure_theorem_a_1("random", unit(20, 6))
    as_printed = replace(case, order=3.01, order_of_square=4.0)
    assert [verdict.holds for verdict in judge_theorem_a_1([as_printed])] == [True, True, False]
    assert judge_theorem_a_1([replace(case, ratio=[0.9, 0.9, 0.9, 0.9])])[0].holds is False


def test_halves_of_one_covariance_tell_nothing() -> None:
    half = unit(3, 8)
    case = measure_theorem_a_1("twice", torch.cat([half, half]))
    assert [verdict.holds for verdict in judge_theorem_a_1([case])] == [None, None, None]
    assert theorem_a_1_table([case]).rows == []
