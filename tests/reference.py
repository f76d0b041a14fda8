"""What a probe should read, computed again: float64 NumPy on ``output_hidden_states``, by formulas the package does not use."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import Tensor, nn

from geomprobe import Reading

Array = npt.NDArray[np.float64]

EPS32 = 2.0**-23

ROUNDED = 8 * math.sqrt(3) * EPS32
"""How far apart, relative to its length, two float32 forwards of the tiny models may put one row.

Every number of a row is a sum of at most 64 products (the width of the MLP). Summed in any order, and rounded independently, it
is off by about √64 units in the last place, 4 eps; two runs are off by 4 eps each, and the errors of three layers add up as
independent ones do. (Measured: up to 2.7 eps in all.)
"""

FLOOR = 8 * 2.0**-23  # the share of the largest eigenvalue that float32 products may leave in empty directions
EXACT_FLOOR = 8 * 2.0**-46  # and that float64 products of float32 rows may leave, as for centred rows


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


def entropies(rows: Array, epsilon: float = 0.1, missing: int = 0, floor: float | None = None) -> dict[str, float]:
    """The spectral metrics of unit rows ``(n, d)``, from singular values. ``missing``: dimensions that centring took."""
    floor = FLOOR if floor is None else floor
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
        "rankme": rankme(values, floor),
        **left_out(values, floor, min(n - missing, width)),
        **alpha_fit(values, floor),
        "anisotropy": float((cosines.sum() - np.trace(cosines)) / (n * (n - 1))),
    }


def counted(values: Array, whole: float, floor: float) -> Array:
    """How much of each eigenvalue a probe counts: none of what may be rounding, all of what is ``whole`` times as large."""
    return np.asarray(np.interp(values / values.max(), [floor, whole * floor], [0, 1]))


def rankme(values: Array, floor: float) -> float:
    """RankMe of eigenvalues, as far as they count."""
    return math.exp(scipy.stats.entropy(counted(values, 2, floor) * np.sqrt(values)))


LEFT_OUT = ("rankme_left_out", "alpha_req_left_out")
"""Numbers that say how much was left out as rounding errors: shares of at most 1, whose own rounding is not small."""


def like(expected: Mapping[str, float], relative: float, absolute: float | None = None) -> dict[str, Any]:
    """What the numbers of another way to the same rows are equal to."""
    return {
        key: pytest.approx(value, rel=relative, abs=1e-3 if key.startswith(LEFT_OUT) else absolute, nan_ok=True)
        for key, value in expected.items()
    }


def left_out(values: Array, floor: float, rank: int) -> dict[str, float]:
    """The largest share of the singular values that RankMe's floor may hide, among those that ``rank`` allows."""
    values = np.sort(values)[::-1][:rank]
    weights, edge = counted(values, 2, floor), floor * values.max()
    missing = ((1 - weights) * np.sqrt(np.maximum(values, edge) + edge)).sum()
    return {"rankme_left_out": float(missing / (missing + (weights * np.sqrt(values)).sum()))}


def alpha_req(values: Array, floor: float) -> float:
    """α-ReQ alone."""
    return alpha_fit(values, floor)["alpha_req"]


def alpha_fit(values: Array, floor: float, first: int = 4, last: int = 100) -> dict[str, float]:
    """α-ReQ: a weighted straight line through the eigenvalues of these ranks, as far as they count; R² from residuals."""
    wanted = 1 / np.arange(first, min(last, len(values)) + 1)
    kept = np.sort(values[values > floor * values.max()])[::-1]
    fitted, weights = kept[first - 1 : last], counted(kept, 128, floor)[first - 1 : last]
    j = np.arange(first, first + len(fitted))
    missing = {"alpha_req_left_out": 1 - (weights / j).sum() / wanted.sum() if len(wanted) else math.nan}
    if len(fitted) < 2:
        return {"alpha_req": math.nan, "alpha_req_r2": math.nan} | missing
    weights, x, y = weights / j, np.log(j), np.log(fitted)
    line = np.polyfit(x, y, 1, w=np.sqrt(weights))
    around = float((weights * (y - np.average(y, weights=weights)) ** 2).sum())
    r2 = 1 - float((weights * (y - np.polyval(line, x)) ** 2).sum()) / around if around else math.nan
    return {"alpha_req": float(-line[0]), "alpha_req_r2": r2} | missing


def text_entropies(texts: list[Array], missing: int = 0) -> dict[str, float]:
    """Means over texts of what :func:`entropies` gives of each text's unit rows."""
    names = ("entropy", "entropy_nats", "matrix_entropy", "matrix_entropy_log_d", "matrix_entropy_log_n")
    each = [entropies(rows, missing=missing) for rows in texts]
    return {f"text_{name}": float(np.mean([one[name] for one in each])) for name in (*names, "effective_rank", "rank_ratio")}


def gains(rows: Array, sigma: float = 0.01) -> Array:
    """Information gain of every token in nats, from a QR factorisation (which never squares the condition number)."""
    stacked = np.vstack([rows.T / sigma, np.eye(len(rows))])
    return np.asarray(np.log(np.abs(np.diagonal(np.linalg.qr(stacked, mode="r")))))


