"""Rows of one forward, and the arithmetic they are computed in."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from geomprobe.core.attention_summary import AttentionRows
from geomprobe.core.rows import Rows, full_precision, unit_rows
from geomprobe.core.symmetric import assemble
from tests.accumulators.harness import attended, packed, padded, texts

USERS_SETTINGS: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "old: high": lambda: torch.set_float32_matmul_precision("high"),
    "old: medium": lambda: torch.set_float32_matmul_precision("medium"),
    "old: allow_tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "new: cuda tf32": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "new: mkldnn bf16": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),  # type: ignore[attr-defined]
    "new: everywhere": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
}


def precisions() -> list[str]:
    """What a program reads of its own settings; the old interface raises on settings made through the new."""
    readers: list[Callable[[], object]] = [
        torch.get_float32_matmul_precision,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        lambda: torch.backends.cuda.matmul.fp32_precision,
        lambda: torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
        lambda: torch.backends.fp32_precision,  # type: ignore[attr-defined]
    ]
    seen = []
    for read in readers:
        try:
            seen.append(str(read()))
        except RuntimeError:
            seen.append("mixed")
    return seen


@pytest.fixture(params=USERS_SETTINGS)
def users_setting(request: pytest.FixtureRequest) -> Iterator[str]:
    untouched = precisions()
    USERS_SETTINGS[request.param]()
    yield request.param
    backends: list[Any] = [torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    for backend in backends:
        backend.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")  # which sets the other two to "ieee"
    for backend in backends:
        backend.fp32_precision = "none"
    assert precisions() == untouched


def test_users_precision_is_set_aside_and_put_back(users_setting: str) -> None:
    before = precisions()
    with full_precision("cpu"):
        inside = [torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision]  # type: ignore[attr-defined]
        assert set(inside) <= {"none", "ieee"}
    assert precisions() == before
    with pytest.raises(ZeroDivisionError), full_precision("cpu"):
        raise ZeroDivisionError
    assert precisions() == before


@pytest.mark.parametrize("users_setting", ["new: everywhere"], indirect=True)
def test_what_was_inherited_is_inherited_again(users_setting: str) -> None:
    with full_precision("cpu"):
        pass
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"  # type: ignore[attr-defined]


def test_no_autocast_no_inference_mode_no_graph_inside() -> None:
    a = torch.randn(4, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert (a @ a).dtype == torch.bfloat16
        with full_precision("cpu"):
            product = a @ a
            assert not torch.is_autocast_enabled("cpu")
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_inference_mode_enabled()
    assert product.dtype == torch.float32
    assert not product.is_inference()
    assert not product.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_half_precisions_are_upcast(dtype: torch.dtype) -> None:
    hidden = torch.randn(2, 3, 4).to(dtype)
    rows = Rows(hidden)
    assert rows.hidden.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(rows.hidden, hidden.to(rows.hidden.dtype))
    assert rows.gram()[0].dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("power", [-40, -22, -18, -5, 0, 15])
def test_rows_are_of_length_one_or_zero(dtype: torch.dtype, power: int) -> None:
    """Rows so small that their squares underflow were once scaled by 1/tiny, to a length of 1e15."""
    rows = texts()[2].to(dtype) * 10.0**power
    norms = torch.linalg.vector_norm(rows, dim=-1)
    lengths = torch.linalg.vector_norm(unit_rows(rows, norms), dim=-1)
    known = dtype == torch.float64 or power > -16
    torch.testing.assert_close(lengths, torch.full_like(lengths, float(known)), rtol=4e-7, atol=0)  # d·eps of float32


def test_zero_rows_stay_zero() -> None:
    assert torch.equal(Rows(torch.zeros(1, 3, 4)).unit(), torch.zeros(1, 3, 4))


@pytest.mark.parametrize("side", ["left", "right", "mixed"])
def test_position_counts_tokens_not_places(side: str) -> None:
    stream = texts()
    rows = padded(stream, side)
    for i, text in enumerate(stream):
        assert rows.position[i, rows.mask[i]].tolist() == list(range(len(text)))


def unit_twin(text: Tensor, center: bool) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    rows = text.numpy() - text.numpy().mean(0) * center
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 1e-12))


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("layout", ["left", "mixed", "packed"])
def test_unit_rows_and_gram_are_numpys(layout: str, center: bool) -> None:
    stream = texts()
    rows = packed(stream) if layout == "packed" else padded(stream, layout)
    unit, gram = rows.unit(center), assemble(rows.gram(center))
    assert not unit[~rows.mask].any()
    for i, text in enumerate(stream):
        b, places = (rows.text == i).logical_and(rows.mask).nonzero().T
        expected = unit_twin(text, center)
        np.testing.assert_allclose(unit[b, places].numpy(), expected, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(gram[b[0]][places][:, places].numpy(), expected @ expected.T, rtol=1e-12, atol=1e-13)
        others = [j for j in range(gram.shape[1]) if j not in places.tolist()]
        assert not gram[b[0]][places][:, others].any(), "a text knows its own rows only"


@pytest.mark.parametrize("layout", ["left", "right", "packed"])
def test_the_last_row_of_a_text_is_its_last_finite_one(layout: str) -> None:
    stream = texts()
    for text in stream[::2]:
        text[-1, 0] = torch.nan
    rows = packed(stream) if layout == "packed" else padded(stream, layout)
    last = rows.one_per_text(rows.raw(), "last")
    for i, text in enumerate(stream):
        assert torch.equal(last[i], text[-2 if i % 2 == 0 else -1])


def test_rows_near_their_mean_keep_their_direction_in_long_texts() -> None:
    """Centred rows of 1e-4 of their length: in float32 that is 800 units of rounding, whatever the length of the text."""
    generator = torch.Generator().manual_seed(0)
    hidden = 1 + 1e-4 * torch.randn(1, 3000, 8, generator=generator)
    exact = hidden.double() - hidden.double().mean(1, keepdim=True)
    cosines = (Rows(hidden).unit(center=True).double() * torch.nn.functional.normalize(exact, dim=-1)).sum(-1)
    assert float(cosines.min()) > 0.99


def test_nothing_is_computed_twice() -> None:
    rows = padded(texts(), "left")
    assert rows.unit() is rows.unit()
    assert rows.gram(center=True) is rows.gram(center=True)
    assert rows.norms is rows.norms
    assert rows.valid is rows.valid


@pytest.mark.parametrize("layout", ["left", "packed"])
def test_parts_of_a_batch_are_the_batch(layout: str) -> None:
    """At two sites of a generation, with attention."""
    one = packed(texts()) if layout == "packed" else padded(texts(), layout)
    places: dict[str, Any] = {"text": one.text, "position": one.position, "texts": one.texts} if one.packed else {}
    attention = attended(one).map(lambda name, value: torch.stack([value, 2 * value]))
    rows = Rows(torch.stack([one.hidden, -one.hidden]), one.mask, **places, attention=attention, generated=True)
    parts = list(rows.split(1))
    assert [len(part.mask) for part in parts] == [1] * len(rows.mask)
    assert all(part.generated for part in parts)
    assert torch.equal(torch.cat([part.hidden for part in parts], 1), rows.hidden)
    assert torch.equal(torch.cat([part.position for part in parts]), rows.position)
    if one.packed:
        assert torch.equal(torch.stack([part.counts for part in parts]).sum(0), rows.counts)
    for i, part in enumerate(parts):
        for field in fields(AttentionRows):
            if getattr(attention, field.name) is None:  # single heads, which nobody asked for
                continue
            torch.testing.assert_close(getattr(part.attention, field.name), getattr(attention, field.name)[:, [i]])
    assert list(rows.split(2**30)) == [rows]
