"""The picture functions of published scripts, against the reference's grids and pixels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from internvl.compat import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_transform,
    dynamic_preprocess,
    find_closest_aspect_ratio,
    load_image,
)
from internvl.errors import ImageError
from tests.compat.conftest import noise


def test_statistics() -> None:
    assert (IMAGENET_MEAN, IMAGENET_STD) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_grids_of_the_reference(golden_dir: Path) -> None:
    rows = json.loads((golden_dir / "preprocess" / "expected.json").read_text(encoding="utf-8"))["grids"]
    checked = 0
    for row in rows:
        order = [tuple(ratio) for ratio in row["candidate_order"]]
        for width, height, columns, rows_, _ in row["cases"]:
            found = find_closest_aspect_ratio(width / height, order, width, height, row["image_size"])
            assert found == (columns, rows_)
            checked += 1
    assert checked > 100


@pytest.mark.parametrize(("max_num", "thumbnail", "expected"), [(12, True, 3), (12, False, 2), (1, True, 1)])
def test_tiles_of_a_picture(photo: Image.Image, max_num: int, thumbnail: bool, expected: int) -> None:
    tiles = dynamic_preprocess(photo, image_size=84, use_thumbnail=thumbnail, max_num=max_num)
    assert [tile.size for tile in tiles] == [(84, 84)] * expected
    assert len(dynamic_preprocess(photo, min_num=4, max_num=4, image_size=84)) == 4


def test_load_image_is_cut_and_transformed(photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "photo.png")
    found = load_image(str(tmp_path / "photo.png"), input_size=84, max_num=12)
    transform = build_transform(input_size=84)
    tiles = dynamic_preprocess(photo, image_size=84, use_thumbnail=True, max_num=12)
    assert torch.equal(found, torch.stack([transform(tile) for tile in tiles]))
    assert found.shape == (3, 3, 84, 84)


def test_load_image_equals_golden_tiles(golden_dir: Path) -> None:
    folder = golden_dir / "internvl2_5_qwen2"
    from safetensors.torch import load_file

    expected = load_file(folder / "expected.safetensors")["pixel_values_1"]
    found = load_image(golden_dir / "images" / "image1.jpg", input_size=84, max_num=4)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_transform_of_one_picture() -> None:
    image = Image.new("L", (30, 40), 255)
    found = build_transform(28)(image)
    expected = (1 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(found, expected.view(3, 1, 1).expand(3, 28, 28))


def test_transparency_is_dropped_as_in_the_released_code() -> None:
    picture = noise(84, 84)
    hidden = picture.copy()
    hidden.putalpha(0)
    assert torch.equal(build_transform(84)(hidden), build_transform(84)(picture))


def test_missing_picture(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.jpg"):
        load_image(tmp_path / "none.jpg")
