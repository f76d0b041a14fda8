"""Token ids of a batch: their entropy against NumPy, and the hash against whole numbers of Python."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from geomprobe.core.batches import batch_hash, remember, token_entropy

few = settings(max_examples=40, deadline=None, derandomize=True)
texts = st.lists(st.lists(st.integers(0, 200_000), min_size=1, max_size=9), min_size=1, max_size=5)


def padded(stream: list[list[int]], side: str, pad: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, stream)) + 2
    ids, mask = torch.full((len(stream), length), pad), torch.zeros(len(stream), length, dtype=torch.long)
    for i, text in enumerate(stream):
        place = slice(length - len(text), length) if side == "left" else slice(len(text))
        ids[i, place], mask[i, place] = torch.tensor(text), 1
    return ids, mask


def mixed(x: int) -> int:
    """The output function of splitmix64, on unsigned numbers."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def twin(stream: list[list[int]]) -> int:
    total = 0
    for text in stream:
        total += mixed(sum(mixed((mixed(v) + t * 0x9E3779B97F4A7C15) % 2**64) for t, v in enumerate(text, 1)) % 2**64)
    return (total + 2**63) % 2**64 - 2**63


def test_the_mixer_is_splitmix64() -> None:
    """The first numbers of its reference implementation from the seed 1234567."""
    assert [mixed(1234567 + i * 0x9E3779B97F4A7C15) for i in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@few
@given(texts, st.sampled_from(["left", "right"]))
def test_hash_is_pythons_and_sees_no_padding_order_or_micro_batches(stream: list[list[int]], side: str) -> None:
    whole = batch_hash(*padded(stream, side))
    assert int(whole) == twin(stream)
    assert torch.equal(batch_hash(*padded(stream[::-1], "right", pad=0)), whole)
    assert torch.equal(sum((batch_hash(torch.tensor([text])) for text in stream), torch.tensor(0)), whole)
    ids, mask = padded(stream, side)
    assert int(batch_hash(ids, torch.zeros_like(mask))) == 0


def test_what_a_hash_sees() -> None:
    batches = [[[1, 2, 3]], [[2, 1, 3]], [[1, 2], [3]], [[1, 2, 3, 3]], [[0, 1, 2, 3]], [[1, 2, 3], [1, 2, 3]], [[0]], [[0, 0]]]
    hashes = [int(batch_hash(*padded(batch, "left"))) for batch in batches]
    assert len({*hashes, 0}) == len(batches) + 1
    random = torch.unique(torch.randint(0, 50, (20_000, 4), generator=torch.Generator().manual_seed(0)), dim=0)
    assert len({int(batch_hash(row.view(1, -1))) for row in random[:3000]}) == 3000


@few
@given(texts, st.sampled_from(["left", "right"]))
def test_entropy_is_scipys(stream: list[list[int]], side: str) -> None:
    tokens = list(itertools.chain(*stream))
    counts = np.unique(tokens, return_counts=True)[1]
    value = token_entropy(*padded(stream, side))
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(entropy(counts), abs=1e-12)
    assert -1e-12 <= float(value) <= math.log(len(tokens)) + 1e-12
    assert float(token_entropy(torch.tensor(tokens).flip(0))) == pytest.approx(float(value), abs=1e-12)


def test_entropy_of_known_batches() -> None:
    assert float(token_entropy(torch.full((3, 4), 7))) == pytest.approx(0, abs=1e-15)
    assert float(token_entropy(torch.arange(8).view(2, 4))) == pytest.approx(math.log(8))
    assert float(token_entropy(torch.tensor([-200, -200, -1, 4]))) == pytest.approx(1.5 * math.log(2))  # places of images
    assert math.isnan(token_entropy(torch.ones(2, 3).long(), torch.zeros(2, 3)))
    assert math.isnan(token_entropy(torch.empty(0, 3).long()))


def test_a_stuck_loader_repeats_itself() -> None:
    steps = [torch.tensor([[i, i + 1]]) for i in (0, 1, 2, 2, 2, 3)]
    seen, told = torch.empty(0, dtype=torch.int64), []
    for ids in steps:
        seen, repeated = remember(seen, batch_hash(ids), most=2)
        told.append(bool(repeated))
    assert told == [False, False, False, True, True, False]
    assert len(seen) == 2
    assert not remember(seen, batch_hash(steps[0]))[1]  # forgotten


def test_every_operation_runs_without_values() -> None:
    """On the meta device there are none, so nothing here can wait for one."""
    ids, mask = torch.ones(2, 5, dtype=torch.long, device="meta"), torch.ones(2, 5, device="meta")
    value = batch_hash(ids, mask)
    seen, repeated = remember(torch.empty(0, dtype=torch.int64, device="meta"), value)
    assert {token_entropy(ids, mask).device.type, seen.device.type, repeated.device.type} == {"meta"}
