"""A random part of a picture as a square, mirrored half of the time: no two looks at it are the same.

The augmentation of InternVL-G's retrieval fine-tuning: half to all of the area, at a ratio of sides between
3:4 and 4:3, in any place (the usual "random resized crop"), bicubic. Knows PIL only.
"""

from __future__ import annotations

import math
import random

from PIL import Image

from internvl.processing.canvas import resize

AREA = (0.5, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
"""Of a part that may lie outside; then the centre is taken."""


def random_crop(image: Image.Image, size: int, draw: random.Random) -> Image.Image:
    """`size` x `size` pixels of an RGB picture. Raises ImageError as `canvas.resize`."""
    left, top, width, height = _part(*image.size, draw)
    square = resize(image.crop((left, top, left + width, top + height)), size, size)
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else square


def _part(width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
    """Left, top, width and height of the part that is kept."""
    for _ in range(ATTEMPTS):
        area = width * height * draw.uniform(*AREA)
        ratio = math.exp(draw.uniform(*map(math.log, RATIO)))
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < columns <= width and 0 < rows <= height:
            return draw.randint(0, width - columns), draw.randint(0, height - rows), columns, rows
    columns = min(width, max(1, round(height * RATIO[1])))
    rows = min(height, max(1, round(width / RATIO[0])))
    return (width - columns) // 2, (height - rows) // 2, columns, rows
