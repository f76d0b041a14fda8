"""The small model of the demo."""

from pathlib import Path

import torch

from geomprobe.models.toy import toy_trainer


def test_a_seed_is_that_of_the_weights(tmp_path: Path) -> None:
    first, again, other = (toy_trainer(tmp_path, steps=1, width=32, layers=1, length=8, seed=seed).model for seed in (0, 0, 1))
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not all(map(torch.equal, first.parameters(), other.parameters()))
