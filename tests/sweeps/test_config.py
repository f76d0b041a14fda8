"""The arguments of a sweep are written once: the Python call, the command line and the manifest have the same."""

import inspect
from dataclasses import MISSING, replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from geomprobe import SweepConfig, sweep
from geomprobe.cli.main import app
from geomprobe.sweeps.config import arguments

IDENTITY = {
    "models": ["a", "b"],
    "revisions": [],
    "data": "a.txt",
    "field": "text",
    "split": "train",
    "tokens": 65_536,
    "length": None,
    "sample": 1024,
    "batch_tokens": 2048,
    "texts": None,
    "truncate": False,
    "seed": 0,
    "sketch": None,
    "rows": "all",
    "cka_rows": "unit",
    "protocol": None,
    "baselines": True,
    "dtype": "float32",
    "device_map": None,
    "tokenizer": None,
    "trust_remote_code": False,
}
"""What the manifests of earlier runs have: with another name, or another default, they would not be resumed."""


def config(**options: Any) -> SweepConfig:
    given: dict[str, Any] = {"models": ["a", Path("b")], "data": Path("a.txt"), "out": "run"}
    return SweepConfig(**given | options)


def test_the_call_has_the_arguments_of_the_configuration() -> None:
    called = inspect.signature(sweep).parameters
    listed = arguments(SweepConfig)
    assert list(called) == [argument.name for argument in listed]
    for argument in listed:
        parameter = called[argument.name]
        assert parameter.default == (parameter.empty if argument.default is MISSING else argument.default)
        assert parameter.annotation == argument.kind
        assert f"\n    {argument.name}: {argument.says.text[:9]}" in (sweep.__doc__ or "")
    assert called["models"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert {parameter.kind for name, parameter in called.items() if name != "models"} == {inspect.Parameter.KEYWORD_ONLY}


def test_the_command_has_them_too() -> None:
    command = typer.main.get_command(app).commands["sweep"]  # type: ignore[attr-defined]
    options = {parameter.name: parameter for parameter in command.params}
    listed = [argument for argument in arguments(SweepConfig) if argument.name not in ("progress", "on_record")]
    names = [argument.name for argument in listed]
    at = names.index("dtype")
    assert list(options) == [*names[:at], "wandb", *names[at:]]
    for argument in listed:
        option = options[argument.name]
        if argument.name != "models":  # the lowest Typer loses the description of an argument under the newest Click
            assert option.help == argument.says.text
        assert option.required == (argument.default is MISSING)
        if argument.says.least is not None:
            flag = f"--{argument.name.replace('_', '-')}"
            refused = CliRunner().invoke(app, ["sweep", "m", "--data", "d", "--out", "o", flag, str(argument.says.least - 1)])
            assert refused.exit_code == 2
            assert f"Invalid value for '{flag}'" in refused.output


def test_what_is_written_to_the_manifest() -> None:
    assert config().identity == IDENTITY


@pytest.mark.parametrize("option", [{"out": "other"}, {"device": "cpu"}, {"progress": True}, {"on_record": print}])
def test_a_run_is_the_same_run_elsewhere(option: dict[str, Any]) -> None:
    other = replace(config(), **option)
    assert other == config()
    assert hash(other) == hash(config())
    assert other.identity == IDENTITY
    assert {**vars(other)} != {**vars(config())}


def test_with_other_arguments_it_is_another_run() -> None:
    for name in IDENTITY:
        assert name in inspect.signature(SweepConfig).parameters
    assert config(tokens=3) != config()
    assert config(models="a").identity["models"] == ["a"]


def test_a_configuration_gives_its_arguments_back() -> None:
    given = config(revisions=["step1"], models="a", device="cpu")
    assert SweepConfig(**vars(given)) == given
    assert vars(SweepConfig(**vars(given))) == vars(given)
