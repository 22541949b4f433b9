"""The decoder's step of generation as one kernel call, where the model and the machine allow it.

The same arithmetic as `Decoder.forward` with one token a sequence, without an operator between the products.
What it takes: float32 on the CPU, linear layers that are plain or packed, no adapters, no cross attention.
Shape letters: B sequences, D width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from internvl.config import TextConfig
from internvl.models.attention import KVCache
from internvl.models.decoder import Block, Decoder
from internvl.models.layers import Linear, RMSNorm
from internvl.models.packed_layers import packed_matrix
from internvl.models.rope import make_angles
from internvl.ops.decoder_step import Cells, Layer, Places, Sizes, decoder_step
from internvl.ops.native import address, library, serves
from internvl.ops.packed import Matrix, plain_matrix

LANES = 8
"""Head widths must be whole vectors."""


class View(NamedTuple):
    """What the kernel knows of a decoder and a cache: addresses of weights, keys and values, None where there
    is a block that it cannot serve.

    Kept with the cache, since finding some hundred addresses takes longer than a block of the kernel. The
    weights must stay what they are while a cache is in use, as what it holds was made with them; those of the
    first step are kept alive.
    """

    llm: Decoder
    layers: ctypes.Array[Layer] | None
    tensors: Sequence[Tensor]

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A copy of a cache lies elsewhere: it begins without."""
        return type(None), ()


class Cache(Protocol):
    """Keys and values of all layers, and the `View` of them that is kept here."""

    view: object

    def cells(self) -> tuple[list[Cells], list[Cells]]: ...


def fused_step(llm: Decoder, cache: KVCache, rows: Sequence[int], x_BD: Tensor) -> Tensor | None:
    """Final hidden states of one new token of each of `rows`, whose keys and values go into the cache.

    None where the kernel cannot serve; then nothing has changed.
    """
    config = llm.config
    lengths_B, blocks_B1 = torch.tensor([cache.lengths[row] for row in rows]), torch.tensor(rows)[:, None]
    head_stride = cache.capacity * config.head_dim
    places = Places(lengths_B, blocks_B1, cache.capacity, config.num_kv_heads * head_stride, head_stride)
    state_BD = step_in_places(llm, x_BD, cache, places, lengths_B + 1)
    if state_BD is not None:
        for row in rows:
            cache.lengths[row] += 1
    return state_BD


def step_in_places(
    llm: Decoder, x_BD: Tensor, cache: Cache, places: Places, rope_lengths_B: Tensor
) -> Tensor | None:
    """The same over any cache; `rope_lengths_B` are the lengths that rotations go by."""
    if not _serves(llm, x_BD):
        return None
    view = cache.view
    if not isinstance(view, View) or view.llm is not llm:
        cache.view = view = _look(llm, *cache.cells())
    if view.layers is None:
        return None
    turns = make_angles(llm.config, places.lengths_B, rope_lengths_B)
    return decoder_step(_sizes(llm.config), view.layers, llm.norm.weight, x_BD, turns, places)


def _serves(llm: Decoder, x_BD: Tensor) -> bool:
    return (
        serves(x_BD, llm.norm.weight)
        and not torch.is_grad_enabled()
        and llm.config.head_dim % LANES == 0
        and library() is not None
    )


def _sizes(config: TextConfig) -> Sizes:
    return Sizes(
        width=config.width,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        mlp_width=config.mlp_width,
        eps=config.norm_eps,
    )


def _look(llm: Decoder, keys: Sequence[Cells], values: Sequence[Cells]) -> View:
    stored = keys[0].values if keys[0].scales is None else keys[0].scales
    layers = [_layer(block) for block in llm.layers]
    whole = [layer for layer in layers if layer is not None]
    if stored.dtype != torch.float32 or len(whole) < len(layers):
        return View(llm, None, ())
    for layer, key, value in zip(whole, keys, values, strict=True):
        layer.look_at(key, value)
    return View(llm, (Layer * len(whole))(*whole), [*llm.layers.parameters(), *llm.layers.buffers()])


def _layer(block: nn.Module) -> Layer | None:
    """The kernel's view of a block, None if it has something else in it than the kernel knows."""
    if type(block) is not Block:
        return None
    attn, mlp = block.attn, block.mlp
    matrices = [_matrix(module) for module in (attn.qkv, attn.out, mlp.gate_up, mlp.down)]
    if any(matrix is None for matrix in matrices):
        return None
    norms = [_norm(module) for module in (block.norm1, block.norm2, attn.q_norm, attn.k_norm)]
    return Layer(*norms, *matrices)


def _norm(module: object) -> object:
    return address(module.weight) if isinstance(module, RMSNorm) else None


def _matrix(module: Linear) -> Matrix | None:
    if (packed := packed_matrix(module)) is not None:
        return packed
    if (
        type(module) is not Linear
        or not module.weight.is_contiguous()
        or module.weight.dtype != torch.float32
    ):
        return None
    return plain_matrix(module.weight, module.bias)
