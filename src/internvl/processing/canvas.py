"""Resizing and padding, with the sizes on the way checked before memory is asked for.

A picture within the limits of reading can still be one pixel high: made square, or its short side resized,
it would become a picture of many gigabytes. Knows PIL only.
"""

from __future__ import annotations

from PIL import Image

from internvl.errors import ImageError

MAX_CANVAS_PIXELS = 2**28
"""Pixels of any picture on the way to tiles: 1 GiB as Pillow keeps them, three times the limit of reading."""

MAX_SIDE = 2**20
"""Pillow's filter takes 32 bytes for each pixel of a side that it resizes."""


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Stretched to `width` x `height` with PIL's bicubic filter. Raises `ImageError`."""
    check_canvas(image, width, max(height, image.height))  # the width is resized first, row by row
    return image.resize((width, height), Image.Resampling.BICUBIC)


def pad_to_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """RGB, centred on a square canvas of the longer side; an odd pixel goes right or below."""
    side = max(image.size)
    if image.width == image.height:
        return image
    check_canvas(image, side, side)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def check_canvas(image: Image.Image, width: int, height: int) -> None:
    """Raises `ImageError` when `image`, or the canvas it needs on the way, is too large."""
    if max(image.size) > MAX_SIDE or width * height > MAX_CANVAS_PIXELS:
        raise ImageError(
            f"a picture of {image.width} x {image.height} pixels would need {width} x {height} on its way to "
            f"the model; the limits are {MAX_SIDE} a side and {MAX_CANVAS_PIXELS} in all: crop or shrink it"
        )