def gain_condition(rows: Array, sigma: float = 0.01) -> Array:
    """How far the gain of every token moves, in nats, when all unit rows move by independent errors of length one.

    The gain is ``½ log(1 + v/σ²)``, and the posterior variance v the least value of ``‖Zᵀw‖² + σ²‖w‖²`` over weights w of the
    earlier tokens and 1 for the token itself. Errors E of the rows move v by ``2 (Zᵀw)ᵀ(Eᵀw)`` to first order, since w is
    optimal, and the gain by ``(Zᵀw)ᵀ(Eᵀw) / (v + σ²)``. Independent errors of length δ add up to one of length ``δ‖w‖``. If
    that pointed along Zᵀw, the gain would move by ``δ‖w‖‖Zᵀw‖ / (v + σ²)``, at most ``δ‖w‖/(2σ)``: 50 times ``δ‖w‖`` at
    σ = 0.01. Errors have no direction of their own, so that in d dimensions this bound is √d standard deviations.
    """
    factor = np.linalg.cholesky(rows @ rows.T + sigma**2 * np.eye(len(rows)))
    pivots = np.diagonal(factor)
    weights = pivots[:, None] * scipy.linalg.solve_triangular(factor, np.eye(len(rows)), lower=True)
    return np.asarray(np.linalg.norm(weights @ rows, axis=1) * np.linalg.norm(weights, axis=1) / pivots**2)


def alpha_condition(values: Array) -> float:
    """How far :func:`alpha_req` moves at most when every eigenvalue moves by a small share of the largest, over that share."""
    kept = np.sort(values[values > FLOOR * values.max()])[::-1]
    fitted, weights = kept[3:100], counted(kept, 128, FLOOR)[3:100]
    j = np.arange(4, 4 + len(fitted))
    weights = weights / j / (weights / j).sum()
    x = np.log(j) - (weights * np.log(j)).sum()
    return float((weights * abs(x) * values.max() / fitted).sum() / (weights * x**2).sum())


def by_position(curves: Sequence[Array]) -> Array:
    """The mean of curves at every position, over those that are long enough."""
    return np.array([np.mean([curve[t] for curve in curves if len(curve) > t]) for t in range(max(map(len, curves)))])


def hold_to_twin(reading: Reading, texts: Sequence[Mapping[str, Array]]) -> None:
    """Hold a default reading to float64 on the very hidden states ``(length, width)`` it was taken of, by text and site.

    Only our own arithmetic may differ. Unit rows are rounded to float32: by half an eps in the quotient, and by 1.4 eps in the
    norm, the root (which halves an error) of a sum of 32 squares, √32 units in the last place. So are the products of a
    covariance, sums as long as those of the model. The gain's products and factors are float64.
    """
    for site in reading.sites:
        rows = [unit(text[site]) for text in texts]
        curves = [gains(each) for each in rows]
        spectral = entropies(np.concatenate(rows)) | text_entropies(rows)
        spectral = {name: value for name, value in spectral.items() if f"{name}/{site}" in reading}
        assert {name: reading[f"{name}/{site}"] for name in spectral} == pytest.approx(spectral, rel=ROUNDED, abs=ROUNDED), site
        assert len(spectral) == 17
        near = [2 * EPS32 * gain_condition(each) for each in rows]
        total, tokens = sum(curve.sum() for curve in curves), sum(map(len, curves))
        allowed = sum(each.sum() for each in near)
        assert reading[f"information_gain/{site}"] == pytest.approx(total / len(texts), abs=allowed / len(texts)), site
        assert reading[f"gain_per_token/{site}"] == pytest.approx(total / tokens, abs=allowed / tokens), site
        hold_curve(reading.curve("gain", site).mean, by_position(curves), by_position(near))
        assert reading[f"tokens/{site}"] == tokens


def hold_to_run(reading: Reading, expected: Reading, texts: Sequence[Mapping[str, Array]]) -> None:
    """Hold a default reading to that of another run, whose hidden states differ by how float32 rounds a forward.

    The spectral numbers are well conditioned where there are more rows than dimensions: none moves by more than the rows do,
    but for α-ReQ, which takes logarithms of the least eigenvalues. Each eigenvalue moves by at most ``2‖Z‖‖E‖/n`` (Weyl), which
    is below δ times the largest for independent errors E, of length δ in each row.
    """
    assert reading.sites == expected.sites
    assert reading.keys() == expected.keys()
    for site in expected.sites:
        near = [ROUNDED * gain_condition(unit(text[site])) for text in texts]
        allowed, tokens = sum(each.sum() for each in near), sum(map(len, near))
        bounds = {"information_gain": allowed / len(texts), "gain_per_token": allowed / tokens}
        bounds["information_gain_per_dim"] = allowed / len(texts) / texts[0][site].shape[1]
        bounds["alpha_req"] = ROUNDED * alpha_condition(spectrum(np.concatenate([unit(text[site]) for text in texts])))
        for key in (key for key in expected if key.endswith(f"/{site}")):
            bound = bounds.get(key.split("/")[0], ROUNDED * max(1, abs(expected[key])))
            assert reading[key] == pytest.approx(expected[key], rel=0, abs=bound, nan_ok=True), key
        ours, plain = reading.curve("gain", site), expected.curve("gain", site)
        assert ours.count == plain.count
        hold_curve(ours.mean, plain.mean, by_position(near))


def hold_curve(actual: Sequence[float], expected: Sequence[float] | Array, allowed: Array) -> None:
    """Hold every number of a curve to its own bound."""
    assert len(actual) == len(expected) == len(allowed)
    assert (np.array(actual) - np.array(expected)) / allowed == pytest.approx(0, abs=1)
