"""Section 4.1: what the information gain of unit rows cannot exceed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geomprobe.core.cholesky import information_gain, information_gain_bound


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.integers(1, 6),
    st.integers(1, 40),
    st.sampled_from([0.01, 0.1, 1.0, 10.0]),
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.1, 10.0]),
)
def test_no_unit_rows_gain_more_than_the_bound(width: int, length: int, sigma: float, seed: int, common: float) -> None:
    rows = np.random.default_rng(seed).standard_normal((length, width)) + common
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    bound = information_gain_bound(width, length, sigma)
    assert bound == pytest.approx(width * (math.log(sigma**2 + length) - 2 * math.log(sigma)), rel=1e-12, abs=1e-12)
    gain = np.linalg.slogdet(np.eye(width) + rows.T @ rows / sigma**2).logabsdet / 2
    assert float(information_gain(torch.as_tensor(rows @ rows.T), sigma)) == pytest.approx(gain, rel=1e-6, abs=1e-9)
    closer = width / 2 * np.log1p(length / width / sigma**2)
    assert gain <= closer * (1 + 1e-9) <= bound


def test_equal_directions_reach_the_closer_bound() -> None:
    rows = np.tile(np.eye(3), (5, 1))
    gain = float(information_gain(torch.as_tensor(rows @ rows.T), 0.1))
    assert gain == pytest.approx(3 / 2 * np.log1p(5 / 0.01), rel=1e-9)
