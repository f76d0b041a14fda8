"""The Lasso regression of every row on the rows before it, solved as one problem per sequence.

With unit rows Z ``(T, d)`` and K = ZZᵀ, row t of a strictly lower-triangular B minimises

    ½ ‖z_t − Σ_j B_tj z_j‖² + λ Σ_j |B_tj|      (j < t),

which depends on Z only through K. Two conventions of the penalty are in use, which differ by a factor (``sklearn_penalty``,
``literal_penalty``). Every solution is returned with its duality gap in the units of this objective, which bounds its error.

There are two methods, chosen by the number of picks. For few picks (as in the paper's results), each target has an active set,
which is solved exactly by its own small Cholesky factor and extended by the rows that violate the optimality conditions, for
all targets at once. For hundreds of picks (as with the formula printed in the paper), ADMM solves all targets through one
Cholesky factor: with ``K + ρI = LLᵀ`` and ``M = L⁻¹``, the solution for every leading block is ``tril(R Mᵀ, −1) M``.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from geomprobe.errors import GeomprobeError

__all__ = [
    "LassoSolution",
    "explained",
    "largest_penalty",
    "lasso_objective",
    "literal_penalty",
    "sklearn_penalty",
    "solve_lasso",
]

_ADDED = 6
"""Number of rows added to an active set at once. With more there are fewer rounds, but more rows are removed again."""

_DENSE = 96
"""Number of picks of one target from which its sequence is solved by ADMM."""

_ADMM_ROUNDS = 200
"""Largest number of ADMM iterations: enough for all but ill-conditioned targets."""

_SMALL = 1e-3
"""Share of the mean largest penalty below which a sequence is solved by ADMM without trying active sets."""

_VIOLATES = 1e-9
"""Relative amount by which a row outside an active set must exceed λ to be added."""

_TIES = 1e-13
"""Added to the diagonal of active sets, so that equal rows share their weight instead of making the factorisation fail."""


def sklearn_penalty(alpha: float, width: int) -> float:
    """Return λ = αd for scikit-learn's objective ``1/(2d) ‖z − Zβ‖² + α‖β‖₁``. At α = 1e-4 the picks agree with the paper's.

    >>> sklearn_penalty(1e-4, 500)
    0.05
    """
    return alpha * width


def literal_penalty(weight: float) -> float:
    """Return λ for the objective as printed in the paper, ``‖z − Zβ‖² + weight‖β‖₁``: half of its weight."""
    return weight / 2


def largest_penalty(gram: Tensor) -> Tensor:
    """Return the smallest λ at which row t picks nothing, ``max_{j<t} |K_tj|``, ``(…, T)``; 0 for the first row."""
    return gram.double().tril(-1).abs().amax(-1)


def lasso_objective(gram: Tensor, coefficients: Tensor, penalty: float) -> Tensor:
    """Return the objective ``½‖z_t − Σ β_j z_j‖² + λ‖β‖₁`` of each target, ``(…, T)``, for any coefficients."""
    return _Problem(gram.double(), penalty).bounds(coefficients.double().tril(-1))[0]


def explained(gram: Tensor, coefficients: Tensor, places: Tensor | None = None) -> Tensor:
    """Return R², the share of each target's squared length that its weights reproduce: ``1 − ‖z_t − Σ β_j z_j‖²/‖z_t‖²``,
    ``(…, T)``.

    NaN for a row of zeros. With ``places`` ``(…, k)``, the coefficients ``(…, k, T)`` belong to the targets at these rows only.
    """
    length, own = gram.diagonal(dim1=-2, dim2=-1), gram
    if places is not None:
        length, own = length.gather(-1, places), gram.take_along_dim(places.unsqueeze(-1), -2)
    return (2 * (coefficients * own).sum(-1) - (coefficients * (coefficients @ gram)).sum(-1)) / length


@dataclass(frozen=True)
class LassoSolution:
    """The coefficients of all targets, and bounds of their distance from the optimum.

    Attributes:
        coefficients: ``(…, T, T)``, strictly lower triangular. Row t has the weights of the rows before it, many exactly zero.
        gap: duality gap of each target ``(…, T)``: its objective exceeds the minimum by at most this much.
        tol: the gap that was requested.
    """

    coefficients: Tensor
    gap: Tensor
    tol: float

    @property
    def converged(self) -> Tensor:
        """Which targets reached ``tol``, ``(…, T)`` bool. Check it: targets that did not are returned as they are."""
        return self.gap <= self.tol


def solve_lasso(
    gram: Tensor,
    penalty: float,
    *,
    tol: float = 1e-6,
    which: Tensor | None = None,
    start: Tensor | None = None,
    max_rounds: int = 1000,
) -> LassoSolution:
    """Solve the Lasso of every row on the rows before it.

    Rows of zeros (padding) pick nothing and are never picked. Rows of different texts, between which the Gram matrix is zero,
    do not pick each other. If several rows are equal, the problem does not determine which of them is picked: they share the
    weight.

    Args:
        gram: symmetric Gram matrices ``(…, T, T)`` of any floating dtype; factors are computed in float64.
        penalty: λ of the objective above.
        tol: the largest duality gap allowed. Active sets end far below it, ADMM just below it.
        which: the targets to solve, ``(…, T)`` bool. Default: all. Other rows keep the coefficients of ``start``.
        start: initial coefficients, such as those of the checkpoint before. Default: zeros.
        max_rounds: largest number of iterations of either method. See :attr:`LassoSolution.converged`.

    Raises:
        GeomprobeError: if λ is not positive, or if the Gram matrix is not square or not finite.

    >>> gram = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    >>> solve_lasso(gram, 0.1).coefficients  # soft threshold of 0.5
    tensor([[0.0000, 0.0000],
            [0.4000, 0.0000]], dtype=torch.float64)
    """
    if not penalty > 0:
        raise GeomprobeError(f"solve_lasso(penalty={penalty!r}): expected a positive number, such as sklearn_penalty(1e-4, d)")
    if gram.dim() < 2 or gram.shape[-1] != gram.shape[-2] or not gram.isfinite().all():
        raise GeomprobeError(f"solve_lasso: expected finite square Gram matrices, and got {tuple(gram.shape)}")
    if not gram.numel():
        return LassoSolution(gram.double(), gram.new_zeros(gram.shape[:-1]).double(), tol)
    stack = gram.detach().double().reshape(-1, *gram.shape[-2:])
    begin = None if start is None else start.detach().to(stack).reshape(stack.shape).tril(-1)
    every = torch.ones(stack.shape[:-1], dtype=torch.bool, device=stack.device)
    targets = every if which is None else which.reshape(every.shape)
    coefficients, gaps = torch.zeros_like(stack), stack.new_zeros(stack.shape[:-1])
    with torch.no_grad():
        for part in _parts(stack, targets):
            problem = _Problem(stack[part], penalty)
            first = None if begin is None else begin[part]
            coefficients[part], gaps[part] = _solve(problem, targets[part], tol, max_rounds, first)
    return LassoSolution(coefficients.reshape(gram.shape), gaps.reshape(gram.shape[:-1]), tol)


def _solve(problem: "_Problem", which: Tensor, tol: float, max_rounds: int, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """Coefficients and gaps of some sequences: by active sets if few rows are picked, by ADMM if many are. Targets on which
    ADMM does not converge are solved by active sets, which are exact even for ill-conditioned rows."""
    found = torch.zeros_like(problem.gram) if start is None else start.clone()
    if problem.penalty >= _SMALL * float(largest_penalty(problem.gram).mean()):
        _active_sets(problem, which, found, tol, max_rounds, _DENSE)
    gap = problem.gap(found)
    if bool((dense := ((gap > tol) & which).any(-1)).any()):
        part = _Problem(problem.gram[dense], problem.penalty)
        found[dense], gap[dense] = _admm(part, which[dense], tol, min(max_rounds, _ADMM_ROUNDS), found[dense])
    if bool((left := (gap > tol) & which).any()):
        exact = found.clone()
        _active_sets(problem, left, exact, tol, max_rounds, problem.gram.shape[-1])
        better = (exact_gap := problem.gap(exact)) < gap
        found, gap = torch.where(better.unsqueeze(-1), exact, found), torch.where(better, exact_gap, gap)
    return found, gap


def _parts(stack: Tensor, targets: Tensor, entries: int = 1 << 25) -> Iterator[slice]:
    """Slices of sequences that are solved together. On a CPU they have as many targets as one sequence has rows, which is what
    its caches hold; for fewer, calls cost more than their arithmetic."""
    if stack.device.type == "cpu":
        step = max(1, targets.numel() // max(1, int(targets.sum())))
    else:
        step = max(1, entries // max(1, stack[0].numel()))
    return (slice(i, min(i + step, len(stack))) for i in range(0, len(stack), step))


class _Problem:
    """The Lasso problems of some sequences: Gram matrices ``(S, T, T)`` and λ."""

    def __init__(self, gram: Tensor, penalty: float) -> None:
        self.gram = gram
        self.penalty = penalty
        self.past = torch.ones(gram.shape[-2:], dtype=torch.bool, device=gram.device).tril(-1)

    def gap(self, coefficients: Tensor) -> Tensor:
        """Return the duality gap of every target, ``(S, T)``."""
        objective, bound = self.bounds(coefficients)
        return (objective - bound).clamp_min(0)

    def bounds(self, coefficients: Tensor, slope: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the objective of every target ``(S, T)`` and a lower bound of its minimum. ``slope`` is ``Zᵀr``, if known."""
        if slope is None:
            slope = (self.gram - coefficients @ self.gram) * self.past
        return self.bounds_of(coefficients, slope, self.gram, self.gram.diagonal(dim1=-2, dim2=-1))

    def bounds_of(self, coefficients: Tensor, slope: Tensor, gram: Tensor, norm_sq: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same from rows ``(…, T)`` of the coefficients, of ``Zᵀr`` and of the Gram matrix.

        The bound is the dual objective at ``s·r``, with the best s for which it is feasible: ``s ‖Zᵀr‖∞ ≤ λ``.
        """
        tiny = torch.finfo(slope.dtype).tiny
        aligned = norm_sq - (coefficients * gram).sum(-1)  # zᵀr
        residual = (aligned - (coefficients * slope).sum(-1)).clamp_min(0)  # ‖r‖²
        most = self.penalty / slope.abs().amax(-1).clamp_min(tiny)
        scale = (aligned / residual.clamp_min(tiny)).clamp(-most, most)
        objective = residual / 2 + self.penalty * coefficients.abs().sum(-1)
        return objective, scale * aligned - scale.square() / 2 * residual


def _active_sets(problem: _Problem, which: Tensor, found: Tensor, tol: float, max_rounds: int, limit: int) -> None:
    """Improve the coefficients ``found`` of some targets in place. A target stops when it picks ``limit`` rows."""
    gram, penalty = problem.gram, problem.penalty
    length = gram.shape[-1]
    sequence, row = which.nonzero(as_tuple=True)
    sets = _Sets.of(found[sequence, row])
    before = gram.new_full(sequence.shape, torch.inf)
    for _ in range(max_rounds):
        targets, weights, past = gram[sequence, row], found[sequence, row], problem.past[row]
        slope = torch.where(past, targets - _products(weights, gram, sequence), 0)
        objective, bound = problem.bounds_of(weights, slope, targets, gram.diagonal(dim1=-2, dim2=-1)[sequence, row])
        # If several rows were added at once, all of them may have been removed again; a single row added to an optimal set
        # stays.
        stuck = objective >= before - 1e-14
        go_on = (objective - bound > tol) & (sets.counts() < limit) & (slope.abs().amax(-1) > penalty * (1 + _VIOLATES))
        if not go_on.any():
            break
        sequence, row, targets, slope, before, stuck = (x[go_on] for x in (sequence, row, targets, slope, objective, stuck))
        sets = sets.keep(go_on)
        sets.admit(slope, penalty, stuck, min(_ADDED, length))
        found[sequence, row] = sets.solve(gram, sequence, targets, penalty)


def _products(coefficients: Tensor, gram: Tensor, sequence: Tensor) -> Tensor:
    """``β K`` of each target with the Gram matrix of its own sequence. Targets are in the order of their sequences."""
    if gram.device.type != "cpu":
        return _products_together(coefficients, gram, sequence)
    counts = torch.bincount(sequence, minlength=len(gram)).tolist()
    return torch.cat([part @ own for part, own in zip(torch.split(coefficients, counts), gram, strict=True)])


def _products_together(coefficients: Tensor, gram: Tensor, sequence: Tensor) -> Tensor:
    """The same as one product, without waiting for the device to know how many targets a sequence has."""
    whole = gram.new_zeros(gram.shape)
    order = torch.arange(len(sequence), device=sequence.device)
    first = torch.searchsorted(sequence, sequence)
    whole[sequence, order - first] = coefficients
    return (whole @ gram)[sequence, order - first]


def _submatrices(gram: Tensor, sequence: Tensor, column: Tensor) -> Tensor:
    """The Gram matrix of the given columns ``(n, m)`` of each target, ``(n, m, m)``, in half of the time of an index of three
    tensors."""
    length = gram.shape[-1]
    place = (sequence.unsqueeze(1) * length + column).unsqueeze(2) * length + column.unsqueeze(1)
    return gram.flatten().index_select(0, place.flatten()).view(place.shape)


class _Sets:
    """The active set of every target: columns ``(n, m)``, which of them are active, and their weights and signs."""

    def __init__(self, column: Tensor, active: Tensor, weight: Tensor, sign: Tensor) -> None:
        self.column, self.active, self.weight, self.sign = column, active, weight, sign

    @classmethod
    def of(cls, coefficients: Tensor) -> "_Sets":
        """Return the active sets of given rows of coefficients ``(n, T)``."""
        most = int((coefficients != 0).sum(-1).max()) if coefficients.numel() else 0
        column = coefficients.abs().topk(most, dim=-1).indices
        weight = coefficients.gather(1, column)
        return cls(column, weight != 0, weight, weight.sign())

    def counts(self) -> Tensor:
        return self.active.sum(-1)

    def keep(self, which: Tensor) -> "_Sets":
        """Return the active sets of some targets, in as few columns as they need."""
        active = self.active[which]
        most = int(active.sum(-1).max()) if active.numel() else 0
        order = active.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        return _Sets(*(x[which].gather(1, order) for x in (self.column, self.active, self.weight, self.sign)))

    def admit(self, slope: Tensor, penalty: float, stuck: Tensor, count: int) -> None:
        """Add the rows that violate ``|Zᵀr| ≤ λ`` most; a single one for targets that did not improve in the last round."""
        outside = slope.abs().scatter_add_(1, self.column, torch.where(self.active, -torch.inf, 0.0).to(slope))
        worst, column = outside.topk(count, dim=1)
        violates = worst > penalty * (1 + _VIOLATES)
        violates[:, 1:] &= ~stuck.unsqueeze(1)
        self.column = torch.cat([self.column, column], 1)
        self.active = torch.cat([self.active, violates], 1)
        self.weight = torch.cat([self.weight, torch.zeros_like(worst)], 1)
        self.sign = torch.cat([self.sign, slope.gather(1, column).sign()], 1)

    def solve(self, gram: Tensor, sequence: Tensor, targets: Tensor, penalty: float) -> Tensor:
        """Move each set to its optimum for fixed signs, and remove the weights that reach zero on the way. Return coefficients
        ``(n, T)``."""
        square = _submatrices(gram, sequence, self.column)
        goal = targets.gather(1, self.column)
        todo = torch.arange(len(goal), device=goal.device)
        while len(todo):
            active, weight, sign = self.active[todo], self.weight[todo], self.sign[todo]
            matrix = (square if len(todo) == len(square) else square[todo]) * active.unsqueeze(1)
            matrix *= active.unsqueeze(2)
            matrix.diagonal(dim1=1, dim2=2).add_(torch.where(active, _TIES, 1.0))
            factor = torch.linalg.cholesky_ex(matrix, upper=True)[0]
            right = torch.where(active, goal[todo] - penalty * sign, 0)
            optimum = torch.cholesky_solve(right.unsqueeze(2), factor, upper=True).squeeze(2)
            crosses = active & (optimum * sign <= 0)
            reached = torch.where(crosses, (weight / (weight - optimum)).nan_to_num(0.0), torch.inf)
            step = reached.amin(1, keepdim=True).clamp_max(1)
            leaves = crosses & (reached <= step)
            self.active[todo] = active & ~leaves
            self.weight[todo] = torch.where(active & ~leaves, weight + step * (optimum - weight), 0)
            todo = todo[crosses.any(1)]
        return torch.zeros_like(targets).scatter_add_(1, self.column, torch.where(self.active, self.weight, 0))


def _admm(problem: _Problem, which: Tensor, tol: float, max_rounds: int, start: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients and gaps by over-relaxed ADMM: for every target the best weights and the best bound of all iterations."""
    gram, penalty = problem.gram, problem.penalty
    rho, relaxation = 10 * penalty, 1.7
    shifted = gram.clone()
    shifted.diagonal(dim1=-2, dim2=-1).add_(rho)
    factor = torch.linalg.cholesky_ex(shifted)[0]
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    goal = gram.tril(-1)
    sparse, scaled_dual = start, torch.zeros_like(start)
    best, (least, bound) = start, problem.bounds(start)
    for i in range(1, max_rounds + 1):
        right = goal + rho * (sparse - scaled_dual)
        dense = (right @ inverse.mT).tril(-1) @ inverse
        # ZᵀR of the dense iterate needs no further product. It is nearly feasible, unlike that of the sparse iterate.
        slope = rho * (dense - sparse + scaled_dual) if i % 10 == 0 else None
        if slope is not None:
            bound = torch.maximum(bound, problem.bounds(dense, slope)[1])
        relaxed = relaxation * dense + (1 - relaxation) * sparse
        sparse = torch.nn.functional.softshrink(relaxed + scaled_dual, penalty / rho)
        scaled_dual = scaled_dual + relaxed - sparse
        if slope is not None:
            objective = problem.bounds(sparse)[0]
            better = (objective < least) & which
            best, least = torch.where(better.unsqueeze(-1), sparse, best), torch.where(better, objective, least)
            if bool(((least - bound <= tol) | ~which).all()):
                break
    return best, (least - bound).clamp_min(0)
