"""Symmetric products and Cholesky factors on the CPU by the BLAS and LAPACK that SciPy brings, where they are faster.

PyTorch has no symmetric product, and its Cholesky factor copies and clears a triangle, which takes longer than factoring.
SciPy's library is called through the pointers of ``scipy.linalg.cython_blas`` and ``cython_lapack``, in place on the memory of
a tensor and without holding the global interpreter lock. It is used where PyTorch uses one thread and a short measurement, made
once per process, finds it faster. With two threads it was not: those of OpenBLAS wait for each other in busy loops, which took
several times as long on a machine with other work, and one matrix for each thread gained nothing.
"""

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["factor_in_place", "factors_faster", "multiplies_faster", "panels"]

_KINDS = {torch.float32: ("s", ctypes.c_float), torch.float64: ("d", ctypes.c_double)}

_LEAST = 64
"""Least number of rows of a matrix, and twice the least number of columns. Products of fewer than 8 · 64³ operations, and all
of smaller matrices, cost more in calls than they save."""


def multiplies_faster(a: Tensor) -> bool:
    """Return whether :func:`panels` of ``a`` ``(…, n, k)`` is faster than products by PyTorch."""
    n, k = a.shape[-2:]
    return k >= _LEAST // 2 and n * n * k >= 8 * _LEAST**3 and factors_faster(a)


def factors_faster(matrices: Tensor) -> bool:
    """Return whether :func:`factor_in_place` of ``matrices`` ``(…, n, n)`` is faster than factors by PyTorch."""
    if matrices.device.type != "cpu" or matrices.dtype not in _KINDS or matrices.requires_grad or matrices.shape[-2] < _LEAST:
        return False
    return torch.get_num_threads() == 1 and _wins()


def panels(a: Tensor, starts: range, dtype: torch.dtype) -> list[Tensor]:
    """Return the panels of ``a @ aᵀ`` (:mod:`geomprobe.core.symmetric`) for ``a`` ``(…, n, k)``, computed in ``dtype``, float32
    or float64. What is above the diagonal is zero."""
    n, k = a.shape[-2:]
    parts = [a.new_empty((*a.shape[:-2], n - i, min(starts.step, n - i)), dtype=dtype) for i in starts]
    targets = zip(*(part.view(-1, *part.shape[-2:]).unbind() for part in parts), strict=True)
    with _single_threaded():
        for rows, into in zip(a.reshape(-1, n, k).unbind(), targets, strict=True):
            _multiply(rows, into, starts)
    for part in parts:
        part[..., : part.shape[-1], :].tril_()
    return parts


