"""The stand-ins for torchvision's transforms make what `build_transform` makes."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from internvl.compat import IMAGENET_MEAN, IMAGENET_STD, InterpolationMode, build_transform
from internvl.compat import transforms as T
from tests.compat.conftest import noise


def test_the_published_chain(photo: Image.Image) -> None:
    chain = T.Compose(
        [
            T.Lambda(lambda image: image.convert("RGB") if image.mode != "RGB" else image),
            T.Resize((84, 84), interpolation=InterpolationMode.BICUBIC),
            T.ToTensor(),
            T.Normalize(mean=IMAGENET_MEAN, std=IMAGENET_STD),
        ]
    )
    assert torch.equal(chain(photo), build_transform(84)(photo))


@pytest.mark.parametrize(("size", "expected"), [((200, 100), (100, 50)), ((100, 201), (50, 100))])
def test_a_single_size_is_the_shorter_side(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert T.Resize(50)(noise(*size)).size == expected
