"""The errata of section 4 in numbers: Theorem 4.1, the formulas after Def. 4.2, and the objective of the Lasso."""

from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geomprobe.core import spectrum
from geomprobe.core.cholesky import exact_increment, gains, posterior_variance, scaled_factor, theorem_4_1_as_printed
from geomprobe.core.lasso import literal_penalty, sklearn_penalty, solve_lasso
from geomprobe.models.loading import Loaded

__all__ = ["ALPHA", "DIGITS", "PICKED", "RANKS", "SIGMA", "TOKEN", "Case", "Objectives", "Pick", "near_one_direction"]

SIGMA = 0.01
DIGITS = 50
_IN_DIGITS = 24
"""Number of rows whose determinants are also computed with fifty digits."""

TOKEN = "China"
ALPHA = 1e-4
PICKED = 0.01

RANKS = ("stable rank", "participation ratio", "effective rank", "rank")
"""The ranks, each of which is at most the next one."""


@dataclass(frozen=True)
class Case:
    """The information gain and the ranks of one set of unit rows, computed in every way that the paper gives.

    Attributes:
        name: the name of the rows.
        rows: the number of rows.
        width: the number of dimensions of a row.
        determinant: what each row adds to the gain, from determinants.
        exact: the same from the posterior variance.
        printed: the same by the formula that Theorem 4.1 prints.
        error: the largest relative difference between ``exact`` and ``determinant``, both with fifty digits.
        float64_error: the same for ``exact`` in float64.
        without_half: the information gain without its ½.
        gain: the information gain.
        ranks: the ranks that :data:`RANKS` names.
        rank_bound: rank · log(1 + σ⁻²T/srank).
        stable_rank_term: srank · log(1 + σ⁻²T/srank).
    """

    name: str
    rows: int
    width: int
    determinant: list[float]
    exact: list[float]
    printed: list[float]
    error: float
    float64_error: float
    without_half: float
    gain: float
    ranks: list[float]
    rank_bound: float
    stable_rank_term: float

    @classmethod
    def of(cls, name: str, rows: Tensor) -> Self:
        """Return the case of unit rows ``(n, d)``."""
        gram = rows @ rows.mT
        factor = scaled_factor(gram, SIGMA)[0]
        variance = posterior_variance(factor, SIGMA)
        exact, printed = exact_increment(variance, SIGMA), theorem_4_1_as_printed(variance, gram.diagonal(), SIGMA)
        by_determinant, by_form = _in_fifty_digits(rows[:_IN_DIGITS].numpy())
        first = exact[: len(by_determinant)].tolist()
        eigenvalues = torch.linalg.eigvalsh(rows.mT @ rows / len(rows)).clamp_min(0)
        without_half = torch.log1p(torch.linalg.eigvalsh(gram).clamp_min(0) / SIGMA**2).sum()
        ranks = [getattr(spectrum, name.replace(" ", "_"))(eigenvalues) for name in RANKS[:-1]]
        rank = int(torch.linalg.matrix_rank(rows))
        log = float(np.log1p(len(rows) / float(ranks[0]) / SIGMA**2))
        return cls(
            name,
            len(rows),
            rows.shape[1],
            determinant=_determinant_increments(gram).tolist(),
            exact=exact.tolist(),
            printed=printed.tolist(),
            error=max(_apart(a, b) for a, b in zip(by_form, by_determinant, strict=True)),
            float64_error=max(_apart(Decimal(a), b) for a, b in zip(first, by_determinant, strict=True)),
            without_half=float(without_half),
            gain=float(gains(factor).sum()),
            ranks=[*map(float, ranks), rank],
            rank_bound=rank * log,
            stable_rank_term=float(ranks[0]) * log,
        )


Pick = tuple[str, int, float]
"""A token, its number and its weight."""


