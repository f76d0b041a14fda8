"""The processes of a sweep, also those that no launcher started."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from geomprobe import GeomprobeError
from geomprobe.sweeps.processes import Team

pytestmark = pytest.mark.slow  # it starts processes


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    team = Team()
    assert (team.rank, team.size, team.main) == (rank, 2, rank == 0)
    assert team.told(f"rank {rank}") == "rank 0"
    assert team.share("abc") == [["a", "c"], ["b"]][rank]
    assert team.sum(torch.tensor([1.0 + rank])).item() == 3

    def fails() -> None:
        if rank == 1:
            raise ValueError("a damaged file")

    with pytest.raises(GeomprobeError, match=r"^ValueError: a damaged file$"):
        team.all_do(fails)
    assert team.all_do(lambda: rank) == rank  # and they go on together
    dist.destroy_process_group()


def test_two_processes_without_a_launchers_variables(tmp_path: Path) -> None:
    spawn(work, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
