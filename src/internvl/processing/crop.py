"""Pictures for the vision tower alone: the short side to size, then the centre square.

This is what the stand-alone InternViT checkpoints were published with (CLIP preprocessing with
ImageNet statistics). Chat models cut tiles instead, see `tiling`.
"""

from __future__ import annotations

from PIL import Image

from internvl.errors import ImageError
from internvl.processing.canvas import resize


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """The centre `size` x `size` pixels of an RGB picture, its short side first resized to `size`.

    Raises `ImageError`, also for a picture so thin that it would become huge.
    """
    if image.mode != "RGB":
        raise ImageError(f"crops are made of RGB pictures, not {image.mode}: read it with image.load_image")
    short = min(image.size)
    width, height = (size if side == short else int(size * side / short) for side in image.size)
    resized = resize(image, width, height)
    left, top = (width - size) // 2, (height - size) // 2
    return resized.crop((left, top, left + size, top + size))
