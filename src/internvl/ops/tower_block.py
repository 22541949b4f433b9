"""One block of a vision tower with packed weights, in one call of a kernel.

Mirrors the structures of `csrc/tower.cpp`. Knows addresses and sizes; no modules. Shape letters: N tiles, P
patches, C width.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from internvl.ops.native import address, count, library
from internvl.ops.packed import Matrix

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")
"""In the kernel's numbering."""


class Norm(NamedTuple):
    """LayerNorm; without a bias RMSNorm."""

    weight_C: Tensor
    bias_C: Tensor | None


class TowerBlock(NamedTuple):
    """Pre-norm attention and MLP, each scaled per channel.

    No matrix is a plain one (`ops.packed`); head widths are multiples of 16.
    """

    heads: int
    activation: str
    eps: float
    norms: tuple[Norm, Norm]
    scales: tuple[Tensor, Tensor]
    qkv: Matrix
    out: Matrix
    fc1: Matrix
    fc2: Matrix


class _Block(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("width", "heads", "mlp_width", "activation")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("norm1", "bias1", "norm2", "bias2", "scale1", "scale2")),
        *((name, Matrix) for name in ("qkv", "out", "fc1", "fc2")),
    )


def tower_block(block: TowerBlock, x_NPC: Tensor) -> Tensor:
    """What the block makes of float32 tiles (N, P, C), and their residuals."""
    native, x_NPC = library(), x_NPC.contiguous()
    assert native is not None
    num_tiles, num_patches, width = x_NPC.shape
    out_NPC = torch.empty_like(x_NPC)
    vectors = [x for norm in block.norms for x in norm] + list(block.scales)
    view = _Block(
        width,
        block.heads,
        block.fc1.outputs,
        ACTIVATIONS.index(block.activation),
        block.eps,
        *(None if x is None else address(x) for x in vectors),
        *block[-4:],
    )
    sizes = count(num_tiles), count(num_patches)
    native.tower_block(ctypes.byref(view), address(x_NPC), *sizes, address(out_NPC))
    return out_NPC
