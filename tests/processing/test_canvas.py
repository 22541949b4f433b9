"""Resizing and padding: what comes out, and that sizes on the way are limited."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from internvl.config import TilingConfig
from internvl.errors import ImageError
from internvl.processing import canvas
from internvl.processing.canvas import pad_to_square, resize
from internvl.processing.crop import centre_square
from internvl.processing.tiling import cut


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_resize_is_pils_bicubic() -> None:
    image = picture(31, 17)
    expected = image.resize((8, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(resize(image, 8, 24)), np.asarray(expected))


def test_padding_is_centred_on_the_colour() -> None:
    square = pad_to_square(picture(4, 7), (123, 116, 103))
    pixels = np.asarray(square)
    assert square.size == (7, 7)
    np.testing.assert_array_equal(pixels[:, 1:5], np.asarray(picture(4, 7)))
    assert (np.delete(pixels, [1, 2, 3, 4], axis=1) == (123, 116, 103)).all()


def test_a_square_is_not_copied() -> None:
    image = picture(5, 5)
    assert pad_to_square(image, (0, 0, 0)) is image


PADDED = TilingConfig(dynamic=False, pad_to_square=True)


@pytest.mark.parametrize(
    ("size", "use"),
    [
        ((5_000_000, 1), lambda image: cut(image, PADDED)),
        ((30_000, 1), lambda image: cut(image, PADDED)),
        ((5_000_000, 1), lambda image: cut(image, TilingConfig())),
        ((1, 5_000_000), lambda image: cut(image, TilingConfig())),
        ((5_000_000, 1), lambda image: centre_square(image, 448)),
        ((1, 1_000_000), lambda image: centre_square(image, 448)),
        ((600, 600), lambda image: resize(image, 2**14, 2**15)),
    ],
)
def test_thin_pictures_do_not_become_huge_ones(size, use) -> None:
    with pytest.raises(ImageError, match=f"a picture of {size[0]} x {size[1]} pixels would need"):
        use(Image.new("RGB", size))


def test_limits_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "MAX_CANVAS_PIXELS", 100)
    monkeypatch.setattr(canvas, "MAX_SIDE", 20)
    assert pad_to_square(picture(10, 3), (0, 0, 0)).size == (10, 10)
    assert resize(picture(20, 1), 5, 5).size == (5, 5)
    with pytest.raises(ImageError, match="11 x 11"):
        pad_to_square(picture(11, 3), (0, 0, 0))
    with pytest.raises(ImageError, match="20 a side"):
        resize(picture(21, 1), 5, 5)
    with pytest.raises(ImageError, match="would need 6 x 17"):
        resize(picture(1, 17), 6, 6)
