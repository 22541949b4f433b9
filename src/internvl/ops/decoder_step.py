"""One new token of each of several sequences through a whole decoder, in one call of a kernel.

Mirrors the structures of `csrc/step.cpp`. Knows addresses and sizes; no modules and no caches.
Shape letters: B sequences, D width, H head width, L blocks of a sequence's cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from internvl.ops.native import address, count, library
from internvl.ops.packed import Matrix


class Layer(ctypes.Structure):
    """`Layer` of `csrc/step.cpp`."""

    _fields_ = (
        ("norm1", ctypes.c_void_p),
        ("norm2", ctypes.c_void_p),
        ("q_norm", ctypes.c_void_p),
        ("k_norm", ctypes.c_void_p),
        ("qkv", Matrix),
        ("out", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in ("num_layers", "width", "heads", "kv_heads", "head_dim", "mlp_width")
        ),
        ("eps", ctypes.c_double),
        ("layers", ctypes.POINTER(Layer)),
        ("norm", ctypes.c_void_p),
    )


class Sizes(NamedTuple):
    """Of a decoder, as the kernel wants them."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    eps: float


def decoder_step(
    sizes: Sizes,
    layers: Sequence[Layer],
    norm_D: Tensor,
    x_BD: Tensor,
    turns: tuple[Tensor, Tensor],
    lengths_B: Tensor,
    blocks_BL: Tensor,
    block_size: int,
) -> Tensor:
    """Final hidden states (B, D), normalised, of tokens whose embeddings are x_BD.

    Args:
        turns: cos and sin (B, H) of the new tokens' positions.
        lengths_B: int64, positions that each sequence has before the new one; the layers' caches get it.
        blocks_BL: int64, which blocks (kv_heads, block_size, H) of the caches hold a sequence, in order.
    """
    native, out_BD = library(), x_BD.clone(memory_format=torch.contiguous_format)
    assert native is not None
    table = (Layer * len(layers))(*layers)
    decoder = _Decoder(len(layers), *sizes, table, address(norm_D))
    native.decoder_step(
        ctypes.byref(decoder),
        address(out_BD),
        count(len(out_BD)),
        *(address(x) for x in (*turns, lengths_B, blocks_BL)),
        count(blocks_BL.shape[1]),
        count(block_size),
    )
    return out_BD
