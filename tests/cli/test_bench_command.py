"""``geomprobe bench``: each benchmark is called with the options of the command line."""

import json
from typing import Any

import pytest

from geomprobe import GeomprobeError
from geomprobe.cli import main as cli

SIZE = {"batch": 4, "length": 8}
OPTIONS = ["--batch", "4", "--length", "8", "--rounds", "5", "--json"]
WITHOUT_A_MODEL = ("bench_lasso", "bench_sweep", "bench_precision", "bench_shapes")
CASES: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "lasso": ("lasso.bench_lasso", [], {"length": 8, "rounds": 5, "device": "cpu"}),
    "sweep": ("sweep.bench_sweep", ["--tokens", "64"], {"tokens": 64, "length": 8, "rounds": 5, "device": "cpu"}),
    "precision": ("precision.bench_precision", [], SIZE | {"device": "cpu", "dtype": "bfloat16"}),
    "overhead --shapes": ("schedules.bench_shapes", [], {"device": "cpu", "dtype": "bfloat16", "rounds": 5}),
    "overhead --budget 0.1": ("schedules.bench_budget", ["--steps", "250"], SIZE | {"share": 0.1, "steps": 250}),
    "overhead --every 7": ("schedules.bench_every", [], SIZE | {"every_nth": 7, "rounds": 5}),
    "overhead": ("overhead.bench_overhead", [], SIZE | {"rounds": 5}),
    "attention": ("overhead.bench_attention", [], SIZE | {"rounds": 5}),
    "decode": ("overhead.bench_decode", [], {"rounds": 5}),
    "memory": ("overhead.bench_memory", [], {}),
}


def bench(*arguments: str) -> None:
    cli.app(["bench", *arguments, "--device", "cpu", "--dtype", "bfloat16"], standalone_mode=False)


@pytest.mark.parametrize("what", CASES)
def test_each_benchmark_gets_its_options(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, more, expected = CASES[what]
    called: list[tuple[Any, ...]] = []

    def record(*given: object, **options: object) -> dict[str, object]:
        called.append((*given, options))
        return {"measured": what}

    monkeypatch.setattr(f"geomprobe.bench.{name}", record)
    monkeypatch.setattr("geomprobe.bench.overhead.bench_model", lambda what, **options: (str(what), options))
    bench(*what.split(), "--model", "some/model", *OPTIONS, *more)
    random = (what.split()[0], {"model": "some/model", "device": "cpu", "dtype": "bfloat16"})
    given = () if name.endswith("shapes") else ("some/model",) if name.split(".")[1] in WITHOUT_A_MODEL else (random,)
    assert called == [(*given, expected)]
    assert json.loads(capsys.readouterr().out) == {"measured": what}


def test_options_of_another_benchmark_are_refused() -> None:
    with pytest.raises(GeomprobeError, match="bench decode: --every, --budget and --shapes belong to bench overhead"):
        bench("decode", "--every", "7")
