"""What every accumulator keeps. The list of them is in tests/accumulators/harness.py."""

import copy
import dataclasses
import itertools
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from geomprobe import accumulators
from geomprobe.accumulators.information_gain import InformationGainSum
from geomprobe.accumulators.state import Accumulator, copy_state, identity, merge, pad_to
from geomprobe.core.rows import Rows
from tests.accumulators.harness import CASES, WIDTH, Case, assert_same, packed, padded, texts

every_accumulator = pytest.mark.parametrize("case", CASES, ids=str)


def test_every_accumulator_is_listed() -> None:
    modules = [import_module(info.name) for info in pkgutil.walk_packages(accumulators.__path__, f"{accumulators.__name__}.")]
    found = {
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and kind is not Accumulator and kind.__module__ == module.__name__
        if callable(getattr(kind, "new_state", None)) and callable(getattr(kind, "contribution", None))
    }
    assert found == {type(case.accumulator) for case in CASES}, "add a line to CASES in tests/accumulators/harness.py"


@every_accumulator
def test_is_a_description_that_can_be_shared(case: Case) -> None:
    accumulator = case.accumulator
    assert isinstance(accumulator, Accumulator)
    twin = copy.deepcopy(accumulator)
    assert twin == accumulator
    assert hash(twin) == hash(accumulator)
    assert [identity(other.accumulator) for other in CASES].count(identity(accumulator)) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(accumulator, "anything", 1)  # noqa: B010


def test_a_number_is_the_same_option_with_and_without_a_point() -> None:
    one, same, other = (identity(InformationGainSum(sigma=sigma)) for sigma in (1, 1.0, 2))
    assert one == same == "information_gain.1(sigma=1.0)"
    assert other != one


@every_accumulator
def test_stream_is_one_batch_is_merged_shards_in_any_order(case: Case) -> None:
    stream = texts()
    one_batch = case.of(padded(stream, "right"))
    assert_same(case.one_by_one(stream), one_batch, case.float64)
    shards = [case.of(padded(stream[i::3], "left")) for i in range(3)]
    before = [copy_state(shard) for shard in shards]
    for order in itertools.permutations(shards):
        assert_same(merge(order), one_batch, case.float64)
        assert_same(merge(order), merge(shards), 1e-14)
    first, second, third = shards
    assert_same(merge([merge([first, second]), third]), merge([first, merge([second, third])]), 1e-14)
    for shard, original in zip(shards, before, strict=True):
        assert_same(shard, original)  # merging changes none of them


@every_accumulator
def test_merging_is_addition(case: Case) -> None:
    short, long = (case.one_by_one(texts(seed, (length,))) for seed, length in ((1, 3), (2, 7)))
    merged = merge([short, long])
    for name, value in merged.items():
        assert torch.equal(value, pad_to(short[name], value.shape) + pad_to(long[name], value.shape)), name
    assert_same(merge([case.of(), short]), short)  # a rank that saw nothing changes nothing
    before = copy_state(short)
    case.of(padded(texts(), "left"), into=merge([short]))
    assert_same(short, before)  # what is merged goes on alone


@every_accumulator
def test_state_round_trip(case: Case, tmp_path: Path) -> None:
    stream, rest = texts(), padded(texts(seed=3), "left")
    state = case.one_by_one(stream)
    save_file(state, tmp_path / "state.safetensors")
    loaded = load_file(tmp_path / "state.safetensors")
    assert_same(loaded, state)
    assert_same(case.of(rest, into=loaded), case.of(rest, into=state))  # and goes on to the bit


@every_accumulator
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
def test_empty_input_changes_nothing(case: Case, shape: tuple[int, int]) -> None:
    nothing = torch.zeros(*shape, WIDTH)
    no_text = torch.zeros(shape, dtype=torch.long)
    seen = case.one_by_one(texts())
    before = copy_state(seen)
    assert_same(case.of(Rows(nothing), Rows(nothing, text=no_text, position=no_text, texts=2), into=seen), before)


@every_accumulator
@pytest.mark.parametrize("fill", [0.0, 1e4])
def test_all_masked_input_changes_nothing(case: Case, fill: float) -> None:
    hidden = torch.full((2, 4, WIDTH), fill)
    masked = Rows(hidden, torch.zeros(2, 4, dtype=torch.bool))
    seen = case.one_by_one(texts())
    before = copy_state(seen)
    assert_same(case.of(masked, into=seen), before)


