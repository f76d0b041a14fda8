"""``Probe(precision=…)``: what is computed in float64, and what comes out."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from geomprobe import ContextLasso, GeomprobeError, InformationGain, Probe, Reading, RepresentationEntropy
from geomprobe.core import blas, precision
from geomprobe.core.rows import Rows
from geomprobe.core.symmetric import exact_panels
from tests.tiny_models import padded, tiny, token_batch

NATS = 2e-6  # of a token's gain
RELATIVE = 1e-5  # of an entropy


class Float64Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the FLOPs of matrix products of PyTorch with an operand in float64."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in args if isinstance(x, Tensor)]
        name = func.overloadpacket.__name__
        if any(x.dtype == torch.float64 for x in tensors):
            if func.overloadpacket in flop_registry:
                self.flops[name] += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
            elif name in ("mv", "dot", "vdot", "addmv", "addr", "ger", "linalg_vecdot"):
                self.flops[name] += 2 * max(x.numel() for x in tensors)
        return out


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts matrix products in float64: those of PyTorch in FLOPs, those of NumPy and SciPy in calls."""
    with pytest.MonkeyPatch.context() as patch, Float64Products() as mode:

        def count(name: str, function: Callable[..., Any], is_product: bool = True) -> Callable[..., Any]:
            def wrapped(*args: Any, **options: Any) -> Any:
                double = any(getattr(x, "dtype", None) == np.float64 for x in args)
                mode.flops[name] += is_product and double
                return function(*args, **options)

            return wrapped

        for name in ("dot", "matmul", "einsum", "inner", "tensordot", "vdot"):
            patch.setattr(np, name, count(f"numpy.{name}", getattr(np, name)))
        for name in ("dgemm", "dsyrk", "dgemv", "dsymm", "dtrmm"):
            patch.setattr(scipy.linalg.blas, name, count(f"scipy.{name}", getattr(scipy.linalg.blas, name)))
        inside = blas._function

        def function(name: str) -> Callable[..., Any]:
            mode.flops[f"blas.{name}"] += name in ("dgemm", "dsyrk")
            return inside(name)

        patch.setattr(blas, "_function", function)
        yield mode.flops


def measured(model: Any, batch: dict[str, Tensor], kind: Any, *metrics: Any) -> Reading:
    with Probe(model, metrics or None, precision=kind, on_error="raise") as probe, torch.no_grad():
        model(**batch)
    return probe.read()


def agree(split: Reading, exact: Reading) -> None:
    for site in exact.sites:
        mine, theirs = split.curve("gain", site), exact.curve("gain", site)
        assert mine.count == theirs.count
        np.testing.assert_allclose(mine.mean, theirs.mean, rtol=0, atol=NATS)
    assert set(split) == set(exact)
    for key in exact:
        if "entropy" in key:
            assert split[key] == pytest.approx(exact[key], rel=RELATIVE), key


def batches() -> dict[str, dict[str, Tensor]]:
    """Texts shorter and longer than the width, padded, packed, and of one token."""
    position = torch.cat([torch.arange(50), torch.arange(90)]).unsqueeze(0)
    texts = [token_batch(1, n, seed=n)[0] for n in (70, 20, 1)]
    return {
        "short": {"input_ids": token_batch(3, 60)},
        "longer than the width": {"input_ids": token_batch(2, 150)},
        "padded": padded(texts, "left"),
        "packed": {"input_ids": token_batch(1, 140), "position_ids": position},
        "one token again and again": {"input_ids": torch.full((2, 80), 7)},
    }


