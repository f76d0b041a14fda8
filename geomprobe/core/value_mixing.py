"""How attention mixes value vectors into its output rows, and the inverse (Eqs 3 to 5 of section 4.2).

``weights`` are those of one attention head, ``(…, T, T)``: row t has the weights ``λ_j^t`` of token t on the tokens j ≤ t.
Entries above the diagonal are ignored. ``values`` and ``rows`` are ``(…, T, d)``. All numbers are float64.

The paper calls the mixed rows z, as it calls the hidden states. In a transformer an output projection, a residual stream, norms
and an MLP lie between the two, so Eqs 3 to 5 hold for what one head adds, not for the hidden states.
"""

import torch
from torch import Tensor

from geomprobe.errors import GeomprobeError

__all__ = ["equation_5", "mix_values", "unmix_values"]


def mix_values(weights: Tensor, values: Tensor) -> Tensor:
    """Return the right side of Eq. 3 for every token: ``z_t = λ_t^t v_t + Σ_{j<t} λ_j^t v_j``.

    >>> mix_values(torch.tensor([[1.0, 0.0], [0.25, 0.75]]), torch.tensor([[4.0], [8.0]]))
    tensor([[4.],
            [7.]], dtype=torch.float64)
    """
    return weights.double().tril() @ values.double()


def unmix_values(weights: Tensor, rows: Tensor) -> Tensor:
    """Return the right side of Eq. 4 for every token, from the first to the last: ``v_t = (z_t − Σ_{j<t} λ_j^t v_j) / λ_t^t``,
    the inverse of :func:`mix_values`.

    Rounding grows with ``1/λ_t^t``, and from each token to the next.

    Raises:
        GeomprobeError: if a token has no weight on itself.

    >>> unmix_values(torch.tensor([[1.0, 0.0], [0.25, 0.75]]), torch.tensor([[4.0], [7.0]]))
    tensor([[4.],
            [8.]], dtype=torch.float64)
    """
    _own(weights, "Eq. 4")
    values: Tensor = torch.linalg.solve_triangular(weights.double(), rows.double(), upper=False)
    return values


def equation_5(weights: Tensor, values: Tensor, rows: Tensor) -> Tensor:
    """Return the right side of Eq. 5 for every token, with both of its terms: ``λ_t^t v_t + Σ_{j<t} (λ_j^t / λ_j^j) z_j``.

    Eq. 4 inserted into Eq. 3 gives ``z_t`` exactly, as the right side of Eq. 5 minus
    ``Σ_{j<t} (λ_j^t / λ_j^j) Σ_{k<j} λ_k^j v_k``, which the paper considers small and leaves out. The metric ``eq5_r2`` does
    not know the value vectors, so it uses only the second term.

    Raises:
        GeomprobeError: if a token has no weight on itself.
    """
    own = _own(weights, "Eq. 5")
    implied = weights.double().tril(-1) / own.unsqueeze(-2)
    return own.unsqueeze(-1) * values.double() + implied @ rows.double()


def _own(weights: Tensor, equation: str) -> Tensor:
    """The weight of every token on itself, ``(…, T)``."""
    own = weights.double().diagonal(dim1=-2, dim2=-1)
    if not (own > 0).all():
        raise GeomprobeError(
            f"{equation} divides by the weight of each token on itself: expected it to be above 0 for all tokens"
        )
    return own
