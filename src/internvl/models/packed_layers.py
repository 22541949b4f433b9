"""Packed layers as the kernels see them, and a gated MLP of such layers in one call.

The same arithmetic as the layers one after the other, which serve everything else: gradients, adapters, plain
weights, few rows. Knows no decoder. Shape letters: T packed tokens, C width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from internvl.ops.gated_mlp import gated_mlp
from internvl.ops.native import serves
from internvl.ops.packed import Matrix, PackedWeight


def packed_matrix(module: Any) -> Matrix | None:
    """The kernels' view of a packed linear layer, None for any other. Valid as long as the layer lives."""
    packed: PackedWeight | None = getattr(module, "packed", None)
    return None if packed is None else packed.matrix(module.padded_bias_O)


def rounds_rows(module: Any) -> bool:
    """Whether a layer rounds what it is given to eight bits."""
    packed: PackedWeight | None = getattr(module, "packed", None)
    return packed is not None and packed.is_integer


def packed_mlp(gate_up: Any, down: Any, x_TC: Tensor) -> Tensor | None:
    """`down(silu(gate) * up)` of tokens (T, C); None where the kernel cannot serve."""
    if not _serves(x_TC):
        return None
    first, second = packed_matrix(gate_up), packed_matrix(down)
    return None if first is None or second is None else gated_mlp(x_TC, first, second)


def _serves(x_TC: Tensor) -> bool:
    return x_TC.dim() == 2 and not torch.is_grad_enabled() and serves(x_TC)
