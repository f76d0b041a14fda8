"""Timing of several variants in one interleaved run, and the table of the results."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Ratio", "Seconds", "interleaved", "ratios", "spread", "table", "timed"]


@dataclass(frozen=True)
class Seconds:
    """The time of one run: on the wall clock, and the CPU time of all threads of the process, which other programs on the
    machine disturb less."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Ratio:
    """The time of a variant divided by that of the bare run in the same round: median and quartiles over rounds, and the median
    seconds of the variant, for wall time and for CPU time."""

    median: float
    low: float
    high: float
    seconds: float
    cpu_median: float
    cpu_low: float
    cpu_high: float
    cpu_seconds: float

    @classmethod
    def of(cls, times: Sequence[Seconds], bare: Sequence[Seconds]) -> "Ratio":
        """Return the ratio, computed round by round, so that a slow moment of the machine affects both times."""
        wall = _quartiles([t.wall / b.wall for t, b in zip(times, bare, strict=True)])
        cpu = _quartiles([t.cpu / b.cpu for t, b in zip(times, bare, strict=True)])
        seconds = [statistics.median(each) for each in ([t.wall for t in times], [t.cpu for t in times])]
        return cls(*wall, seconds[0], *cpu, seconds[1])


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return median, low, high


def interleaved(variants: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, Ratio]:
    """Return the ratios of all variants to the first one, the bare run, over ``rounds`` rounds after a warm-up round."""
    for run in variants.values():
        run()
    return ratios(timed(variants, rounds, device))


def ratios(times: Mapping[str, Sequence[Seconds]]) -> dict[str, Ratio]:
    """Return the ratios of all variants to the first one."""
    bare = next(iter(times.values()))
    return {name: Ratio.of(mine, bare) for name, mine in times.items()}


def spread(ratio: Ratio) -> float:
    """Return the distance between the quartiles of the CPU ratio, divided by its median."""
    return (ratio.cpu_high - ratio.cpu_low) / ratio.cpu_median


def timed(variants: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[Seconds]]:
    """Return the times of all variants, run in turn. Each round starts with a different variant."""
    from tqdm import tqdm

    times: dict[str, list[Seconds]] = {name: [] for name in variants}
    names = list(variants)
    with tqdm(total=rounds * len(names), leave=False, disable=None) as bar:
        for i in range(rounds):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                bar.set_description(name)
                gc.collect()
                _wait(device)
                wall, cpu = time.perf_counter(), time.process_time()
                variants[name]()
                _wait(device)
                times[name].append(Seconds(time.perf_counter() - wall, time.process_time() - cpu))
                bar.update()
    return times


def table(results: Mapping[str, Any]) -> str:
    """Return the results as a table for the terminal."""
    lines = [f"{'ratio to bare':<24}{'wall':>8}{'quartiles':>16}{'CPU':>8}{'quartiles':>16}{'s':>8}"]
    for title, group in results.items():
        if (
            isinstance(group, Mapping)
            and group
            and all(isinstance(each, Mapping) and "cpu_low" in each for each in group.values())
        ):
            for name, ratio in group.items():
                lines.append(
                    f"{title + ' ' + name:<24}{_short(ratio['median']):>7}×{_range(ratio, ''):>16}"
                    f"{_short(ratio['cpu_median']):>7}×{_range(ratio, 'cpu_'):>16}{ratio['seconds']:>8.3f}"
                )
    for name, value in results.items():
        if isinstance(value, float | int):
            lines.append(f"{name:<34}{value:>12,.4f}" if isinstance(value, float) else f"{name:<34}{value:>12,}")
        elif isinstance(value, str):
            lines.append(value)
    return "\n".join(lines[not any("×" in line for line in lines) :])


def _range(ratio: Mapping[str, float], kind: str) -> str:
    return f"{_short(ratio[kind + 'low'])} – {_short(ratio[kind + 'high'])}"


def _short(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio < 100 else f"{ratio:.0f}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
