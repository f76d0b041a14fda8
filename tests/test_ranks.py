"""Several processes give the numbers of one, however the texts are spread over them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from geomprobe import Probe, Reading
from tests.models import tiny, token_batch

SPREADS = {"even": [0, 1, 0, 1], "uneven": [0, 0, 0, 1], "empty": [0, 0, 0, 0]}
LENGTHS = (9, 30, 14, 50)  # longer than d = 32, too


def read(texts: list[torch.Tensor], *, distributed: bool = False) -> Reading:
    model = tiny()
    if distributed:
        from accelerate import Accelerator

        prepared = Accelerator(cpu=True).prepare(model)
        assert type(prepared).__name__ == "DistributedDataParallel"
        model = prepared.module  # a rank with no text must not wait for the others' forwards
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        for text in texts:
            model(input_ids=text, use_cache=False)
    return probe.read()


def worker(spread: str, out: str) -> None:
    """One rank: measure its texts, read together with the others, write what it got."""
    rank = int(os.environ["RANK"])
    mine = [token_batch(1, n, seed=n) for n, owner in zip(LENGTHS, SPREADS[spread], strict=True) if owner == rank]
    Path(out, f"{rank}.json").write_text(read(mine, distributed=True).to_json())
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("spread", SPREADS)
def test_two_ranks_give_the_numbers_of_one(spread: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", "-m", "tests.test_ranks", spread, str(tmp_path)]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stderr
    one = read([token_batch(1, n, seed=n) for n in LENGTHS])
    for rank in (0, 1):
        both = Reading.from_json((tmp_path / f"{rank}.json").read_text())
        assert json.loads(both.to_json()).keys() == json.loads(one.to_json()).keys()
        assert both.values == pytest.approx(one.values, rel=1e-6, nan_ok=True)
        for site in one.sites:
            assert both.curve("gain", site).count == one.curve("gain", site).count
            assert both.curve("gain", site).mean == pytest.approx(one.curve("gain", site).mean, rel=1e-6, abs=1e-9)


if __name__ == "__main__":
    worker(*sys.argv[1:])
