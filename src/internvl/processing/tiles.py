"""Tiles as tensors: normalised, with a key that names their content.

Knows no files and no models; `tiling` decides the grid, `image` reads what the user handed over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from internvl.config import NORMALIZATION_STATISTICS, Normalization, TilingConfig
from internvl.errors import ImageError
from internvl.processing.tiling import Grid, TileChoice, cut, plan, resolve


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tiles:
    """One picture, ready for the vision tower.

    `tiles_N3HW` is float32, the thumbnail last where there is one. `width` and `height` are those of
    the picture before tiling, to which grounding boxes refer. Equal `key`s mean equal tiles.
    """

    tiles_N3HW: Tensor
    grid: Grid
    width: int
    height: int
    key: str

    @property
    def num_tiles(self) -> int:
        return len(self.tiles_N3HW)


def prepare(
    image: Image.Image, tiling: TilingConfig, choice: TileChoice | None = None, *, budget: int | None = None
) -> Tiles:
    """RGB picture to `Tiles`; `choice` and `budget` as in `tiling.resolve`. Raises `ImageError`."""
    tiling = resolve(tiling, choice, budget=budget)
    grid, _ = plan(image.width, image.height, tiling)
    return Tiles(
        tiles_N3HW=normalize(cut(image, tiling), tiling.normalization),
        grid=grid,
        width=image.width,
        height=image.height,
        key=image_key(image, tiling),
    )


def normalize(tiles: Sequence[Image.Image], normalization: Normalization) -> Tensor:
    """RGB pictures of one size to float32 (N, 3, H, W): x / 255, minus mean, over deviation.

    Each step is rounded to float32, in this order, as the released transforms do.
    """
    if not tiles:
        raise ImageError("there are no tiles to normalise: hand over at least one picture")
    mean_311, std_311 = (torch.tensor(row).view(3, 1, 1) for row in NORMALIZATION_STATISTICS[normalization])
    tiles_N3HW = torch.empty(len(tiles), 3, tiles[0].height, tiles[0].width)
    for out_3HW, tile in zip(tiles_N3HW, tiles, strict=True):
        if tile.size != tiles[0].size:
            raise ImageError(f"tiles of one batch must have one size, not {tiles[0].size} and {tile.size}")
        pixels_HW3 = torch.from_numpy(np.array(tile))
        # One tile at a time stays in the cache of the processor through all four steps.
        out_3HW.copy_(pixels_HW3.permute(2, 0, 1)).div_(255).sub_(mean_311).div_(std_311)
    return tiles_N3HW


def image_key(image: Image.Image, tiling: TilingConfig) -> str:
    """Hex digest of the pixels, their size, and everything that shapes the tiles.

    Limits that lead to the same grid give the same key. `tiling` is the resolved one.
    """
    if image.mode != "RGB":
        raise ImageError(f"keys are made of RGB pictures, not {image.mode}: read it with image.load_image")
    grid, has_thumbnail = plan(image.width, image.height, tiling)
    is_padded = tiling.pad_to_square and not tiling.dynamic
    shape = (image.size, tiling.tile_size, grid.columns, grid.rows, has_thumbnail, is_padded)
    digest = hashlib.blake2b(f"{shape} {tiling.normalization}".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.hexdigest()
