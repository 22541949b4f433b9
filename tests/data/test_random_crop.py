"""Random parts of pictures: of any shape, in any place, mirrored half of the time."""

from __future__ import annotations

import random

import pytest
from PIL import Image

from internvl.data.random_crop import AREA, RATIO, _part, random_crop


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (200, 3), (3, 200), (1, 1)])
def test_random_parts_of_any_picture(size: tuple[int, int]) -> None:
    """A ramp from left to right: the part that was taken shows in its ends, a mirrored one falls."""
    image = Image.linear_gradient("L").rotate(90).resize(size).convert("RGB")
    draw = random.Random(0)
    made = [random_crop(image, 8, draw) for _ in range(40)]
    assert all(one.size == (8, 8) for one in made)
    if min(size) > 10:
        rising = sum(one.getpixel((0, 0))[0] < one.getpixel((7, 0))[0] for one in made)  # type: ignore[index]
        assert 10 < rising < 30
        assert len({one.tobytes() for one in made}) > 15


def test_parts_have_the_size_and_the_shape_asked_for() -> None:
    draw = random.Random(0)
    for _ in range(200):
        left, top, width, height = _part(400, 300, draw)
        assert 0 <= left <= 400 - width
        assert 0 <= top <= 300 - height
        assert AREA[0] - 0.01 <= width * height / (400 * 300) <= AREA[1] + 0.01
        assert RATIO[0] - 0.01 <= width / height <= RATIO[1] + 0.01
