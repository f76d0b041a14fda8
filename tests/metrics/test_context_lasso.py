"""The sums of ContextLasso against scikit-learn, text by text."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from geomprobe import ContextLasso, GeomprobeError, Probe
from geomprobe.accumulators.context_lasso import ContextLassoSum
from geomprobe.core.lasso import LassoSolution, solve_lasso
from geomprobe.core.rows import Rows
from tests import reference
from tests.accumulators.harness import WIDTH, attended, packed, padded, texts
from tests.metrics.measure import curves_of, scalars_of
from tests.tiny_models import VOCABULARY, tiny

PENALTY = 0.01


def twin(stream: list[Any], alpha: float) -> tuple[dict[str, float], list[float]]:
    """Means over targets, and Σ|β| by distance, of unit rows ``(n, d)`` by text."""
    picks, nonzero, squares, first = [], [], [], []
    by_distance: dict[int, list[float]] = {}
    for z in stream:
        for t in range(1, len(z)):
            weights = Lasso(alpha, fit_intercept=False, tol=1e-12, max_iter=1_000_000).fit(z[:t].T, z[t]).coef_
            picks.append((weights > 0.01).sum())
            nonzero.append((np.abs(weights) > 1e-9).sum())
            squares.append(1 - np.square(z[t] - weights @ z[:t]).sum())
            if weights.any():
                first.append(np.abs(weights)[0] / np.abs(weights).sum())
            for j, weight in enumerate(np.abs(weights)):
                by_distance.setdefault(t - j - 1, []).append(weight)
    means = {"picks": np.mean(picks), "nonzero": np.mean(nonzero), "r2": np.mean(squares), "first": np.mean(first)}
    curve = [float(np.mean(by_distance[distance])) for distance in sorted(by_distance)]
    return {f"lasso_{name}": float(value) for name, value in means.items()} | {"lasso_unsolved": 0.0}, curve


@pytest.mark.parametrize("layout", ["left", "mixed", "packed"])
def test_numbers_are_scikit_learns(layout: str) -> None:
    stream = texts()
    rows = packed(stream) if layout == "packed" else padded(stream, layout)
    expected, curve = twin([reference.unit(text.numpy()) for text in stream], PENALTY)
    metric = ContextLasso(penalty=PENALTY, tol=1e-10)
    assert scalars_of(metric, rows) == pytest.approx(expected, abs=1e-4)
    measured = curves_of(metric, rows)["lasso_weight"]
    assert measured.mean == pytest.approx(curve, abs=1e-4)
    assert measured.count == tuple(sum(max(0, len(text) - 1 - d) for text in stream) for d in range(len(curve)))


def test_the_literal_convention_is_scikit_learns_with_another_alpha() -> None:
    rows = padded(texts(), "right")
    literal = scalars_of(ContextLasso(penalty=2 * WIDTH * PENALTY, convention="literal", tol=1e-10), rows)
    assert literal == pytest.approx(scalars_of(ContextLasso(penalty=PENALTY, tol=1e-10), rows), abs=1e-6)


def test_a_rate_samples_that_share_whatever_the_batch() -> None:
    hidden = torch.randn(8, 100, WIDTH, generator=torch.Generator().manual_seed(0))
    sums = ContextLassoSum(penalty=0.05, rate=0.25)
    whole = sums.contribution(Rows(hidden))
    assert float(whole["targets"]) == pytest.approx(0.25 * 8 * 99, abs=8)  # positions are spread evenly in each of 8 texts
    assert float(whole["unsolved"]) == 0  # the others were not to be solved
    scaled = sums.contribution(Rows(hidden * 3.1))
    assert float(scaled["targets"]) == float(whole["targets"]), "the choice does not hang on the last digits of a row"
    parts = [sums.contribution(Rows(row.unsqueeze(0))) for row in hidden]
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.stack([part[name] for part in parts]).sum(0), rtol=1e-6, atol=1e-6)
    every = scalars_of(ContextLasso(penalty=0.05), Rows(hidden))
    some = scalars_of(ContextLasso(penalty=0.05, rate=0.25), Rows(hidden))
    # Five standard errors: over all targets the standard deviation of R² is 0.18.
    assert some["lasso_r2"] == pytest.approx(every["lasso_r2"], abs=5 * 0.18 * math.sqrt(0.75 / (0.25 * 8 * 99)))


def test_rounding_orders_no_equal_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, sums, draw = padded(texts(), "left"), ContextLassoSum(penalty=0.05, compare=True), torch.Generator().manual_seed(0)
    rows.attention = attended(rows)
    expected = sums.contribution(rows)["rank"]

    def rounded(*given: Any, **options: Any) -> LassoSolution:
        solution = solve_lasso(*given, **options)
        noise = 1e-9 * torch.randn(solution.coefficients.shape, generator=draw, dtype=torch.float64)
        return replace(solution, coefficients=solution.coefficients + noise.tril(-1))

    monkeypatch.setattr("geomprobe.accumulators.context_lasso.solve_lasso", rounded)
    assert float(sums.contribution(rows)["rank"]) == pytest.approx(float(expected), rel=1e-9)


def test_in_a_probe_at_every_site() -> None:
    # No token twice: how weight is shared between equal rows, the objective leaves open. No weight of these texts comes nearer
    # to the threshold of a pick, 0.01, than 5e-4.
    model, draw = tiny(), torch.Generator().manual_seed(0)
    batch = torch.stack([torch.randperm(VOCABULARY, generator=draw)[:20] for _ in range(2)])
    with torch.no_grad(), Probe(model, [ContextLasso(penalty=PENALTY, tol=1e-9)], on_error="raise") as probe:
        model(batch)
    reading = probe.read()
    for site, hidden in reference.hidden_states(model, {"input_ids": batch}).items():
        expected, _ = twin([reference.unit(rows) for rows in hidden], PENALTY)
        assert reading[f"lasso_r2/{site}"] == pytest.approx(expected["lasso_r2"], abs=1e-3)
        assert reading[f"lasso_picks/{site}"] == pytest.approx(expected["lasso_picks"], rel=1e-12)


@pytest.mark.parametrize("bad", [{"penalty": 0}, {"rate": 0}, {"rate": 2}, {"tol": 0}, {"convention": "ridge"}], ids=str)
def test_bad_arguments_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(GeomprobeError, match="expected"):
        ContextLasso(**bad)
