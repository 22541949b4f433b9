"""The picture functions that every published script carries along.

All of them end in `processing.tiling` and `processing.tiles`. Pictures become RGB as in the released code:
EXIF orientation is ignored and transparency dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from PIL import Image
from torch import Tensor

from internvl.config import NORMALIZATION_STATISTICS, TilingConfig
from internvl.processing import image as reading
from internvl.processing.colour import RELEASED_POLICY
from internvl.processing.image import ImageSource
from internvl.processing.tiles import normalize, prepare
from internvl.processing.tiling import cut

IMAGENET_MEAN, IMAGENET_STD = NORMALIZATION_STATISTICS["imagenet"]


def load_image(image_file: ImageSource, input_size: int = 448, max_num: int = 12) -> Tensor:
    """A picture as tiles (N, 3, S, S), thumbnail last: at most `max_num` tiles and the thumbnail.

    Raises ImageError.
    """
    tiling = TilingConfig(tile_size=input_size, max_tiles=max_num)
    return prepare(read_rgb(image_file), tiling).tiles_N3HW


def dynamic_preprocess(
    image: Image.Image,
    min_num: int = 1,
    max_num: int = 12,
    image_size: int = 448,
    use_thumbnail: bool = False,
) -> list[Image.Image]:
    """A picture cut into `min_num` to `max_num` tiles of `image_size` squared (InternVL tiling rule)."""
    tiling = TilingConfig(tile_size=image_size, min_tiles=min_num, max_tiles=max_num, thumbnail=use_thumbnail)
    return cut(read_rgb(image), tiling)


def build_transform(input_size: int) -> Callable[[Image.Image], Tensor]:
    """What makes a normalised (3, S, S) tensor of one picture, stretched to `input_size` squared."""
    tiling = TilingConfig(tile_size=input_size, dynamic=False)

    def transform(image: Image.Image) -> Tensor:
        return normalize(cut(read_rgb(image), tiling), "imagenet")[0]

    return transform


def find_closest_aspect_ratio(
    aspect_ratio: float, target_ratios: Iterable[Any], width: int, height: int, image_size: int
) -> tuple[int, int]:
    """The (columns, rows) of `target_ratios` nearest in shape; of equally near ones the rule of `tiling`."""
    best, distance = (1, 1), float("inf")
    for columns, rows in target_ratios:
        found = abs(aspect_ratio - columns / rows)
        fills = width * height > 0.5 * image_size * image_size * columns * rows
        if found < distance or (found == distance and fills):
            best, distance = (columns, rows), found
    return best


def read_rgb(source: ImageSource) -> Image.Image:
    """RGB as in the released code. Raises ImageError."""
    return reading.load_image(source, policy=RELEASED_POLICY)
