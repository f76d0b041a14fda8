"""Agreement of picks and weights against SciPy and sets, among some of the tokens."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from geomprobe.core.agreement import jaccard, precision, rank_correlation


@pytest.mark.parametrize("seed", range(20))
def test_only_tokens_among_those_given_are_compared(seed: int) -> None:
    """Weights of either sign, with ties; those of other tokens are the largest."""
    draw = np.random.default_rng(seed)
    shape = (4, 9)
    among = draw.random(shape) < 0.7
    among[:, :3] = True
    first, second = (np.where(among, draw.integers(-2, 3, shape), 9) for _ in range(2))
    first[:, :3], second[:, :3] = [0, 1, 2], [1, 1, -1]
    picked = among & (draw.random(shape) < 0.4)
    other = among & (draw.random(shape) < 0.4)
    picked[0] = False
    overlaps, shares, correlations = [], [], []
    for row in range(4):
        here = np.flatnonzero(among[row])
        mine, theirs = set(np.flatnonzero(picked[row])), set(np.flatnonzero(other[row]))
        overlaps.append(len(mine & theirs) / len(mine | theirs) if mine | theirs else np.nan)
        top = here[np.argsort(-second[row, here], kind="stable")][: len(mine)]
        shares.append(len(mine & set(top)) / len(mine) if mine else np.nan)
        correlations.append(spearmanr(first[row, here], second[row, here]).statistic)
    tensors = [torch.from_numpy(each) for each in (picked, other, among)]
    one, two = (torch.from_numpy(each).double() for each in (first, second))
    assert jaccard(*tensors[:2]).numpy() == pytest.approx(overlaps, nan_ok=True)
    assert precision(tensors[0], two, tensors[2]).numpy() == pytest.approx(shares, nan_ok=True)
    assert np.isnan(shares[0])
    assert rank_correlation(one, two, tensors[2]).numpy() == pytest.approx(correlations, rel=1e-12)


def test_equal_values_have_no_rank_correlation() -> None:
    values, equal = torch.tensor([1.0, 2.0, 3.0]), torch.ones(3)
    every = torch.ones(3, dtype=torch.bool)
    assert rank_correlation(values, equal, every).isnan()
    assert rank_correlation(equal, values, every).isnan()
