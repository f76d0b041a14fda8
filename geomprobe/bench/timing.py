"""Timing of several variants in one interleaved run, and the table of the results."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Ratio", "interleaved", "table", "timed"]


@dataclass(frozen=True)
class Ratio:
    """Time of a variant divided by that of the bare run in the same round: median and quartiles over rounds."""

    median: float
    low: float
    high: float
    seconds: float

    @classmethod
    def of(cls, times: list[float], bare: list[float]) -> "Ratio":
        """Return the ratio, computed round by round, so that a slow moment of the machine affects both times."""
        ratios = [t / b for t, b in zip(times, bare, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        return cls(median, low, high, statistics.median(times))


def interleaved(variants: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, Ratio]:
    """Return the ratios of all variants to the first one, the bare run, over ``rounds`` rounds after a warm-up round."""
    for run in variants.values():
        run()
    times = timed(variants, rounds, device)
    bare = next(iter(times.values()))
    return {name: Ratio.of(mine, bare) for name, mine in times.items()}


def timed(variants: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of all variants, run in turn. Each round starts with a different variant."""
    from tqdm import tqdm

    times: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    with tqdm(total=rounds * len(names), leave=False, disable=None) as bar:
        for i in range(rounds):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                bar.set_description(name)
                gc.collect()
                _wait(device)
                start = time.perf_counter()
                variants[name]()
                _wait(device)
                times[name].append(time.perf_counter() - start)
                bar.update()
    return times


def table(results: Mapping[str, Any]) -> str:
    """Return the results as a table for the terminal."""
    lines = [f"{'':<30}{'median':>9}{'quartiles':>18}{'seconds':>10}"]
    for title, ratios in results.items():
        if isinstance(ratios, Mapping) and "bare" in ratios:
            for name, ratio in ratios.items():
                spread = f"{ratio['low']:.3f} to {ratio['high']:.3f}"
                lines.append(f"{title + ' ' + name:<30}{ratio['median']:>8.3f}×{spread:>18}{ratio['seconds']:>10.3f}")
    for name, value in results.items():
        if isinstance(value, float | int):
            lines.append(f"{name:<30}{value:>9,.3f}" if isinstance(value, float) else f"{name:<30}{value:>9,}")
    return "\n".join(lines)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
