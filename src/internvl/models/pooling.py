"""Attention pooling: many tokens to one vector of the common space of pictures and texts.

The mean of all tokens asks, the tokens answer. Shape letters: N samples, P tokens, C width, E width of the
common space, H heads.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from internvl.errors import ConfigError
from internvl.models.layers import Linear

NORM_EPS = 1e-5
"""As the released poolers, whatever the tower has."""


class AttentionPool(nn.Module):
    """Norms of its own for query, keys and values; one query, the mean (of `AttentionPoolingBlock`)."""

    def __init__(self, width: int, num_heads: int, out_width: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ConfigError(f"pooling width {width} does not divide into {num_heads} heads")
        self.num_heads = num_heads
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(width, NORM_EPS) for _ in range(3))
        self.q, self.k, self.v = (Linear(width, width) for _ in range(3))
        self.out = Linear(width, out_width)

    def forward(self, x_NPC: Tensor) -> Tensor:
        """(N, P, C) to (N, E)."""
        q_NHQC = self._heads(self.q(self.norm_q(x_NPC.mean(1, keepdim=True))))
        k_NHPC, v_NHPC = self._heads(self.k(self.norm_k(x_NPC))), self._heads(self.v(self.norm_v(x_NPC)))
        out_NHQC = scaled_dot_product_attention(q_NHQC, k_NHPC, v_NHPC)
        out: Tensor = self.out(out_NHQC.flatten(1))
        return out

    def _heads(self, x_NPC: Tensor) -> Tensor:
        x_NHPC: Tensor = x_NPC.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        return x_NHPC
