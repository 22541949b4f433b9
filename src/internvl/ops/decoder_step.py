"""One new token of each of several sequences through a whole decoder, in one call of a kernel.

Mirrors the structures of `csrc/step.cpp`. Knows addresses and sizes; no modules and no caches.
Shape letters: B sequences, D width, H head width, L blocks of a sequence.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from internvl.ops.native import address, count, library
from internvl.ops.packed import Matrix


class Cells(NamedTuple):
    """Keys or values of a layer: float32, or int8 with a float32 scale for each head and position."""

    values: Tensor
    scales: Tensor | None = None


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
        ("key_scales", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("value_scales", ctypes.c_void_p),
    )

    def look_at(self, keys: Cells, values: Cells) -> None:
        """These are its keys and values from now on."""
        self.keys, self.values = address(keys.values), address(values.values)
        self.key_scales = None if keys.scales is None else address(keys.scales)
        self.value_scales = None if values.scales is None else address(values.scales)


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


class Places(NamedTuple):
    """Where sequences lie in the layers' keys and values.

    `lengths_B` (int64): positions that each has before the new one. `blocks_BL` (int64): its blocks of
    `block_size` positions, in order. Strides are in values: from block to block, from key head to key head.
    """

    lengths_B: Tensor
    blocks_BL: Tensor
    block_size: int
    block_stride: int
    head_stride: int


def decoder_step(
    sizes: Sizes,
    layers: ctypes.Array[Layer],
    norm_D: Tensor,
    x_BD: Tensor,
    turns: tuple[Tensor, Tensor],
    places: Places,
) -> Tensor:
    """Final hidden states (B, D), normalised, of tokens whose embeddings are x_BD.

    `turns` are cos and sin (B, H) of the new tokens' positions; their keys and values go into the caches.
    """
    native, out_BD = library(), x_BD.clone(memory_format=torch.contiguous_format)
    assert native is not None
    table = ctypes.cast(layers, ctypes.POINTER(Layer))
    decoder = _Decoder(len(layers), *sizes, table, address(norm_D))
    native.decoder_step(
        ctypes.byref(decoder),
        address(out_BD),
        count(len(out_BD)),
        *(address(x) for x in (*turns, places.lengths_B, places.blocks_BL)),
        count(places.blocks_BL.shape[1]),
        *map(count, places[2:]),
    )
    return out_BD
