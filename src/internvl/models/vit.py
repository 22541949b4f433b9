"""InternViT, 300M and 6B: pictures to patch features, one tile a sample.

Every released switch is a field of `VisionConfig`. There is no final norm (InternVL paper,
arXiv 2312.14238). Knows no projector, no tiling.
Shape letters: N tiles, P patches, C width, H heads, D head width, Y and X grid rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from internvl.config import VisionConfig
from internvl.errors import ConfigError, InputError
from internvl.models.layers import MLP, DropPath, Linear, RMSNorm, make_norm, normal
from internvl.models.packed_block import packed_block
from internvl.models.packed_layers import rounds_rows
from internvl.ops.tile_attention import tile_attention


def resize_positions(table: Tensor, rows: int, columns: int) -> Tensor:
    """Bicubic resize of a position table (1, 1+P, C) to another grid; the class entry is kept.

    Computed in float32 and cast back, like the released models. The stored grid must be square.
    """
    class_11C, patches_1PC = table[:, :1], table[:, 1:]
    side = round(patches_1PC.shape[1] ** 0.5)
    if (rows, columns) == (side, side):
        return table
    grid_1CYX = patches_1PC.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid_1CYX = F.interpolate(grid_1CYX, size=(rows, columns), mode="bicubic", align_corners=False)
    return torch.cat((class_11C, grid_1CYX.flatten(2).transpose(1, 2).to(table.dtype)), dim=1)


class PatchEmbedding(nn.Module):
    """Patches, a class token in front, learned positions resized to any grid."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.class_token = nn.Parameter(normal(1, 1, config.width))
        self.patch = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)
        self.position = nn.Parameter(normal(1, 1 + config.grid**2, config.width))

    def forward(self, tiles_N3HW: Tensor) -> Tensor:
        patches_NCYX = self.patch(tiles_N3HW.to(self.position.dtype))
        rows, columns = patches_NCYX.shape[-2:]
        patches_NPC = patches_NCYX.flatten(2).transpose(1, 2)
        class_N1C = self.class_token.expand(len(patches_NPC), -1, -1)
        return torch.cat((class_N1C, patches_NPC), dim=1) + resize_positions(self.position, rows, columns)


class Attention(nn.Module):
    """Full attention within a tile. With `qk_norm`, RMS norm over the whole width, all heads together."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads, self.has_norms = config.num_heads, config.qk_norm
        self.qkv = Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.q_norm = RMSNorm(config.width, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.width, config.norm_eps) if config.qk_norm else nn.Identity()
        self.out = Linear(config.width, config.width)

    def forward(self, x_NPC: Tensor) -> Tensor:
        qkv_NPC = self.qkv(x_NPC)
        if self.has_norms:
            q_NPC, k_NPC, v_NPC = qkv_NPC.chunk(3, dim=-1)
            qkv_NPC = torch.cat((self.q_norm(q_NPC), self.k_norm(k_NPC), v_NPC), dim=-1)
        out: Tensor = self.out(tile_attention(qkv_NPC, self.num_heads, in_16_bits=rounds_rows(self.qkv)))
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP, each scaled per channel (LayerScale) and droppable."""

    def __init__(self, config: VisionConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = make_norm(config.norm, config.width, config.norm_eps)
        self.attn = Attention(config)
        self.ls1 = nn.Parameter(torch.full((config.width,), config.layer_scale_init))
        self.norm2 = make_norm(config.norm, config.width, config.norm_eps)
        self.mlp = MLP(config.width, config.mlp_width, config.activation)
        self.ls2 = nn.Parameter(torch.full((config.width,), config.layer_scale_init))
        self.drop_path = DropPath(drop_path)

    def forward(self, x_NPC: Tensor) -> Tensor:
        if (fused_NPC := packed_block(self, x_NPC)) is not None:
            return fused_NPC
        x_NPC = x_NPC + self.drop_path(self.attn(self.norm1(x_NPC)) * self.ls1)
        out: Tensor = x_NPC + self.drop_path(self.mlp(self.norm2(x_NPC)) * self.ls2)
        return out


class VisionTower(nn.Module):
    """InternViT. Tiles may have any size divisible by the patch size."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        if config.width % config.num_heads:
            raise ConfigError(f"width {config.width} does not divide into {config.num_heads} heads")
        self.config = config
        last = max(config.num_layers - 1, 1)
        rates = [config.drop_path * index / last for index in range(config.num_layers)]
        self.embed = PatchEmbedding(config)
        self.layers = nn.ModuleList(Block(config, rate) for rate in rates)

    def forward(self, tiles_N3HW: Tensor, layer: int = -1) -> Tensor:
        """Hidden state `layer` (0 = embeddings, -1 = last block), (N, 1+P, C); later blocks are not run."""
        x_NPC: Tensor = self.embed(self._checked(tiles_N3HW))
        for block in self.layers[: self._num_blocks(layer)]:
            x_NPC = block(x_NPC)
        return x_NPC

    def hidden_states(self, tiles_N3HW: Tensor) -> list[Tensor]:
        """All L+1 hidden states, each (N, 1+P, C); the first is the embedding output."""
        states = [self.embed(self._checked(tiles_N3HW))]
        for block in self.layers:
            states.append(block(states[-1]))
        return states

    def _num_blocks(self, layer: int) -> int:
        count = len(self.layers) + 1
        if not -count <= layer < count:
            raise InputError(f"hidden state {layer} does not exist: the tower has {count} (0 to {count - 1})")
        return layer % count

    def _checked(self, tiles: Tensor) -> Tensor:
        patch = self.config.patch_size
        if tiles.dim() != 4 or tiles.shape[1] != 3:
            raise InputError(f"tiles must be (N, 3, height, width), got {tuple(tiles.shape)}")
        if tiles.shape[2] % patch or tiles.shape[3] % patch or not tiles.shape[2] * tiles.shape[3]:
            raise InputError(
                f"tiles of {tiles.shape[3]}x{tiles.shape[2]}: no positive multiple of the patch size {patch}"
            )
        return tiles
