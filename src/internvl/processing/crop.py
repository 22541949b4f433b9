"""Pictures for a vision tower alone, as one square: cropped, or squashed.

"crop" is what the stand-alone InternViT checkpoints were published with (CLIP preprocessing with
ImageNet statistics). "squash" keeps the whole picture at the cost of its shape: how pictures are
retrieved with InternVL-C and -G. Chat models cut tiles instead, see `tiling`.
"""

from __future__ import annotations

from typing import Literal

from PIL import Image

from internvl.errors import ImageError, InputError
from internvl.processing.canvas import resize

Fit = Literal["squash", "crop"]


def fit_square(image: Image.Image, size: int, fit: Fit) -> Image.Image:
    """An RGB picture as `size` x `size` pixels: all of it, or its centre. Raises `ImageError`."""
    if fit == "crop":
        return centre_square(image, size)
    if fit != "squash":
        raise InputError(f"fit must be 'squash' (the whole picture) or 'crop' (its centre), not {fit!r}")
    return resize(_check(image), size, size)


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """The centre `size` x `size` pixels of an RGB picture, its short side first resized to `size`.

    Raises `ImageError`, also for a picture so thin that it would become huge.
    """
    short = min(_check(image).size)
    width, height = (size if side == short else int(size * side / short) for side in image.size)
    resized = resize(image, width, height)
    left, top = (width - size) // 2, (height - size) // 2
    return resized.crop((left, top, left + size, top + size))


def _check(image: Image.Image) -> Image.Image:
    if image.mode != "RGB":
        raise ImageError(f"squares are made of RGB pictures, not {image.mode}: read it with image.load_image")
    return image
