"""A block of the vision tower as one kernel call, where its weights are packed and the machine allows it.

The same arithmetic as the block's modules, which serve everything else: gradients, adapters, norms of queries
and keys, plain weights. Knows no tower. Shape letters: N tiles, P patches, C width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from internvl.models.layers import ACTIVATIONS, RMSNorm
from internvl.models.packed_layers import packed_matrix
from internvl.ops.native import library, serves
from internvl.ops.tile_attention import COLUMNS
from internvl.ops.tower_block import Norm, TowerBlock, tower_block


def packed_block(block: Any, x_NPC: Tensor) -> Tensor | None:
    """What a `vit.Block` makes of tiles (N, P, C); None where the kernel cannot serve."""
    matrices = [packed_matrix(module) for module in _linears(block)]
    whole = [matrix for matrix in matrices if matrix is not None]
    if len(whole) < len(matrices) or not _serves(block, x_NPC):
        return None
    norms = _norm(block.norm1), _norm(block.norm2)
    activation = next(name for name, function in ACTIVATIONS.items() if function is block.mlp.activation)
    return tower_block(
        TowerBlock(block.attn.num_heads, activation, block.norm1.eps, norms, (block.ls1, block.ls2), *whole),
        x_NPC,
    )


def _linears(block: Any) -> tuple[nn.Module, ...]:
    return block.attn.qkv, block.attn.out, block.mlp.fc1, block.mlp.fc2


def _norm(module: RMSNorm | nn.LayerNorm) -> Norm:
    return Norm(module.weight, None if isinstance(module, RMSNorm) else module.bias)


def _serves(block: Any, x_NPC: Tensor) -> bool:
    return bool(
        serves(x_NPC, block.ls1)
        and x_NPC.shape[-1] // block.attn.num_heads % COLUMNS == 0
        and not block.attn.has_norms
        and not block.training
        and not torch.is_grad_enabled()
        and library() is not None
    )
