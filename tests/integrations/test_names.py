"""The public names, and what importing them costs."""

import subprocess
import sys

import pytest

import geomprobe.integrations
from geomprobe import GeomprobeError, Reading
from geomprobe.integrations import flat


def test_names_are_there_and_others_are_not() -> None:
    assert dir(geomprobe.integrations) == [
        "LightningCallback",
        "ProbeCallback",
        "WandbSink",
        "flat",
        "log_reading",
        "offline_without_login",
    ]
    for name in dir(geomprobe.integrations):
        assert getattr(geomprobe.integrations, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Callback'"):
        getattr(geomprobe.integrations, "Callback")  # noqa: B009


@pytest.mark.slow
def test_other_packages_are_imported_where_they_are_used() -> None:
    code = """
import sys, geomprobe.integrations as integrations
print('torch' in sys.modules)
integrations.WandbSink, integrations.log_reading, integrations.flat
print(sorted({'wandb', 'accelerate', 'transformers'} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.splitlines() == ["False", "[]"]


METRICS = ("tokens", "texts", "entropy", "entropy_nats", "effective_rank", "anisotropy", "alpha_req", "gain_per_token")


def measured(sites: tuple[str, ...], *metrics: str, mode: str = "train") -> Reading:
    """A reading with a number of its own for each metric and site."""
    names = [f"{metric}/{site}" for site in sites for metric in metrics]
    return Reading(mode=mode, sites=sites, values={name: float(number) for number, name in enumerate(names)})


def test_the_overview_is_five_metrics_at_four_sites_and_the_tokens() -> None:
    layers = tuple(f"layer_{layer:02d}" for layer in range(30))
    reading = measured(("embed", *layers, "final_norm"), *METRICS)
    logged = flat(reading, "overview")
    five = ("entropy", "effective_rank", "anisotropy", "gain_per_token", "alpha_req")
    places = ("layer_00", "layer_15", "layer_29", "final_norm")
    expected = {f"geomprobe/{metric}/{site}": reading[f"{metric}/{site}"] for metric in five for site in places}
    assert logged == expected | {"geomprobe/tokens": reading["tokens/final_norm"]}
    assert len(logged) == 21
    assert len(flat(reading)) == len(reading)


def test_the_overview_of_few_sites_has_them_all_and_of_another_mode_its_name() -> None:
    reading = measured(("embed", "layer_02"), "tokens", "entropy", mode="eval")
    assert list(flat(reading, "overview")) == [
        "geomprobe/eval/entropy/embed",
        "geomprobe/eval/entropy/layer_02",
        "geomprobe/eval/tokens",
    ]


def test_the_overview_of_other_metrics_has_those_that_were_measured() -> None:
    mine = [f"mine_{number}" for number in range(9)]
    logged = flat(measured(tuple(f"layer_{layer:02d}" for layer in range(6)), "tokens", "texts", *mine), "overview")
    assert len(logged) == 23
    assert list(logged)[:3] == [f"geomprobe/mine_0/layer_0{layer}" for layer in (0, 3, 5)]
    assert flat(Reading(mode="train", sites=()), "overview") == {}


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(GeomprobeError, match=r"log='some': expected 'overview' \(at most 24 numbers a step\) or 'all'"):
        flat(Reading(mode="train", sites=()), "some")