def _multiply(matrix: Tensor, parts: Sequence[Tensor], starts: range) -> None:
    """Write the panels of one matrix."""
    n, k = matrix.shape
    letter, number = _KINDS[parts[0].dtype]
    # Converted one at a time, into memory that the next one uses again.
    rows = matrix.numpy().astype(f"f{parts[0].element_size()}", order="K", copy=False)
    size = rows.itemsize
    by_columns = rows.strides[0] == size and rows.strides[1] >= n * size
    if not by_columns and (rows.strides[1] != size or rows.strides[0] < k * size):
        rows = np.ascontiguousarray(rows)
    how, other, leading = (b"N", b"T", rows.strides[1]) if by_columns else (b"T", b"N", rows.strides[0])
    syrk, gemm = _function(f"{letter}syrk"), _function(f"{letter}gemm")
    one, zero, long, step = ctypes.byref(number(1)), ctypes.byref(number(0)), _int(k), _int(leading // size)
    # The lower triangle by rows is the upper triangle by columns, which is the order of BLAS.
    for i, part in zip(starts, parts, strict=True):
        here, to, (height, width) = rows.ctypes.data + i * rows.strides[0], part.data_ptr(), part.shape
        syrk(b"U", how, _int(width), long, one, here, step, zero, to, _int(width))
        if height > width:
            below, to = here + width * rows.strides[0], to + width * width * size
            gemm(how, other, _int(width), _int(height - width), long, one, here, step, below, step, zero, to, _int(width))


def factor_in_place(matrices: Tensor) -> Tensor:
    """Replace the lower triangle of contiguous matrices ``(…, n, n)`` with their Cholesky factor, and return the index of the
    first bad pivot of each ``(…)``, 0 if there is none. What is above the diagonal is neither read nor changed."""
    n = _int(matrices.shape[-1])
    info = torch.zeros(matrices.shape[:-2], dtype=torch.int32, device=matrices.device)
    potrf = _function(f"{_KINDS[matrices.dtype][0]}potrf")
    start, step = matrices.data_ptr(), matrices.shape[-1] ** 2 * matrices.element_size()
    bad = info.data_ptr()
    with _single_threaded():
        for i in range(info.numel()):
            potrf(b"U", n, start + i * step, n, bad + 4 * i)
    nan = matrices.diagonal(dim1=-2, dim2=-1).isnan()  # which OpenBLAS takes for a good pivot
    return torch.where((info == 0) & nan.any(-1), nan.int().argmax(-1) + 1, info)


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


@contextmanager
def _single_threaded() -> Iterator[None]:
    """A context manager in which SciPy's OpenBLAS uses the calling thread alone."""
    get, set_to = _thread_functions()
    before = get()
    if before == 1:
        yield
        return
    set_to(1)
    try:
        yield
    finally:
        set_to(before)


@cache
def _thread_functions() -> tuple[Callable[[], int], Callable[[int], None]]:
    """The functions that return and set the number of threads of SciPy's OpenBLAS.

    Raises:
        AttributeError: if SciPy was built with another library.
    """
    from scipy.linalg import cython_blas

    library = ctypes.CDLL(cython_blas.__file__)  # also finds the functions of the libraries that it was linked with
    prefix = "scipy_" if hasattr(library, "scipy_openblas_set_num_threads") else ""
    return getattr(library, f"{prefix}openblas_get_num_threads"), getattr(library, f"{prefix}openblas_set_num_threads")


@cache
def _function(name: str) -> Callable[..., None]:
    """A function of SciPy's BLAS or LAPACK, which takes pointers. Calls release the global interpreter lock.

    Raises:
        ImportError: if the function does not take integers of 32 bits.
    """
    from scipy.linalg import cython_blas, cython_lapack

    capsule = (cython_blas.__pyx_capi__ | cython_lapack.__pyx_capi__)[name]
    # Prototypes of our own: those of ctypes.pythonapi belong to the whole process.
    name_of = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
    pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    signature: bytes = name_of(capsule)  # such as b"void (char *, int *, double *, int *, int *)"
    takes = signature.partition(b"(")[2].rstrip(b")").split(b", ")
    if b"int *" not in takes:
        raise ImportError(f"{name} of this SciPy has the signature {signature!r}")
    arguments = [ctypes.c_char_p if each == b"char *" else ctypes.c_void_p for each in takes]
    return ctypes.CFUNCTYPE(None, *arguments)(pointer_of(capsule, signature))


@cache
def _wins() -> bool:
    """Whether SciPy's library is faster than PyTorch's: the least of three times each."""
    try:
        _function("dsyrk")
        _thread_functions()
    except (ImportError, AttributeError, KeyError, OSError):  # another SciPy than those that were tested
        return False
    rows = torch.eye(256, 512, dtype=torch.float32, device="cpu")
    matrices = torch.eye(256, dtype=torch.float64, device="cpu")

    def scipy() -> None:
        panels(rows, range(0, 256, 64), torch.float64)
        factor_in_place(matrices)

    def pytorch() -> None:
        rows.double() @ rows.double().mT
        torch.linalg.cholesky_ex(matrices.mT, upper=True)

    times: dict[Callable[[], None], list[float]] = {scipy: [], pytorch: []}
    for _ in range(4):  # the first time loads the libraries
        for run, seconds in times.items():
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return min(times[scipy][1:]) < 0.9 * min(times[pytorch][1:])
