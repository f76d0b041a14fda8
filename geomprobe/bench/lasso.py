"""``geomprobe bench lasso``: the Lasso of every token on the earlier tokens, compared with loops over other solvers."""

import importlib
import importlib.util
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomprobe.bench.timing import timed
from geomprobe.core.lasso import lasso_objective, literal_penalty, sklearn_penalty, solve_lasso
from geomprobe.core.rows import Rows, full_precision
from geomprobe.errors import GeomprobeError
from geomprobe.models.loading import Loaded, load

__all__ = ["bench_lasso", "prose", "table"]

Solver = Callable[[], Tensor]


def bench_lasso(model: str | None, *, length: int = 512, rounds: int = 5, device: str | None = None) -> dict[str, Any]:
    """Return the seconds, the speed-up and the largest duality gap of every solver, in the sparse and in the near-dense regime.

    The rows are the last hidden states of English prose in a trained model, because random rows hardly explain each other.

    Raises:
        GeomprobeError: if no model is given, or if it accepts fewer than ``length`` tokens.
    """
    if model is None:
        raise GeomprobeError("bench lasso needs a trained model: give a hub id or a directory with --model")
    states = _states(model, length, device)
    gram = states @ states.mT
    width = states.shape[-1]
    results = {
        "sparse": _regime(states, gram, sklearn_penalty(1e-4, width), 1e-6, rounds),
        "near-dense": _regime(states, gram, literal_penalty(1e-4), 1e-4, 1),  # one round of the peers takes minutes
    }
    shape = {"length": length, "width": width, "threads": torch.get_num_threads(), "device": str(gram.device)}
    return results | {"shape": shape}


def _regime(states: Tensor, gram: Tensor, penalty: float, tol: float, rounds: int) -> dict[str, Any]:
    """Run every solver with one penalty. All gaps are computed from the same lower bound, that of our solution."""

    def ours() -> Tensor:
        return solve_lasso(gram, penalty, tol=tol).coefficients

    first = solve_lasso(gram, penalty, tol=tol)  # a first run, to load the kernels
    bound = lasso_objective(gram, first.coefficients, penalty) - first.gap

    def gap(weights: Tensor) -> float:
        return float((lasso_objective(gram, weights.to(gram), penalty) - bound).max())

    peers = _peers(states.cpu().numpy(), penalty / states.shape[-1])
    return _compare({"geomprobe": ours} | peers, rounds, gram.device, gap)


def _states(model: str, length: int, device: str | None) -> Tensor:
    """Unit rows ``(length, width)`` of the last hidden states, float64."""
    loaded = load(model, device=device)
    ids = prose(loaded, model, length)
    with torch.no_grad():
        hidden = loaded.model.base_model(ids, use_cache=False).last_hidden_state
    with full_precision(hidden.device.type):
        return Rows(hidden).unit()[0].double()


def prose(loaded: Loaded, model: str, length: int, texts: int = 1) -> Tensor:
    """Return English prose as token ids ``(texts, length)``.

    Raises:
        GeomprobeError: if the model, which is called ``model``, accepts fewer than ``length`` tokens.
    """
    from pydoc_data.topics import topics

    text, tokens = "\n".join(topics[name] for name in sorted(topics)), length * texts
    ids: Tensor = loaded.tokenizer(text[: 20 * tokens], return_tensors="pt").input_ids[:, :tokens]
    if ids.shape[1] < tokens or length > (getattr(loaded.model.config, "max_position_embeddings", None) or length):
        raise GeomprobeError(f"{model} does not accept {length} tokens: give a smaller --length")
    return ids.view(texts, length).to(loaded.model.device)


def _peers(states: "np.ndarray[Any, np.dtype[np.float64]]", alpha: float) -> dict[str, Solver]:
    """Loops over targets with the solvers of other libraries at their default tolerance. Libraries that are not installed are
    left out."""
    from sklearn.linear_model import Lasso

    def loop(fit: Callable[[Any, Any], Any]) -> Solver:
        def run() -> Tensor:
            weights = np.zeros((len(states), len(states)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the gaps show whether they converged
                for t in range(1, len(states)):
                    weights[t, :t] = fit(np.asfortranarray(states[:t].T), states[t])
            return torch.as_tensor(weights)

        return run

    peers = {
        "scikit-learn": loop(lambda x, y: Lasso(alpha, fit_intercept=False).fit(x, y).coef_),
        "scikit-learn, precompute": loop(lambda x, y: Lasso(alpha, fit_intercept=False, precompute=True).fit(x, y).coef_),
    }
    for name in filter(importlib.util.find_spec, ("celer", "skglm")):
        solver = importlib.import_module(name).Lasso
        peers[name] = loop(lambda x, y, solver=solver: solver(alpha, fit_intercept=False).fit(x, y).coef_)  # type: ignore[misc]
    return peers


def _compare(solvers: dict[str, Solver], rounds: int, device: torch.device, gap: Callable[[Tensor], float]) -> dict[str, Any]:
    """Run all solvers in turn, ``rounds`` times."""
    latest: dict[str, Tensor] = {}

    def kept(name: str) -> Callable[[], None]:
        def run() -> None:
            latest[name] = solvers[name]()

        return run

    times = timed({name: kept(name) for name in solvers}, rounds, device)
    seconds = {name: [each.wall for each in runs] for name, runs in times.items()}
    speed_ups = {
        name: [theirs / mine for theirs, mine in zip(times, seconds["geomprobe"], strict=True)]
        for name, times in seconds.items()
    }
    return {
        name: {
            "seconds": statistics.median(times),
            "speed_up": statistics.median(speed_ups[name]),
            "slowest_speed_up": min(speed_ups[name]),
            "largest_gap": gap(latest[name]),
        }
        for name, times in seconds.items()
    }


def table(results: dict[str, Any]) -> str:
    """Return the results as a table for the terminal."""
    lines = [f"{'':<36}{'seconds':>10}{'speed-up':>11}{'largest gap':>14}"]
    for regime, solvers in results.items():
        if regime == "shape":
            continue
        for name, result in solvers.items():
            speed_up = "" if name == "geomprobe" else f"{result['speed_up']:.1f}×"
            lines.append(f"{regime + ': ' + name:<36}{result['seconds']:>10.3f}{speed_up:>11}{result['largest_gap']:>14.1e}")
    return "\n".join(lines)
