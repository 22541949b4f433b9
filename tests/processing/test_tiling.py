"""The grid rule, cutting, per-picture choices, budgets."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from internvl.config import TilingConfig
from internvl.errors import ImageError
from internvl.processing import tiling
from internvl.processing.canvas import pad_to_square
from internvl.processing.tiling import Grid, TileChoice, choose_grid, count_tiles, cut, resolve


@pytest.fixture(scope="module")
def expected(golden_dir):
    return json.loads((golden_dir / "preprocess" / "expected.json").read_text(encoding="utf-8"))


def picture(width: int, height: int) -> Image.Image:
    """Every pixel differs from its neighbours."""
    values = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_golden_grids(expected):
    for case in expected["grids"]:
        config = TilingConfig(
            tile_size=case["image_size"],
            min_tiles=case["min_num"],
            max_tiles=case["max_num"],
            thumbnail=case["use_thumbnail"],
        )
        for width, height, columns, rows, num_tiles in case["cases"]:
            grid, _ = tiling.plan(width, height, config)
            assert (grid.columns, grid.rows) == (columns, rows), (case["max_num"], width, height)
            assert count_tiles(width, height, config) == num_tiles


def test_golden_candidate_order(expected):
    for case in expected["grids"]:
        order = tiling._candidates(case["min_num"], case["max_num"])
        assert [list(grid) for grid in order] == case["candidate_order"]


def test_golden_tiles_of_several_images(expected, golden_dir):
    for case in expected["multi_image"]:
        budget = tiling.split_budget(case["max_dynamic_patch"], len(case["images"]))
        assert budget == case["max_num_per_image"]
        config = resolve(TilingConfig(max_tiles=case["max_dynamic_patch"]), budget=budget)
        counts = []
        for name in case["images"]:
            with Image.open(golden_dir / "images" / name) as image:
                counts.append(count_tiles(*image.size, config))
        assert counts == case["tiles"]


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((448, 448), (1, 1)),
        ((896, 448), (2, 1)),
        ((448, 896), (1, 2)),
        ((800, 600), (4, 3)),
        ((300, 300), (1, 1)),
    ],
)
def test_usual_sizes(size, grid):
    assert choose_grid(*size) == Grid(*grid)


def test_equal_aspect_takes_the_larger_grid_only_for_large_pictures():
    # 2x2 has as many pixels as 896 x 896; it is taken from more than half of them on.
    assert choose_grid(633, 633) == Grid(1, 1)
    assert choose_grid(634, 634) == Grid(2, 2)
    assert choose_grid(5000, 5000) == Grid(3, 3)


@pytest.mark.parametrize(
    ("size", "grid"), [((1, 1), (1, 1)), ((100_000, 1), (12, 1)), ((1, 100_000), (1, 12))]
)
def test_extreme_sizes_are_cut(size, grid):
    config = TilingConfig(tile_size=8)
    tiles = cut(Image.new("RGB", size, (9, 99, 199)), config)
    assert tiling.plan(*size, config)[0] == Grid(*grid)
    assert len(tiles) == count_tiles(*size, config)
    assert all(tile.getextrema() == ((9, 9), (99, 99), (199, 199)) and tile.size == (8, 8) for tile in tiles)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0, "height": 5}, "0 x 5"),
        ({"width": 5, "height": 5, "min_tiles": 0}, "not 0 and 12"),
        ({"width": 5, "height": 5, "min_tiles": 4, "max_tiles": 3}, "not 4 and 3"),
        ({"width": 5, "height": 5, "max_tiles": 10**9}, "<= 512, not 1 and 1000000000"),
    ],
)
def test_impossible_grids_are_refused(arguments, message):
    with pytest.raises(ImageError, match=message):
        choose_grid(**arguments)


def test_tiles_are_row_by_row_and_the_thumbnail_is_last():
    image = picture(96, 64)
    tiles = cut(image, TilingConfig(tile_size=16, max_tiles=6))
    whole = np.asarray(image.resize((48, 32), Image.Resampling.BICUBIC))
    assert len(tiles) == 7
    for index, tile in enumerate(tiles[:-1]):
        row, column = divmod(index, 3)
        np.testing.assert_array_equal(
            np.asarray(tile), whole[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        )
    np.testing.assert_array_equal(
        np.asarray(tiles[-1]), np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    )


def test_one_tile_has_no_thumbnail():
    assert len(cut(picture(20, 20), TilingConfig(tile_size=16, max_tiles=1))) == 1


def test_thumbnail_can_be_left_out():
    assert len(cut(picture(96, 64), TilingConfig(tile_size=16, max_tiles=6, thumbnail=False))) == 6


def test_without_dynamic_tiling_the_picture_is_stretched():
    image = picture(50, 20)
    (tile,) = cut(image, TilingConfig(tile_size=16, dynamic=False))
    np.testing.assert_array_equal(
        np.asarray(tile), np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    )


def test_the_fill_colour_is_the_mean():
    assert tiling.fill_colour("imagenet") == (123, 116, 103)


def test_padding_is_applied_before_the_resize_and_only_without_dynamic_tiling():
    image = picture(40, 10)
    padded = pad_to_square(image, (123, 116, 103)).resize((16, 16), Image.Resampling.BICUBIC)
    (tile,) = cut(image, TilingConfig(tile_size=16, dynamic=False, pad_to_square=True))
    np.testing.assert_array_equal(np.asarray(tile), np.asarray(padded))
    dynamic = TilingConfig(tile_size=16, max_tiles=4)
    same = TilingConfig(tile_size=16, max_tiles=4, pad_to_square=True)
    assert [t.tobytes() for t in cut(image, dynamic)] == [t.tobytes() for t in cut(image, same)]


def test_other_modes_are_refused():
    with pytest.raises(ImageError, match="not L"):
        cut(Image.new("L", (4, 4)), TilingConfig())


MODEL = TilingConfig(min_tiles=1, max_tiles=12)


@pytest.mark.parametrize(
    ("choice", "budget", "limits"),
    [
        (None, None, (1, 12)),
        (TileChoice(), None, (1, 12)),
        (TileChoice(max_tiles=6), None, (1, 6)),
        (TileChoice(max_tiles=40), None, (1, 40)),
        (TileChoice(min_tiles=4), None, (4, 12)),
        (TileChoice(min_tiles=20), None, (20, 20)),
        (TileChoice(min_tiles=3, max_tiles=3), None, (3, 3)),
        (TileChoice(detail="low"), None, (1, 1)),
        (TileChoice(detail="high"), 3, (1, 12)),
        (TileChoice(detail="auto"), 3, (1, 3)),
        (TileChoice(detail="low", max_tiles=2), None, (1, 2)),
        (None, 3, (1, 3)),
        (None, 100, (1, 12)),
        (TileChoice(max_tiles=7), 3, (1, 7)),
    ],
)
def test_choices_and_budgets(choice, budget, limits):
    config = resolve(MODEL, choice, budget=budget)
    assert (config.min_tiles, config.max_tiles) == limits
    assert config.thumbnail


def test_a_lower_maximum_lowers_the_models_minimum():
    config = resolve(TilingConfig(min_tiles=4), TileChoice(detail="low"))
    assert (config.min_tiles, config.max_tiles) == (1, 1)


def test_the_thumbnail_is_a_choice():
    assert not resolve(MODEL, TileChoice(thumbnail=False)).thumbnail


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tiles": 0}, "max_tiles must be a whole number in 1..512, not 0"),
        ({"min_tiles": -2}, "min_tiles must be a whole number in 1..512, not -2"),
        ({"max_tiles": 10**9}, "max_tiles must be a whole number in 1..512, not 1000000000"),
        ({"min_tiles": 513}, "min_tiles .* not 513"),
        ({"max_tiles": "6"}, "max_tiles .* not '6'"),
        ({"max_tiles": 6.5}, "max_tiles .* not 6.5"),
        ({"max_tiles": True}, "max_tiles .* not True"),
        ({"max_tiles": [6]}, r"max_tiles .* not \[6\]"),
        ({"min_tiles": 5, "max_tiles": 4}, "min_tiles=5 is more than max_tiles=4"),
        ({"detail": "medium"}, "'medium'"),
        ({"detail": ["low"]}, r"\['low'\]"),
        ({"thumbnail": "no"}, "thumbnail must be true or false, not 'no'"),
        ({"thumbnail": 0}, "thumbnail must be true or false, not 0"),
    ],
)
def test_impossible_choices_are_refused(fields, message):
    with pytest.raises(ImageError, match=message):
        TileChoice(**fields)


def test_the_largest_choice_is_planned():
    config = resolve(MODEL, TileChoice(max_tiles=tiling.MAX_TILES))
    assert tiling.plan(1000, 1, config)[0] == Grid(512, 1)


def test_a_one_tile_model_stays_one():
    fixed = TilingConfig(dynamic=False)
    assert resolve(fixed, TileChoice(max_tiles=6, detail="high")) == fixed
    with pytest.raises(ImageError, match="min_tiles=2 cannot"):
        resolve(fixed, TileChoice(min_tiles=2))


@pytest.mark.parametrize(
    ("total", "n", "share"), [(12, 1, 12), (12, 5, 2), (12, 13, 1), (6, 4, 1), (24, 2, 12)]
)
def test_split_budget(total, n, share):
    assert tiling.split_budget(total, n) == share


@pytest.mark.parametrize(
    ("total", "n", "message"),
    [
        (12, 0, "not 0"),
        (0, 2, "at least 1, not 0"),
        (-3, 2, "not -3"),
        ("6", 2, "not '6'"),
        (True, 1, "True"),
    ],
)
def test_impossible_budgets_are_refused(total, n, message):
    with pytest.raises(ImageError, match=message):
        tiling.split_budget(total, n)
