"""Root-mean-square norm, compiled where it can be: operators would pass over the rows five times.

Shape letter: C width.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from internvl.ops.native import address, count, library, new, serves


def rms_norm(x: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """x (..., C) over its root mean square, times the weight: statistics in float32, result in x's dtype."""
    if not serves(x, weight_C) or (native := library()) is None:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
        return y.to(x.dtype) * weight_C
    assert weight_C.shape == x.shape[-1:], (weight_C.shape, x.shape)
    rows, weight_C, out = x.reshape(-1, x.shape[-1]).contiguous(), weight_C.contiguous(), new(*x.shape)
    native.rms_norm(
        address(rows), *map(count, rows.shape), address(weight_C), ctypes.c_double(eps), address(out)
    )
    return out
