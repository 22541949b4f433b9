"""Root-mean-square norm, compiled where it can be: operators would pass over the rows five times.

Shape letter: C width.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from internvl.ops.native import address, count, library, serves


def rms_norm(x: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """x (..., C) over its root mean square, times the weight: statistics in float32, result in x's dtype."""
    native = library()
    if native is None or not serves(x, weight_C):
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
        return y.to(x.dtype) * weight_C
    rows, out = x.contiguous().view(-1, x.shape[-1]), torch.empty(x.shape)
    sizes = map(count, rows.shape)
    native.rms_norm(address(rows), *sizes, address(weight_C), ctypes.c_double(eps), address(out))
    return out
