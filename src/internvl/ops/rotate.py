"""Rotary position embedding in its rotate-half form, compiled where it can be.

Shape letters: T packed tokens, H heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from internvl.ops.native import address, count, library, origin, serves


def rotate(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Pairs (i, i + D / 2) of every head turned by the angles of their token; (T, H, D)."""
    native, (num_tokens, num_heads, width) = library(), x_THD.shape
    is_dense = x_THD.stride()[1:] == (width, 1)
    if native is None or not is_dense or width % 2 or not serves(x_THD, cos_TD, sin_TD):
        left, right = x_THD.chunk(2, dim=-1)
        return torch.addcmul(x_THD * cos_TD[:, None], torch.cat((-right, left), dim=-1), sin_TD[:, None])
    out_THD = torch.empty(x_THD.shape)
    sizes = map(count, (num_tokens, x_THD.stride(0), num_heads, width))
    native.rotate(origin(x_THD), *sizes, address(cos_TD), address(sin_TD), address(out_THD))
    return out_THD
