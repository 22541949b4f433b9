"""Rotary position embedding in its rotate-half form, compiled where it can be.

Shape letters: T packed tokens, H heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from internvl.ops.native import address, count, library, new, origin, serves


def rotate(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Pairs (i, i + D / 2) of every head turned by the angles of their token; (T, H, D), D even."""
    num_tokens, num_heads, width = x_THD.shape
    is_dense = x_THD.stride()[1:] == (width, 1)
    if not is_dense or not serves(x_THD, cos_TD, sin_TD) or (native := library()) is None:
        left, right = x_THD.chunk(2, dim=-1)
        return torch.addcmul(x_THD * cos_TD[:, None], torch.cat((-right, left), dim=-1), sin_TD[:, None])
    assert cos_TD.shape == sin_TD.shape == (num_tokens, width), (cos_TD.shape, sin_TD.shape, x_THD.shape)
    cos_TD, sin_TD, out_THD = cos_TD.contiguous(), sin_TD.contiguous(), new(*x_THD.shape)
    sizes = map(count, (num_tokens, x_THD.stride(0), num_heads, width))
    native.rotate(origin(x_THD), *sizes, address(cos_TD), address(sin_TD), address(out_THD))
    return out_THD
