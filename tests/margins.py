"""How much of its bound each numeric comparison of the tests uses: ``python -m pytest -p tests.margins [--margins=FILE]``.

A bound that stands close to what one machine shows fails on another, whose kernels add up in another order. This plugin looks
at every comparison by ``pytest.approx``, ``torch.testing.assert_close`` and ``numpy.testing.assert_allclose``. For each place
in the tests it keeps the largest share of a bound that was used, ``|actual − expected| / allowed``, and after the tests it
lists the places above one third. ``--margins`` also writes all places to a JSON file, so that runs under several settings can
be compared. Settings that change the order of sums on one machine are ``OMP_NUM_THREADS``, ``ATEN_CPU_CAPABILITY=default``
(PyTorch's own kernels), ``MKL_CBWR=COMPATIBLE`` and ``OPENBLAS_CORETYPE=Nehalem`` (linear algebra).

It does not see what a plain ``assert x < 1e-6`` compares, nor what other processes compare.
"""

import functools
import inspect
import json
import math
import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

CLOSE = 1 / 3  # a bound of which more is used is reported

# What torch.testing.assert_close allows where a test does not say: relative and absolute, as its documentation has them.
_DEFAULTS = {
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float32: (1.3e-6, 1e-5),
    torch.complex64: (1.3e-6, 1e-5),
    torch.float64: (1e-7, 1e-7),
    torch.complex128: (1e-7, 1e-7),
}


@dataclass
class Margin:
    """The comparison of one place that used the largest share of its bound, and how many numbers were compared there."""

    share: float = 0
    error: float = 0
    allowed: float = 0
    test: str = ""
    compared: int = 0


