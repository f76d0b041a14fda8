"""``geomprobe bench overhead --every K``, ``--budget SHARE`` and ``--shapes``: how schedules and shapes change the cost."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import nn

from geomprobe.bench.overhead import arithmetic_floor, tokens_for, training_step
from geomprobe.bench.timing import interleaved
from geomprobe.capture.decoder import find_decoder
from geomprobe.errors import GeomprobeError
from geomprobe.probe import Probe
from geomprobe.schedule import budget, every

__all__ = ["bench_budget", "bench_every", "bench_shapes"]

_WINDOW, _START = 200, 50

_SHAPES = ((64, 32, 64), (64, 1, 2048), (576, 2, 256), (1024, 8, 128), (2048, 1, 512), (4096, 1, 256))
"""Widths, numbers of texts and lengths of texts."""


def bench_every(model: nn.Module, *, every_nth: int, batch: int = 2, length: int = 256, rounds: int = 15) -> dict[str, Any]:
    """Compare ``every_nth`` forwards, of which one is measured, to the same number of forwards without a probe.

    ``cost_by_own_clock`` is the share of time that :attr:`Probe.cost` reports. ``hooks_of_off_steps`` is the time that hooks
    take in a forward that is not measured, relative to that forward, with the time of measuring it.
    """
    device = next(model.parameters()).device
    forward = _forward(model, batch, length)
    model.eval()
    probe = Probe(model, when=every(every_nth), on_error="raise")

    def bare() -> None:
        for _ in range(every_nth):
            forward()

    def watched() -> None:
        with probe:
            bare()

    found = interleaved({"bare": bare, "probe": watched}, rounds, device)
    return {
        f"every({every_nth})": {name: vars(ratio) for name, ratio in found.items()},
        "cost_by_own_clock": probe.cost.share,
        "hooks_of_off_steps": _hook_share(model, forward),
        "shape": {"batch": batch, "length": length, "threads": torch.get_num_threads()},
    }


def bench_budget(model: nn.Module, *, share: float, batch: int = 2, length: int = 256, steps: int = 300) -> dict[str, Any]:
    """Train under ``budget(share)``, reading each measured step, and return the largest cost of any 200 successive steps after
    the first 50, as a share of their time.

    Raises:
        GeomprobeError: if there are fewer than 250 steps.
    """
    if steps < _START + _WINDOW:
        raise GeomprobeError(
            f"steps={steps}: a budget is measured over {_WINDOW} steps after the first {_START}: give at least "
            f"{_START + _WINDOW}"
        )
    step = training_step(model, tokens_for(model, batch, length))
    model.train()
    seconds, costs, measured = [], [], 0
    with Probe(model, when=budget(share), modes=["train"], on_error="raise") as probe:
        for _ in range(steps):
            began, before = perf_counter(), probe.cost.seconds
            step()
            if probe.cost.seconds > before:
                measured += 1
                probe.read("train", reset=True)
            costs.append(probe.cost.seconds - before)
            seconds.append(perf_counter() - began)
        interval = probe.cost.interval
        whole = probe.cost.share
    off = _hook_share(model, step)
    model.eval()
    windows = [
        sum(costs[start : start + _WINDOW]) / sum(seconds[start : start + _WINDOW])
        for start in range(_START, steps - _WINDOW + 1)
    ]
    return {
        "largest_cost_of_200_steps": max(windows),
        "hooks_of_off_steps": off,
        "cost_of_the_whole_run": whole,
        "interval_at_the_end": interval,
        "measured_steps": measured,
        "steps": steps,
        "shape": {"batch": batch, "length": length, "share": share, "threads": torch.get_num_threads()},
    }


def bench_shapes(*, device: str | None, dtype: str, rounds: int = 9) -> dict[str, Any]:
    """Compare a measured forward of two Llama layers to a bare one for several widths, numbers and lengths of texts, with the
    arithmetic floor of each."""
    from transformers import LlamaConfig, LlamaModel

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    results: dict[str, Any] = {}
    for width, batch, length in _SHAPES:
        config = LlamaConfig(
            hidden_size=width,
            intermediate_size=8 * width // 3,
            num_hidden_layers=2,
            num_attention_heads=width // 32,
            vocab_size=256,
            max_position_embeddings=length,
        )
        torch.manual_seed(0)
        model = LlamaModel(config).eval().to(place, getattr(torch, dtype))
        forward = _forward(model, batch, length)
        probe = Probe(model, on_error="raise")

        def watched(probe: Probe = probe, forward: Callable[[], object] = forward) -> None:
            with probe:
                forward()

        found = interleaved({"bare": forward, "probe": watched}, rounds, place)
        name = f"{width}, {batch}×{length}"
        results[name] = {"probe": vars(found["probe"])}
        results[f"floor of {name}"] = arithmetic_floor(model, forward, len(probe.sites), batch, length)
    return results


def _forward(model: nn.Module, batch: int, length: int) -> Callable[[], None]:
    ids = tokens_for(model, batch, length)

    @torch.no_grad()
    def forward() -> None:
        model(input_ids=ids, use_cache=False)

    return forward


def _hook_share(model: nn.Module, run: Callable[[], object], times: int = 20) -> float:
    """The share of the time of ``run`` that hooks take if nothing is measured."""
    with Probe(model, when=lambda step: False, on_error="raise"):
        spent = _hook_seconds(model, run, times)
    began = perf_counter()
    for _ in range(times):
        run()
    return spent / (perf_counter() - began)


def _hook_seconds(model: nn.Module, forward: Callable[[], object], times: int) -> float:
    """The time that the hooks of a decoder take in several forwards."""
    spent = 0.0

    def timed(hook: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal spent
            began = perf_counter()
            try:
                return hook(*args, **kwargs)
            finally:
                spent += perf_counter() - began

        return run

    tables = [
        table for module in find_decoder(model).base.modules() for table in (module._forward_pre_hooks, module._forward_hooks)
    ]
    kept = [dict(table) for table in tables]
    try:
        for table in tables:
            table.update({name: timed(hook) for name, hook in table.items()})
        for _ in range(times):
            forward()
    finally:
        for table, hooks in zip(tables, kept, strict=True):
            table.update(hooks)
    return spent
