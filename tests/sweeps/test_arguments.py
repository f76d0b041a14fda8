"""Wrong arguments under Python: an error that names the argument, before anything is read or written."""

from pathlib import Path
from typing import Any

import pytest
import torch

from geomprobe import GeomprobeError, sweep
from geomprobe.inspection.inspect import inspect_text
from geomprobe.models.loading import load
from tests.sweeps.conftest import save_checkpoint


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("tokens", "20", "a whole number, 2 or more"),
        ("tokens", 20.5, "a whole number, 2 or more"),
        ("tokens", True, "a whole number, 2 or more"),
        ("tokens", None, "a whole number, 2 or more"),
        ("length", 1, "a whole number, 2 or more"),
        ("sample", 0, "a whole number, 2 or more"),
        ("batch_tokens", -1, "a whole number, 2 or more"),
        ("sketch", 0, "a whole number, 1 or more"),
        ("seed", None, "a whole number"),
        ("seed", "1", "a whole number"),
        ("data", None, "a text that is not empty"),
        ("data", ["a.txt"], "a text that is not empty"),
        ("field", None, "a text that is not empty"),
        ("split", "", "a text that is not empty"),
        ("revisions", "step1", "a sequence of names, such as"),
        ("revisions", [1], "a sequence of names, such as"),
        ("revisions", None, "a sequence of names, such as"),
        ("models", None, "a sequence of names or paths"),
        ("models", "", "a sequence of names or paths"),
        ("models", [3], "a sequence of names or paths"),
        ("out", None, "the path of a folder"),
        ("out", 3, "the path of a folder"),
        ("baselines", "no", "True or False"),
        ("trust_remote_code", "y", "True or False"),
        ("dtype", torch.float32, "one of float32, bfloat16, float16, auto"),
        ("dtype", "int8", "one of float32, bfloat16, float16, auto"),
        ("device", "gpu", "the name of a device"),
        ("device", 0, "the name of a device"),
        ("device_map", {"": 0}, "a text or None"),
        ("tokenizer", 3, "a text or None"),
        ("on_record", 3, "a function or None"),
    ],
)
def test_sweep_names_the_argument(name: str, value: Any, expected: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"models": "model", "data": "a.txt", "out": tmp_path / "run"} | {name: value}
    with pytest.raises(GeomprobeError, match=rf"^sweep\({name}=.*\): expected {expected}"):
        sweep(arguments.pop("models"), **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_paths_are_names_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three")
    model = save_checkpoint(tmp_path / "model", 1)
    run = sweep(model, data=tmp_path / "a.txt", out=tmp_path / "run", tokens=8, baselines=False)
    again = sweep([str(model)], data=str(tmp_path / "a.txt"), out=str(tmp_path / "run"), tokens=8, baselines=False)
    assert run.failed == []
    assert again.records == run.records


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": 3}, r"inspect_text\(text=3\): expected a text"),
        ({"text": None}, r"inspect_text\(text=None\): expected a text"),
        ({"site": 0}, r"inspect_text\(site=0\): expected the name of a site"),
        ({"site": "nowhere"}, "unknown site 'nowhere'"),
        ({"site": "embed", "tokens": "a"}, r"inspect_text\(tokens='a'\): expected a list of tokens"),
        ({"site": "embed", "tokens": [0]}, r"inspect_text\(tokens=\[0\]\): expected a list of tokens"),
        ({"loaded": "model"}, r"inspect_text\(loaded='model'\): expected what load\(\) returned"),
    ],
)
def test_inspect_text_names_the_argument(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    loaded = load(str(save_checkpoint(tmp_path / "model", 1)), device="cpu")
    given: dict[str, Any] = {"loaded": loaded, "text": "a dog"} | arguments
    with pytest.raises(GeomprobeError, match=message):
        inspect_text(given.pop("loaded"), given.pop("text"), **given)
