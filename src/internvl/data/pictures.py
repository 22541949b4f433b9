"""Pictures of a record as tiles: how many there will be, and their pixels.

For training every picture gets an equal share of the tile limit, frames of a video get one tile, and tiles
may be stored as JPEG once, so that a model does not lean on the exact pixels of its data. Knows no text.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import Tensor

from internvl.config import TilingConfig
from internvl.data.video_frames import Frame, read_frames
from internvl.processing.clip import VideoLimits
from internvl.processing.colour import ImagePolicy
from internvl.processing.conversation import Picture
from internvl.processing.image import ImageLimits, load_image, read_size
from internvl.processing.tiles import image_key, normalize
from internvl.processing.tiling import count_tiles, cut, resolve, split_budget

QUALITY = (75, 100)
"""Of augmentation, both included (InternVL training)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureReader:
    """How sources become pixels. The limits hold for every picture and video."""

    images: ImageLimits
    videos: VideoLimits
    policy: ImagePolicy

    def num_tiles(self, picture: Picture, tiling: TilingConfig) -> int:
        """From the header of the file; frames were found in theirs before. Raises ImageError."""
        source: Any = picture.source
        if isinstance(source, Frame):
            return 1
        return count_tiles(*read_size(source, self.images, self.policy), tiling)

    def load(self, pictures: Sequence[Picture]) -> list[Image.Image]:
        """RGB, in order. A video is opened once for all its frames. Raises ImageError and VideoError."""
        sources: list[Any] = [picture.source for picture in pictures]
        frames = read_frames([source for source in sources if isinstance(source, Frame)], self.videos)
        return [
            frames[source] if isinstance(source, Frame) else load_image(source, self.images, self.policy)
            for source in sources
        ]


def share_tiles(
    pictures: Sequence[Picture], tiling: TilingConfig, max_tiles: int | None
) -> list[TilingConfig]:
    """The tiling of each picture: the limit over the number of pictures, at least one tile (InternVL
    training).

    `max_tiles` is the data set's limit, None the model's. Pictures with a limit of their own, as frames have,
    do not count.
    """
    limit = tiling.max_tiles if max_tiles is None else max_tiles
    tiling = replace(tiling, max_tiles=limit, min_tiles=min(tiling.min_tiles, limit))
    num_shared = sum(picture.choice is None or picture.choice.max_tiles is None for picture in pictures)
    share = split_budget(limit, max(1, num_shared))
    return [resolve(tiling, picture.choice, budget=share) for picture in pictures]


def cut_tiles(
    image: Image.Image, tiling: TilingConfig, *, is_frame: bool = False, draw: random.Random | None = None
) -> tuple[Tensor, str]:
    """(N, 3, H, W) and a key that names its content. With `draw` every tile is stored as JPEG before.

    Frames, and pictures of models without tiling, are stored before they are resized, and are not padded to
    a square then (InternVL training).
    """
    if draw is None:
        return normalize(cut(image, tiling), tiling.normalization), image_key(image, tiling)
    state = draw.random()
    if tiling.dynamic and not is_frame:
        tiles = [_store(tile, draw) for tile in cut(image, tiling)]
    else:
        tiling = replace(tiling, pad_to_square=False)
        tiles = cut(_store(image, draw), tiling)
    return normalize(tiles, tiling.normalization), f"{image_key(image, tiling)}-jpeg-{state}"


def _store(image: Image.Image, draw: random.Random) -> Image.Image:
    """As JPEG of a random quality, and back."""
    stored = io.BytesIO()
    image.save(stored, format="JPEG", quality=draw.randint(*QUALITY))
    return Image.open(stored, formats=("JPEG",)).convert("RGB")
