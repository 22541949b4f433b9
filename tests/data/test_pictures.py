"""Tiles of pictures for training: shares of the limit, headers, JPEG."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from internvl.config import TilingConfig
from internvl.data.media import ONE_TILE
from internvl.data.pictures import PictureReader, cut_tiles, share_tiles
from internvl.data.video_frames import Frame
from internvl.errors import ImageError
from internvl.processing.clip import VideoLimits
from internvl.processing.colour import ImagePolicy
from internvl.processing.conversation import Picture
from internvl.processing.image import ImageLimits
from internvl.processing.tiles import prepare
from internvl.processing.tiling import TileChoice

TILING = TilingConfig(tile_size=28, max_tiles=12)
READER = PictureReader(images=ImageLimits(), videos=VideoLimits(), policy=ImagePolicy())


def photo(width: int = 60, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [(1, None, 12), (2, None, 6), (5, None, 2), (20, None, 1), (3, 6, 2), (1, 20, 20)],
)
def test_pictures_share_the_limit(count: int, limit: int | None, expected: int) -> None:
    found = share_tiles([Picture("a")] * count, TILING, limit)
    assert [tiling.max_tiles for tiling in found] == [expected] * count


def test_frames_and_pictures_with_a_limit_of_their_own_do_not_count() -> None:
    own = Picture("b", TileChoice(max_tiles=4))
    found = share_tiles([Picture("a"), Picture("v", ONE_TILE), Picture("v", ONE_TILE), own], TILING, None)
    assert [tiling.max_tiles for tiling in found] == [12, 1, 1, 4]


def test_a_limit_below_the_minimum_lowers_it() -> None:
    (tiling,) = share_tiles([Picture("a")], TilingConfig(tile_size=28, min_tiles=4, max_tiles=12), 2)
    assert (tiling.min_tiles, tiling.max_tiles) == (2, 2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_tiles_counted_from_the_header_are_those_cut(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo"
    photo(120, 30).save(path, kind, exif=exif)
    picture = Picture(path)
    (image,) = READER.load([picture])
    assert image.size == ((30, 120) if orientation == 6 else (120, 30))
    tiling = TilingConfig(tile_size=28, max_tiles=4)
    assert READER.num_tiles(picture, tiling) == len(cut_tiles(image, tiling)[0]) == 5
    assert READER.num_tiles(Picture(path.read_bytes()), tiling) == 5


def test_counting_does_not_decode(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    photo(300, 300).save(buffer, "JPEG")
    path = tmp_path / "cut.jpg"
    path.write_bytes(buffer.getvalue()[:2000])
    assert READER.num_tiles(Picture(path), TILING) >= 1
    with pytest.raises(ImageError, match="cut off or damaged"):
        READER.load([Picture(path)])


def test_a_frame_is_one_tile_and_no_file_is_opened() -> None:
    assert READER.num_tiles(Picture(Frame("nowhere.mp4", 3)), TILING) == 1  # type: ignore[arg-type]


def test_without_augmentation_tiles_are_those_of_inference() -> None:
    tiles_N3HW, key = cut_tiles(photo(), TILING)
    expected = prepare(photo(), TILING)
    assert torch.equal(tiles_N3HW, expected.tiles_N3HW)
    assert key == expected.key


def test_every_tile_is_stored_as_jpeg_with_its_own_quality() -> None:
    draw = random.Random(3)
    tiles_N3HW, key = cut_tiles(photo(), TILING, draw=draw)
    plain = prepare(photo(), TILING)
    replay = random.Random(3)
    replay.random()
    cut = plain.tiles_N3HW * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    cut = ((cut + torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) * 255).round().to(torch.uint8)
    assert len(tiles_N3HW) == len(cut) == 3
    for found_3HW, tile_3HW in zip(tiles_N3HW, cut, strict=True):
        stored = io.BytesIO()
        quality = replay.randint(75, 100)
        Image.fromarray(tile_3HW.permute(1, 2, 0).numpy()).save(stored, "JPEG", quality=quality)
        again = prepare(Image.open(stored), TilingConfig(tile_size=28, dynamic=False)).tiles_N3HW[0]
        assert torch.equal(found_3HW, again)
    assert key != plain.key
    assert key == cut_tiles(photo(), TILING, draw=random.Random(3))[1]
    assert key != cut_tiles(photo(), TILING, draw=random.Random(4))[1]


@pytest.mark.parametrize(
    "options",
    [
        {"tiling": TilingConfig(tile_size=28, dynamic=False, pad_to_square=True)},
        {"tiling": TilingConfig(tile_size=28, max_tiles=1), "is_frame": True},
    ],
)
def test_whole_pictures_are_stored_before_they_are_resized_and_not_padded(options: dict[str, object]) -> None:
    tiles_N3HW, _ = cut_tiles(photo(), draw=random.Random(3), **options)  # type: ignore[arg-type]
    replay = random.Random(3)
    replay.random()
    stored = io.BytesIO()
    photo().save(stored, "JPEG", quality=replay.randint(75, 100))
    expected = prepare(Image.open(stored), TilingConfig(tile_size=28, dynamic=False))
    assert torch.equal(tiles_N3HW, expected.tiles_N3HW)