class Margins:
    """The plugin. It wraps the three comparisons while a session lasts; what they decide is not changed."""

    def __init__(self, root: Path, file: Path | None) -> None:
        self.root, self.file = root, file
        self.found: dict[str, Margin] = {}
        self._test = ""
        self._silent = 0
        self._patch = pytest.MonkeyPatch()

    # -- what pytest calls --------------------------------------------------------------------------------------------------

    def pytest_sessionstart(self) -> None:
        scalar, base = type(pytest.approx(1.0)), type(pytest.approx(1.0)).__mro__[1]
        self._patch.setattr(scalar, "__eq__", self._approx(scalar.__eq__))
        self._patch.setattr(base, "__ne__", self._unequal(base.__ne__))
        self._patch.setattr(torch.testing, "assert_close", self._assert_close(torch.testing.assert_close))
        self._patch.setattr(np.testing, "assert_allclose", self._assert_allclose(np.testing.assert_allclose))

    def pytest_sessionfinish(self) -> None:
        self._patch.undo()
        if self.file is not None:
            ordered = sorted(self.found.items(), key=lambda item: -item[1].share)
            # One file for each process of pytest-xdist.
            worker = os.environ.get("PYTEST_XDIST_WORKER")
            file = self.file if worker is None else self.file.with_suffix(f".{worker}.json")
            file.write_text(json.dumps({place: asdict(margin) for place, margin in ordered}, indent=1))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._test = nodeid

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        near = sorted(((m.share, place, m) for place, m in self.found.items() if m.share > CLOSE), key=lambda item: -item[0])
        terminalreporter.section(f"{len(near)} of {len(self.found)} comparisons use more than {CLOSE:.0%} of their bound")
        for share, place, margin in near:
            terminalreporter.line(f"{share:7.3f}  {place}  {margin.error:.3g} of {margin.allowed:.3g}  {margin.test}")

    # -- what is wrapped ----------------------------------------------------------------------------------------------------

    def _approx(self, plain: Any) -> Any:
        """``ApproxScalar.__eq__``, through which mappings, sequences and arrays pass number by number."""

        @functools.wraps(plain)
        def equal(approx: Any, actual: Any) -> bool:
            expected = approx.expected
            if all(isinstance(x, numbers.Complex) and not isinstance(x, bool | np.bool_) for x in (actual, expected)):
                try:
                    error = 0.0 if actual == expected else abs(complex(actual) - complex(expected))
                except OverflowError:
                    error = math.inf
                if math.isfinite(error):  # else no bound is used: the comparison itself decides
                    self._keep(np.asarray(error), np.asarray(float(approx.tolerance)))
            return bool(plain(approx, actual))

        return equal

    def _unequal(self, plain: Any) -> Any:
        """``!=`` asks for a difference, which uses no bound."""

        @functools.wraps(plain)
        def unequal(approx: Any, actual: Any) -> bool:
            self._silent += 1
            try:
                return bool(plain(approx, actual))
            finally:
                self._silent -= 1

        return unequal

    def _assert_close(self, plain: Any) -> Any:
        @functools.wraps(plain)
        def assert_close(actual: Any, expected: Any, *, rtol: Any = None, atol: Any = None, **options: Any) -> None:
            __tracebackhide__ = True
            self._tensors(actual, expected, rtol, atol)
            plain(actual, expected, rtol=rtol, atol=atol, **options)

        return assert_close

    def _assert_allclose(self, plain: Any) -> Any:
        @functools.wraps(plain)
        def assert_allclose(actual: Any, desired: Any, rtol: float = 1e-7, atol: float = 0, *args: Any, **options: Any) -> None:
            __tracebackhide__ = True
            self._arrays(np.asarray(actual), np.asarray(desired), rtol, atol)
            plain(actual, desired, rtol, atol, *args, **options)

        return assert_allclose

    # -- what is kept -------------------------------------------------------------------------------------------------------

    def _tensors(self, actual: Any, expected: Any, rtol: float | None, atol: float | None) -> None:
        if isinstance(expected, Mapping):
            for key in expected.keys() & actual.keys():
                self._tensors(actual[key], expected[key], rtol, atol)
        elif isinstance(expected, Sequence):
            for one, other in zip(actual, expected, strict=False):
                self._tensors(one, other, rtol, atol)
        else:
            pair = [torch.as_tensor(value).detach().cpu() for value in (actual, expected)]
            default = [max(each) for each in zip(*(_DEFAULTS.get(tensor.dtype, (0.0, 0.0)) for tensor in pair), strict=True)]
            first, second = (tensor.double().numpy() for tensor in pair)
            self._arrays(first, second, default[0] if rtol is None else rtol, default[1] if atol is None else atol)

    def _arrays(self, actual: npt.NDArray[Any], expected: npt.NDArray[Any], rtol: float, atol: float) -> None:
        if not all(np.issubdtype(each.dtype, np.number) for each in (actual, expected)):
            return
        try:
            actual, expected = np.broadcast_arrays(actual, expected)
        except ValueError:
            return  # the comparison itself says so
        with np.errstate(all="ignore"):
            error = np.where(actual == expected, 0, abs(actual - expected))
            self._keep(error, atol + rtol * abs(expected))

    def _keep(self, error: npt.NDArray[Any], allowed: npt.NDArray[Any]) -> None:
        """Note the largest share of these. A NaN is no error: whether it may stand there, the comparison itself decides."""
        if self._silent or not error.size:
            return
        with np.errstate(all="ignore"):
            shares = np.where(error == 0, 0, error / allowed)
        shares = np.where(np.isnan(shares), 0, shares)
        worst = int(shares.argmax())
        margin = self.found.setdefault(self._place(), Margin())
        margin.compared += error.size
        if margin.share <= (share := float(shares.flat[worst])) and not math.isnan(float(error.flat[worst])):
            margin.share, margin.error = share, float(error.flat[worst])
            margin.allowed, margin.test = float(np.broadcast_to(allowed, error.shape).flat[worst]), self._test

    def _place(self) -> str:
        """The innermost line of the tests' own that is being run."""
        frame: FrameType | None = inspect.currentframe()
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path != Path(__file__) and path.is_relative_to(self.root):
                return f"{path.relative_to(self.root)}:{frame.f_lineno}"
            frame = frame.f_back
        return f"outside of {self.root}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--margins", type=Path, default=None, help="JSON file for the share of its bound each comparison used")


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.has_plugin("kept margins"):
        config.pluginmanager.register(Margins(config.rootpath, config.getoption("margins")), "kept margins")
