"""Tiles as tensors against the reference, and the key that names them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from internvl.config import NORMALIZATION_STATISTICS, TilingConfig
from internvl.errors import ImageError
from internvl.processing.image import load_image
from internvl.processing.tiles import image_key, normalize, prepare
from internvl.processing.tiling import Grid, TileChoice, cut


def tiling_of(case: dict) -> TilingConfig:
    return TilingConfig(
        tile_size=case["image_size"],
        dynamic=case["max_num"] > 0,
        min_tiles=max(1, case["min_num"]),
        max_tiles=max(1, case["max_num"]),
        thumbnail=case["use_thumbnail"],
        pad_to_square=case["pad2square"],
        normalization=case["normalize_type"],
    )


def test_golden_photos(golden_dir):
    cases = json.loads((golden_dir / "preprocess" / "expected.json").read_text(encoding="utf-8"))["photos"]
    tensors = load_file(golden_dir / "preprocess" / "expected.safetensors")
    assert cases
    for key, case in cases.items():
        image = load_image(golden_dir / "images" / case["image"])
        tiling, stats, step = tiling_of(case), case["stats"], case["stride"]
        tiles_N3HW = prepare(image, tiling).tiles_N3HW
        assert list(tiles_N3HW.shape) == stats["shape"], key
        pixels = b"".join(tile.tobytes() for tile in cut(image, tiling))
        # Bicubic bytes may move by one between builds of Pillow.
        is_same_build = hashlib.sha256(pixels).hexdigest() == stats["sha256_uint8"]
        torch.testing.assert_close(
            tiles_N3HW[:, :, ::step, ::step], tensors[key], rtol=0, atol=1e-6 if is_same_build else 0.02
        )
        assert float(tiles_N3HW.double().mean()) == pytest.approx(
            stats["mean"], abs=1e-6 if is_same_build else 1e-3
        )


def test_golden_bytes_are_equal_with_the_tested_pillow(golden_dir):
    cases = json.loads((golden_dir / "preprocess" / "expected.json").read_text(encoding="utf-8"))["photos"]
    digests = {}
    for key, case in cases.items():
        tiles = cut(load_image(golden_dir / "images" / case["image"]), tiling_of(case))
        digests[key] = hashlib.sha256(b"".join(tile.tobytes() for tile in tiles)).hexdigest()
    assert digests == {key: case["stats"]["sha256_uint8"] for key, case in cases.items()}


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))


SMALL = TilingConfig(tile_size=16, max_tiles=6)


@pytest.mark.parametrize("normalization", list(NORMALIZATION_STATISTICS))
def test_normalisation_is_rounded_step_by_step(image, normalization):
    (tile,) = normalize([image], normalization)
    mean, std = (np.array(row, np.float32) for row in NORMALIZATION_STATISTICS[normalization])
    expected = (np.asarray(image).astype(np.float32) / np.float32(255) - mean) / std
    assert tile.dtype == torch.float32
    np.testing.assert_array_equal(tile.numpy(), expected.transpose(2, 0, 1))


def test_prepare_keeps_the_size_of_the_picture(image):
    tiles = prepare(image, SMALL)
    assert tiles.tiles_N3HW.shape == (7, 3, 16, 16)
    assert (tiles.grid, tiles.width, tiles.height, tiles.num_tiles) == (Grid(3, 2), 96, 64, 7)
    assert tiles.tiles_N3HW.is_contiguous()


def test_prepare_follows_choice_and_budget(image):
    assert prepare(image, SMALL, TileChoice(detail="low")).num_tiles == 1
    assert prepare(image, SMALL, TileChoice(thumbnail=False)).num_tiles == 6
    assert prepare(image, SMALL, budget=2).num_tiles == 3


def test_equal_pictures_have_equal_keys(image):
    key = prepare(image, SMALL).key
    assert key == prepare(image.copy(), SMALL).key == image_key(image, SMALL)
    assert len(key) == 32
    # Limits that lead to the same tiles share what was computed for them.
    assert key == prepare(image, replace(SMALL, max_tiles=7)).key


@pytest.mark.parametrize(
    "change",
    [
        {"tile_size": 32},
        {"max_tiles": 2},
        {"thumbnail": False},
        {"normalization": "clip"},
        {"dynamic": False},
    ],
)
def test_keys_differ_with_the_tiles(image, change):
    assert prepare(image, SMALL).key != prepare(image, replace(SMALL, **change)).key


def test_keys_differ_with_one_pixel_and_with_the_shape(image):
    other = image.copy()
    other.putpixel((95, 63), tuple(255 - value for value in image.getpixel((95, 63))))
    turned = Image.frombytes("RGB", (64, 96), image.tobytes())
    assert len({image_key(picture, SMALL) for picture in (image, other, turned)}) == 3


def test_padding_is_part_of_the_key_only_where_it_is_done(image):
    padded = replace(SMALL, pad_to_square=True)
    assert image_key(image, SMALL) == image_key(image, padded)
    assert image_key(image, replace(SMALL, dynamic=False)) != image_key(image, replace(padded, dynamic=False))


def test_bad_tiles_are_refused(image):
    with pytest.raises(ImageError, match="no tiles"):
        normalize([], "imagenet")
    with pytest.raises(ImageError, match="one size"):
        normalize([image, image.crop((0, 0, 5, 5))], "imagenet")
    with pytest.raises(ImageError, match="not L"):
        image_key(image.convert("L"), SMALL)
