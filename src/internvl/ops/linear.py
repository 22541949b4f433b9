"""The matrix product behind every linear layer.

PyTorch sends float32 products on a CPU to MKL, which keeps to 256-bit vectors on processors of
other makers; oneDNN, shipped in the same wheel, uses 512-bit vectors wherever the processor has them
(2x the rate, see benchmarks/). The choice depends on device, dtype and processor only, never on values.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` for x (..., in), weight (out, in), bias (out)."""
    if _prefers_onednn(x, weight):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


def _prefers_onednn(x: Tensor, weight: Tensor) -> bool:
    """The oneDNN product has no gradient and takes plain float32 tensors with at least one row."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and onednn_is_faster()
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
    )


@cache
def onednn_is_faster() -> bool:
    """Whether this processor has 512-bit vectors and this build of PyTorch has the oneDNN product."""
    return (
        torch._C._has_mkldnn
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
