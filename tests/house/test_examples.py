"""Every example runs as it is, in an empty directory, without network or account."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # it starts processes

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))
RUNS = [(example, "offline") for example in EXAMPLES]
RUNS += [(example, "disabled") for example in EXAMPLES if "log_with" in example.read_text()]


@pytest.mark.parametrize(("example", "mode"), RUNS, ids=[f"{example.stem}-{mode}" for example, mode in RUNS])
def test_example_runs(example: Path, mode: str, tmp_path: Path) -> None:
    if "from lightning" in example.read_text():
        pytest.importorskip("lightning")
    environment = os.environ | {"WANDB_MODE": mode, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(example)],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "final_norm" in done.stdout  # whatever it shows, it shows where it measured
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