@pytest.mark.parametrize("name", batches())
@pytest.mark.parametrize("wins", [True, False])
def test_no_product_in_float64(name: str, wins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_wins", lambda: wins)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    model, batch = tiny(width=64), batches()[name]
    with counted() as flops:
        split = measured(model, batch, "split")
    assert +flops == {}
    with counted() as flops:
        exact = measured(model, batch, "float64")
    assert (+flops).keys() & {"bmm", "mm", "blas.dsyrk"}
    agree(split, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["padded", "longer than the width"])
def test_hosts_of_other_dtypes(dtype: torch.dtype, name: str) -> None:
    model, batch = tiny(width=64).to(dtype), batches()[name]
    agree(measured(model, batch, "split"), measured(model, batch, "float64"))


def test_the_metrics_that_cost_more() -> None:
    model, batch = tiny(width=64), batches()["padded"]
    metrics = (RepresentationEntropy(center="text", text_spectrum=True, clipped=True), InformationGain(), ContextLasso())
    split, exact = (measured(model, batch, kind, *metrics) for kind in ("split", "float64"))
    agree(split, exact)
    for key in exact:
        if not key.startswith(("lasso_picks", "lasso_nonzero")):  # which of equal rows is picked is not determined
            assert split[key] == pytest.approx(exact[key], rel=RELATIVE, abs=1e-9), key


def test_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny(width=64), token_batch(2, 20)
    readings = []
    for kind in ("split", "float64"):
        with counted() as flops, Probe(model, precision=kind, on_error="raise") as probe:
            model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
            readings.append(probe.read())  # of texts that are still being generated, in a probe that is not closed
        assert bool(+flops) == (kind == "float64")
    agree(*readings)


def test_a_reading_says_so_and_what_is_wanted_is_checked() -> None:
    model, batch = tiny(), {"input_ids": token_batch()}
    notes = {kind: measured(model, batch, kind).notes for kind in ("auto", "float64", "split")}
    assert notes["auto"] == notes["float64"] == []  # on a CPU
    assert len(notes["split"]) == 1
    assert notes["split"][0].startswith("precision='split': ")
    with pytest.raises(GeomprobeError, match=r"Probe\(precision='double'\): expected 'auto', 'float64' or 'split'"):
        Probe(model, precision="double")  # type: ignore[arg-type]


@pytest.mark.parametrize(("capability", "fast"), [((8, 0), True), ((9, 0), True), ((8, 9), False), ((12, 0), False)])
def test_auto_goes_by_the_device(capability: tuple[int, int], fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda", 7)
    precision._has_fast_float64.cache_clear()
    kinds: dict[precision.Precision, bool] = {"auto": not fast, "float64": False, "split": True}
    for kind, expected in kinds.items():
        with precision.precision(kind):
            assert precision.splits(device) == expected
            assert not precision.splits(torch.device("cpu")) or kind == "split"
    assert not precision.splits(device)
    precision._has_fast_float64.cache_clear()


@pytest.mark.parametrize("fine", [InformationGain(sigma=1e-4), RepresentationEntropy(epsilon=1e-4)])
def test_auto_is_float64_where_a_small_noise_would_magnify_errors(fine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_has_fast_float64", lambda device: False)
    model, batch = tiny(width=64), batches()["packed"]
    assert len(measured(model, batch, "auto", type(fine)()).notes) == 1
    found = measured(model, batch, "auto", fine)
    assert not found.notes
    np.testing.assert_array_equal(list(found.values()), list(measured(model, batch, "float64", fine).values()))


def test_tf32_is_for_covariances_on_devices_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    seen = {}
    for capability in ((7, 5), (8, 6)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        precision._has_tf32.cache_clear()
        for kind in precision.PRECISIONS:
            with precision.precision(kind), precision.tensor_cores(torch.device("cuda")):
                seen[capability, kind] = matmul.fp32_precision == "tf32"
            assert matmul.fp32_precision == before
    precision._has_tf32.cache_clear()
    assert seen == {(c, kind): c == (8, 6) and kind != "float64" for c in ((7, 5), (8, 6)) for kind in precision.PRECISIONS}


def test_the_panels_of_a_host_without_a_probe_are_float64() -> None:
    hidden = torch.randn(2, 80, 64)
    with counted() as flops:
        exact_panels(Rows(hidden).unit())
    assert +flops
