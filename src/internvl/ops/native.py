"""The compiled kernels: which library this machine runs, and how tensors are handed to it.

`setup.py` builds one library for each kind of processor. Where none was built, or none runs here, `library`
is None, said once in the log, and every operation takes its PyTorch path. Knows no operation.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

KINDS = ("vnni", "avx2", "portable")
"""Best first. "portable" has no instructions but those that every processor of its architecture has."""


@cache
def library() -> ctypes.CDLL | None:
    """The best library for this processor."""
    for kind in KINDS:
        if runs_here(kind) and (found := load_library(kind)) is not None:
            return found
    _log.warning(
        "no compiled kernels: PyTorch runs everything, packed layers slowly. Install with a C++ compiler."
    )
    return None


def kind_in_use() -> str | None:
    """The name of that library, of `KINDS`."""
    return next((kind for kind in KINDS if runs_here(kind) and load_library(kind) is not None), None)


@cache
def load_library(kind: str) -> ctypes.CDLL | None:
    """The library of one kind, whether or not this processor can run it."""
    folder = Path(__file__).parent
    for suffix in EXTENSION_SUFFIXES:
        path = folder / f"_kernels_{kind}{suffix}"
        if path.is_file():
            return ctypes.CDLL(str(path))
    return None


def runs_here(kind: str) -> bool:
    """Whether this processor has the instructions of a kind."""
    capability = torch.backends.cpu.get_cpu_capability()
    if kind == "vnni":
        return capability == "AVX512" and bool(torch.cpu._is_vnni_supported())
    return kind == "portable" or capability in ("AVX2", "AVX512")


def serves(*tensors: Tensor) -> bool:
    """Whether kernels may compute with these: float32 on the CPU, of which no gradient and no graph is
    recorded, without autocast."""
    return (
        all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


def new(*shape: int) -> Tensor:
    """What a kernel fills, whatever dtype is the default."""
    return torch.empty(shape, dtype=torch.float32)


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Where a dense tensor lies."""
    assert tensor.is_contiguous(), tensor.stride()
    return origin(tensor)


def origin(tensor: Tensor) -> ctypes.c_void_p:
    """Where a tensor begins whose strides the kernel is told."""
    assert tensor.device.type == "cpu", tensor.device
    return ctypes.c_void_p(tensor.data_ptr())


def count(value: int) -> ctypes.c_int64:
    """A size or an index."""
    return ctypes.c_int64(value)