@dataclass(frozen=True)
class Objectives:
    """The picks of the Lasso for the token under both conventions: weights above 0.01, the largest first; ``None`` if the
    vocabulary does not have the token."""

    model: str
    sklearn: list[Pick] | None
    literal: list[Pick] | None

    @property
    def both(self) -> tuple[list[Pick], list[Pick]] | None:
        """The picks under scikit-learn's convention and under the literal one."""
        return None if self.sklearn is None or self.literal is None else (self.sklearn, self.literal)

    @classmethod
    def of(cls, name: str, loaded: Loaded, ids: list[int], rows: Tensor) -> Self:
        """Return the picks of the last such token of a text, from its unit rows ``(n, d)``."""
        tokens = [str(loaded.tokenizer.decode([token])) for token in ids]
        places = [t for t, token in enumerate(tokens) if token.strip() == TOKEN]
        if not places:
            return cls(name, None, None)
        t = places[-1]

        def picks(penalty: float) -> list[Pick]:
            which = torch.arange(len(rows)) == t
            weights = solve_lasso(rows @ rows.mT, penalty, tol=1e-9, which=which).coefficients[t]
            heaviest = weights.argsort(descending=True).tolist()
            return [(tokens[j], j, float(weights[j])) for j in heaviest if weights[j] > PICKED]

        return cls(name, picks(sklearn_penalty(ALPHA, rows.shape[1])), picks(literal_penalty(ALPHA)))


def _determinant_increments(gram: Tensor) -> Tensor:
    """``½ logdet(I + σ⁻²K_{t+1}) − ½ logdet(I + σ⁻²K_t)`` from the determinant of every leading block, in float64."""
    whole = torch.eye(len(gram), dtype=gram.dtype) + gram / SIGMA**2
    halves = torch.stack([torch.linalg.slogdet(whole[:t, :t]).logabsdet / 2 for t in range(1, len(gram) + 1)])
    return torch.diff(halves, prepend=halves.new_zeros(1))


def _in_fifty_digits(rows: NDArray[np.float64]) -> tuple[list[Decimal], list[Decimal]]:
    """Increments as differences of determinants, and as ``½ log(1 + σ⁻²σ_T²)`` with the variance as it is defined, by solving
    with ``K + σ²I``: two ways that have only the rows in common. With σ⁻² = 1e4, float64 has too few digits for an agreement to
    1e-12.
    """
    with localcontext(prec=DIGITS):
        noise = Decimal(str(SIGMA)) ** 2
        numbers = np.array([[Decimal(value) for value in row] for row in rows.tolist()], dtype=object)
        gram = numbers @ numbers.T
        identity = np.array([[Decimal(i == j) for j in range(len(rows))] for i in range(len(rows))], dtype=object)
        determinants, by_form = [Decimal(1)], []
        for t in range(len(rows)):
            block = _eliminated(identity[: t + 1, : t + 1] + gram[: t + 1, : t + 1] / noise)
            determinants.append(np.prod(block.diagonal()))
            weights = _solved(gram[:t, :t] + noise * identity[:t, :t], gram[:t, t])
            variance = gram[t, t] - sum(gram[t, j] * weights[j] for j in range(t))
            by_form.append((1 + variance / noise).ln() / 2)
        pairs = zip(determinants[1:], determinants[:-1], strict=True)
        return [(after / before).ln() / 2 for after, before in pairs], by_form


def _eliminated(matrix: NDArray[Any]) -> NDArray[Any]:
    """A copy with zeros below the diagonal, by Gaussian elimination. Its left square is positive definite, so no pivots are
    searched."""
    matrix = matrix.copy()
    for i in range(len(matrix) - 1):
        matrix[i + 1 :] -= np.outer(matrix[i + 1 :, i] / matrix[i, i], matrix[i])
    return matrix


def _solved(matrix: NDArray[Any], right: NDArray[Any]) -> list[Decimal]:
    upper = _eliminated(np.column_stack([matrix, right]))
    weights = [Decimal(0)] * len(upper)
    for i in reversed(range(len(upper))):
        known = sum(upper[i, j] * weights[j] for j in range(i + 1, len(upper)))
        weights[i] = (upper[i, -1] - known) / upper[i, i]
    return weights


def near_one_direction(n: int, seed: int, apart: float = 1e-3) -> Tensor:
    """Return ``n`` unit rows in ``n`` dimensions that are nearly equal: their rank is n, and their stable rank is nearly 1."""
    noise = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows: Tensor = torch.nn.functional.normalize(torch.eye(n, dtype=torch.float64)[:1] + apart * noise, dim=1)
    return rows


def _apart(value: Decimal, right: Decimal) -> float:
    """The relative difference of ``value`` from ``right``."""
    with localcontext(prec=DIGITS):
        return float(abs(value - right) / right) if right else float(abs(value))