@every_accumulator
@pytest.mark.parametrize("side", ["left", "right", "mixed"])
def test_padding_changes_nothing(case: Case, side: str) -> None:
    stream = texts()
    assert_same(case.of(padded(stream, side), padded(stream, side, length=40)), case.one_by_one(stream + stream), case.float64)


@every_accumulator
@pytest.mark.parametrize("seed", range(3))
def test_packed_texts_are_texts_one_by_one(case: Case, seed: int) -> None:
    stream = texts(seed)
    assert_same(case.of(packed(stream, seed)), case.one_by_one(stream), case.float64)


@every_accumulator
def test_nonfinite_rows_are_padding_and_counted(case: Case) -> None:
    rows = padded(texts(), "mixed")
    hidden, bad = rows.hidden.clone(), torch.zeros_like(rows.mask)
    for value, where in zip((torch.nan, torch.inf, -torch.inf), rows.mask.nonzero()[::9], strict=False):
        hidden[where[0], where[1], 2] = value
        bad[where[0], where[1]] = True
    bad[3] = rows.mask[3]  # a whole text of them
    hidden[3, rows.mask[3]] = torch.nan
    hidden[~rows.mask] = torch.nan  # in padding they are nothing
    actual = case.of(Rows(hidden, rows.mask))
    expected = case.of(Rows(rows.hidden, rows.mask & ~bad, position=rows.position))
    if "nonfinite" in expected:
        assert int(expected.pop("nonfinite")) == 0
        assert int(actual.pop("nonfinite")) == int(bad.sum())
    assert_same(actual, expected)


@every_accumulator
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("common", [0.0, 1.0])
def test_low_precision_input_agrees_with_float64(case: Case, dtype: torch.dtype, common: float) -> None:
    stream = [text.to(dtype) for text in texts(common=common)]
    once, again = stream[2][:1], stream[4][:1].expand(6, -1)  # one row, and one row six times
    for low in (stream, [once], [again], [*stream, once, again]):
        low_state, twin = case.one_by_one(low), case.one_by_one([text.double() for text in low])
        for name in case.open if low is not stream else ():
            del low_state[name], twin[name]
        assert_same(low_state, twin, case.float32)


@every_accumulator
@pytest.mark.parametrize("seed", range(3))
def test_rotation_changes_nothing(case: Case, seed: int) -> None:
    draw = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rotation = torch.linalg.qr(draw).Q
    stream = texts(seed)
    rotated, straight = case.one_by_one([text @ rotation for text in stream]), case.one_by_one(stream)
    assert_same(case.readings(rotated), case.readings(straight), case.float64)


@every_accumulator
@pytest.mark.parametrize("common", [0.0, 1.0, 1e6], ids=lambda common: f"common={common:g}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bounds(case: Case, common: float, dtype: torch.dtype) -> None:
    stream = [text.to(dtype) for text in texts(common=common)]
    once, again, zero = stream[2][:1], stream[4][:1].expand(6, -1), torch.zeros_like(stream[0])
    for seen in (stream, [once], [again], [zero], [*stream, once, again, zero]):
        state = case.one_by_one(seen)
        assert all(value.isfinite().all() for value in state.values())
        chains = case.bounds(state)
        assert chains, "an accumulator whose numbers have no bounds says nothing"
        for low, high in itertools.chain.from_iterable(itertools.pairwise(chain) for chain in chains):
            assert float(low) <= float(high) + 1e-6 * (1 + abs(float(high))), (state, low, high)


@every_accumulator
def test_update_only_looks(case: Case) -> None:
    """No graph is kept, the rows stay as they are, and what another accumulator computed from them does not matter."""
    rows = padded(texts(), "left")
    hidden = rows.hidden.clone().requires_grad_()
    watched = Rows(hidden, rows.mask)
    alone = case.of(watched)
    assert not any(value.requires_grad for value in alone.values())
    assert torch.equal(hidden, rows.hidden)
    for other in CASES:
        other.of(watched)
    assert_same(case.of(watched), alone)
