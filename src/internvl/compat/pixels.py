"""Tensors of ready tiles as pictures of our own API.

Knows shapes and bytes; no text and no files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from internvl.errors import ImageError
from internvl.processing.tiles import Tiles
from internvl.processing.tiling import Grid


def count_tiles(pixel_values: Tensor | None) -> int:
    """N of (N, 3, S, S), 0 for None. Raises ImageError for another shape."""
    if pixel_values is None:
        return 0
    if not isinstance(pixel_values, Tensor) or pixel_values.dim() != 4:
        shape = tuple(pixel_values.shape) if isinstance(pixel_values, Tensor) else type(pixel_values).__name__
        raise ImageError(f"pixel_values must be a tensor (tiles, 3, size, size), not {shape}")
    return len(pixel_values)


def split_pictures(pixel_values: Tensor | None, tile_counts: Sequence[int]) -> list[Tiles]:
    """Consecutive tiles as pictures of so many tiles each; equal bytes give equal keys."""
    if pixel_values is None:
        return []
    return [_picture(part) for part in pixel_values.detach().split(list(tile_counts))]


def split_tiles(pixel_values: Tensor | None, counts: Sequence[int]) -> list[Tensor | None]:
    """Consecutive tiles, so many for each question; None for those without."""
    if pixel_values is None:
        return [None] * len(counts)
    return [part if len(part) else None for part in pixel_values.split(list(counts))]


def _picture(tiles_N3HW: Tensor) -> Tiles:
    data = tiles_N3HW.cpu().contiguous()
    digest = hashlib.blake2b(f"{tuple(data.shape)} {data.dtype}".encode(), digest_size=16)
    digest.update(data.view(torch.uint8).numpy().data)
    height, width = data.shape[-2:]
    return Tiles(
        tiles_N3HW=data.float(), grid=Grid(len(data), 1), width=width, height=height, key=digest.hexdigest()
    )
