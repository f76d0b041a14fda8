"""Symmetric products and Cholesky factors on the CPU by the BLAS and LAPACK that SciPy brings, where they are faster.

PyTorch has no symmetric product, and its Cholesky factor copies and clears a triangle, which takes longer than factoring.
SciPy's library is called through the pointers of ``scipy.linalg.cython_blas`` and ``cython_lapack``, in place on the memory of
a tensor and without holding the global interpreter lock. Which library is faster is measured once per process and number of
threads.
"""

import ctypes
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["factor_in_place", "is_faster", "panels"]

_KINDS = {torch.float32: ("s", ctypes.c_float), torch.float64: ("d", ctypes.c_double)}

_LEAST = 64
"""Least number of rows of a matrix of a batch: for fewer, the calls cost more than they save."""


def is_faster(device: torch.device, n: int) -> bool:
    """Return whether to compute with n×n matrices on ``device`` by the functions of this module."""
    return device.type == "cpu" and n >= _LEAST and _wins(torch.get_num_threads())


def panels(a: Tensor, starts: range, dtype: torch.dtype) -> list[Tensor]:
    """Return the panels of ``a @ aᵀ`` (:mod:`geomprobe.core.symmetric`) for ``a`` ``(…, n, k)``, computed in ``dtype``, float32
    or float64. What is above the diagonal is zero."""
    n, k = a.shape[-2:]
    parts = [a.new_empty((*a.shape[:-2], n - i, min(starts.step, n - i)), dtype=dtype) for i in starts]
    letter, number = _KINDS[dtype]
    syrk, gemm = _function(f"{letter}syrk"), _function(f"{letter}gemm")
    one, zero = ctypes.byref(number(1)), ctypes.byref(number(0))
    for matrix, *targets in zip(a.reshape(-1, n, k), *(part.view(-1, *part.shape[-2:]) for part in parts), strict=True):
        # One matrix at a time is converted, into memory that the next one uses again.
        rows = matrix.to(dtype)
        if rows.stride(0) != 1 or rows.stride(1) < n:
            rows = rows.contiguous()
        by_columns = rows.stride(0) == 1 and rows.stride(1) >= n
        how, other, leading = (b"N", b"T", rows.stride(1)) if by_columns else (b"T", b"N", k)
        address = [rows.data_ptr() + i * rows.stride(0) * rows.element_size() for i in (*starts, n)]
        # The lower triangle by rows is the upper triangle by columns, which is the order of BLAS.
        for i, here, below, part in zip(starts, address[:-1], address[1:], targets, strict=True):
            width, left = part.shape[1], n - i - part.shape[1]
            to, shape = part.data_ptr(), (_int(k), one, here, _int(leading))
            syrk(b"U", how, _int(width), *shape, zero, to, _int(width))
            if left:
                to += width * width * part.element_size()
                gemm(how, other, _int(width), _int(left), *shape, below, _int(leading), zero, to, _int(width))
    for part in parts:
        part[..., : part.shape[-1], :].tril_()
    return parts


def factor_in_place(matrix: Tensor) -> Tensor:
    """Replace the lower triangle of contiguous matrices ``(…, n, n)`` with their Cholesky factor, and return the index of the
    first bad pivot of each ``(…)``, 0 if there is none. What is above the diagonal is neither read nor changed."""
    n = matrix.shape[-1]
    info = torch.zeros(matrix.shape[:-2], dtype=torch.int32, device=matrix.device)
    potrf = _function(f"{_KINDS[matrix.dtype][0]}potrf")
    for each, bad in zip(_pointers(matrix), _pointers(info.view(*info.shape, 1, 1)), strict=True):
        potrf(b"U", _int(n), each, _int(n), bad)
    return info


def _pointers(matrices: Tensor) -> Iterator[int]:
    """The addresses of the matrices ``(…, n, k)`` of a batch."""
    flat = matrices.flatten(0, -3) if matrices.dim() > 2 else matrices.unsqueeze(0)
    assert flat.data_ptr() == matrices.data_ptr(), "a batch whose matrices are not evenly spaced would be copied"
    start, step = flat.data_ptr(), flat.stride(0) * flat.element_size()
    return (start + i * step for i in range(len(flat)))


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


@cache
def _function(name: str) -> Callable[..., None]:
    """A function of SciPy's BLAS or LAPACK, which takes pointers. Calls release the global interpreter lock.

    Raises:
        ImportError: if the function does not take integers of 32 bits.
    """
    from scipy.linalg import cython_blas, cython_lapack

    capsule = (cython_blas.__pyx_capi__ | cython_lapack.__pyx_capi__)[name]
    pointer_of, name_of = ctypes.pythonapi.PyCapsule_GetPointer, ctypes.pythonapi.PyCapsule_GetName
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    signature: bytes = name_of(capsule)  # such as b"void (char *, int *, double *, int *, int *)"
    takes = signature.partition(b"(")[2].rstrip(b")").split(b", ")
    if b"int *" not in takes:
        raise ImportError(f"{name} of this SciPy has the signature {signature!r}")
    arguments = [ctypes.c_char_p if each == b"char *" else ctypes.c_void_p for each in takes]
    return ctypes.CFUNCTYPE(None, *arguments)(pointer_of(capsule, signature))


@cache
def _wins(threads: int) -> bool:
    """Whether SciPy's library is faster than PyTorch's, with so many threads: the least of three times each."""
    try:
        _function("dsyrk")
    except (ImportError, AttributeError, KeyError):  # another SciPy than those that were tested
        return False
    rows = torch.eye(256, 512, dtype=torch.float32, device="cpu")
    matrix = torch.eye(256, dtype=torch.float64, device="cpu")

    def scipy() -> None:
        panels(rows, range(0, 256, 64), torch.float64)
        factor_in_place(matrix)

    def pytorch() -> None:
        rows.double() @ rows.double().mT
        torch.linalg.cholesky_ex(matrix.mT, upper=True)

    times: dict[Callable[[], None], list[float]] = {scipy: [], pytorch: []}
    for _ in range(4):  # the first time loads the libraries
        for run, seconds in times.items():
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return min(times[scipy][1:]) < min(times[pytorch][1:])
