"""What a probe should read, computed again: float64 NumPy on ``output_hidden_states``, by formulas the package does not use."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats
import torch
from torch import Tensor, nn

Array = npt.NDArray[np.float64]

FLOOR = 8 * 2.0**-23  # the share of the largest eigenvalue that float32 products may leave in empty directions


def hidden_states(model: Any, batch: dict[str, Tensor]) -> dict[str, Array]:
    """Hidden states ``(batch, length, width)`` by site, without geomprobe.

    ``hidden_states[-1]`` of Transformers is what follows the final norm, so the last layer's own output, which is not in the
    tuple, comes from a hook set here.
    """
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    last_layer = next(stack for stack in stacks if len(stack) == model.config.num_hidden_layers)[-1]
    last: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Any) -> None:
        last.append(output if isinstance(output, Tensor) else output[0])

    handle = last_layer.register_forward_hook(keep)
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    handle.remove()
    layers = [*states[1:-1], last[0]]
    by_site = {"embed": states[0], **{f"layer_{i:02d}": layer for i, layer in enumerate(layers)}, "final_norm": states[-1]}
    return {site: hidden.double().numpy() for site, hidden in by_site.items()}


def unit(hidden: Array, center: bool = False) -> Array:
    """Rows ``(n, d)`` scaled to length one."""
    rows = hidden - hidden.mean(0) if center else hidden
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def spectrum(rows: Array) -> Array:
    """The d eigenvalues of ``ZᵀZ/n``, from singular values."""
    n, width = rows.shape
    values = np.zeros(width)
    values[: min(n, width)] = np.linalg.svd(rows, compute_uv=False) ** 2 / n
    return values


def entropies(rows: Array, epsilon: float = 0.1, missing: int = 0) -> dict[str, float]:
    """The spectral metrics of unit rows ``(n, d)``, from singular values. ``missing``: dimensions that centring took."""
    (n, width), values = rows.shape, spectrum(rows)
    shares = values[values > 0] / values.sum()
    matrix_entropy = float(-(shares * np.log(shares)).sum())
    nats = float((width + n) / 2 * np.log1p(width / epsilon**2 * values).sum())
    cosines = rows @ rows.T
    return {
        "entropy": nats / ((width + n) / 2 * width * math.log1p(1 / epsilon**2)),
        "entropy_nats": nats,
        "matrix_entropy": matrix_entropy,
        "matrix_entropy_log_d": matrix_entropy / math.log(width),
        "matrix_entropy_log_n": matrix_entropy / math.log(min(n - missing, width)),
        "effective_rank": math.exp(matrix_entropy),
        "rank_ratio": math.exp(matrix_entropy) / width,
        "stable_rank": float(values.sum() / values.max()),
        "participation_ratio": float(values.sum() ** 2 / (values**2).sum()),
        "rankme": rankme(values),
        "alpha_req": alpha_req(values),
        "anisotropy": float((cosines.sum() - np.trace(cosines)) / (n * (n - 1))),
    }


def counted(values: Array, whole: float) -> Array:
    """How much of each eigenvalue a probe counts: none of what may be rounding, all of what is ``whole`` times as large."""
    return np.asarray(np.interp(values / values.max(), [FLOOR, whole * FLOOR], [0, 1]))


def rankme(values: Array) -> float:
    """RankMe of eigenvalues, as far as they count."""
    return math.exp(scipy.stats.entropy(counted(values, 2) * np.sqrt(values)))


def alpha_req(values: Array) -> float:
    """α-ReQ: a weighted straight line through the eigenvalues 4 to 100, as far as they count."""
    kept = np.sort(values[values > FLOOR * values.max()])[::-1]
    fitted, weights = kept[3:100], counted(kept, 128)[3:100]
    j = np.arange(4, 4 + len(fitted))
    return float(-np.polyfit(np.log(j), np.log(fitted), 1, w=np.sqrt(weights / j))[0]) if len(fitted) > 1 else math.nan


def text_entropies(texts: list[Array], missing: int = 0) -> dict[str, float]:
    """Means over texts of what :func:`entropies` gives of each text's unit rows."""
    names = ("entropy", "entropy_nats", "matrix_entropy", "matrix_entropy_log_d", "matrix_entropy_log_n")
    each = [entropies(rows, missing=missing) for rows in texts]
    return {f"text_{name}": float(np.mean([one[name] for one in each])) for name in (*names, "effective_rank", "rank_ratio")}


def gains(rows: Array, sigma: float = 0.01) -> Array:
    """Information gain of every token in nats, from a QR factorisation (which never squares the condition number)."""
    stacked = np.vstack([rows.T / sigma, np.eye(len(rows))])
    return np.asarray(np.log(np.abs(np.diagonal(np.linalg.qr(stacked, mode="r")))))
