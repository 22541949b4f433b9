"""The matrix product behind every linear layer, forward and backward.

PyTorch sends float32 products on a CPU to MKL, which keeps to 256-bit vectors on processors of
other makers; oneDNN, shipped in the same wheel, uses 512-bit vectors wherever the processor has them
(2x the rate, see benchmarks/). A few rows and a large weight, as the head of a decoder has them in
generation, take as long as reading the weight, which MKL does at half the memory's rate: they go to a kernel
of ours. The choice depends on device, dtype, shape and processor only, never on values.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from internvl.ops.native import address, count, library, new
from internvl.ops.packed import plain_matrix

SKINNY = 64
"""A weight gradient with fewer columns is computed transposed: oneDNN was up to 10 times faster so."""
FEW_ROWS, LARGE = 4, 2**22
"""Rows that meet a weight while it is read, and the values of a weight that no cache holds."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` for x (..., in), weight (out, in), bias (out)."""
    is_recorded = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias)
    )
    if torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    if not _prefers_onednn(x, weight):
        return F.linear(x, weight, bias) if is_recorded or not _is_read(x, weight) else _read(x, weight, bias)
    return _recorded(x, weight, bias) if is_recorded else _onednn(x, weight, bias)


def product(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """`a @ b` of two matrices on the same fast product; records no gradient and ignores autocast.

    The operator copies a left side that does not lie by rows, so such an `a` is given as the right one.
    """
    if not _prefers_onednn(a_MK, b_KN):
        return a_MK @ b_KN
    return _onednn(a_MK, b_KN.t(), None) if a_MK.is_contiguous() else _onednn(b_KN.t(), a_MK, None).t()


class _Linear(torch.autograd.Function):
    """The three oneDNN products of a layer; gradients nobody asked for are not computed."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _onednn(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, weight, _ = inputs
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = None if weight is None else _recorded(grad, weight.t())
        grad_weight = None if x is None else _grad_weight(grad.flatten(0, -2), x.flatten(0, -2))
        grad_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias


def _grad_weight(grad_TO: Tensor, x_TI: Tensor) -> Tensor:
    if x_TI.shape[1] < SKINNY:
        return _recorded(x_TI.t(), grad_TO.t()).t()
    return _recorded(grad_TO.t(), x_TI.t())


def _recorded(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out: Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weights lie dense by rows or by columns: for others oneDNN has reference code, 1000 times slower."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.t().contiguous().t() if weight.stride(0) == 1 else weight.contiguous()
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _is_read(x: Tensor, weight: Tensor) -> bool:
    """Whether reading a plain float32 weight is all that takes time."""
    return (
        weight.numel() >= LARGE
        and 0 < x.numel() <= FEW_ROWS * weight.shape[1]
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.is_contiguous()
        and library() is not None
    )


def _read(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    native, (outputs, inputs) = library(), weight.shape
    assert native is not None
    x_TI = x.reshape(-1, inputs).contiguous()
    bias, out_TO = None if bias is None else bias.contiguous(), new(len(x_TI), outputs)
    matrix = plain_matrix(weight, bias)
    native.linear(ctypes.byref(matrix), address(x_TI), count(len(x_TI)), address(out_TO), count(0))
    return out_TO.view(*x.shape[:-1], outputs)


def _prefers_onednn(x: Tensor, weight: Tensor) -> bool:
    """The oneDNN product takes plain float32 tensors with at least one row."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and weight.numel() > 0
        and onednn_is_faster()
    )


@cache
def onednn_is_faster() -> bool:
    """Whether this processor has 512-bit vectors and this build of PyTorch has the oneDNN product."""
    return (
        torch._C._has_mkldnn
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
