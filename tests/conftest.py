"""Fixtures every test can use. Trained models are loaded once per session; what cannot be had is skipped with a reason."""

import gc
import gzip
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from tests.tiny_models import smollm2

_SLOW = {"browser", "built", "demo_run", "smollm2_model"}
"""Fixtures that take seconds: a browser, the built distributions, a training, a model of 135 million parameters."""

_SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def _shared(name: str) -> Path:
    if not (_SHARED / name).exists():
        pytest.skip(f"../shared/data/{name} is not beside this checkout")
    return _SHARED / name


@pytest.fixture(scope="module", autouse=True)
def _collector() -> None:
    """What was imported so far is not looked through again by each ``gc.collect()``, which Trainer calls after every training:
    it took half a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def rlhf_documents() -> list[str]:
    """The texts of hh-rlhf's harmless-base test split, in their order."""
    with gzip.open(_shared("hh-harmless-base-test.jsonl.gz"), "rt") as lines:
        return [json.loads(line)["chosen"] for line in lines]


@pytest.fixture(scope="session")
def rlhf_texts(rlhf_documents: list[str]) -> list[str]:
    """The first six of these that fill 256 tokens of any tokenizer used here."""
    return [text for text in rlhf_documents if len(text) > 1500][:6]


@pytest.fixture(scope="session")
def stories_model() -> Path:
    """``stories260K-hf``: a trained Llama of 260 thousand parameters."""
    return _shared("stories260K-hf")


@pytest.fixture(scope="session")
def smollm2_model() -> Path:
    """SmolLM2-135M-Instruct: a trained Llama of 135 million parameters."""
    try:
        return smollm2()
    except RuntimeError as error:
        pytest.skip(str(error))


@dataclass(frozen=True)
class DemoRun:
    """A run of ``geomprobe demo``, as a user starts it."""

    out: Path
    steps: int
    printed: str


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """The demo, for a tenth of its steps: run once, also if several processes test. Not to be written to."""
    folder, steps = tmp_path_factory.getbasetemp(), 40
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    out, printed = folder / "demo" / "out", folder / "demo" / "printed.txt"
    with FileLock(folder / "demo.lock"):
        if not printed.exists():
            environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
            command = [sys.executable, "-m", "geomprobe", "demo", "--out", str(out), "--steps", str(steps)]
            run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
            assert run.returncode == 0, run.stderr
            printed.write_text(run.stdout, "utf-8")
    return DemoRun(out, steps, printed.read_text("utf-8"))


@pytest.fixture(scope="session")
def demo_model(demo_run: DemoRun) -> Path:
    """The byte-level GPT-NeoX that the demo trained."""
    return demo_run.out / f"checkpoint-{demo_run.steps}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need what takes seconds to make are slow: ``python -m tests.check --quick`` leaves them out."""
    for item in items:
        if not _SLOW.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
