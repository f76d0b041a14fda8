"""The command line, as a user types it."""

import json
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from geomprobe.cli import main as cli
from tests.conftest import DemoRun

pytestmark = pytest.mark.slow  # it starts processes

TEXT = "def probe(model):\n    return <script>model</script>  # 🙂"


def geomprobe(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "geomprobe", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_help_names_the_commands() -> None:
    run = geomprobe("--help")
    assert run.returncode == 0
    for command in ("demo", "inspect", "sweep", "report", "export", "dashboard", "bench", "paper"):
        assert command in run.stdout


def test_inspect_prints_a_table_of_all_sites(stories_model: Path) -> None:
    run = geomprobe("inspect", str(stories_model), "Once upon a time there was a dog.")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for site in ("embed", "layer_00", "layer_04", "final_norm"):
        assert any(line.startswith(site) for line in lines)
    assert "information gain of each token" in run.stdout


def test_inspect_json_is_sites_curves_tokens(stories_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    run = geomprobe("inspect", str(stories_model), "--file", str(file), "--json")
    assert run.returncode == 0, run.stderr
    data = json.loads(run.stdout)
    assert set(data) == {"format", "mode", "sites", "curves", "tokens", "notes", "widths"}
    assert next(iter(data["sites"])) == "embed"
    assert len(data["sites"]) == 7
    count = len(data["tokens"])
    assert data["sites"]["final_norm"]["tokens"] == count
    assert len(data["curves"]["final_norm"]["gain"]["mean"]) == count
    total = sum(data["curves"]["final_norm"]["gain"]["mean"])
    assert data["sites"]["final_norm"]["information_gain"] == pytest.approx(total)


def test_inspect_writes_a_page_and_shows_chosen_tokens(stories_model: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    text = "Once upon a time there was a dog."
    run = geomprobe(
        "inspect", str(stories_model), text, "--site", "layer_02", "--token", "was", "--token", "1", "--html", str(page)
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    start = lines.index("weights on earlier tokens at layer_02, for the chosen tokens")
    assert [line.split()[0] for line in lines[start + 2 : start + 6]] == ["6", "Lasso", "ridge", "attention"]
    assert [line.split()[0] for line in lines[start + 7 : start + 11]] == ["1", "Lasso", "ridge", "attention"]
    assert f"wrote {page}" in run.stderr
    assert page.read_text("utf-8").startswith("<!")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "{model}", "a dog", "--token", "dog"], "give --site SITE too"),
        (["inspect", "{model}", "a dog", "--site", "final_norm", "--token", "cat"], "no token 'cat' in this text"),
        (["inspect", "{model}", "a dog", "--site", "final_norm", "--token=--5"], "no token '--5' in this text"),
        (["inspect", "{model}", "a dog", "--html", "{tmp}/missing/page.html"], "in a folder that exists"),
        (["inspect", "{model}", "a dog", "--html", "{tmp}"], "expected the name of a file"),
        (["inspect", "{model}", "a dog", "--html", "{tmp}/" + "x" * 300], "cannot write"),
        (["inspect", "{model}", "\udcff"], "the text is not valid Unicode"),
        (["inspect", "no/such/model/here", "text"], "cannot load 'no/such/model/here'"),
        (["inspect", "{model}"], "give either TEXT or --file FILE"),
        (["inspect", "{model}", "text", "--file", "x"], "give either TEXT or --file FILE"),
        (["inspect", "{model}", ""], "the text is empty"),
        (["inspect", "{model}", "--file", "{tmp}/missing.txt"], "cannot read"),
        (["inspect", "{model}", "--file", "{tmp}/binary"], "expected a text file in UTF-8"),
        (["inspect", "{model}", "a dog " * 600], "this model accepts at most 512: give a shorter text"),
        (["inspect", "{tmp}", "text"], "this directory has no config.json"),
        (["inspect", "{broken}", "text"], "cannot load"),
        (["inspect", "{model}", "--file", "{tmp}"], "cannot read"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, stories_model: Path, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in stories_model.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"not safetensors")
    places = {"model": stories_model, "tmp": tmp_path, "broken": broken}
    run = geomprobe(*(argument.format(**places) for argument in arguments))
    assert run.returncode == 1
    assert run.stdout == ""
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert len([line for line in run.stderr.splitlines() if line.startswith("geomprobe: ")]) == 1


def test_the_demos_checkpoints_read_bytes(demo_run: DemoRun) -> None:
    run = geomprobe("inspect", str(demo_run.out / f"checkpoint-{demo_run.steps}"), TEXT, "--json")
    assert run.returncode == 0, run.stderr
    assert len(json.loads(run.stdout)["tokens"]) == len(TEXT.encode())


def test_a_page_of_a_text_that_wandb_gets_is_said_to_have_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[tuple[str, str]] = []
    sink = SimpleNamespace(log_html=lambda name, page: sent.append((name, page)))
    page = SimpleNamespace(to_html=lambda: "<p>a secret</p>")
    monkeypatch.setattr("geomprobe.models.loading.load", lambda *arguments, **options: None)
    monkeypatch.setattr("geomprobe.inspection.inspect.inspect_text", lambda *arguments, **options: page)
    monkeypatch.setattr("geomprobe.integrations.wandb_sink.WandbSink", lambda project: nullcontext(sink))
    cli.inspect("model", "a secret", project="mine")
    assert "logging the page, with the text itself, to the W&B project mine\n" in capsys.readouterr().err
    assert sent == [("tokens", "<p>a secret</p>")]
    for command in ("inspect", "sweep"):
        assert re.search(
            r"--wandb .*(the\s+text\s+itself|first\s+tokens\s+of\s+the\s+data)", geomprobe(command, "--help").stdout, re.DOTALL
        )
