"""What a request would run, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from internvl.config import ChatConfig, TextConfig
from internvl.models.vlm import VLM
from internvl.processing.processor import Inputs
from internvl.processing.tiling import Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureExplanation:
    """One picture: (width, height) in pixels, its grid, tiles with thumbnail, and vision tokens."""

    size: tuple[int, int]
    grid: Grid
    num_tiles: int
    vision_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The prompt as the model reads it, and what it takes. Bytes are estimates of the largest parts.

    `activation_bytes` is the vision tower's peak for four tiles at a time.
    """

    pictures: tuple[PictureExplanation, ...]
    text: str
    ids: tuple[int, ...]
    max_new_tokens: int
    max_positions: int
    weight_bytes: int
    cache_bytes: int
    activation_bytes: int

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def num_vision_tokens(self) -> int:
        return sum(picture.vision_tokens for picture in self.pictures)


def explain(config: ChatConfig, inputs: Inputs, max_new_tokens: int, value_bytes: int) -> Explanation:
    """`value_bytes` is the size of one weight: 4 for float32."""
    pictures = tuple(
        PictureExplanation(
            size=size, grid=grid, num_tiles=count, vision_tokens=count * config.tokens_per_tile
        )
        for size, grid, count in zip(inputs.sizes, inputs.grids, inputs.tile_counts, strict=True)
    )
    positions = len(inputs.ids) + max_new_tokens
    num_tiles = min(4, sum(inputs.tile_counts))
    return Explanation(
        pictures=pictures,
        text=inputs.text,
        ids=tuple(inputs.ids),
        max_new_tokens=max_new_tokens,
        max_positions=config.text.max_positions,
        weight_bytes=count_parameters(config) * value_bytes,
        cache_bytes=positions * cache_bytes_per_token(config.text, value_bytes),
        activation_bytes=num_tiles * tile_activation_bytes(config, value_bytes),
    )


def cache_bytes_per_token(text: TextConfig, value_bytes: int) -> int:
    """Keys and values of all layers."""
    return 2 * text.num_layers * text.num_kv_heads * text.head_dim * value_bytes


def tile_activation_bytes(config: ChatConfig, value_bytes: int) -> int:
    """One tile in a block of the tower: its state, normed copy, q, k, v, and the widest MLP state twice."""
    positions = 1 + (config.tiling.tile_size // config.vision.patch_size) ** 2
    return positions * (5 * config.vision.width + 2 * config.vision.mlp_width) * value_bytes


def count_parameters(config: ChatConfig) -> int:
    """Weights of the whole model, counted on a model without storage."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VLM(config).parameters())
