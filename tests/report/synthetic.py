"""Runs on disk with made-up numbers that move as those of real models do."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geomprobe.metrics.base import Curve
from geomprobe.reading import Reading
from geomprobe.sweeps.records import MANIFEST, READINGS, Kind, Record

STEPS = (0, *(2**i for i in range(10)), 1000, 2000, 4000, 8000, 16000, 32000, 64000, 100_000, 143_000)
"""Twenty checkpoints, as Pythia's are spaced."""
ARGUMENTS: dict[str, Any] = {"models": ["training"], "revisions": [], "data": "texts.jsonl", "field": "text", "split": "train"}
ARGUMENTS |= {"dtype": "float32", "device_map": None, "tokenizer": None, "seed": 0, "tokens": 409_600, "sample": 16_384}
ARGUMENTS |= {"length": 512}
VERSIONS = {"geomprobe": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"}
DATA = {"name": "hh-rlhf/harmless-base", "hash": "9f2c41d07be8", "texts": 2048, "tokens": 409_600, "sample_tokens": 16_384}


def reading(
    progress: float, *, layers: int = 30, width: int = 576, length: int = 512, seed: int = 0, gaussian: bool = False
) -> Reading:
    """Progress from 0 (random weights) to 1 (trained)."""
    noise = np.random.default_rng([seed, int(1000 * progress), gaussian]).normal
    names = ("gaussian",) if gaussian else ("embed", *(f"layer_{i:02d}" for i in range(layers)), "final_norm")
    values: dict[str, float] = {}
    curves: dict[str, Curve] = {}
    for i, site in enumerate(names):
        depth = i / max(len(names) - 1, 1)
        bend = progress * math.sin(math.pi * depth) ** 2
        rank = width * (0.93 if gaussian else 0.6 * math.exp(-2.2 * bend - 1.1 * progress * depth) + 0.02) + float(noise(0, 1))
        nats = math.log(rank)
        gain = min(4.6, 3.2 + 0.22 * nats)
        scalars = {
            "tokens": 409_600.0,
            "texts": 2048.0,
            "entropy": 0.1 + 0.7 * rank / width,
            "entropy_nats": 9e5 * (0.1 + 0.7 * rank / width),
            "matrix_entropy": nats,
            "matrix_entropy_log_d": nats / math.log(width),
            "matrix_entropy_log_n": nats / math.log(width),
            "effective_rank": rank,
            "rank_ratio": rank / width,
            "stable_rank": 0.3 * rank,
            "participation_ratio": 0.55 * rank,
            "anisotropy": 0.0 if gaussian else 0.1 + 0.6 * bend,
            "rankme": 0.9 * width - 40 * bend,
            "alpha_req": 0.4 + 0.9 * progress * depth + 0.3 * bend,
            "text_entropy": 0.2 + 0.1 * rank / width,
            "text_matrix_entropy": 0.8 * nats,
            "centered_text_matrix_entropy": 0.85 * nats,
            "information_gain": gain * length * 0.8,
            "information_gain_per_dim": gain * length * 0.8 / width,
            "gain_per_token": gain * 0.8,
        }
        if not gaussian:
            scalars |= {
                "curvature": 2.1 - 0.7 * bend,
                "activation_ratio": 8 * 10 ** (2.4 * bend),
                "massive_activations": round(4 * bend * depth),
            }
        if site.startswith("layer_"):
            agree = 0.12 + 0.25 * bend
            scalars |= {
                "lasso_picks": 9 - 4 * bend,
                "lasso_r2": 0.3 + 0.4 * bend,
                "lasso_attention_jaccard": 0.7 * agree,
                "lasso_attention_precision": agree + float(noise(0, 0.005)),
                "lasso_attention_chance": 0.09 + 0.01 * bend,
                "lasso_attention_rank": 0.05 + 0.3 * bend,
                "eq5_r2": -0.4 + bend if i % 7 else math.nan,
                "attention_entropy": 4.2 - 2 * bend,
                "attention_sink": 0.02 + 0.7 * bend,
            }
        values |= {f"{metric}/{site}": float(value) for metric, value in scalars.items()}
        gains = gain * (1 - 0.25 * np.arange(length) / length) + noise(0, 0.05, length)
        counts = tuple(int(n) for n in np.linspace(2048, 300, length))
        curves[f"gain/{site}"] = Curve(tuple(gains.tolist()), (0.3,) * length, counts)
        curves[f"information_gain/{site}"] = Curve(tuple(np.cumsum(gains).tolist()), None, counts)
    return Reading("eval", names, values, curves=curves)


def record(name: str, progress: float, *, kind: Kind = "checkpoint", loss: bool = True, **fields: Any) -> Record:
    """``layers``, ``width``, ``length`` and ``seed`` are of :func:`reading`, the other fields of the record."""
    shape = {key: fields.pop(key) for key in ("layers", "width", "length", "seed") if key in fields}
    made = reading(progress, **shape, gaussian=kind == "gaussian")
    nats = 10.8 - 8.2 * progress**0.5 if loss and kind != "gaussian" else None
    width = shape.get("width", 576)
    return Record(name=name, kind=kind, width=width, reading=made, loss=nats, **{"config": f"w{width}", "tokens": "t"} | fields)


def training(
    *, layers: int = 30, width: int = 576, steps: Sequence[int] = STEPS, model: str = "EleutherAI/pythia-160m",
    parameters: int = 162_322_944, length: int = 512, seed: int = 0,
) -> list[Record]:  # fmt: skip
    """One model over its training: checkpoints, two that failed, and both baselines."""
    shape: dict[str, Any] = {"layers": layers, "width": width, "length": length, "seed": seed}
    fields: dict[str, Any] = {"model": model, "parameters": parameters}
    highest = math.log1p(max(steps)) or 1.0
    records = [
        record(f"step{step}", math.log1p(step) / highest, step=step, revision=f"step{step}", **fields, **shape)
        for step in steps
    ]
    readings = [made.reading for made in records if made.reading]
    for i, made in enumerate(readings):
        values = made._values
        values["diff_erank/final_norm"] = readings[0]["effective_rank/final_norm"] - made["effective_rank/final_norm"]
        for site in made.sites:
            values[f"cka_first/{site}"] = 1 - 0.8 * i / len(readings) * math.sin(1 + len(site)) ** 2
            if i:
                values[f"cka_previous/{site}"] = 0.99 - 0.2 * math.exp(-(((i - 10) / 3) ** 2))
    return [
        *records,
        Record(name="step3000", model=model, step=3000, error="OSError: no such revision: step3000"),
        Record(name="step5000", model=model, step=5000, error="OutOfMemoryError: tried to allocate 2 GiB <now>"),
        record("untrained", 0.0, kind="untrained", **fields, **shape),
        record("gaussian", 0.0, kind="gaussian", model=model, **shape),
    ]


SIZES = {70e6: (6, 512), 160e6: (12, 768), 410e6: (24, 1024), 1.4e9: (24, 2048), 2.8e9: (32, 2560), 6.9e9: (32, 4096)}


def suite(*, sizes: Sequence[float] = tuple(SIZES), length: int = 256) -> list[Record]:
    """Models of several sizes after training, each with its baselines."""
    records = []
    for i, size in enumerate(sizes):
        layers, width = SIZES[size]
        name = f"EleutherAI/pythia-{size / 1e9:.2g}b" if size >= 1e9 else f"EleutherAI/pythia-{size / 1e6:.0f}m"
        shape: dict[str, Any] = {"layers": layers, "width": width, "length": length, "seed": i}
        progress = 0.6 + 0.08 * i
        records += [
            record(name, progress, model=name, parameters=int(size), **shape),
            record(f"{name} untrained", 0.0, kind="untrained", model=name, parameters=int(size), **shape),
            record(f"{name} gaussian", 0.0, kind="gaussian", model=name, **shape),
        ]
    return records


def write_run(path: Path, records: Sequence[Record], **manifest: Any) -> Path:
    """The two files of a run."""
    path.mkdir(parents=True)
    plain = {"format": 1, "arguments": ARGUMENTS, "versions": VERSIONS, "data": DATA} | manifest
    (path / MANIFEST).write_text(json.dumps(plain), "utf-8")
    lines = [json.dumps(record.to_dict(), allow_nan=False) for record in records]
    (path / READINGS).write_text("".join(line + "\n" for line in lines), "utf-8")
    return path
