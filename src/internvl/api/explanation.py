"""What a request would run, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from internvl.config import ChatConfig, TextConfig
from internvl.models.vlm import VLM, tiles_at_once
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

    `tokens` are the ids as the vocabulary writes them; `activation_bytes` is the tower's peak on a CPU.
    `packed` says how the checkpoint's weights are packed, if they are; `weight_bytes` then are its files'.
    """

    pictures: tuple[PictureExplanation, ...]
    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    max_new_tokens: int
    max_positions: int
    weight_bytes: int
    cache_bytes: int
    activation_bytes: int
    packed: str | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def num_vision_tokens(self) -> int:
        return sum(picture.vision_tokens for picture in self.pictures)


def explain_inputs(
    config: ChatConfig, inputs: Inputs, tokens: Sequence[str], max_new_tokens: int, value_bytes: int
) -> Explanation:
    """`tokens` are the ids as the vocabulary writes them; `value_bytes` is the size of one weight."""
    pictures = [
        explain_picture(config, size, grid, count)
        for size, grid, count in zip(inputs.sizes, inputs.grids, inputs.tile_counts, strict=True)
    ]
    return explain(config, pictures, inputs.text, inputs.ids, tokens, max_new_tokens, value_bytes)


def explain_picture(
    config: ChatConfig, size: tuple[int, int], grid: Grid, num_tiles: int
) -> PictureExplanation:
    vision_tokens = num_tiles * config.tokens_per_tile
    return PictureExplanation(size=size, grid=grid, num_tiles=num_tiles, vision_tokens=vision_tokens)


def explain(
    config: ChatConfig,
    pictures: Sequence[PictureExplanation],
    text: str,
    ids: Sequence[int],
    tokens: Sequence[str],
    max_new_tokens: int,
    value_bytes: int,
) -> Explanation:
    """Without `ids` (no tokenizer at hand) only vision tokens count."""
    positions = len(ids) or sum(picture.vision_tokens for picture in pictures)
    num_tiles = min(tiles_at_once(config, torch.device("cpu")), sum(one.num_tiles for one in pictures))
    return Explanation(
        pictures=tuple(pictures),
        text=text,
        ids=tuple(ids),
        tokens=tuple(tokens),
        max_new_tokens=max_new_tokens,
        max_positions=config.text.max_positions,
        weight_bytes=count_parameters(config) * value_bytes,
        cache_bytes=(positions + max_new_tokens) * cache_bytes_per_token(config.text, value_bytes),
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
