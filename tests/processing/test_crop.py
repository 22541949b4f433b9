"""Centre squares: what is kept, and that they equal transformers' CLIP preprocessing."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from internvl.errors import ImageError, InputError
from internvl.processing.crop import centre_square, fit_square


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(70, 70), (101, 70), (70, 133), (333, 500), (20, 31), (7, 3)])
def test_equals_clip_preprocessing(size: tuple[int, int]) -> None:
    image = noise(*size)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 56}, crop_size=56, do_normalize=False, do_rescale=False
    )
    expected = processor(image)["pixel_values"][0]
    assert np.array_equal(np.asarray(centre_square(image, 56)).transpose(2, 0, 1), expected)


def test_refuses_other_modes() -> None:
    with pytest.raises(ImageError, match="not L"):
        centre_square(Image.new("L", (5, 5)), 4)


def test_squashed_pictures_are_whole() -> None:
    image = noise(101, 70)
    expected = image.resize((56, 56), Image.Resampling.BICUBIC)
    assert fit_square(image, 56, "squash").tobytes() == expected.tobytes()
    assert fit_square(image, 56, "crop").tobytes() == centre_square(image, 56).tobytes()


def test_a_fit_that_does_not_exist() -> None:
    with pytest.raises(InputError, match="not 'pad'"):
        fit_square(noise(8, 8), 4, "pad")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="not L"):
        fit_square(noise(8, 8).convert("L"), 4, "squash")
