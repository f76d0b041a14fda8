"""Loading: what is hostile is not run, what is broken is one error, and what lacks weights has no numbers."""

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha1
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from geomprobe import GeomprobeError, sweep
from geomprobe.inspection.inspect import inspect_text
from geomprobe.models.loading import load
from geomprobe.models.source import find_source
from geomprobe.sweeps.checkpoints import find_checkpoints
from geomprobe.sweeps.records import Run
from geomprobe.sweeps.table import table
from geomprobe.tracking.closing import closing_page
from tests.faults import folders
from tests.faults.folders import BROKEN, HARMLESS, HOSTILE, Fault, good, ran_in
from tests.faults.table import fault
from tests.tiny_models import FAMILIES, tiny

OPENED: list[list[str]] = []
"""The lists to which the files that are opened, and the names that pickles look up, are appended."""


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if OPENED and event in ("open", "pickle.find_class"):
        OPENED[-1].append(f"{event}: {arguments[0]} {arguments[1]}")


sys.addaudithook(_watch)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """What a test opens."""
    OPENED.append([])
    yield OPENED[-1]
    OPENED.clear()


@pytest.fixture(autouse=True)
def _offline_and_willing(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no hub, and every question would be answered with yes."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 99))


def refused(load: Callable[[], object]) -> str:
    """The error of a call, which is one line that can be printed."""
    with pytest.raises(GeomprobeError) as caught:
        load()
    error = str(caught.value)
    assert error.isprintable(), error
    assert len(error) < 800, error
    return error


def _line(case: str, broken: Fault) -> None:
    """Add a checkpoint to the table of faults."""

    def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        return refused(lambda: load(broken.make(folder), device="cpu"))

    run.__name__ = "_".join(re.findall(r"\w+", case))
    fault(f"a checkpoint: {case}", says=broken.error, kept="the other checkpoints, which are measured as usual")(run)


for _case, _broken in {**HOSTILE, **BROKEN}.items():
    _line(_case, _broken)


# -- hostile ----------------------------------------------------------------------------------------------------------------


def pickles(opened: list[str]) -> list[str]:
    """The pickles among the files that were opened, and what a pickle asked for."""
    ends = (".bin", ".pt", ".pth", ".pkl", ".npy")
    return [line for line in opened if line.startswith("pickle") or line.split(" ")[1].endswith(ends)]


@pytest.mark.parametrize("fault", HOSTILE.values(), ids=HOSTILE)
def test_hostile_checkpoints_are_refused(
    fault: Fault, tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model = fault.make(tmp_path)
    opened.clear()
    error = refused(lambda: load(model, device="cpu"))
    assert fault.tells(error), error
    assert not ran_in(tmp_path)
    assert not ran_in(Path(model))
    assert pickles(opened) == []
    assert "[y/N]" not in capsys.readouterr().out


@pytest.mark.parametrize("make", HARMLESS.values(), ids=HARMLESS)
def test_what_is_not_needed_is_not_opened(make: Callable[[Path], str], tmp_path: Path, opened: list[str]) -> None:
    model = make(tmp_path)
    opened.clear()
    loaded = load(model, device="cpu")
    assert not ran_in(tmp_path)
    assert pickles(opened) == []
    assert type(loaded.model) is transformers.LlamaForCausalLM
    weights = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(weights[name], weight) for name, weight in loaded.model.state_dict().items())


def test_the_tokenizer_of_another_folder_is_as_hostile(tmp_path: Path) -> None:
    for name in ("good", "code", "needless"):
        (tmp_path / name).mkdir()
    model, code = good(tmp_path / "good"), HOSTILE["code for the tokenizer"].make(tmp_path / "code")
    error = refused(lambda: load(model, device="cpu", tokenizer=code))
    assert f"the tokenizer {code}" in error
    assert "Python code" in error
    needless = HOSTILE["code for the config"].make(tmp_path / "needless")  # its tokenizer can be read without its config
    assert load(model, device="cpu", tokenizer=needless).tokenizer("a").input_ids == [ord("a")]
    assert list(tmp_path.rglob("RAN")) == []


@pytest.mark.parametrize("trusted", [False, True])
def test_the_users_word_reaches_every_part(trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers asks where it gets ``None``, so it always gets ``True`` or ``False``."""
    heard: dict[str, list[Any]] = {}
    for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        kind = getattr(transformers, name)

        def listen(*arguments: Any, _name: str = name, _load: Any = kind.from_pretrained, **options: Any) -> Any:
            heard.setdefault(_name, []).append(options.get("trust_remote_code"))
            return _load(*arguments, **options)

        monkeypatch.setattr(kind, "from_pretrained", listen)
    model = good(tmp_path)
    load(model, device="cpu", trust_remote_code=trusted)
    load(model, device="cpu", trust_remote_code=trusted, tokenizer=model)
    assert heard.keys() == {"AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"}
    assert all(told is trusted for each in heard.values() for told in each)


def test_with_the_users_word_the_code_runs(tmp_path: Path) -> None:
    """So the hostile folders are hostile, and the word is not lost on its way."""
    refused(lambda: load(HOSTILE["code for the config"].make(tmp_path), device="cpu", trust_remote_code=True))
    assert ran_in(tmp_path)


def test_only_one_file_loads_models() -> None:
    """And the examples, each of which says that no code of the model runs."""
    root = Path(folders.__file__).parents[2]
    files = [path for folder in ("geomprobe", "integrations", "examples") for path in (root / folder).rglob("*.py")]
    ours = {path.relative_to(root): path.read_text("utf-8") for path in files}
    loads = {path for path, text in ours.items() if "from_pretrained(" in text and path.parts[0] != "examples"}
    assert loads == {Path("geomprobe/models/loading.py")}
    for path, text in ours.items():
        if path.parts[0] == "examples":
            assert text.count("from_pretrained(") == text.count("trust_remote_code=False"), path
        for unsafe in ("torch.load(", "import pickle", "pickle.load", "allow_pickle=True", "weights_only=False"):
            assert unsafe not in text, path


_DRIVER = """
import json, sys
opened = []
def watch(event, arguments):
    ends = (".bin", ".pt", ".pth", ".pkl", ".npy")
    if event == "pickle.find_class" or event == "open" and str(arguments[0]).endswith(ends):
        opened.append(f"{event}: {arguments}")
sys.addaudithook(watch)
from geomprobe.cli.main import app
from geomprobe.errors import GeomprobeError
said = []
for arguments in json.loads(sys.argv[1]):
    try:
        app(arguments, standalone_mode=False)
        said.append("no error")
    except GeomprobeError as error:
        said.append(str(error))
    except BaseException as error:
        said.append(f"{type(error).__name__}, which is not ours: {error}")
open(sys.argv[2], "w").write(json.dumps([said, opened]))
"""


def on_hub(cache: Path, name: str, folder: Path) -> str:
    """Puts a folder into the cache of the hub, as if it had been downloaded, and returns its id."""
    place = cache / "hub" / f"models--evil--{name}"
    commit = sha1(name.encode()).hexdigest()
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(folder, place / "snapshots" / commit)
    return f"evil/{name}"


def run(command: list[str], home: Path, terminal: int | None = None) -> "subprocess.CompletedProcess[str]":
    """A process without a network, in which every question is answered with yes, from a file or a ``terminal``."""
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    environment["WANDB_DIR"] = str(home.parent)
    answers = home.parent / "yes"
    answers.write_text("y\n" * 99)
    with answers.open() as yes:
        said = yes if terminal is None else terminal
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, stdin=said, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_no_command_runs_a_models_code_or_opens_a_pickle(place: str, tmp_path: Path) -> None:
    """``inspect``, ``bench`` and ``paper`` say what is wrong in one line, although the answer to every question is yes."""
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time. " * 200)
    commands: list[list[str]] = []
    expected: list[Fault] = []
    for number, hostile in enumerate(HOSTILE.values()):
        folder = tmp_path / f"hostile-{number}"
        folder.mkdir()
        model = hostile.make(folder)
        if place == "hub":
            model = on_hub(tmp_path / "home", f"hostile-{number}", Path(model))
        several = [
            ["inspect", model, "text"],
            ["bench", "overhead", "--model", model],
            ["bench", "lasso", "--model", model],
            ["bench", "sweep", "--model", model, "--tokens", "64"],
            ["paper", "tokens", "--models", model, "--out", str(tmp_path / f"tokens-{number}")],
            ["paper", "fig1", "--models", model, "--out", str(tmp_path / f"fig1-{number}"), "--data", str(text)],
        ]
        commands += several
        expected += [hostile] * len(several)
    done = run([sys.executable, "-c", _DRIVER, json.dumps(commands), str(tmp_path / "said")], tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert "[y/N]" not in done.stdout
    said, opened = json.loads((tmp_path / "said").read_text("utf-8"))
    assert opened == []
    for command, error, part in zip(commands, said, expected, strict=True):
        assert "not ours" not in error, (command, error)
        assert error.isprintable(), (command, error)
        # Files that a folder does not have are found by Transformers, on a hub, and named in its own words.
        assert part.tells(error) if place == "folder" else "evil/hostile" in error, (command, error)
    assert list(tmp_path.rglob("RAN")) == []


@pytest.mark.slow
def test_a_sweep_records_what_is_hostile_and_goes_on(tmp_path: Path) -> None:
    """As a user starts it, with a terminal that says yes."""
    models, expected = [], {}
    for number, hostile in enumerate(HOSTILE.values()):
        folder = tmp_path / f"hostile-{number}"
        folder.mkdir()
        models.append(hostile.make(folder))
        expected[Path(models[-1]).name] = hostile
    (tmp_path / "good").mkdir()
    models.append(good(tmp_path / "good"))
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time. " * 200)
    options = ["--data", str(text), "--out", str(tmp_path / "run"), "--tokens", "256", "--length", "64", "--wandb", "p"]
    command = [sys.executable, "-m", "geomprobe", "sweep", *models, *options]
    keyboard, terminal = pty.openpty()
    os.write(keyboard, b"y\n" * 99)
    done = run(command, tmp_path / "home", terminal)
    os.close(keyboard)
    os.close(terminal)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "[y/N]" not in done.stdout
    records = {record.name: record for record in Run.open(tmp_path / "run").records if record.kind == "checkpoint"}
    assert records.keys() == expected.keys() | {"good"}
    assert records["good"].reading is not None
    for name, part in expected.items():
        assert part.tells(str(records[name].error)), name
    assert list(tmp_path.rglob("RAN")) == []


def test_the_closing_page_of_a_sweep_is_as_careful(tmp_path: Path) -> None:
    """A checkpoint that was good when it was measured, and is hostile when its page is drawn."""
    (tmp_path / "model").mkdir()
    (tmp_path / "text.txt").write_text("Once upon a time. " * 50)
    data = str(tmp_path / "text.txt")
    swept = sweep(
        good(tmp_path / "model"), data=data, out=tmp_path / "run", tokens=128, length=32, baselines=False, device="cpu"
    )
    assert swept.failed == []
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "model").mkdir()
    HOSTILE["code for the config"].make(tmp_path / "model")
    assert "Python code" in refused(lambda: closing_page(swept, device="cpu"))
    assert not ran_in(tmp_path / "model")


# -- broken -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", BROKEN.values(), ids=BROKEN)
def test_broken_checkpoints_are_one_error(fault: Fault, tmp_path: Path) -> None:
    model = fault.make(tmp_path)
    error = refused(lambda: load(model, device="cpu"))
    assert fault.tells(error), error


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
def test_whole_checkpoints_lack_nothing(family: str, tied: bool, tmp_path: Path) -> None:
    """Tied weights and buffers that are not saved are no gap, in one file or several."""
    model = tiny(family, vocabulary=256, tie_word_embeddings=tied)
    for size in ("1GB", "10KB"):
        folder = tmp_path / size
        good(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size=size)
        loaded = load(folder, device="cpu")
        assert loaded.notes == ()
        assert all(torch.equal(weight, loaded.model.state_dict()[name]) for name, weight in model.state_dict().items())


def test_a_good_gguf_file_lacks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where the current folder has another file of its name, which Transformers would prefer."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "other").mkdir()
    path = folders.gguf(tmp_path / "mine")
    (tmp_path / "other" / path.name).write_bytes(b"not GGUF")
    monkeypatch.chdir(tmp_path / "other")
    expected = tiny("llama", layers=2, vocabulary=256)
    ways: list[tuple[str | Path, str | None]] = [(path, None), (f"../mine/{path.name}", None), (tmp_path / "mine", path.name)]
    for model, file in ways:
        loaded = load(model, gguf_file=file, device="cpu")
        assert torch.equal(loaded.model.lm_head.weight, expected.lm_head.weight)
        assert inspect_text(loaded, "text").model == path.name
    assert path.name in refused(lambda: load("some/model", gguf_file=path.name, device="cpu"))


def test_weights_that_have_no_place_are_noted(tmp_path: Path) -> None:
    """A configuration of fewer layers than the files have is read as it says, and the reading says so."""
    good(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 1}))
    loaded = load(tmp_path / "model", device="cpu")
    (note,) = loaded.notes
    assert note.startswith("9 tensors in the files have no place in this LlamaForCausalLM and were not loaded")
    assert note in inspect_text(loaded, "text").reading.notes
    (tmp_path / "text.txt").write_text("Once upon a time. " * 50)
    options: dict[str, Any] = {"data": str(tmp_path / "text.txt"), "tokens": 128, "length": 32, "device": "cpu"}
    records = {record.kind: record for record in sweep(str(tmp_path / "model"), out=tmp_path / "run", **options).records}
    assert records["checkpoint"].reading is not None
    assert note in records["checkpoint"].reading.notes
    assert records["untrained"].reading is not None
    assert note not in records["untrained"].reading.notes


def test_a_gap_has_no_numbers_in_any_command(tmp_path: Path) -> None:
    """Two readings of one file with a gap differed, because the gap was filled with random numbers."""
    (tmp_path / "text.txt").write_text("Once upon a time. " * 50)
    for name in ("checkpoint-1", "checkpoint-2", "checkpoint-3"):
        good(tmp_path / "training" / name)
    path = tmp_path / "training" / "checkpoint-2" / "model.safetensors"
    # Copies, because older versions of safetensors map the file, which is written anew.
    whole = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file({name: tensor for name, tensor in whole.items() if "layers.0" not in name}, path, {"format": "pt"})
    options: dict[str, Any] = {"data": str(tmp_path / "text.txt"), "tokens": 128, "length": 32, "device": "cpu"}
    swept = sweep(str(tmp_path / "training"), out=tmp_path / "run", **options)
    assert [record.name for record in swept.failed] == ["checkpoint-2"]
    assert "9 of 21 tensors are missing from the files: model.layers.0" in str(swept.failed[0].error)
    assert [record.name for record in swept.checkpoints] == ["checkpoint-1", "checkpoint-3"]
    save_file(whole, path, {"format": "pt"})
    again = sweep(str(tmp_path / "training"), out=tmp_path / "run", **options)
    assert again.failed == []
    assert len(again.checkpoints) == 3


# -- names ------------------------------------------------------------------------------------------------------------------


def test_names_that_no_file_can_have_fail_alone(tmp_path: Path) -> None:
    """Each is a record with its error that can be read and printed, and a retry is the same; the good one has numbers."""
    (tmp_path / "text.txt").write_text("Once upon a time. " * 50)
    good(tmp_path / "good")
    names = [
        "é" * 300,
        str(tmp_path / "caf\udce9"),
        "caf\udce9",
        str(tmp_path / ("é" * 300)),
        str(tmp_path / "a\0b"),
        "a/b/c/d",
    ]
    os.mkdir(tmp_path / "caf\udce9")
    options: dict[str, Any] = {"data": str(tmp_path / "text.txt"), "tokens": 128, "length": 32, "device": "cpu"}
    for _ in range(2):
        swept = sweep([*names[:2], str(tmp_path / "good"), *names[3:]], out=tmp_path / "run", **options)
        assert [record.name for record in swept.checkpoints] == ["good"]
        assert {record.model for record in swept.failed} == {*names[:2], *names[3:]}
        for record in swept.failed:
            assert record.name.isprintable()
            assert str(record.error).isprintable()
        table(swept).encode()
    assert "caf\\udce9" in [record.name for record in swept.failed]


def test_a_training_with_one_unprintable_folder(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Once upon a time. " * 50)
    good(tmp_path / "training" / "checkpoint-1")
    os.mkdir(tmp_path / "training" / "checkpoint-2\udcff")
    options: dict[str, Any] = {"data": str(tmp_path / "text.txt"), "tokens": 128, "length": 32, "device": "cpu"}
    swept = sweep(str(tmp_path / "training"), out=tmp_path / "run", baselines=False, **options)
    assert [(record.name, record.step, record.error is None) for record in swept.records] == [
        ("checkpoint-1", 1, True),
        ("checkpoint-2\\udcff", 2, False),
    ]


def test_a_folder_without_a_name_of_its_own_has_its_real_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good(tmp_path / "run" / "checkpoint-7")
    (tmp_path / "link-9").symlink_to(tmp_path / "run" / "checkpoint-7")
    monkeypatch.chdir(tmp_path / "run" / "checkpoint-7")
    for given in (".", "./", "../checkpoint-7", "../../run/checkpoint-7/."):
        (found,) = find_checkpoints([given])
        assert (found.name, found.model, found.step) == ("checkpoint-7", given, 7)
    assert find_checkpoints([str(tmp_path / "link-9")])[0].name == "link-9"
    assert find_checkpoints(["/"])[0].name == "/"
    assert inspect_text(load(".", device="cpu"), "text").model == "checkpoint-7"


def test_a_directory_has_no_revisions(tmp_path: Path) -> None:
    """The same weights would be measured under the name of every revision."""
    model = good(tmp_path)
    assert "a directory, which has no revisions" in refused(lambda: load(model, revision="step1", device="cpu"))


# -- arguments ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"dtype": "int8"}, "dtype='int8': expected float32"),
        ({"dtype": torch.float32}, "dtype=torch.float32: expected float32"),
        ({"dtype": None}, "dtype=None"),
        ({"device": "cudaa"}, "device='cudaa'"),
        ({"device": "cuda:99"}, "device='cuda:99'"),
        ({"device": ""}, "device=''"),
        ({"device": "meta"}, "device='meta' holds no numbers"),
        ({"device": 1.5}, "device=1.5"),
        ({"device": "mps"}, "device='mps'"),
        ({"device_map": "atuo"}, "device_map='atuo'"),
        ({"device_map": "meta"}, "device_map='meta'"),
        ({"device_map": 1.5}, "device_map=1.5"),
        ({"trust_remote_code": "no"}, "trust_remote_code='no': expected True or False"),
        ({"trust_remote_code": None}, "trust_remote_code=None"),
        ({"model": None}, "model=None"),
        ({"model": ""}, "model=''"),
        ({"model": 3}, "model=3"),
        ({"model": b"folder"}, "model=b'folder'"),
        ({"tokenizer": "/nowhere"}, "/nowhere: no such directory"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], error: str, tmp_path: Path) -> None:
    assert error in refused(lambda: load(**{"model": good(tmp_path), **arguments}))


@pytest.mark.parametrize("arguments", [{"device_map": "cpu"}, {"device_map": {"": "cpu"}}, {"device": torch.device("cpu")}])
def test_right_arguments_are_taken(arguments: dict[str, Any], tmp_path: Path) -> None:
    assert load(good(tmp_path), **arguments).model.device.type == "cpu"


def test_a_path_is_as_good_as_a_name(tmp_path: Path) -> None:
    assert find_source(tmp_path) == find_source(str(tmp_path))


# -- what is printed ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_loading_in_a_command_prints_nothing(tmp_path: Path) -> None:
    """Nor do weights that have no place: they are a note of the reading."""
    models = [good(tmp_path / "good"), good(tmp_path / "more"), str(folders.sharded(tmp_path / "sharded"))]
    config = tmp_path / "more" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 1}))
    if find_spec("gguf") is not None:
        (tmp_path / "gguf").mkdir()
        models.append(str(folders.gguf(tmp_path / "gguf")))
    commands = [["inspect", model, "text"] for model in models]
    done = run([sys.executable, "-c", _DRIVER, json.dumps(commands), str(tmp_path / "said")], tmp_path / "home")
    assert json.loads((tmp_path / "said").read_text("utf-8")) == [["no error"] * len(models), []]
    assert (done.returncode, done.stderr) == (0, "")
    assert "information gain" in done.stdout
