"""``geomprobe bench``: each benchmark is called with the options of the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from geomprobe import GeomprobeError
from geomprobe.cli import main as cli

SIZE, ROUNDS = ["--batch", "4", "--length", "8"], ["--rounds", "5"]
MODEL = ["--model", "some/model", "--device", "cpu"]
DTYPE = ["--dtype", "bfloat16"]
WITHOUT_A_MODEL = ("bench_lasso", "bench_sweep", "bench_precision")
LOADED, OF_SIZE = {"device": "cpu", "dtype": "bfloat16"}, {"batch": 4, "length": 8}
CASES: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "lasso": ("lasso.bench_lasso", [*MODEL, *SIZE[2:], *ROUNDS], {"length": 8, "rounds": 5, "device": "cpu"}),
    "sweep": (
        "sweep.bench_sweep",
        [*MODEL, *SIZE[2:], *ROUNDS, "--tokens", "64"],
        {"tokens": 64, "length": 8, "rounds": 5, "device": "cpu"},
    ),
    "precision": ("precision.bench_precision", [*MODEL, *DTYPE, *SIZE], OF_SIZE | LOADED),
    "overhead --shapes": ("schedules.bench_shapes", [*MODEL[2:], *DTYPE, *ROUNDS], LOADED | {"rounds": 5}),
    "overhead --budget 0.1": (
        "schedules.bench_budget",
        [*MODEL, *DTYPE, *SIZE, "--steps", "250"],
        OF_SIZE | {"share": 0.1, "steps": 250},
    ),
    "overhead --every 7": ("schedules.bench_every", [*MODEL, *DTYPE, *SIZE, *ROUNDS], OF_SIZE | {"every_nth": 7, "rounds": 5}),
    "overhead": ("overhead.bench_overhead", [*MODEL, *DTYPE, *SIZE, *ROUNDS], OF_SIZE | {"rounds": 5}),
    "attention": ("overhead.bench_attention", [*MODEL, *DTYPE, *SIZE, *ROUNDS], OF_SIZE | {"rounds": 5}),
    "decode": ("overhead.bench_decode", [*MODEL, *DTYPE, *ROUNDS], {"rounds": 5}),
    "memory": ("overhead.bench_memory", [*MODEL, *DTYPE], {}),
    "alarms": (
        "alarms.bench_alarms",
        ["--seeds", "2", "--quick", "--keep", "kept"],
        {"seeds": 2, "quick": True, "keep": Path("kept")},
    ),
}
"""By its arguments, the function of each benchmark, all options that it uses, and what it gets."""


def bench(*arguments: str) -> None:
    cli.app(["bench", *arguments], standalone_mode=False)


@pytest.mark.parametrize("what", CASES)
def test_each_benchmark_gets_its_options(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, options, expected = CASES[what]
    called: list[tuple[Any, ...]] = []

    def record(*given: object, **options: object) -> dict[str, object]:
        called.append((*given, options))
        return {"measured": what}

    monkeypatch.setattr(f"geomprobe.bench.{name}", record)
    monkeypatch.setattr("geomprobe.bench.overhead.bench_model", lambda what, **options: (str(what), options))
    bench(*what.split(), *options, "--json")
    loaded = (what.split()[0], LOADED | {"model": "some/model"})
    takes = "some/model" if name.split(".")[1] in WITHOUT_A_MODEL else loaded
    given = (takes,) if "--model" in options else ()
    assert called == [(*given, expected)]
    assert json.loads(capsys.readouterr().out) == {"measured": what}


@pytest.mark.parametrize("what", CASES)
def test_an_option_that_a_benchmark_does_not_use_is_refused(what: str) -> None:
    every = [*MODEL, *DTYPE, *SIZE, *ROUNDS, "--steps", "250", "--tokens", "64", "--seeds", "2", "--quick", "--calibrate"]
    used = [word for word in CASES[what][1] if word.startswith("--")]
    for place, option in enumerate(every):
        if option.startswith("--") and option not in (*used, "--calibrate" if what == "alarms" else ""):
            value = [word for word in every[place + 1 : place + 2] if not word.startswith("--")]
            with pytest.raises(GeomprobeError, match=f"bench {what.rstrip('.017 ')} does not use {option}: run it without"):
                bench(*what.split(), option, *value)


def test_options_of_another_benchmark_are_refused_together() -> None:
    with pytest.raises(GeomprobeError, match="bench decode does not use --every, --quick: run it without"):
        bench("decode", "--every", "7", "--quick")
    with pytest.raises(GeomprobeError, match="bench overhead --every does not use --budget"):
        bench("overhead", "--every", "7", "--budget", "0.1")
