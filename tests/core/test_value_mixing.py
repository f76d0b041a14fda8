"""Eqs 3 to 5 of section 4.2 against loops in NumPy, on random attention."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from geomprobe import GeomprobeError
from geomprobe.core.value_mixing import equation_5, mix_values, unmix_values

Floats = NDArray[np.float64]


def drawn(tokens: int, seed: int, width: int = 5) -> tuple[Floats, Floats]:
    """Causal attention weights, rows of them summing to one, and value vectors."""
    draw = np.random.default_rng(seed)
    scores = np.exp(draw.standard_normal((tokens, tokens)) + 2 * np.eye(tokens))
    weights = np.tril(scores) / np.tril(scores).sum(1, keepdims=True)
    return weights, draw.standard_normal((tokens, width))


def mixed(weights: Floats, values: Floats) -> Floats:
    return np.array([sum(weights[t, j] * values[j] for j in range(t + 1)) for t in range(len(values))])


@pytest.mark.parametrize("tokens", [1, 2, 7, 16])
@pytest.mark.parametrize("seed", range(5))
def test_equation_3_is_the_sum_and_equation_4_its_inverse(tokens: int, seed: int) -> None:
    weights, values = drawn(tokens, seed)
    rows = mixed(weights, values)
    found = mix_values(torch.as_tensor(weights), torch.as_tensor(values))
    assert found.numpy() == pytest.approx(rows, abs=1e-14)
    back = unmix_values(torch.as_tensor(weights), found)
    assert back.numpy() == pytest.approx(values, abs=1e-10)
    by_equation_4: list[Floats] = []
    for t in range(tokens):
        earlier = sum(weights[t, j] / weights[t, t] * by_equation_4[j] for j in range(t))
        by_equation_4.append(rows[t] / weights[t, t] - earlier)
    assert back.numpy() == pytest.approx(np.array(by_equation_4), abs=1e-10)


def test_equation_5_leaves_out_what_the_paper_drops() -> None:
    weights, values = drawn(9, 1)
    rows = mixed(weights, values)
    found = equation_5(*map(torch.as_tensor, (weights, values, rows))).numpy()
    for t in range(9):
        second = sum(weights[t, j] / weights[j, j] * rows[j] for j in range(t))
        assert found[t] == pytest.approx(weights[t, t] * values[t] + second, abs=1e-12)
        dropped = sum(weights[t, j] * sum(weights[j, k] / weights[j, j] * values[k] for k in range(j)) for j in range(t))
        assert found[t] - dropped == pytest.approx(rows[t], abs=1e-12)
    assert np.abs(found - rows).max() > 0.01  # it is an approximation


def test_what_lies_above_the_diagonal_is_not_read_and_batches_are_heads_one_by_one() -> None:
    (first, values), (second, _) = drawn(6, 2), drawn(6, 3)
    heads = torch.as_tensor(np.stack([first, second]))
    noisy = heads + torch.ones(6, 6, dtype=torch.float64).triu(1)
    both = torch.as_tensor(np.stack([values, values]))
    rows = mix_values(noisy, both)
    alone = torch.stack([mix_values(head, torch.as_tensor(values)) for head in heads])
    torch.testing.assert_close(rows, alone, rtol=1e-12, atol=1e-12)  # a BLAS may sum a batch in another order
    assert torch.allclose(unmix_values(noisy, rows), both, atol=1e-10)
    assert torch.equal(equation_5(noisy, both, rows), equation_5(heads, both, rows))


def test_a_token_without_weight_on_itself_cannot_be_unmixed() -> None:
    weights, values = map(torch.as_tensor, drawn(4, 4))
    weights[2, 2] = 0
    with pytest.raises(GeomprobeError, match=r"Eq\. 4 divides by the weight of each token on itself"):
        unmix_values(weights, values)
    with pytest.raises(GeomprobeError, match=r"Eq\. 5 divides"):
        equation_5(weights, values, values)
