"""QLLaMA: a LLaMA whose query tokens look at pictures (InternVL 1.0, arXiv 2312.14238).

Every few blocks, query tokens attend to the vision tower's output between self-attention and MLP, without
rotation and without a mask. Which tokens are queries, and of which picture, is said by `attend.looks`; where
nothing looks it is the plain text model, also while an answer is continued token by token. Shape letters:
T packed tokens, R rows of queries, Q queries of a row, B pictures, P patches, C vision width, D text width,
H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from internvl.config import ContrastiveConfig, TextConfig
from internvl.models.attention import Attend, Looks
from internvl.models.decoder import Block, Decoder
from internvl.models.layers import Linear, RMSNorm
from internvl.models.rope import Rotate


class CrossAttention(nn.Module):
    """From query tokens (width D) to a picture's features (width C); every head has its own keys."""

    def __init__(self, config: TextConfig, vision_width: int) -> None:
        super().__init__()
        self.num_heads, inner = config.num_heads, config.num_heads * config.head_dim
        self.norm_q = RMSNorm(config.width, config.norm_eps)
        self.norm_kv = RMSNorm(vision_width, config.norm_eps)
        self.q = Linear(config.width, inner, bias=False)
        self.kv = Linear(vision_width, 2 * inner, bias=False)
        self.out = Linear(inner, config.width, bias=False)

    def forward(self, x_RQD: Tensor, looks: Looks) -> Tensor:
        """What the queries (R, Q, D) see, in the same shape. Each picture is read once."""
        q_RHQD = self._heads(self.q(self.norm_q(x_RQD)))
        k_BPD, v_BPD = self.kv(self.norm_kv(looks.features_BPC)).chunk(2, dim=-1)
        k_RHPD, v_RHPD = (self._heads(x_BPD.index_select(0, looks.pictures_R)) for x_BPD in (k_BPD, v_BPD))
        out_RHQD = scaled_dot_product_attention(q_RHQD, k_RHPD, v_RHPD)
        out: Tensor = self.out(out_RHQD.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x_RQD: Tensor) -> Tensor:
        x_RHQD: Tensor = x_RQD.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        return x_RHQD


class QueryBlock(Block):
    """A decoder block whose query tokens look at their picture before the MLP."""

    def __init__(self, config: TextConfig, layer: int, vision_width: int) -> None:
        super().__init__(config, layer)
        self.cross = CrossAttention(config, vision_width)

    def forward(self, x_TD: Tensor, rotate: Rotate, attend: Attend) -> Tensor:
        x_TD = x_TD + self.attn(self.norm1(x_TD), rotate, attend)
        if attend.looks is not None:
            rows = attend.looks.rows_RQ
            seen_RQD = self.cross(x_TD[rows], attend.looks)
            x_TD = x_TD.index_add(0, rows.flatten(), seen_RQD.flatten(0, 1).to(x_TD.dtype))
        out: Tensor = x_TD + self.mlp(self.norm2(x_TD))
        return out


class QLlama(Decoder):
    """The text model with its query tokens (1, Q, D)."""

    def __init__(self, config: ContrastiveConfig) -> None:
        def make_block(text: TextConfig, layer: int) -> Block:
            looks = layer % config.cross_every == 0
            return QueryBlock(text, layer, config.vision.width) if looks else Block(text, layer)

        super().__init__(config.text, make_block)
        self.queries = nn.Parameter(torch.zeros(1, config.num_queries, config.text.width))
