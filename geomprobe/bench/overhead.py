"""``geomprobe bench overhead|decode|memory|attention``: the cost of the probe relative to the bare model."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from geomprobe.bench.timing import Ratio, interleaved
from geomprobe.capture.decoder import find_decoder
from geomprobe.errors import GeomprobeError
from geomprobe.metrics.attention import AttentionProfile
from geomprobe.models.loading import load
from geomprobe.probe import Probe
from geomprobe.recording.live_gain import GainUpdate

__all__ = [
    "arithmetic_floor",
    "bench_attention",
    "bench_decode",
    "bench_memory",
    "bench_model",
    "bench_overhead",
    "tokens_for",
    "training_step",
]


def bench_model(what: str, *, model: str | None, device: str | None, dtype: str) -> nn.Module:
    """Return the model to measure: a checkpoint, or random weights in the shape of SmolLM2-135M (for ``memory``, a model with
    one narrow layer)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if model is not None:
        loaded: nn.Module = load(model, device=device, dtype=dtype).model
        return loaded
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 256}
    smollm2 = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    config = LlamaConfig(**(small if what == "memory" else smollm2), max_position_embeddings=8192)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    random: nn.Module = LlamaForCausalLM(config).eval()
    return random.to(place, getattr(torch, dtype))


def bench_overhead(model: nn.Module, *, batch: int = 2, length: int = 256, rounds: int = 9) -> dict[str, Any]:
    """Compare a forward and a training step with every site measured to the same without a probe, to two alternatives, and to
    the number of arithmetic operations that are needed at least.

    The alternatives compute the same numbers: ``numpy`` uses ``output_hidden_states`` and NumPy, ``store`` stores every hidden
    state with hooks and computes at the end.
    """
    device = next(model.parameters()).device
    ids = tokens_for(model, batch, length)
    decoder = find_decoder(model)
    probe = Probe(model, decoder=decoder, on_error="raise")
    resting = Probe(model, decoder=decoder, when=lambda step: False, on_error="raise")

    @torch.no_grad()
    def forward() -> None:
        model(input_ids=ids, use_cache=False)

    def watched() -> None:
        with probe:
            forward()

    def off() -> None:
        with resting:
            forward()

    @torch.no_grad()
    def with_numpy() -> None:
        for hidden in model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states:
            _numpy_sums(hidden)

    @torch.no_grad()
    def stored() -> None:
        kept: list[Tensor] = []
        handles = [
            layer.register_forward_hook(lambda m, a, out: kept.append((out if isinstance(out, Tensor) else out[0]).cpu()))
            for layer in decoder.layers
        ]
        try:
            forward()
        finally:
            for handle in handles:
                handle.remove()
        for hidden in kept:
            _numpy_sums(hidden)

    model.eval()
    inference = interleaved(
        {"bare": forward, "probe": watched, "off": off, "numpy": with_numpy, "store": stored}, rounds, device
    )

    step = training_step(model, ids)

    def watched_step() -> None:
        with probe:
            step()

    model.train()
    training = interleaved({"bare": step, "probe": watched_step}, max(3, rounds // 2), device)
    model.eval()
    return {
        "forward": {name: vars(ratio) for name, ratio in inference.items()},
        "training_step": {name: vars(ratio) for name, ratio in training.items()},
        "arithmetic_floor": arithmetic_floor(model, forward, len(probe.sites), batch, length),
        "numpy_added_over_probe_added": _added(inference["numpy"]) / _added(inference["probe"]),
        "shape": {"batch": batch, "length": length, "sites": len(probe.sites), "threads": torch.get_num_threads()},
    }


def bench_decode(model: nn.Module, *, tokens: int = 256, rounds: int = 5) -> dict[str, Any]:
    """Compare ``generate`` with ``on_gain``, which receives the information gain of every new token at every site, to
    ``generate`` without a probe."""
    device = next(model.parameters()).device
    ids = tokens_for(model, 1, 8)
    updates: list[GainUpdate] = []

    def bare() -> None:
        model.generate(input_ids=ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)  # type: ignore[operator]

    def live() -> None:
        updates.clear()
        with Probe(model, on_error="raise", on_gain=updates.append):
            bare()

    def watched() -> None:
        with Probe(model, on_error="raise"):
            bare()

    model.eval()
    ratios = interleaved({"bare": bare, "live": live, "probe": watched}, rounds, device)
    if len(updates) != tokens:
        raise GeomprobeError(f"expected {tokens} live updates while generating, and got {len(updates)}")
    return {"generate": {name: vars(ratio) for name, ratio in ratios.items()}, "shape": {"tokens": tokens}}


def bench_memory(
    model: nn.Module, *, batch: int = 16, length: int = 128, few: int = 20_000, many: int = 1_000_000
) -> dict[str, Any]:
    """Return the growth of the memory of the process, in bytes, between ``few`` and ``many`` tokens measured at every site."""
    from tqdm import tqdm

    device = next(model.parameters()).device
    ids = tokens_for(model, batch, length)
    decoder = find_decoder(model)
    model.eval()
    at_few = seen = 0
    with (
        torch.no_grad(),
        Probe(model, decoder=decoder, on_error="raise"),
        tqdm(total=many, unit="tok", unit_scale=True, leave=False, disable=None) as bar,
    ):
        while seen < many:
            decoder.base(input_ids=ids, use_cache=False)
            seen += ids.numel()
            bar.update(ids.numel())
            if not at_few and seen >= few:
                at_few = _peak(device)
    return {"growth_bytes": _peak(device) - at_few, "few": few, "many": seen}


def bench_attention(
    model: nn.Module, *, batch: int = 2, length: int = 256, rounds: int = 9, long: int = 4096
) -> dict[str, Any]:
    """Compare a forward in which the attention of every layer is summarised to a forward without a probe, and to eager
    attention that returns its maps. Also return the additional peak memory at ``long`` tokens."""
    device = next(model.parameters()).device
    decoder = find_decoder(model)
    probe = Probe(model, [AttentionProfile()], decoder=decoder, on_error="raise")
    loaded_with = model.config._attn_implementation  # type: ignore[union-attr]

    @torch.no_grad()
    def forward(ids: Tensor, **options: Any) -> None:
        decoder.base(input_ids=ids, use_cache=False, **options)

    def watched(ids: Tensor) -> None:
        with probe:
            forward(ids)

    def maps(ids: Tensor) -> None:
        model.set_attn_implementation("eager")  # type: ignore[operator]
        try:
            forward(ids, output_attentions=True)
        finally:
            model.set_attn_implementation(loaded_with)  # type: ignore[operator]

    model.eval()
    longest: Any = model.config.max_position_embeddings  # type: ignore[union-attr]
    ids, text = tokens_for(model, batch, length), tokens_for(model, 1, min(long, longest))
    ratios = interleaved(
        {"bare": lambda: forward(ids), "probe": lambda: watched(ids), "maps": lambda: maps(ids)}, rounds, device
    )
    runs = {"bare": lambda: forward(text), "probe": lambda: watched(text)}
    rounds_of_peaks = [{name: _peak_of(run, device) for name, run in runs.items()} for _ in range(3)]
    # The first round is not counted, because the memory that the allocator takes and keeps would be attributed to the bare run.
    peaks = {name: min(peak[name] for peak in rounds_of_peaks[1:]) for name in runs}
    return {
        "forward": {name: vars(ratio) for name, ratio in ratios.items()},
        "added_peak_bytes": peaks["probe"] - peaks["bare"],
        "peak_at_tokens": text.shape[1],
        "shape": {"batch": batch, "length": length, "implementation": loaded_with, "threads": torch.get_num_threads()},
    }


def tokens_for(model: nn.Module, batch: int, length: int) -> Tensor:
    """Random token ids on the device of the model."""
    vocabulary: Any = model.config.vocab_size  # type: ignore[union-attr]
    return torch.randint(0, vocabulary, (batch, length), device=next(model.parameters()).device)


def _numpy_sums(hidden: Tensor) -> None:
    """The work of the default metrics at one site, in NumPy: the covariance, and a Gram matrix and two factors per text."""
    rows = hidden.float().cpu().numpy()
    unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    flat = unit.reshape(-1, unit.shape[-1])
    flat.T @ flat
    for text in unit.astype(np.float64):
        gram = text @ text.T
        identity = np.eye(len(gram))
        np.log(np.diagonal(np.linalg.cholesky(identity + 1e4 * gram)))
        np.log(np.diagonal(np.linalg.cholesky(identity + text.shape[1] / 0.01 / len(text) * gram)))


def _added(ratio: Ratio) -> float:
    return ratio.cpu_median - 1


def training_step(model: nn.Module, ids: Tensor) -> Callable[[], None]:
    """Return a function that runs one training step on ``ids``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def arithmetic_floor(model: nn.Module, forward: Callable[[], object], sites: int, batch: int, length: int) -> float:
    """Return the arithmetic operations of a measured forward relative to those of a bare one: a covariance, a Gram matrix and
    two Cholesky factors at every site, without the savings of symmetry."""
    with FlopCounterMode(display=False) as counter:
        forward()
    width = int(model.config.hidden_size)  # type: ignore[union-attr,arg-type]
    added = sites * batch * (2 * length * width**2 + 2 * length**2 * width + 2 * length**3 / 3)
    return float(1 + added / counter.get_total_flops())


def _peak_of(run: Callable[[], object], device: torch.device) -> int:
    """The peak memory of the process while ``run`` runs, including memory allocated before.

    Raises:
        GeomprobeError: if the operating system does not provide the peak memory of a part of a process's run.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        run()
        status = Path("/proc/self/status").read_text("ascii").splitlines()
        return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])
    except OSError as error:
        raise GeomprobeError(
            f"cannot measure the peak memory on the CPU: {error}. It is read from /proc on Linux; run this benchmark there, or "
            "with --device cuda"
        ) from error


def _peak(device: torch.device) -> int:
    """The peak memory of the process, on the host and on the device."""
    import resource
    import sys

    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return host + (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0)
