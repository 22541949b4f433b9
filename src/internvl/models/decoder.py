"""The decoder: one class for LLaMA, Vicuna, Yi, InternLM2, Qwen2, Qwen3 and Phi-3, told apart by data.

Tokens come packed; sequences, masks and caches belong to `attend` (see `models.attention`).
Shape letters: T packed tokens, D width (head width after H or K), H heads, K key-value heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from internvl.config import TextConfig
from internvl.errors import ConfigError
from internvl.models.attention import Attend
from internvl.models.layers import Embedding, GatedMLP, Linear, RMSNorm
from internvl.models.rope import Rotate, make_rotation


class Attention(nn.Module):
    """Grouped-query attention; q, k and v come from one product, in that order."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        self.qkv = Linear(config.width, sum(self.heads) * config.head_dim, bias=config.qkv_bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.out = Linear(config.num_heads * config.head_dim, config.width, bias=config.out_bias)

    def forward(self, x_TD: Tensor, rotate: Rotate, attend: Attend) -> Tensor:
        qkv_THD = self.qkv(x_TD).view(len(x_TD), -1, self.head_dim)
        q_THD, k_TKD, v_TKD = qkv_THD.split(self.heads, dim=1)
        q_THD, k_TKD = rotate(self.q_norm(q_THD)), rotate(self.k_norm(k_TKD))
        out: Tensor = self.out(attend(self.layer, q_THD, k_TKD, v_TKD).reshape(len(x_TD), -1))
        return out


class Block(nn.Module):
    """Pre-norm attention and gated MLP."""

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width, config.norm_eps)
        self.attn = Attention(config, layer)
        self.norm2 = RMSNorm(config.width, config.norm_eps)
        self.mlp = GatedMLP(config.width, config.mlp_width)

    def forward(self, x_TD: Tensor, rotate: Rotate, attend: Attend) -> Tensor:
        x_TD = x_TD + self.attn(self.norm1(x_TD), rotate, attend)
        out: Tensor = x_TD + self.mlp(self.norm2(x_TD))
        return out


class Decoder(nn.Module):
    """Token embeddings, blocks, final norm and output head; the head is never tied."""

    def __init__(self, config: TextConfig, make_block: Callable[[TextConfig, int], Block] = Block) -> None:
        super().__init__()
        if config.num_heads % config.num_kv_heads:
            raise ConfigError(
                f"{config.num_heads} heads cannot share {config.num_kv_heads} key-value heads evenly"
            )
        self.config = config
        self.embed = Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(make_block(config, index) for index in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = Linear(config.width, config.vocab_size, bias=False)

    def forward(self, x_TD: Tensor, pos_T: Tensor, attend: Attend) -> Tensor:
        """Embeddings (T, D) at positions (T,) of their sequences to final hidden states (T, D)."""
        for state_TD in self.hidden_states(x_TD, pos_T, attend):
            last_TD = state_TD
        return last_TD

    def hidden_states(self, x_TD: Tensor, pos_T: Tensor, attend: Attend) -> Iterator[Tensor]:
        """L+1 states: embeddings, each block's output, the last one after the final norm."""
        rotate = make_rotation(self.config, pos_T, attend.lengths_T, x_TD.dtype)
        for block in self.layers:
            yield x_TD
            x_TD = block(x_TD, rotate, attend)
        yield self.norm(x_TD)

    def logits(self, x_TD: Tensor) -> Tensor:
        """(T, D) final hidden states to (T, V)."""
        out: Tensor = self.head(x_TD)
        return out
