"""Full attention of a tile's patches among themselves, compiled where it can be.

In float32 without gradients a kernel runs: that of `csrc/attention.cpp`, exact like PyTorch's, or that of
`csrc/attention16.cpp`, which rounds to 16-bit integers. PyTorch's serves everything else. Knows no tower.
Shape letters: N tiles, P patches, C width, H heads, D head width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from internvl.ops.native import address, count, library, new, serves

COLUMNS = 16
"""The kernel takes head widths of whole panels."""


def tile_attention(qkv_NPC: Tensor, num_heads: int, *, in_16_bits: bool = False) -> Tensor:
    """Queries, keys and values side by side (N, P, 3 C) to (N, P, C), scaled by D ** -0.5.

    `in_16_bits` lets the kernel compute in integers (`csrc/attention16.cpp`), a third faster: results are off
    by 2^-12 of the largest value on average, and by up to 2^-8 where scores reach 40 or some channels are 30
    times as large as the rest. Other paths stay exact.
    """
    num_tiles, num_patches, width = qkv_NPC.shape
    head_width = width // 3 // num_heads
    if head_width % COLUMNS or not serves(qkv_NPC) or library() is None:
        qkv_NP3HD = qkv_NPC.view(num_tiles, num_patches, 3, num_heads, head_width)
        q_NHPD, k_NHPD, v_NHPD = qkv_NP3HD.permute(2, 0, 3, 1, 4)
        return scaled_dot_product_attention(q_NHPD, k_NHPD, v_NHPD).transpose(1, 2).flatten(2)
    qkv_NPC, out_NPC = qkv_NPC.contiguous(), new(num_tiles, num_patches, width // 3)
    sizes = map(count, (num_tiles, num_patches, num_heads, head_width, in_16_bits))
    library().tile_attention(address(qkv_NPC), *sizes, address(out_NPC))  # type: ignore[union-attr]
    return out_NPC
